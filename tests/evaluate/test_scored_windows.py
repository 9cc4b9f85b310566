from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.errors import InvalidSetting, UnusableData
from modicum.evaluate import windows as cutting


@given(st.integers(2, 200), st.integers(1, 50), st.data())
@settings(deadline=None, max_examples=100)
def test_every_token_after_the_first_is_scored_exactly_once(
    tokens: int, window: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    cut = cutting.windows(tokens, window, stride)
    scored = [position for each in cut for position in range(each.scored, each.end)]
    assert scored == list(range(tokens - 1))
    assert all(each.start <= each.scored < each.end <= each.start + window for each in cut)


@given(st.integers(2, 120), st.integers(1, 30), st.integers(1, 5), st.data())
@settings(deadline=None, max_examples=100)
def test_batches_hold_each_target_once_and_inputs_end_just_before_it(
    n: int, window: int, batch: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, window))
    tokens = torch.arange(n)
    targets: list[int] = []
    for inputs, wanted in cutting.batches(tokens, window, stride, batch):
        assert len(inputs) == len(wanted) <= batch
        assert torch.equal(inputs[:, -wanted.shape[1] :] + 1, wanted)  # tokens count up: next = + 1
        targets += wanted.flatten().tolist()
    assert targets == list(range(1, n))


def test_windows_lie_side_by_side_without_a_stride() -> None:
    assert cutting.windows(10, 4) == [(0, 4, 0), (4, 8, 4), (8, 9, 8)]


@pytest.mark.parametrize(("tokens", "window", "stride"), [(10, 4, 5), (10, 4, 0), (10, 0, None)])
def test_strides_that_skip_tokens_are_refused(tokens: int, window: int, stride: int | None) -> None:
    with pytest.raises(InvalidSetting):
        cutting.windows(tokens, window, stride)


def test_one_token_predicts_nothing() -> None:
    with pytest.raises(UnusableData, match="1 token"):
        cutting.windows(1, 4)


def test_chunks_cover_all_positions_and_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "FLOATS_AT_ONCE", 100)
    chunks = list(cutting.token_chunks(25, 10))
    assert [len(range(25)[chunk]) for chunk in chunks] == [10, 10, 5]
    assert [len(range(3)[chunk]) for chunk in cutting.token_chunks(3, 1000)] == [1, 1, 1]
