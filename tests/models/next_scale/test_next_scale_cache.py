from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modicum.errors import InvalidSetting
from modicum.models.next_scale import Cache, FullCache, Queries, Schedule, SelectiveCache, SelfAttention, Step

SCHEDULE = Schedule.square((1, 2, 3))
KINDS = [FullCache, SelectiveCache]


def _entries(scale: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * seed + scale)
    shape = (2, 3, SCHEDULE.tokens[scale], 4)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("store_last", [True, False])
def test_everything_so_far_is_visible(kind: type[Any], store_last: bool) -> None:
    cache: Cache = kind(store_last=store_last)
    cache.begin(SCHEDULE)
    for scale in range(3):
        for layer in range(2):
            keys, values = cache.extend(layer, *_entries(scale, layer))
            want = [
                torch.cat(parts, 2)
                for parts in zip(*(_entries(s, layer) for s in range(scale + 1)), strict=True)
            ]
            assert torch.equal(keys, want[0])
            assert torch.equal(values, want[1])
    assert cache.length(0) == (SCHEDULE.total if store_last else SCHEDULE.offsets[2])
    assert cache.nbytes == 2 * 2 * 2 * 3 * 4 * 4 * cache.length(0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_generation_starts_empty(kind: type[Any]) -> None:
    cache: Cache = kind()
    for _ in range(2):
        cache.begin(SCHEDULE)
        assert (cache.nbytes, cache.peak_nbytes, cache.length(0)) == (0, 0, 0)
        keys, _ = cache.extend(0, *_entries(0))
        assert keys.shape[2] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_key_dtypes(kind: type[Any]) -> None:
    for key_dtype, dtype in (("attention", torch.bfloat16), ("computed", torch.float32)):
        cache: Cache = kind(key_dtype=key_dtype)
        cache.begin(SCHEDULE)
        keys, values = _entries(0)
        held, _ = cache.extend(0, keys, values.bfloat16())
        assert held.dtype == dtype


def test_full_cache_grows_in_place() -> None:
    cache = FullCache()
    cache.begin(SCHEDULE)
    first, _ = cache.extend(0, *_entries(0))
    second, _ = cache.extend(0, *_entries(1))
    assert first.data_ptr() == second.data_ptr()
    assert cache.allocated_nbytes == cache.nbytes == cache.peak_nbytes


def test_dropped_entries_leave_exact_copies() -> None:
    cache = SelectiveCache()
    cache.begin(SCHEDULE)
    cache.extend(0, *_entries(0))
    keys, values = cache.extend(0, *_entries(1))
    index = (
        torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(0)).argsort(-1)[..., :3].sort(-1).values
    )
    cache.keep(0, index)
    held_keys, held_values = cache.held(0)
    for row in range(2):
        for head in range(3):
            assert torch.equal(held_keys[row, head], keys[row, head, index[row, head]])
            assert torch.equal(held_values[row, head], values[row, head, index[row, head]])
    visible, _ = cache.extend(0, *_entries(2))
    assert visible.shape[2] == 3 + 9
    assert torch.equal(visible[:, :, :3], held_keys)
    assert cache.length(0) == 3
    assert cache.allocated_nbytes == cache.nbytes


@pytest.mark.parametrize("kind", KINDS)
def test_misuse(kind: type[Any]) -> None:
    cache: Cache = kind()
    with pytest.raises(InvalidSetting, match="begin"):
        cache.extend(0, *_entries(0))
    cache.begin(SCHEDULE)
    with pytest.raises(InvalidSetting, match="4 tokens as map 0"):
        cache.extend(0, *_entries(1))
    for scale in range(3):
        cache.extend(0, *_entries(scale))
    with pytest.raises(InvalidSetting, match="as map 3"):
        cache.extend(0, *_entries(2))


class _Recorder(SelectiveCache):
    def settle(self, layer: int, scale: int, queries: Queries) -> None:
        self.seen = (layer, scale, queries)


@pytest.mark.parametrize("l2_norm", [True, False])
def test_queries_give_both_views(l2_norm: bool) -> None:
    torch.manual_seed(0)
    attention = SelfAttention(7, 12, 3, l2_norm=l2_norm, scale=0.5)
    with torch.no_grad():
        attention.q_bias.normal_()
        attention.v_bias.normal_()
    cache, x = _Recorder(), torch.randn(2, 4, 12)
    cache.begin(Schedule.square((2,)))
    with torch.no_grad():
        out = attention(x, Step(scale=0, cache=cache, rotate=lambda t: t.flip(-1)))
    layer, scale, queries = cache.seen
    assert (layer, scale, queries.tokens) == (7, 0, 4)
    positions = torch.tensor([2, 0])
    weight = attention.mat_qkv.weight[:12]
    raw = (x @ weight.T).unflatten(-1, (3, 4)).transpose(1, 2)
    torch.testing.assert_close(queries.raw(positions), raw[:, :, positions])
    torch.testing.assert_close(queries.raw(), raw)
    assert torch.equal(queries.used(positions), queries.used()[:, :, positions])
    # attention can be redone from what a policy sees
    keys, values = attention.mat_qkv(x).chunk(3, -1)[1:]
    heads = [t.unflatten(-1, (3, 4)).transpose(1, 2) for t in (keys, values + attention.v_bias)]
    k = (torch.nn.functional.normalize(heads[0], dim=-1) if l2_norm else heads[0]).flip(-1)
    mixed = (queries.used() @ k.mT * queries.scale).softmax(-1) @ heads[1]
    torch.testing.assert_close(out, attention.proj(mixed.transpose(1, 2).flatten(2)))


class _Counted(nn.Module):
    """A matrix in another form: it can only multiply."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(x.shape[1])
        return self.linear(x)


def test_nothing_is_projected_that_nobody_asks_for() -> None:
    attention, cache = SelfAttention(0, 12, 3), _Recorder()
    plain = attention.mat_qkv
    attention.mat_qkv = counted = _Counted(plain)  # type: ignore[assignment]
    cache.begin(Schedule.square((2,)))
    attention(torch.randn(1, 4, 12), Step(cache=cache))
    assert counted.calls == [4]
    whole = cache.seen[2].raw(torch.tensor([1, 2]))
    assert counted.calls == [4, 2]
    attention.mat_qkv = plain
    torch.testing.assert_close(cache.seen[2].raw(torch.tensor([1, 2])), whole)


def test_peak_counts_both_sides_of_a_copy() -> None:
    cache, token = SelectiveCache(store_last=True), 2 * 2 * 3 * 4 * 4  # keys and values, float32
    cache.begin(SCHEDULE)
    cache.extend(0, *_entries(0))
    assert cache.peak_nbytes == token
    cache.extend(0, *_entries(1))
    assert cache.peak_nbytes == (1 + 5) * token  # one entry is copied into five
    cache.keep(0, torch.arange(3).expand(2, 3, 3))
    assert cache.peak_nbytes == (5 + 3) * token
    assert cache.nbytes == cache.allocated_nbytes == 3 * token


def test_held_entries_keep_nothing_larger_alive() -> None:
    cache, wide = SelectiveCache(), torch.randn(2, 3, 1, 12)
    cache.begin(SCHEDULE)
    cache.extend(0, wide[..., :4], wide[..., 4:8])
    assert cache.allocated_nbytes == cache.nbytes
