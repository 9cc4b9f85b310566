"""The memory that groups of coded weights are decoded into, one after another.

There is one buffer, and a group is decoded when its turn comes, over the one before. With prefetching on a GPU there
are two, and a stream beside that of the computation fills the second while the first is used:

    computation   group 1 .......... group 2 .......... group 3 ..........
    side stream   decode 2 -> B      decode 3 -> A      decode 4 -> B

Three things must not happen: that a group is used before it is decoded, that a buffer is overwritten while its group is
used, and that memory goes to somebody else while a stream still works on it. Streams know nothing of each other, so the
lane remembers for each buffer the last thing that was queued with it, decoding or use, on whatever stream, and lets
everything that comes next wait for that; and PyTorch's allocator is told of every tensor that the side stream touches.

Which group comes next is what came next the last time.

Prefetching has to be asked for. With it, logits of 32 and more sequences on an H100 differed from run to run by one
step of bfloat16. The likely reason: cuBLAS promises the same bits for the same product only while a single stream is
active; beside a second one it may sum in another order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from modicum.weights.coded import Group


@dataclass(eq=False)
class Slot:
    """Memory for one group.

    Attributes:
        memory: a buffer for every dtype, which grows to the largest group.
        last: an event behind the last thing that was queued with it; None if nothing was.
    """

    memory: dict[torch.dtype, Tensor] = field(default_factory=dict)
    last: Any = None


@dataclass(frozen=True)
class Ahead:
    """What is being decoded: the group, the tables that it had then, and where its weights will be."""

    group: Group
    luts: Tensor
    flat: Tensor


class Lane:
    """Groups that follow each other on one device, each of them done with before the next is taken.

    Args:
        device: where they are decoded.
        streams: what has the interface of `torch.cuda`; None to decode only what is needed now.
    """

    def __init__(self, device: torch.device, streams: Any = None) -> None:
        self.device, self.streams = device, streams
        self.slots = [Slot() for _ in range(1 if streams is None else 2)]
        self._side: Any = None if streams is None else streams.Stream(device)
        self._now = 0
        self._ahead: Ahead | None = None
        self._following: dict[nn.Module, Group] = {}
        self._previous: nn.Module | None = None
        self._shared: dict[Group, Tensor] = {}

    def take(self, group: Group, user: nn.Module) -> Tensor:
        """The weights of a group, [numel], for what is queued on the current stream from now on until `leave`."""
        if self._previous is not None:
            self._following[self._previous] = group
        self._previous = user
        if self.streams is None:
            return group.decoded(*self._room(group, self.slots[0]))
        current, ahead = self.streams.current_stream(self.device), self._ahead
        self._now = 1 - self._now
        slot = self.slots[self._now]
        if ahead is not None and ahead.group is group and ahead.luts is group.luts:
            current.wait_event(slot.last)
            flat = ahead.flat
        else:
            flat = self._decode(group, slot, current, self._room(group, slot))
        self._decode_ahead(self._following.get(user), current)
        return flat

    def leave(self) -> None:
        """The group that was taken last is not read by what is queued from now on."""
        if self.streams is not None:
            self._mark(self.slots[self._now], self.streams.current_stream(self.device))

    def _decode_ahead(self, group: Group | None, current: Any) -> None:
        """Begin to decode a group beside the computation, over the one before."""
        self._ahead = None
        if group is None or group.device != self.device:
            return
        slot = self.slots[1 - self._now]
        self._share(group)
        room = self._room(
            group, slot
        )  # here and not on the other stream, whose memory others could not wait for
        self._side.wait_stream(current)  # the arrays may have got here only just now
        with self.streams.stream(self._side):
            self._ahead = Ahead(group, group.luts, self._decode(group, slot, self._side, room))

    def _decode(self, group: Group, slot: Slot, stream: Any, room: tuple[Tensor, Tensor | None]) -> Tensor:
        """Decode into a slot on `stream`, which is the current one, behind whatever happened there before."""
        if slot.last is not None:
            stream.wait_event(slot.last)
        flat = group.decoded(*room)
        self._mark(slot, stream)
        return flat

    def _mark(self, slot: Slot, stream: Any) -> None:
        slot.last = self.streams.Event()
        slot.last.record(stream)

    def _room(self, group: Group, slot: Slot) -> tuple[Tensor, Tensor | None]:
        """The beginning of the slot's buffers: of the dtype of the codes, and of that of the model if it differs."""
        dtypes = dict.fromkeys((group.stored, group.dtype))
        found = [self._buffer(dtype, group.numel, slot)[: group.numel] for dtype in dtypes]
        return found[0], found[1] if len(found) == 2 else None

    def _buffer(self, dtype: torch.dtype, numel: int, slot: Slot) -> Tensor:
        if dtype not in slot.memory or len(slot.memory[dtype]) < numel:
            slot.memory.pop(dtype, None)  # free before the larger one is made
            with torch.inference_mode(False):  # else only passes in inference mode could write to it
                slot.memory[dtype] = torch.empty(numel, dtype=dtype, device=self.device)
            if self._side is not None:
                used_on(self._side, [slot.memory[dtype]])
        return slot.memory[dtype]

    def _share(self, group: Group) -> None:
        """Let the allocator know that the side stream reads the arrays of a group; its tables are made if need be."""
        ready = group.ready()
        if self._shared.get(group) is group.luts:
            return
        self._shared[group] = group.luts
        tables = (ready.lanes.windows, ready.lanes.first, ready.lanes.luts, ready.firsts)
        used_on(self._side, [*ready.encoded.tensors().values(), *tables])


def used_on(stream: Any, tensors: Iterable[Tensor]) -> None:
    """Keep the memory of tensors, once they are deleted, until `stream` has done what is queued on it then."""
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(stream)
