from __future__ import annotations

import sys
from pathlib import Path

import pytest

from modicum.data import load_text, standard_library
from modicum.data.text import pieces
from modicum.errors import InvalidSetting, MissingExtra, UnusableData


def test_library_splits_are_disjoint_and_complete() -> None:
    train, heldout, everything = (standard_library(split) for split in ("train", "heldout", "all"))
    names = [{document.name for document in part} for part in (train, heldout, everything)]
    assert names[0].isdisjoint(names[1])
    assert names[0] | names[1] == names[2]
    assert 0.02 < len(heldout) / len(everything) < 0.09


def test_library_is_the_same_every_time() -> None:
    assert standard_library("heldout") == standard_library("heldout")


def test_library_split_does_not_depend_on_what_else_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heldout = {document.name for document in standard_library("heldout")}
    for name in ("abc", "queue", "modulefinder", "json"):
        (tmp_path / f"{name}.py").write_text("x = 1\n")
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text("y = 2\n")
    (tmp_path / "broken.py").write_bytes(b"\xff\xfe\x00latin")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    small = {document.name for document in standard_library("all") if not document.name.startswith("topics/")}
    assert small == {"abc", "queue", "modulefinder", "json"}
    assert {document.name for document in standard_library("heldout")} == {
        name for name in heldout if name in small or name.startswith("topics/")
    }


def test_library_without_sources_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path / "python311.zip")})
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UnusableData, match=r"python311\.zip"):
        standard_library("train")


def test_passages_of_the_default_source_are_the_whole_library() -> None:
    passages = load_text(None, "heldout")
    assert sum(map(len, passages)) == sum(len(document.text) for document in standard_library("heldout"))
    assert passages == load_text("stdlib", "heldout")
    assert max(map(len, passages)) <= 6000


def test_pieces_lose_nothing_and_end_at_lines() -> None:
    text = "one\ntwo two\n\nthree" + "x" * 30
    parts = list(pieces(text, 10))
    assert "".join(parts) == text
    assert parts[:2] == ["one\n", "two two\n\n"]
    assert all(0 < len(part) <= 10 for part in parts)


def test_file_splits_are_disjoint_and_rejoin(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    lines = [f"line {number}" for number in range(100)]
    file.write_text("\n".join(lines))
    train, heldout, everything = (load_text(file, split)[0] for split in ("train", "heldout", "all"))
    assert f"{train}\n{heldout}" == everything == "\n".join(lines)
    assert 8 <= len(heldout.splitlines()) <= 13


def test_directory_reads_its_text_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.md").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "sub" / "c.py").write_text("third")
    (tmp_path / "weights.bin").write_bytes(b"\xff\xff")
    assert load_text(tmp_path, "all") == ["first", "second", "third"]


def test_missing_path_names_the_path() -> None:
    with pytest.raises(UnusableData, match=r"no/such/text\.txt"):
        load_text("no/such/text.txt")


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_empty_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "empty.txt").write_bytes(content)
    with pytest.raises(UnusableData, match=r"empty\.txt"):
        load_text(tmp_path / "empty.txt")


def test_empty_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnusableData, match="holds no text"):
        load_text(tmp_path)


def test_undecodable_file_names_path_and_byte(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(UnusableData, match=r"latin\.txt is not UTF-8 text \(byte 3\)"):
        load_text(tmp_path / "latin.txt")


def test_unknown_split_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="'validation'"):
        load_text(None, "validation")  # type: ignore[arg-type]


def test_datasets_package_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match="datasets") as caught:
        load_text("hf:wikitext")
    assert "modicum[datasets]" in caught.value.hint


class FakeRows(dict[str, list[object]]):
    @property
    def column_names(self) -> list[str]:
        return list(self)


class FakeDatasets:
    """Stands in for the package: answers one dataset and remembers how it was asked."""

    def __init__(self) -> None:
        self.asked: tuple[str, str | None, str] | None = None

    def load_dataset(self, name: str, config: str | None, split: str) -> FakeRows:
        if name != "tiny":
            raise FileNotFoundError(name)
        self.asked = (name, config, split)
        return FakeRows(text=["one", " ", "two"], label=[0, 1, 0])


@pytest.fixture
def fake_datasets(monkeypatch: pytest.MonkeyPatch) -> FakeDatasets:
    fake = FakeDatasets()
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return fake


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("hf:tiny", ("tiny", None, "validation")),
        ("hf:tiny:raw", ("tiny", "raw", "validation")),
        ("hf:tiny::test", ("tiny", None, "test")),
        ("hf:tiny:raw:test:text", ("tiny", "raw", "test")),
    ],
)
def test_hugging_face_source(
    fake_datasets: FakeDatasets, source: str, asked: tuple[str, str | None, str]
) -> None:
    assert load_text(source, "heldout") == ["one", "two"]
    assert fake_datasets.asked == asked


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:tiny:::title", "no column 'title'"),
        ("hf:tiny:::label", "no text in the column"),
        ("hf:huge", "hf:huge cannot be loaded"),
    ],
)
def test_hugging_face_sad_paths(fake_datasets: FakeDatasets, source: str, message: str) -> None:
    with pytest.raises(UnusableData, match=message):
        load_text(source)
