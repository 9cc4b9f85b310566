"""Run a model one block at a time, with exactly the arguments the model itself would have passed.

Calibrating block i needs its inputs, and these need block i-1 only. So: every block is replaced by a stub
that passes the hidden states on and records the other arguments of its call (masks, rotary tables, position
ids; they may differ from block to block), and the model runs once per batch. The model's own code thus
prepares every block's arguments, while no block computes anything: blocks may be on the meta device. The
pass stops after the last stub, before any head.

    replay = capture(anatomy, batches)
    hidden = list(replay.hidden)                       # what enters block 0, one tensor per batch
    for block in anatomy.blocks:
        hidden = [replay.run_block(block, h, i) for i, h in enumerate(hidden)]

In a model of several stacks (encoder and decoder) something else may happen between them. The block behind such a
seam is entered by what `entering` computes, for which all blocks before it must be in memory.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from modicum.errors import UnsupportedModel, UnusableData
from modicum.models.anatomy import Anatomy, Block

Batch = Tensor | Mapping[str, Any] | Callable[[], Any]
"""Token ids, keyword arguments of the model, or a function that runs it once."""


@dataclass(frozen=True)
class Call:
    """Arguments of one block's call for one batch, without the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


Tape = list[tuple[int, Tensor, Call]]
"""What stubs record: index of the block, hidden states, rest of the call."""


@dataclass(frozen=True)
class Replay:
    """What is needed to run each block of a model on its own.

    Attributes:
        anatomy: the model.
        hidden: what enters block 0, one tensor [batch, tokens, features] (or [batch, channels, h, w]) per
            batch.
        calls: for each batch, the recorded call of each block.
        seams: blocks that are not entered by what the block before them returns.
    """

    anatomy: Anatomy
    hidden: tuple[Tensor, ...]
    calls: tuple[tuple[Call, ...], ...]
    seams: frozenset[int] = frozenset()

    def __len__(self) -> int:
        return len(self.hidden)

    def run_block(self, block: Block, hidden: Tensor, batch_index: int) -> Tensor:
        """The hidden states after `block`, for batch `batch_index`; gradients flow if they are enabled."""
        call = self.calls[batch_index][block.index]
        output = block.module(hidden, *call.args, **call.kwargs)
        return output[0] if self.anatomy.family.tuple_output else output


@torch.no_grad()
def capture(anatomy: Anatomy, batches: Iterable[Batch], *, seams: bool = False) -> Replay:
    """Record what enters block 0 and how every block is called, for each batch.

    Args:
        anatomy: the model; only its prelude (embeddings) must hold real weights.
        batches: token ids [batch, tokens] (int64), dicts of the model's inputs, or functions that run it; sizes may
            differ.
        seams: whether the caller can deal with seams between stacks.

    Raises:
        UnusableData: there is no batch.
        UnsupportedModel: the model does not call each block once, in the order of the anatomy, or there is a seam.
    """
    store, hidden, calls, found = _TensorStore(), [], [], frozenset[int]()
    name = type(anatomy.model).__name__
    with _stubs(anatomy) as tape, _evaluating(anatomy.model):
        for batch in batches:
            tape.clear()
            _run(anatomy.model, batch)
            if [index for index, _, _ in tape] != list(range(len(anatomy.blocks))):
                raise UnsupportedModel(f"{name} does not call each block once, in order.")
            hidden.append(tape[0][1])
            found |= _seams(anatomy, tape)
            calls.append(tuple(store.share(call) for _, _, call in tape))
    if not hidden:
        raise UnusableData("There is no batch to run.", "Give at least one batch of inputs.")
    if found and not seams:
        raise UnsupportedModel(
            f"{name} does more than pass the hidden states on before block {min(found)}.",
            "Open it with modicum.load and compress it in memory.",
        )
    return Replay(anatomy, tuple(hidden), tuple(calls), found)


@torch.no_grad()
def entering(anatomy: Anatomy, batches: Iterable[Batch], index: int) -> list[Tensor]:
    """What enters block `index`, for each batch; arguments as of `capture`, with all blocks before it in memory."""
    block, tape, states = anatomy.blocks[index], Tape(), []
    with _evaluating(anatomy.model):
        anatomy.model.set_submodule(block.name, _Stub(block, tape, True, anatomy.family.tuple_output))
        try:
            for batch in batches:
                tape.clear()
                _run(anatomy.model, batch)
                states.append(tape[0][1])
        finally:
            anatomy.model.set_submodule(block.name, block.module)
    return states


def _seams(anatomy: Anatomy, tape: Tape) -> frozenset[int]:
    """The first blocks of later stacks whose input the stub before them did not pass on."""
    starts = [*accumulate(anatomy.stacks)][:-1]
    return frozenset(i for i in starts if not _same(tape[i - 1][1], tape[i][1]))


def _same(first: Tensor, second: Tensor) -> bool:
    return first is second or (first.shape == second.shape and torch.equal(first, second))


class _LastBlockReached(Exception):
    """Ends the forward pass; the heads are not wanted."""


class _Stub(nn.Module):
    """Stands in for a block: passes the hidden states on and records the rest of the call."""

    def __init__(self, block: Block, tape: Tape, last: bool, tuple_output: int) -> None:
        super().__init__()
        # In a tuple, so that the block's parameters do not become the stub's.
        self._block = (block.module,)
        self._index, self._tape, self._last, self._tuple_output = block.index, tape, last, tuple_output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if args:
            hidden, args = args[0], args[1:]
        else:
            hidden = kwargs.pop("hidden_states")
        self._tape.append((self._index, hidden, Call(args, kwargs)))
        if self._last:
            raise _LastBlockReached
        return (hidden, *[None] * (self._tuple_output - 1)) if self._tuple_output else hidden

    def __getattr__(self, name: str) -> Any:
        # Some models ask a block about itself (its attention type) before calling it.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"][0], name)


@contextmanager
def _stubs(anatomy: Anatomy) -> Iterator[Tape]:
    """Every block of the model replaced by a stub; yields the tape on which they all record."""
    tape: Tape = []
    last = len(anatomy.blocks) - 1
    try:
        for block in anatomy.blocks:
            anatomy.model.set_submodule(
                block.name, _Stub(block, tape, block.index == last, anatomy.family.tuple_output)
            )
        yield tape
    finally:
        for block in anatomy.blocks:
            anatomy.model.set_submodule(block.name, block.module)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off; every module's own mode comes back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _run(model: nn.Module, batch: Batch) -> None:
    if callable(batch):
        with suppress(_LastBlockReached):
            batch()
        return
    inputs: dict[str, Any] = dict(batch) if isinstance(batch, Mapping) else {"input_ids": batch}
    if "use_cache" in inspect.signature(model.forward).parameters:
        inputs["use_cache"] = False
    with suppress(_LastBlockReached):
        model(**inputs)


class _TensorStore:
    """Keeps one copy of tensors that are equal, across blocks and batches."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], list[Tensor]] = defaultdict(list)

    def share(self, call: Call) -> Call:
        """The same call, with every tensor replaced by the kept one that equals it."""
        args, kwargs = pytree.tree_map_only(Tensor, self._unique, (call.args, call.kwargs))
        return Call(args, kwargs)

    def _unique(self, tensor: Tensor) -> Tensor:
        kept = self._kept[tensor.shape, tensor.dtype, tensor.device]
        for other in kept:
            if other is tensor or torch.equal(other, tensor):
                return other
        kept.append(tensor)
        return tensor
