"""Key-value caches of next-scale models.

One generation is `begin`, then for every map and every layer `extend` (before attention: what is visible now)
and `settle` (after attention: a policy may drop entries). Two savings cost nothing at all and are on by default:

- the keys and values of the last map are never read again, so they are not stored;
- keys that were normalised in float32 are stored in the dtype in which attention reads them.

The original models store both the wide way; `store_last=True, key_dtype="computed"` accounts for memory as they
do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from modicum.errors import InvalidSetting
from modicum.models.next_scale.queries import Queries
from modicum.models.next_scale.schedule import Schedule

KeyDtype = Literal["attention", "computed"]
KeysValues = tuple[Tensor, Tensor]


class KVCache(Protocol):
    """What a generation asks of its cache. Keys and values are `[rows, heads, tokens, head_dim]`."""

    def begin(self, schedule: Schedule) -> None:
        """Forget everything: a generation over this schedule starts."""

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """Take the next map of a layer and return all keys and values that its queries see."""
        ...

    def settle(self, layer: int, scale: int, queries: Queries) -> None:
        """Called once attention over map `scale` is done in this layer."""


class Cache:
    """Bookkeeping of every cache: which map a layer is at, dtypes, bytes. Subclasses decide how to store.

    Args:
        store_last: keep the last map too (nothing reads it; for accounting as the original does, or to look).
        key_dtype: "attention" stores keys in the dtype of the values; "computed" as they come (float32 after
            an l2 norm). In a float32 run there is no difference.
    """

    def __init__(self, *, store_last: bool = False, key_dtype: KeyDtype = "attention") -> None:
        self.store_last = store_last
        self.key_dtype = key_dtype
        self.peak_nbytes = 0  # most memory in use at once in this generation, while copying too
        self._schedule: Schedule | None = None
        self._held: dict[int, KeysValues] = {}
        self._scale: dict[int, int] = {}

    @property
    def schedule(self) -> Schedule:
        """The schedule of the running generation.

        Raises:
            InvalidSetting: `begin` was not called.
        """
        if self._schedule is None:
            raise InvalidSetting("The cache was used before a generation began.", "Call begin(schedule).")
        return self._schedule

    def begin(self, schedule: Schedule) -> None:
        """Forget everything: a generation over this schedule starts."""
        self._schedule = schedule
        self._held.clear()
        self._scale.clear()
        self.peak_nbytes = 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """Take the next map of a layer and return all keys and values that its queries see.

        Args:
            layer: index of the layer.
            keys: of the new map, `[rows, heads, tokens, head_dim]`.
            values: of the new map.

        Raises:
            InvalidSetting: the map does not have the size that the schedule says.
        """
        scale = self._scale.get(layer, -1) + 1
        if scale >= len(self.schedule) or keys.shape[2] != self.schedule.tokens[scale]:
            raise InvalidSetting(
                f"Layer {layer} sent {keys.shape[2]} tokens as map {scale} of {self.schedule.sizes}.",
                "Call begin(schedule) before each generation and send whole maps.",
            )
        self._scale[layer] = scale
        if self.key_dtype == "attention":
            keys = keys.to(values.dtype)
        is_last = scale == len(self.schedule) - 1
        held, before = self._held.get(layer, ()), self.allocated_nbytes
        unread = is_last and not self.store_last
        visible = self._join(layer, keys, values) if unread else self._store(layer, keys, values)
        self._account(before + _fresh_nbytes(visible, held))
        return visible

    def settle(self, layer: int, scale: int, queries: Queries) -> None:
        """Called once attention over map `scale` is done in this layer; keeps everything."""

    def held(self, layer: int) -> KeysValues:
        """Keys and values that a layer carries to the next map, `[rows, heads, tokens, head_dim]`."""
        return self._held[layer]

    def length(self, layer: int) -> int:
        """Tokens that a layer carries to the next map."""
        return self._held[layer][0].shape[2] if layer in self._held else 0

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values that all layers carry to the next map."""
        return sum(tensor.nbytes for pair in self._held.values() for tensor in pair)

    @property
    def allocated_nbytes(self) -> int:
        """Bytes of memory behind them."""
        return sum(tensor.untyped_storage().nbytes() for pair in self._held.values() for tensor in pair)

    def _store(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        raise NotImplementedError

    def _join(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """The held entries with the new ones after them, as new tensors."""
        if layer not in self._held:
            return keys, values
        old_keys, old_values = self._held[layer]
        return torch.cat((old_keys, keys), dim=2), torch.cat((old_values, values), dim=2)

    def _account(self, nbytes: int) -> None:
        """Note how much memory was in use at once, old and new tensors of a copy together."""
        self.peak_nbytes = max(self.peak_nbytes, nbytes)


class FullCache(Cache):
    """Keeps everything, in one buffer per layer of the final length: no copy as it grows."""

    def __init__(self, *, store_last: bool = False, key_dtype: KeyDtype = "attention") -> None:
        super().__init__(store_last=store_last, key_dtype=key_dtype)
        self._buffers: dict[int, KeysValues] = {}

    def begin(self, schedule: Schedule) -> None:
        """Forget everything: a generation over this schedule starts."""
        super().begin(schedule)
        self._buffers.clear()

    def _store(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        if layer not in self._buffers:
            room = self.schedule.total if self.store_last else self.schedule.offsets[-2]
            self._buffers[layer] = (_room(keys, room), _room(values, room))
        start = self.length(layer)
        end = start + keys.shape[2]
        for buffer, new in zip(self._buffers[layer], (keys, values), strict=True):
            buffer[:, :, start:end] = new
        buffered_keys, buffered_values = self._buffers[layer]
        self._held[layer] = buffered_keys[:, :, :end], buffered_values[:, :, :end]
        return self._held[layer]


class SelectiveCache(Cache):
    """Base of policies that drop entries: override `settle` and call `keep`.

    Attention over a map still sees all of it; entries go only once the layer is done with the map.
    """

    def keep(self, layer: int, index: Tensor) -> None:
        """Carry only some entries of a layer to the next map, as exact copies in the given order.

        Args:
            layer: index of the layer.
            index: int64 `[rows, heads, kept]`, positions in the layer's cache (`held`), ascending to keep the
                order of time.
        """
        keys, values = self._held[layer]
        kept = _chosen(keys, index), _chosen(values, index)
        self._account(self.allocated_nbytes + _fresh_nbytes(kept, self._held[layer]))
        self._held[layer] = kept

    def _store(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        if layer not in self._held:  # a copy: the given tensors may be views of larger ones
            self._held[layer] = keys.clone(), values.clone()
        else:
            self._held[layer] = self._join(layer, keys, values)
        return self._held[layer]


def _fresh_nbytes(tensors: Sequence[Tensor], known: Sequence[Tensor]) -> int:
    """Bytes of memory behind tensors that does not lie behind the known ones too."""
    known_storages = {tensor.untyped_storage().data_ptr() for tensor in known}
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum(storage.nbytes() for storage in storages if storage.data_ptr() not in known_storages)


def _chosen(entries: Tensor, index: Tensor) -> Tensor:
    """`[rows, heads, tokens, head_dim]` at `[rows, heads, kept]`; copies whole tokens, where gather copies numbers."""
    rows, heads, tokens, _ = entries.shape
    first = torch.arange(0, rows * heads * tokens, tokens, device=index.device).view(rows, heads, 1)
    return entries.flatten(0, 2).index_select(0, (index + first).flatten()).view(*index.shape, -1)


def _room(like: Tensor, tokens: int) -> Tensor:
    rows, heads, _, head_dim = like.shape
    return like.new_empty(rows, heads, tokens, head_dim)
