from __future__ import annotations

import re
from itertools import pairwise

import pytest

from modicum.evaluate import LayerRecord
from modicum.report.figures import QUANTITIES, colour_scale, heat_map, size_chart

ERROR, SPARSITY, _ = QUANTITIES


def layer(block: int | None, role: str = "q", **values: float) -> LayerRecord:
    return LayerRecord(name=f"layer.{block}.{role}", block=block, role=role, **values)


def opacities(svg: str) -> list[float]:
    return [float(value) for value in re.findall(r'fill-opacity="([\d.]+)"', svg)]


def test_colour_grows_with_the_value_from_zero() -> None:
    svg = heat_map(
        [layer(0, relative_error=0.0), layer(1, relative_error=0.1), layer(2, relative_error=0.2)], ERROR
    )
    assert svg is not None
    low, middle, high = opacities(svg)
    assert middle - low == pytest.approx(high - middle)
    assert low < 0.1
    assert high < 0.7  # text on it stays readable


def test_sparsity_has_the_same_scale_in_every_report() -> None:
    half = heat_map([layer(0, sparsity=0.5)], SPARSITY)
    both = heat_map([layer(0, sparsity=0.5), layer(1, sparsity=0.9)], SPARSITY)
    assert half is not None
    assert both is not None
    assert opacities(half)[0] == opacities(both)[0]
    assert colour_scale([layer(0, sparsity=0.5)], SPARSITY) == ("0 %", "100 %")


def test_every_block_and_role_has_one_cell_with_its_name_and_number() -> None:
    layers = [layer(block, role, relative_error=0.125) for block in range(4) for role in ("q", "down")]
    svg = heat_map(layers, ERROR)
    assert svg is not None
    assert svg.count("<rect") == 8
    for each in layers:
        assert f"<title>{each.name}: 0.125</title>" in svg


def test_experts_of_one_role_share_a_cell_with_mean_and_range() -> None:
    svg = heat_map([layer(0, sparsity=0.2), layer(0, sparsity=0.4)], SPARSITY)
    assert svg is not None
    assert svg.count("<rect") == 1
    assert "mean 30.0 %, 2 layers, 20.0 % to 40.0 %" in svg


def test_layers_without_the_value_leave_holes_and_none_at_all_no_picture() -> None:
    svg = heat_map([layer(0, relative_error=0.1), layer(1), layer(1, "k", relative_error=0.1)], ERROR)
    assert svg is not None
    assert svg.count("<rect") == 2
    assert heat_map([layer(0), layer(1)], ERROR) is None
    assert heat_map([], ERROR) is None


def test_all_zero_errors_are_a_picture_and_no_division_by_zero() -> None:
    svg = heat_map([layer(0, relative_error=0.0)], ERROR)
    assert svg is not None
    assert opacities(svg) == [0.05]


@pytest.mark.parametrize("blocks", [1, 8, 9, 16, 17, 80, 126])
def test_cells_do_not_overlap_and_stay_inside(blocks: int) -> None:
    svg = heat_map([layer(block, sparsity=0.5) for block in range(blocks)], SPARSITY)
    assert svg is not None
    width = float(re.search(r'viewBox="0 0 (\d+)', svg)[1])  # type: ignore[index]
    cells = re.findall(r' x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)
    ends = [(float(x), float(x) + float(wide)) for x, wide in cells]
    assert len(ends) == blocks
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))
    assert ends[-1][1] <= width
    assert all(end - start >= 9 for start, end in ends)  # thin, but visible


def test_size_bars_are_in_proportion_and_layers_outside_of_blocks_come_last() -> None:
    svg = size_chart(
        [
            layer(1, nbytes=100, dense_nbytes=400),
            layer(0, nbytes=100, dense_nbytes=200),
            layer(None, "head", nbytes=400, dense_nbytes=400),
        ]
    )
    assert svg is not None
    heights = dict(re.findall(r"<title>block (\w+): .*?class=\"stored\".*?height=\"([\d.]+)\"", svg))
    assert list(heights) == ["0", "1", "rest"]
    assert float(heights["rest"]) == pytest.approx(4 * float(heights["0"]))
    assert "100 B of 200 B (50.0 %)" in svg


def test_without_bytes_there_is_no_size_chart() -> None:
    assert size_chart([layer(0, sparsity=0.5), layer(1, nbytes=10)]) is None
