from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.apps.pixelgen.generator.tiles import Tiles


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(4, 30), width=st.integers(4, 30), stride=st.integers(1, 4), channels=st.integers(1, 3)
)
def test_blending_untouched_tiles_gives_the_canvas_back(
    height: int, width: int, stride: int, channels: int
) -> None:
    tiles = Tiles(height, width, side=4, stride=stride)
    canvas = torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(height))
    torch.testing.assert_close(tiles.blend(tiles.cut(canvas)), canvas, atol=1e-5, rtol=1e-5)
    assert len(tiles.cut(canvas)) == 2 * tiles.count


def test_a_tile_is_a_part_of_its_canvas() -> None:
    canvas = torch.arange(2 * 8 * 12.0).view(2, 1, 8, 12)
    cut = Tiles(8, 12, side=4, stride=4).cut(canvas)
    assert len(cut) == 2 * 6
    assert torch.equal(cut[0, 0], canvas[0, 0, :4, :4])
    assert torch.equal(cut[5, 0], canvas[0, 0, 4:, 8:])
    assert torch.equal(cut[6, 0], canvas[1, 0, :4, :4])


def test_the_middle_of_a_tile_counts_more_than_its_rim() -> None:
    tiles = Tiles(4, 6, side=4, stride=2)
    black_and_white = torch.stack((torch.zeros(1, 4, 4), torch.ones(1, 4, 4)))
    row = tiles.blend(black_and_white)[0, 0, 1]
    assert row[:2].tolist() == [0, 0]
    assert row[4:].tolist() == [1, 1]
    assert 0 < row[2] < 0.5 < row[3] < 1
