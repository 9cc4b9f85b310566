from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from modicum.evaluate import Comparison, Measurements, Sample
from modicum.report import write_report
from modicum.report.html import render

VOID = {"meta", "br"}  # tags that are never closed


class Page(HTMLParser):
    """Tags, attributes, texts and data values of a page; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def values(self) -> list[str]:
        return [value for name, value in self.attributes if name == "value"]


def test_the_page_shows_every_measured_number_of_the_json_exactly(full: Comparison, tmp_path: Path) -> None:
    path = write_report(full, tmp_path / "new" / "folder")
    assert path.name == "report.html"
    numbers = json.loads((path.parent / "report.json").read_text())
    values = Page(path.read_text(encoding="utf-8")).values()
    for side in ("before", "after"):
        for field, measured in numbers[side].items():
            exact = measured["median"] if isinstance(measured, dict) else measured
            assert repr(exact) in values, field
    assert repr(numbers["agreement"]["kl"]) in values
    assert {repr(share) for share in numbers["agreement"]["overlap"].values()} <= set(values)
    assert {repr(numbers[name]["median"]) for name in ("prefill_ratio", "decode_ratio")} <= set(values)


def test_both_files_are_written_whole_and_read_back(full: Comparison, tmp_path: Path) -> None:
    write_report(full, tmp_path)
    write_report(full, tmp_path)  # replaces the first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
    assert Comparison.load(tmp_path / "report.json") == full


def test_the_page_loads_and_runs_nothing(full: Comparison) -> None:
    page = Page(render(full))
    assert not {"script", "link", "img", "iframe", "object", "image", "use"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
    style = page.words[page.words.index(next(word for word in page.words if ":root" in word))]
    assert "url(" not in style
    assert "@import" not in style
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_hostile_text_is_shown_and_not_obeyed(full: Comparison) -> None:
    text = render(full)
    assert "<script" not in text
    assert "<img" not in text
    # name (title, heading), data (lead, protocol), prompt twice, recipe, command, environment, layers
    assert text.count("&lt;img src=http://example.org/x.png&gt;") >= 9


def test_template_signs_in_texts_are_left_alone() -> None:
    assert "costs $headline and ${x}" in render(Comparison(name="costs $headline and ${x}"))


def test_what_is_missing_is_called_not_measured() -> None:
    page = Page(render(Comparison()))
    assert page.values() == []
    assert (
        page.words.count("not measured") == 14
    )  # six quantities before and after, KL and the top token after
    assert "Nothing was measured" in page.words
    half = Page(render(Comparison(after=Measurements(perplexity=3.0))))
    assert half.values() == ["3.0"]
    assert half.words.count("not measured") == 13


def test_sections_without_content_are_left_out(full: Comparison) -> None:
    titles = {"Where it happened", "What it writes", "How it was made"}
    assert titles <= set(Page(render(full)).words)
    assert not titles & set(Page(render(Comparison())).words)


@pytest.mark.parametrize(
    ("before", "after", "marked"),
    [
        (" the same words", " the same words", []),
        (" a red house", " a blue house", ["red", "blue"]),
        (" one\n    two", " one\n    three\n    four", ["two", "three", "four"]),  # indentation is not marked
        ("", " more", ["more"]),
    ],
)
def test_only_the_words_that_differ_are_marked(before: str, after: str, marked: list[str]) -> None:
    text = render(Comparison(samples=(Sample(prompt="p", before=before, after=after),)))
    found = [piece.split("</mark>")[0] for piece in text.split("<mark>")[1:]]
    assert found == marked
    plain = "".join(Page(text).words)
    assert f"p{before}" in plain
    assert f"p{after}" in plain


def test_the_tiles_say_when_a_speed_is_within_noise(full: Comparison) -> None:
    words = Page(render(full)).words
    assert "prefill speed, within noise" in words
    assert "decode speed" in words
