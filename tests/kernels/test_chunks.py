"""Work by rows: every row once, in order, and the same result for every size of chunk."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum.kernels import chunks, selection
from modicum.kernels.chunks import by_rows, chunked_bytes, row_chunks
from modicum.kernels.grids import IntegerScheme, dequantize, fit_grid, nearest, quantize
from modicum.kernels.packing import pack_bits, pack_mask, unpack_bits, unpack_mask
from modicum.kernels.selection import prune_lowest, prune_lowest_global, semi_structured
from modicum.weights.masked import MaskedWeight
from modicum.weights.properties import NMPattern, ZeroMask, off_grid_groups
from modicum.weights.semi_structured import SemiStructuredWeight

WEIGHT = torch.randn(50, 72, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
SCHEME = IntegerScheme(3, 32, symmetric=False)


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(0, 300), row_bytes=st.integers(0, 2 * chunks.CHUNK_BYTES))
def test_the_chunks_cover_every_row_once_and_stay_small(rows: int, row_bytes: int) -> None:
    parts = list(row_chunks(rows, row_bytes))
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(rows))
    assert all((part.stop - part.start) * row_bytes <= chunks.CHUNK_BYTES for part in parts) or row_bytes > (
        chunks.CHUNK_BYTES // 2
    )


def test_no_rows_give_an_empty_result() -> None:
    assert by_rows(lambda part: part.sum(1), torch.ones(0, 3), row_bytes=12).shape == (0,)


def test_what_is_none_is_passed_on() -> None:
    def work(left: Tensor, right: Tensor | None) -> Tensor:
        assert right is None
        return left

    assert torch.equal(by_rows(work, WEIGHT, None, row_bytes=chunks.CHUNK_BYTES), WEIGHT)


def test_a_small_matrix_needs_no_whole_chunks() -> None:
    assert chunked_bytes(10) == 8 * 40
    assert chunked_bytes(10**9) == 8 * chunks.CHUNK_BYTES


def _grid() -> tuple[Tensor, ...]:
    scale, zero_point = fit_grid(WEIGHT, SCHEME, torch.bfloat16, search=True)
    assert zero_point is not None
    codes = quantize(WEIGHT, scale, zero_point, SCHEME)
    dense = dequantize(codes, scale, zero_point, SCHEME, torch.bfloat16)
    return scale, zero_point, codes, dense, nearest(WEIGHT, SCHEME, torch.float32)


def _packed() -> tuple[Tensor, ...]:
    codes = _grid()[2].view(torch.uint8) + 4
    words, bits = pack_bits(codes, 3), pack_mask(WEIGHT > 0)
    return words, unpack_bits(words, 3, 72), bits, unpack_mask(bits, 72), pack_bits(codes.T, 3)


def _selected() -> tuple[Tensor, ...]:
    scores = (WEIGHT.abs() * 4).round()  # with ties
    lowest = prune_lowest(scores, 30), prune_lowest_global(scores, 1700), prune_lowest(scores.T, 7)
    return (*lowest, semi_structured(scores, 2, 4))


def _stored() -> tuple[Tensor, ...]:
    kept = ~semi_structured(WEIGHT.abs(), 2, 4)
    forms = (
        MaskedWeight.from_dense(WEIGHT, WEIGHT > 0.1),
        MaskedWeight.from_dense(WEIGHT.T, WEIGHT.T > 0.1),
        SemiStructuredWeight.from_dense(WEIGHT, 2, 4, kept),
        SemiStructuredWeight.from_dense(WEIGHT.masked_fill(~kept, 0), 3, 4),
    )
    return tuple(tensor for form in forms for tensor in (*form.tensors().values(), form.to_dense()))


def _checked() -> tuple[Tensor, ...]:
    form = MaskedWeight.from_dense(WEIGHT, WEIGHT > 0)
    complaints = [ZeroMask().violation(WEIGHT * (WEIGHT < 1), form), NMPattern(1, 4).violation(WEIGHT, form)]
    assert None not in complaints
    counts = [int(str(complaint).split()[0]) for complaint in complaints]
    return torch.tensor(counts), torch.tensor(off_grid_groups(WEIGHT, 3, 32))


@pytest.mark.parametrize("size", [1, 700, 5000])
@pytest.mark.parametrize("work", [_grid, _packed, _selected, _stored, _checked])
def test_the_size_of_the_chunks_does_not_matter(
    work: Callable[[], tuple[Tensor, ...]], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = work()
    monkeypatch.setattr(chunks, "CHUNK_BYTES", size)
    monkeypatch.setattr(selection, "PART", size)
    monkeypatch.setattr(selection, "SAMPLE", 64)
    for one, other in zip(whole, work(), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
