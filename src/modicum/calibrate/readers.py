"""Statistics of the inputs of a few layers of a whole model, one block at a time.

A method over the whole model that scores blocks (and perhaps changes each before the next one is looked at) needs the
inputs of some layers, in order, and no more memory than one block's statistics take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from modicum.calibrate.block import CalibratedBlock, observe
from modicum.models.anatomy import Anatomy, Block
from modicum.models.replay import Batch, capture


@torch.no_grad()
def visit(
    anatomy: Anatomy,
    batches: Iterable[Batch],
    wanted: Mapping[str, frozenset[str]],
    use: Callable[[Block, CalibratedBlock], None],
) -> None:
    """Call `use` with every block and what was seen of it; the next block sees what `use` made of this one.

    Args:
        anatomy: of the model, with its weights in memory.
        batches: token ids [batch, tokens], or dicts of the model's inputs.
        wanted: statistics by layer name.
        use: may write weights; shapes must stay.

    Raises:
        UnusableData: there is no batch.
    """
    replay = capture(anatomy, batches)
    hidden = list(replay.hidden)
    for block in anatomy.blocks:
        own = {layer.name: wanted[layer.name] for layer in block.layers if layer.name in wanted}
        use(block, observe(block, lambda i, h, block=block: replay.run_block(block, h, i), hidden, own))  # type: ignore[misc]
        hidden = [replay.run_block(block, states, i) for i, states in enumerate(hidden)]
