"""The report of a depth comparison: the page says what was measured, escapes what it is given, and draws the choice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from modicum.errors import UnusableData
from modicum.evaluate import Spread
from modicum.evaluate.depth_comparison import Decision, DepthComparison, DepthEntry
from modicum.report.depth_figures import stack
from modicum.report.depth_rows import headline
from modicum.report.depths import depth_table, render, write_depth_report

ONE = Spread(1.0, 1.0, 1.0)
LEARNED = Decision(
    method="diffusion.tinyfusion", kept=(0, 3), of=4, groups=((1, 2), (1, 2)), confidence=(0.9, 0.6)
)


def entry(name: str, blocks: int, **facts: float) -> DepthEntry:
    return DepthEntry(
        name=name,
        blocks=blocks,
        parameters=100 * blocks,
        disk_bytes=200 * blocks,
        seconds=Spread(0.1 * blocks, 0.09 * blocks, 0.2 * blocks),
        seconds_ratio=ONE if blocks == 4 else Spread(0.5, 0.4, 0.6),
        **facts,
    )


def comparison(judged: bool = True, decisions: tuple[Decision, ...] = (LEARNED,)) -> DepthComparison:
    facts = [{"accuracy": 0.99, "frechet": 12.0}, {"accuracy": 0.75, "frechet": 30.0}] if judged else [{}, {}]
    return DepthComparison(
        entries=(entry("dense", 4, **facts[0]), entry("<pruned>", 2, **facts[1])),
        decisions=decisions,
        labels=(0, 1, 0),
        seeds=(5, 6, 7),
        at_once=2,
        sampling={"steps": 9},
        command="modicum report x --against y",
    )


def pictures() -> list[torch.Tensor]:
    return [torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]


def test_the_headline_names_size_time_and_distance() -> None:
    assert (
        headline(comparison())
        == "50 % of the parameters, 0.50× the time, Frechet distance 30.0 instead of 12.0"
    )
    assert headline(comparison(judged=False)) == "50 % of the parameters, 0.50× the time"


def test_the_page_holds_every_number_and_picture_and_loads_nothing() -> None:
    page = render(comparison(), pictures())
    for text in ("75.0 %", "30.0", "200", "0.40–0.60", "90 %", "60 %", "seeds from 5", "modicum report x"):
        assert text in page
    assert page.count("data:image/png;base64,") == 2
    assert "<pruned>" not in page
    assert "&lt;pruned&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<script" not in page


def test_what_was_not_measured_is_said() -> None:
    page = render(comparison(judged=False, decisions=()), pictures())
    assert "were not measured" in page
    assert "Frechet distance" in page
    assert "Which blocks stay" not in page


def test_the_surer_choice_is_the_stronger_colour() -> None:
    picture = stack(LEARNED)
    strength = [float(value) for value in re.findall(r'class="gain" fill-opacity="([\d.]+)"', picture)]
    assert len(strength) == 2
    assert strength[0] > strength[1]
    for block, what in enumerate(("stays", "removed", "removed", "stays")):
        assert f"block {block}: {what}" in picture


def test_a_choice_without_groups_has_no_probability() -> None:
    picture = stack(Decision(method="prune.oracle", kept=(0, 2), of=3))
    assert picture.count('class="gain"') == 2
    assert "%" not in picture


@pytest.mark.parametrize("blocks", [1, 12, 28, 100])
def test_the_stack_fits_the_page(blocks: int) -> None:
    width = int(
        re.search(r'width="(\d+)" height', stack(Decision(method="m", kept=(0,), of=blocks))).group(1)
    )
    assert 0 < width <= 836


def test_the_comparison_is_saved_and_read_back(tmp_path: Path) -> None:
    page = write_depth_report(comparison(), pictures(), tmp_path / "new")
    assert sorted(file.name for file in page.parent.iterdir()) == ["report.html", "report.json"]
    assert DepthComparison.load(page.with_name("report.json")) == comparison()
    (tmp_path / "damaged.json").write_text('{"format": 2}')
    for file in ("damaged.json", "missing.json"):
        with pytest.raises(UnusableData, match=file):
            DepthComparison.load(tmp_path / file)


def test_the_terminal_shows_one_row_per_model() -> None:
    assert depth_table(comparison()).row_count == 2
    assert len(depth_table(comparison(judged=False)).columns) == len(depth_table(comparison()).columns) - 2
