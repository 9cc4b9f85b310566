"""The report of cache policies: every number on the page, nothing loaded, nothing obeyed."""

from __future__ import annotations

import base64
import io
import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from torch import Tensor

from modicum.errors import OutputExists
from modicum.evaluate import Spread
from modicum.evaluate.cache_comparison import CacheComparison, CacheEntry
from modicum.report.cache_figures import selectivity_map, staircase
from modicum.report.cache_rows import best_at_budget, champion, columns, headline
from modicum.report.caches import cache_table, render, sheet, write_cache_report
from modicum.report.files import check_free, write_whole
from modicum.report.pictures import GAP, enlarged, grid, labelled, to_png

HOSTILE = '<script>alert("x")</script>&<img src=http://example.org/x.png>'


def _entry(policy: str, budget: str | None, psnr: float | None, **more: object) -> CacheEntry:
    return CacheEntry(
        policy=policy,
        budget=budget,
        psnr=psnr,
        carried=(100, 1000 if budget is None else 123),
        peak_bytes=2000 if budget is None else 456,
        seconds=Spread(1.0, 0.9, 1.1),
        seconds_ratio=Spread(1.0, 1.0, 1.0) if budget is None else Spread(0.8123, 0.7, 0.9),
        **more,
    )


def _comparison(*entries: CacheEntry, **more: object) -> CacheComparison:
    facts: dict[str, object] = {
        "name": "nano-var", "sizes": ((1, 1), (2, 2), (4, 4)), "images": 2, "at_once": 2, "seeds": (3, 4),
        "captions": ("0", "1"), "rounds": 1,
    }  # fmt: skip
    return CacheComparison(entries=entries, **(facts | more))  # type: ignore[arg-type]


FULL = _entry("full", None, None)
SCALE = {"tokens": ((0, 1, 5), (0, 1, 2)), "drafters": ((0, 2),), "ssim": 0.98765, "frechet": 3.21987}


@pytest.fixture
def comparison() -> CacheComparison:
    return _comparison(
        FULL,
        _entry("snapkv", "10%", 21.123456, ssim=0.91234, frechet=9.87654),
        _entry("scalekv", "10%", 23.456789, settings={"mode": HOSTILE, "drafters": None}, **SCALE),
        _entry("snapkv", "4%", 19.5, ssim=0.9),
        _entry("scalekv", "4%", math.inf, ssim=1.0, settings={"mode": HOSTILE}),
        name=f"nano {HOSTILE}",
        captions=(HOSTILE, "1"),
        selectivity=((0.0, 0.1, 0.2), (0.0, 0.2, 0.4)),
        sampling={"cfg": 1.5},
        command=f"modicum compare-kv {HOSTILE}",
        environment={"processor": HOSTILE},
        feature_space=HOSTILE,
    )


@pytest.fixture
def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, 3, 16, 16, generator=generator) for _ in range(5)]


