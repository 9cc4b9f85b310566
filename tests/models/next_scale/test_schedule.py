from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.errors import InvalidSetting
from modicum.models.next_scale import Schedule

SIZES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5)


@given(SIZES)
@settings(deadline=None, max_examples=40)
def test_spans_tile_the_sequence(sizes: list[tuple[int, int]]) -> None:
    schedule = Schedule.of(sizes)
    covered = [i for scale in range(len(schedule)) for i in range(*schedule.span(scale).indices(10**6))]
    assert covered == list(range(schedule.total))
    levels = schedule.levels()
    for scale, (height, width) in enumerate(sizes):
        assert (levels[schedule.span(scale)] == scale).all()
        assert schedule.tokens[scale] == height * width
    assert schedule.prefix(1).total == schedule.tokens[0]


@given(SIZES)
@settings(deadline=None, max_examples=20)
def test_mask_is_block_causal(sizes: list[tuple[int, int]]) -> None:
    schedule = Schedule.of(sizes)
    visible, levels = schedule.visible(), schedule.levels()
    for query in range(schedule.total):
        assert torch.equal(visible[query], levels <= levels[query])


def test_progress_and_final() -> None:
    schedule = Schedule.square((1, 2, 4))
    assert [schedule.progress(scale) for scale in range(3)] == [0, 0.5, 1]
    assert Schedule.square((4,)).progress(0) == 0
    assert schedule.final == (4, 4)
    assert schedule.offsets == (0, 1, 5, 21)


@pytest.mark.parametrize("sizes", [(), ((0, 2),)])
def test_no_schedule(sizes: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(InvalidSetting):
        Schedule(sizes)
