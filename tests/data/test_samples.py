"""Training data by index: deterministic, complete, seekable."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.data.samples import Table, Windows
from modicum.errors import UnusableData


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 40), size=st.integers(1, 50), seed=st.integers(0, 99))
def test_an_epoch_visits_every_row_once(rows: int, size: int, seed: int) -> None:
    table = Table({"row": torch.arange(rows)})
    batch = table.batches(size, seed)
    size = min(size, rows)
    per_epoch = rows // size
    for epoch in range(2):
        seen = torch.cat([batch(epoch * per_epoch + i)["row"] for i in range(per_epoch)])
        assert len(seen) == len(seen.unique()) == per_epoch * size


def test_a_batch_depends_on_its_index_alone() -> None:
    table = Table({"row": torch.arange(50)}, {"row": (torch.arange(50) + 100,)})
    first, second = table.batches(8, 3), table.batches(8, 3)
    forwards = [first(index)["row"] for index in range(12)]
    backwards = [second(index)["row"] for index in reversed(range(12))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forwards, backwards, strict=True))
    assert not torch.equal(forwards[0], table.batches(8, 4)(0)["row"])


def test_versions_are_drawn_evenly() -> None:
    table = Table({"x": torch.zeros(1000), "y": torch.arange(1000)}, {"x": (torch.ones(1000),)})
    batch = table.batches(1000, 0)(0)
    assert 440 < batch["x"].sum().item() < 560
    assert len(batch["y"].unique()) == 1000


def test_windows_are_pieces_of_the_stream() -> None:
    windows = Windows(torch.arange(1000), 30)
    starts = set()
    for epoch in range(3):
        batch = windows.batches(windows.count, 0)(epoch)["input_ids"]
        assert batch.shape == (32, 30)
        assert torch.equal(batch, batch[:, :1] + torch.arange(30))
        starts.add(int(batch[0, 0]) % 30)
    assert len(starts) == 3


@pytest.mark.parametrize("tensors", [{}, {"x": torch.zeros(0)}, {"x": torch.zeros(3), "y": torch.zeros(4)}])
def test_tables_without_rows_are_refused(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(UnusableData, match="one row per sample"):
        Table(tensors)


def test_a_short_stream_is_refused() -> None:
    with pytest.raises(UnusableData, match="fewer than two windows of 30"):
        Windows(torch.arange(59), 30)