class Page(HTMLParser):
    """Tags, attributes and words; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]
        if tag not in {"meta", "br", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_shows_every_measured_number_exactly(
    comparison: CacheComparison, images: list[Tensor]
) -> None:
    values = {v for name, v in Page(render(comparison, images)).attributes if name == "value"}
    for entry in comparison.entries:
        for number in (entry.psnr, entry.ssim, entry.frechet, entry.carried_bytes, entry.peak_bytes):
            assert number is None or repr(number) in values
        assert repr(entry.seconds_ratio.median) in values


def test_the_page_loads_and_obeys_nothing(comparison: CacheComparison, images: list[Tensor]) -> None:
    text = render(comparison, images)
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "use"} & set(page.tags)
    sources = [value for name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 5
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "<script" not in text
    policy = next(value for name, value in page.attributes if "default-src" in value)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    # title, name, lead, command, feature space, settings, processor
    assert text.count("&lt;img src=http://example.org/x.png&gt;") >= 7


def test_the_pictures_are_those_that_were_drawn(comparison: CacheComparison, images: list[Tensor]) -> None:
    strips = [v for name, v in Page(render(comparison, images)).attributes if name == "src"]
    for source, drawn in zip(strips, images, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))
        assert pixels.shape == (96, 2 * 96 + GAP, 3)
        levels = (drawn * 255).round().byte().permute(0, 2, 3, 1).numpy()
        assert np.array_equal(pixels[::6, :96:6], levels[0])
        assert np.array_equal(pixels[::6, 96 + GAP :: 6], levels[1])


def test_what_is_best_is_said_of_policies_at_the_same_budget(comparison: CacheComparison) -> None:
    by_title = {column.title: column for column in columns(comparison)}
    marks = {
        title: [best_at_budget(comparison, by_title[title], entry) for entry in comparison.entries]
        for title in ("PSNR", "SSIM", "Frechet", "Time")
    }
    assert marks["PSNR"] == [False, False, True, False, True]
    assert marks["SSIM"] == [False, False, True, False, True]
    assert marks["Frechet"] == [False, False, True, False, False]  # nobody to compare with at 4%
    assert not any(marks["Time"])
    assert "LPIPS" not in by_title


def test_the_headline_names_the_closest_at_the_middle_budget(comparison: CacheComparison) -> None:
    best = champion(comparison)
    assert best is comparison.entries[4]  # two budgets: the second is the middle one
    assert headline(comparison) == "scalekv: 12.3 % of the cache, images at ∞ dB, identical"
    three = _comparison(FULL, *(_entry("h2o", budget, 20.0) for budget in ("20%", "10%", "4%")))
    assert champion(three) is three.entries[2]
    assert headline(_comparison(FULL)) == "The full cache alone"


def test_sections_without_content_are_left_out(images: list[Tensor]) -> None:
    words = Page(render(_comparison(FULL), images[:1])).words
    assert not {"Who keeps what", "How it was made"} & set(words)
    assert {"What it draws", "What it cost, what it brought"} <= set(words)


def test_a_quantity_that_was_not_measured_is_called_so(
    comparison: CacheComparison, images: list[Tensor]
) -> None:
    words = Page(render(comparison, images)).words
    assert words.count("not measured") == 2  # the Frechet distance at 4%
    assert any("LPIPS was not measured" in word for word in words)


def test_it_is_said_whether_there_are_drafters(comparison: CacheComparison, images: list[Tensor]) -> None:
    def notes(found: CacheComparison) -> str:
        return " ".join(Page(render(found, images[: len(found.entries)])).words)

    assert "Framed: the drafters" in notes(comparison)
    equal = _entry("scalekv", "10%", 23.0, settings={"drafters": None}, tokens=SCALE["tokens"])
    without = notes(_comparison(FULL, equal))
    assert "No layer is a drafter" in without
    assert "Tokens carried, scalekv 10%" in without


def test_figures_mark_the_drafters(comparison: CacheComparison) -> None:
    assert comparison.selectivity is not None
    picture = selectivity_map(comparison.selectivity, [(0, 2)])
    assert picture.count("<rect") == 4  # two layers, maps 1 and 2
    assert picture.count("drafter") == 2  # the frame and the title of one
    assert "layer 0, map 2: ASI 0.2000, z -1.00, drafter" in picture
    steps = staircase(((0, 1, 5), (0, 1, 2)), comparison.sizes, [(0, 2)])
    assert "into map 1: all tokens so far 1, refiner 1" in steps
    assert "into map 2: all tokens so far 5, drafter 5, refiner 2" in steps


def test_everything_is_written_whole(
    comparison: CacheComparison, images: list[Tensor], tmp_path: Path
) -> None:
    page = write_cache_report(comparison, images, tmp_path / "new" / "report")
    write_cache_report(comparison, images, page.parent)  # replaces the first
    assert sorted(file.name for file in page.parent.iterdir()) == [
        "comparison.json", "pictures.png", "report.html"
    ]  # fmt: skip
    assert CacheComparison.load(page.parent / "comparison.json") == comparison
    assert json.loads((page.parent / "comparison.json").read_text())["format"] == 1
    assert page.read_text(encoding="utf-8") == render(comparison, images)


def test_the_terminal_says_the_same(comparison: CacheComparison) -> None:
    screen = Console(width=84, record=True, file=io.StringIO())
    screen.print(cache_table(comparison))
    shown = screen.export_text()
    assert max(map(len, shown.splitlines())) <= 84
    for word in ("scalekv 10%", "12.3 %", "0.70–0.90", "identical", "reference"):
        assert word in shown
    assert "…" not in shown


@given(count=st.integers(1, 9), columns=st.one_of(st.none(), st.integers(1, 12)), side=st.integers(1, 6))
def test_every_image_has_its_place_in_a_grid(count: int, columns: int | None, side: int) -> None:
    images = torch.rand(count, 3, side, side + 1, generator=torch.Generator().manual_seed(count))
    whole = grid(images, columns)
    across = min(columns or math.ceil(math.sqrt(count)), count)
    rows = math.ceil(count / across)
    assert whole.shape == (3, rows * (side + GAP) - GAP, across * (side + 1 + GAP) - GAP)
    for index, image in enumerate(images):
        top, left = index // across * (side + GAP), index % across * (side + 1 + GAP)
        assert torch.equal(whole[:, top : top + side, left : left + side + 1], image)
    assert int((whole == 1).all(0).sum()) >= whole[0].numel() - count * side * (side + 1)  # the rest is paper


def test_small_images_are_enlarged_without_blur() -> None:
    image = torch.rand(2, 1, 3, 5)
    large = enlarged(image, 8)
    assert large.shape == (2, 1, 9, 15)
    assert torch.equal(large[..., ::3, ::3], image)
    assert torch.equal(enlarged(image, 2), image)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_holds_the_levels(channels: int) -> None:
    image = torch.rand(channels, 4, 5)
    pixels = np.asarray(Image.open(io.BytesIO(to_png(image))))
    expected = (image * 255).round().byte().permute(1, 2, 0).squeeze(-1).numpy()
    assert np.array_equal(pixels, expected)


def test_labels_stand_beside_their_strips(comparison: CacheComparison, images: list[Tensor]) -> None:
    strips = torch.zeros(2, 3, 20, 30)
    whole = labelled(strips, ["a", "much longer"])
    assert whole.shape[1] == 2 * 20 + GAP
    margin = whole.shape[2] - 30
    assert (whole[:, :20, margin:] == 0).all()
    ink = [int((part[0, :, :margin] < 0.5).sum()) for part in (whole[:, :20], whole[:, 20 + GAP :])]
    assert 0 < ink[0] < ink[1]
    assert sheet(comparison, images).shape[1] == 5 * 64 + 4 * GAP


def test_files_are_not_replaced_by_accident(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "x.png"
    check_free(file, overwrite=False)
    write_whole(file, b"1")
    with pytest.raises(OutputExists, match=r"x\.png exists"):
        check_free(file, overwrite=False)
    check_free(file, overwrite=True)
    write_whole(file, b"2")
    assert file.read_bytes() == b"2"
    assert [entry.name for entry in file.parent.iterdir()] == ["x.png"]
