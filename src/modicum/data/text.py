"""Text for calibration and evaluation: the standard library of the running Python first, then whatever is
asked for.

A calibration needs text of the kind that the model reads; an example and a test need text that is there
without a download. Every Python installation carries some twelve megabytes of it: the sources of its own
standard library (about thirty with the library's tests, which some Linux distributions leave out) and the
reference pages that `help()` shows.

The split is by module: the SHA-256 of the module's name decides, so a module is wholly in one split, and in
the same split under every version of Python. The order is that of digests too, not of the alphabet, and
`load_text` deals long modules out in passages, so that the first few thousand tokens are already a sample of
the whole.
"""

from __future__ import annotations

import hashlib
import importlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from modicum.errors import InvalidSetting, MissingExtra, UnusableData

Split = Literal["train", "heldout", "all"]

HELDOUT_FRACTION = 0.05  # of the modules of the standard library
FILE_HELDOUT_FRACTION = 0.1  # of the characters of a text file
PASSAGE = 6000  # characters; some two thousand tokens
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py", ".text")

# Third-party code, tables of code points and what the machine's own build wrote are no sample of Python.
_SKIPPED_PARTS = frozenset({"site-packages", "dist-packages", "encodings", "pydoc_data", "__pycache__"})
_SKIPPED_PREFIXES = ("_sysconfigdata", "config-")


@dataclass(frozen=True)
class Document:
    """One text with the name that decides its split: a dotted module name or `topics/<key>`."""

    name: str
    text: str


def standard_library(split: Split) -> list[Document]:
    """Sources of the running interpreter's standard library and the reference pages of `help()`.

    Args:
        split: "train" (about 95 % of the modules), "heldout" (the rest) or "all".

    Returns:
        Documents in the order of their name's digest; the two splits share no module.

    Raises:
        UnusableData: this Python has no readable library sources (a frozen or zipped installation).
    """
    _check_split(split)
    documents = [document for document in _library_documents() if split in ("all", _split_of(document.name))]
    if not documents:
        raise UnusableData(
            f"There are no library sources in {_library_path()}.",
            "Name a text file or a directory as the data source.",
        )
    return sorted(documents, key=lambda document: _digest(document.name))


def load_text(source: str | Path | None = None, split: Split = "train") -> list[str]:
    """Texts of a source.

    Args:
        source: None or "stdlib" (`standard_library` in passages); the path of a text file or of a directory
            of text files (.txt .md .rst .py .text, searched recursively); or
            `hf:DATASET[:config[:split[:column]]]`, read with the optional package `datasets`.
        split: which part. Of a file the last tenth is held out, so that calibration and evaluation on one
            file never meet; "all" takes it whole. Of a Hugging Face dataset without a named split, "heldout"
            is its validation split; a split that the source names is taken whole.

    Returns:
        Passages of the standard library, whole files, or rows of the dataset.

    Raises:
        UnusableData: the source is missing, empty, or not UTF-8 text.
        MissingExtra: `hf:` without the package `datasets`.
    """
    _check_split(split)
    if source is None or str(source) == "stdlib":
        return _library_passages(split)
    if str(source).startswith("hf:"):
        return _hugging_face(str(source), split)
    texts = [part for path in _text_files(Path(source)) if (part := _cut(_read(path), split))]
    if not texts:
        raise UnusableData(f"{source} holds no text.", "Name a text file with something in it.")
    return texts


def pieces(text: str, size: int) -> Iterator[str]:
    """The text in pieces of `size` characters or fewer, each cut behind a newline if it has one."""
    start = 0
    while start < len(text):
        end = start + size
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or end
        yield text[start:end]
        start = end


def _library_passages(split: Split) -> list[str]:
    passages = {
        f"{document.name}#{index}": passage
        for document in standard_library(split)
        for index, passage in enumerate(pieces(document.text, PASSAGE))
    }
    return [passages[name] for name in sorted(passages, key=_digest)]


def _check_split(split: str) -> None:
    if split not in get_args(Split):
        raise InvalidSetting(f"There is no split {split!r}.", f"Splits: {', '.join(get_args(Split))}.")


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _split_of(name: str) -> Split:
    share = int.from_bytes(_digest(name)[:8], "big") / 2**64  # uniform in [0, 1)
    return "heldout" if share < HELDOUT_FRACTION else "train"


def _library_path() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _library_documents() -> Iterator[Document]:
    root = _library_path()
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED_PARTS.intersection(parts) or any(part.startswith(_SKIPPED_PREFIXES) for part in parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue  # the library's tests hold files that are badly encoded on purpose
        if text.strip():
            yield Document(".".join(parts).removesuffix(".__init__"), text)
    yield from _topics()


def _topics() -> Iterator[Document]:
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return
    for key in sorted(topics):
        yield Document(f"topics/{key}", topics[key])


def _text_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UnusableData(
            f"There is no text at {path}.", "Name a text file, a directory, 'stdlib' or 'hf:DATASET'."
        )
    return [
        file for file in sorted(path.rglob("*")) if file.suffix.lower() in TEXT_SUFFIXES and file.is_file()
    ]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UnusableData(
            f"{path} is not UTF-8 text (byte {error.start}).", "Convert it, or name another file."
        ) from error
    except OSError as error:
        raise UnusableData(
            f"{path} cannot be read: {error.strerror}.", "Check the file's permissions."
        ) from error


def _cut(text: str, split: Split) -> str:
    """The part of a file's text that belongs to `split`, cut at a line if there is one."""
    if split == "all":
        return text.strip("\n")
    at = int(len(text) * (1 - FILE_HELDOUT_FRACTION))
    at = text.rfind("\n", 0, at) + 1 or at
    return (text[:at] if split == "train" else text[at:]).strip("\n")


def _hugging_face(source: str, split: Split) -> list[str]:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise MissingExtra.of("datasets", "datasets", f"The data source {source!r}") from error
    name, config, part, column = [*source.removeprefix("hf:").split(":"), "", "", ""][:4]
    part = part or {"train": "train", "heldout": "validation", "all": "all"}[split]
    try:
        rows = datasets.load_dataset(name, config or None, split=part)
    except Exception as error:  # the package raises dozens of kinds; all mean that the data cannot be had
        raise UnusableData(
            f"{source} cannot be loaded: {error}", "Check the dataset's name, config and split."
        ) from error
    return _column(source, rows, column or "text")


def _column(source: str, rows: Any, column: str) -> list[str]:
    if column not in rows.column_names:
        known = ", ".join(rows.column_names)
        raise UnusableData(
            f"{source} has no column {column!r}.", f"Columns: {known}. Write hf:NAME:CONFIG:SPLIT:COLUMN."
        )
    texts = [text for text in rows[column] if isinstance(text, str) and text.strip()]
    if not texts:
        raise UnusableData(
            f"{source} holds no text in the column {column!r}.", "Name another split or column."
        )
    return texts
