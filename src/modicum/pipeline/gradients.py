"""Gradients of a model that does not fit into memory, kept on disk until their block is compressed.

Forwards through the dense model, writing down what enters every block; the loss; backwards, one block in memory at a
time. What is written in the workspace:

    00007.states.safetensors       what enters block 7, [windows, tokens, features]
    00008.wanted.safetensors       100 dL/dh for what leaves block 7, the same shape
    00007.gradients.safetensors    the gradient statistic of those layers of block 7 that are asked for, float32

A file has its name only when it is complete, and goes when nothing needs it any more. A pass that was killed goes on at
the first file that is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modicum.calibrate.block import CalibratedBlock
from modicum.calibrate.gradients import block_gradients, tail_gradient
from modicum.errors import UnusableData
from modicum.formats.shards import Shards, write_tensors
from modicum.kernels.allocator import return_freed_memory
from modicum.models import Anatomy, Block, Replay, capture
from modicum.models.replay import Batch
from modicum.pipeline.source import Source
from modicum.pipeline.sweep import Steps, wanted_statistics


def gradient_layers(steps: Steps, block: Block) -> list[str]:
    """Names of the layers of a block whose gradients some step reads."""
    return [name for name, kinds in wanted_statistics(steps, block).items() if "gradient" in kinds]


def first_block(steps: Steps, anatomy: Anatomy) -> int | None:
    """The first block with such a layer: backpropagation ends there. None if there is none."""
    return next((block.index for block in anatomy.blocks if gradient_layers(steps, block)), None)


@torch.no_grad()
def loaded_gradients(anatomy: Anatomy, steps: Steps, batches: Iterable[Batch]) -> dict[str, Tensor]:
    """The gradient statistic of all layers that are asked for, [out, in] float32 by name, of a model in memory.

    Args:
        anatomy: the model, before any step has changed it.
        steps: whose gradients are wanted.
        batches: the model's inputs, `input_ids` among them; each row is a window of its own.
    """
    lowest = first_block(steps, anatomy)
    if lowest is None:
        return {}
    rows = [row for batch in batches for row in _rows(batch)]
    replay = capture(anatomy, rows)
    kept = [list(replay.hidden)]
    for block in anatomy.blocks:
        kept.append([replay.run_block(block, states, i) for i, states in enumerate(kept[-1])])
    wanted = [tail_gradient(anatomy, row, states) for row, states in zip(rows, kept.pop(), strict=True)]
    found: dict[str, Tensor] = {}
    for block in reversed(anatomy.blocks[lowest:]):
        names = gradient_layers(steps, block)
        found |= block_gradients(block, _runner(replay, block), kept.pop(), wanted, names)
    return found


def _runner(replay: Replay, block: Block) -> Callable[[int, Tensor], Tensor]:
    return lambda i, states: replay.run_block(block, states, i)


def _rows(batch: Batch) -> list[dict[str, Any]]:
    """The rows of a batch as batches of one."""
    if isinstance(batch, Tensor):
        batch = {"input_ids": batch}
    if not isinstance(batch, Mapping) or not isinstance(batch.get("input_ids"), Tensor):
        raise UnusableData("Gradients need windows of token ids.", "Give them, or choose a metric without G.")
    size = len(batch["input_ids"])
    return [
        {k: v[i : i + 1] if isinstance(v, Tensor) and len(v) == size else v for k, v in batch.items()}
        for i in range(size)
    ]


def file_bytes(source: Source, steps: Steps, tokens: int, width: int) -> int:
    """Bytes of what the pass holds on disk at most.

    Args:
        source: the opened checkpoint.
        steps: whose gradients are wanted.
        tokens: of the calibration.
        width: features of the hidden states.
    """
    lowest = first_block(steps, source.anatomy)
    if lowest is None or not tokens:
        return 0
    blocks = source.anatomy.blocks[lowest:]
    matrices = [matrix_bytes(steps, block) for block in blocks]
    states = tokens * width * source.dtype.itemsize
    # At the first step back all states are there, at the last all matrices; in between it is a mixture of both.
    return max((len(blocks) + 2) * states + max(matrices), 3 * states + sum(matrices))


def matrix_bytes(steps: Steps, block: Block) -> int:
    """Bytes of the gradient statistic of one block."""
    names = set(gradient_layers(steps, block))
    return sum(4 * layer.out_features * layer.in_features for layer in block.layers if layer.name in names)


@dataclass
class GradientPass:
    """The pass over one model.

    Args:
        source: the opened checkpoint.
        steps: whose gradients are wanted.
        tokens: windows, int64 [windows, length].
        folder: where files are kept.
        told: called with the index of a block and what is being done to it.
    """

    source: Source
    steps: Steps
    tokens: Tensor
    folder: Path
    told: Callable[[int, str], None] = lambda block, text: None

    @torch.no_grad()
    def collect(self, finished: int = 0) -> None:
        """Have the gradients of all blocks but the `finished` first ones, going on where an earlier pass stopped."""
        anatomy = self.source.anatomy
        lowest = first_block(self.steps, anatomy)
        if lowest is None:
            return
        blocks = anatomy.blocks[max(lowest, finished) :]
        missing = [block for block in blocks if not self._file(block.index, "gradients").exists()]
        if not missing:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        replay, states = self._capture()
        if not self._file(missing[-1].index + 1, "wanted").exists():
            self._tail(self._forward(replay, states, missing[0].index))
        del states
        for block in reversed(missing):
            self._backward(replay, block)

    def add_to(self, calibrated: CalibratedBlock) -> None:
        """Tell a block what is known of its layers."""
        names = gradient_layers(self.steps, calibrated.block)
        if names:
            shards = Shards(self._file(calibrated.block.index, "gradients"))
            found = {name: shards.read(name).to(self.source.device) for name in names}
            calibrated.add_gradients(found, self.tokens.numel())

    def drop(self, block: Block) -> None:
        """Forget the gradients of a finished block."""
        self._file(block.index, "gradients").unlink(missing_ok=True)

    def _capture(self) -> tuple[Replay, Tensor]:
        """How the blocks are called for each window, and what enters the first, [windows, tokens, features]."""
        self.source.load_prelude()
        replay = capture(self.source.anatomy, self.tokens.to(self.source.device).split(1))
        self.source.release_prelude()
        states = torch.cat(replay.hidden)
        return_freed_memory()
        return replace(replay, hidden=()), states

    def _forward(self, replay: Replay, states: Tensor, lowest: int) -> Tensor:
        """What leaves the last block; what enters those from `lowest` on is written down."""
        blocks = self.source.anatomy.blocks
        known = [i for i in range(lowest, len(blocks)) if self._file(i, "states").exists()]
        if known:
            states = self._read(known[-1], "states")
        for block in blocks[known[-1] if known else 0 :]:
            if block.index >= lowest and block.index not in known:
                self._write(block.index, "states", states)
            self.told(block.index, "running the dense model")
            self._load(block)
            for i, window in enumerate(states.split(1)):
                window.copy_(replay.run_block(block, window, i))
            self._release(block)
        return states

    def _tail(self, states: Tensor) -> None:
        """From what leaves the last block to what the loss wants of it."""
        count = len(self.source.anatomy.blocks)
        self.told(count - 1, "taking the gradient of the loss")
        self.source.load_prelude(head=True)
        for window, tokens in zip(states.split(1), self.tokens.to(states.device).split(1), strict=True):
            window.copy_(tail_gradient(self.source.anatomy, {"input_ids": tokens}, window))
        self.source.release_prelude()
        self._write(count, "wanted", states)
        return_freed_memory()

    def _backward(self, replay: Replay, block: Block) -> None:
        self.told(block.index, "going back through the dense model")
        states, wanted = self._read(block.index, "states"), self._read(block.index + 1, "wanted")
        self._load(block)
        names = gradient_layers(self.steps, block)
        found = block_gradients(block, _runner(replay, block), states.split(1), wanted.split(1), names)
        self._release(block)
        self._write(block.index, "wanted", wanted)
        write_tensors(self._file(block.index, "gradients"), found)
        self._file(block.index, "states").unlink()
        self._file(block.index + 1, "wanted").unlink()

    def _load(self, block: Block) -> None:
        self.source.load(block)
        return_freed_memory()

    def _release(self, block: Block) -> None:
        self.source.release(block)
        return_freed_memory()

    def _file(self, index: int, kind: str) -> Path:
        return self.folder / f"{index:05d}.{kind}.safetensors"

    def _read(self, index: int, kind: str) -> Tensor:
        return Shards(self._file(index, kind)).read(kind).to(self.source.device)

    def _write(self, index: int, kind: str, values: Tensor) -> None:
        write_tensors(self._file(index, kind), {kind: values})
