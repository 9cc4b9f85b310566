"""What stands out in each block of the dense model: one pass forwards before anything is changed.

One block is in memory at a time. What a block gives is a number for each step that asks; it is written into the
workspace, so that a run that was killed takes the pass up: the blocks that are known only pass the data on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from modicum.allocate.sparsity import Owl
from modicum.calibrate.block import CalibratedBlock, observe
from modicum.formats.shards import write_json
from modicum.kernels.allocator import return_freed_memory
from modicum.models import Anatomy, Block, Replay, capture
from modicum.models.replay import Batch, entering
from modicum.pipeline.sharing import Outliers, Steps, by_outliers, touched
from modicum.pipeline.source import Source
from modicum.prune.sparse import Sparse


def block_outliers(
    steps: Steps,
    block: Block,
    replay: Replay,
    hidden: list[Tensor],
    masks: Sequence[Tensor | None] = (),
    *,
    onward: bool = True,
) -> list[float | None]:
    """For each step the share of outliers of a block; None for steps that do not ask or leave it alone.

    Args:
        steps: in order.
        block: its dense weights must be in memory.
        replay: how it is called.
        hidden: its inputs, one tensor per batch.
        masks: as of `observe`.
        onward: replace `hidden` by what the block gives.
    """
    asked = [layer.name for step in steps if by_outliers(step) for layer in touched(step, block)]
    wanted = dict.fromkeys(asked, frozenset({"column_norm"}))

    def run(i: int, states: Tensor) -> Tensor:
        return replay.run_block(block, states, i)

    def keep(i: int, output: Tensor) -> None:
        hidden[i] = hidden[i].copy_(output) if output.shape == hidden[i].shape else output

    seen = observe(block, run, hidden, wanted, masks=masks, keep=keep if onward else None)
    return [_share(step, seen) for step in steps]


def _share(step: object, seen: CalibratedBlock) -> float | None:
    if not isinstance(step, Sparse) or not isinstance(step.allocation, Owl):
        return None
    known = [(layer, seen.layer_statistics(layer)) for layer in touched(step, seen.block)]
    matrices = [
        (layer.weight.detach(), sums.column_norm / max(sums.tokens, 1) ** 0.5) for layer, sums in known
    ]
    return step.allocation.outliers(matrices) if matrices else None


@torch.no_grad()
def loaded_outliers(
    anatomy: Anatomy, steps: Steps, batches: Iterable[Batch], masks: Sequence[Tensor | None]
) -> Outliers:
    """The outliers of a model in memory, before any step has changed it.

    Args:
        anatomy: the model.
        steps: that may ask.
        batches: the model's inputs.
        masks: as of `observe`.
    """
    if not any(map(by_outliers, steps)):
        return {}
    batches = list(batches)
    replay = capture(anatomy, batches, seams=True)
    hidden = list(replay.hidden)
    found: dict[int, Sequence[float | None]] = {}
    for block in anatomy.blocks:
        if block.index in replay.seams:
            hidden = entering(anatomy, batches, block.index)
        found[block.index] = block_outliers(steps, block, replay, hidden, masks)
    return found


@dataclass
class OutlierPass:
    """The pass over a checkpoint.

    Args:
        source: the opened checkpoint.
        steps: that may ask.
        folder: where the numbers are kept.
        captured: gives how the blocks are called and what enters the first one.
        told: called with the index of a block and what is being done to it.
    """

    source: Source
    steps: Steps
    folder: Path
    captured: Callable[[], tuple[Replay | None, list[Tensor]]]
    told: Callable[[int, str], None] = lambda block, text: None

    @torch.no_grad()
    def collect(self) -> Outliers:
        """The outliers of all blocks, going on where an earlier pass stopped."""
        if not any(map(by_outliers, self.steps)):
            return {}
        blocks = self.source.anatomy.blocks
        self.folder.mkdir(parents=True, exist_ok=True)
        if not all(self._file(block).exists() for block in blocks):
            self._measure(blocks)
        return {block.index: json.loads(self._file(block).read_text()) for block in blocks}

    def _measure(self, blocks: Sequence[Block]) -> None:
        replay, hidden = self.captured()
        assert replay is not None  # whoever shares by outliers reads norms of inputs
        for block in blocks:
            self.told(block.index, "looking for outliers in the dense model")
            self.source.load(block)
            return_freed_memory()
            if self._file(block).exists():
                hidden[:] = [replay.run_block(block, states, i) for i, states in enumerate(hidden)]
            else:
                onward = block is not blocks[-1]
                write_json(
                    self._file(block), block_outliers(self.steps, block, replay, hidden, onward=onward)
                )
            self.source.release(block)
            return_freed_memory()

    def _file(self, block: Block) -> Path:
        return self.folder / f"{block.index:05d}.json"
