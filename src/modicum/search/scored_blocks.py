"""What a sparsity per block is worth: the perplexity after the blocks are pruned so far by one method's scores.

The scores of every weight are computed once, on the dense model, before the search begins, and kept in one file that
workers read. So a candidate costs a selection in the layers of those blocks whose sparsity is another than before, and
one evaluation. A run with `calibration: {propagate_error: false}` prunes exactly so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from modicum.allocate.sparsity import Owl
from modicum.calibrate.block import CalibratedBlock
from modicum.formats.shards import Shards, write_tensors
from modicum.method import Target
from modicum.models import Block, Layer
from modicum.pipeline.loading import load_model
from modicum.prune.magnitude import Magnitude
from modicum.prune.scored import Scored
from modicum.search.pricing import Pricing, seen
from modicum.search.shares import Shares

OUTLIERS, SIZES, TEXT = "outliers", "sizes", "text"


@torch.no_grad()
def collect_scores(model: nn.Module, method: Scored, windows: Tensor, text: Tensor, file: Path) -> None:
    """Write the score of every weight, the outliers and sizes of the blocks, and the text of the evaluations.

    Args:
        model: a language model in float32, dense.
        method: whose scores they are.
        windows: calibration, int64 [windows, length].
        text: int64 [windows, length].
        file: to write.
    """
    found, outliers, sizes = {TEXT: text}, [], []
    norms = Magnitude(allocation=Owl())  # wants to know the norms of the inputs
    for calibrated in seen(model, (method, norms), windows):
        layers = touched(method, calibrated.block)
        if layers:
            found |= {f"{layer.name}.scores": _scores(method, layer, calibrated) for layer in layers}
            outliers.append(Owl().outliers([_with_norms(layer, calibrated) for layer in layers]))
            sizes.append(sum(layer.out_features * layer.in_features for layer in layers))
    found |= {OUTLIERS: torch.tensor(outliers, dtype=torch.float64), SIZES: torch.tensor(sizes)}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(file, found)


def touched(method: Scored, block: Block) -> list[Layer]:
    """The layers of a block that the method prunes."""
    return [layer for layer in block.layers if method.touches(layer.name, layer.role)]


def _scores(method: Scored, layer: Layer, calibrated: CalibratedBlock) -> Tensor:
    target = Target(layer.name, layer.role, layer.weight.detach(), layer.bias)
    return method.scores(target, calibrated.layer_statistics(layer)).float().contiguous()


def _with_norms(layer: Layer, calibrated: CalibratedBlock) -> tuple[Tensor, Tensor]:
    sums = calibrated.layer_statistics(layer)
    return layer.weight.detach(), sums.column_norm / max(sums.tokens, 1) ** 0.5


@dataclass(frozen=True)
class ScoredBlocks:
    """Makes the fitness; small enough to be sent to every worker.

    Attributes:
        model: directory of the language model.
        statistics: the file that `collect_scores` wrote.
        method: whose scores they are.
    """

    model: Path
    statistics: Path
    method: Scored

    def __call__(self) -> Shared:
        """The model, loaded."""
        return Shared(load_model(self.model, torch.float32), Shards(self.statistics), self.method)


class Shared(Pricing):
    """The fitness of sparsities per block.

    Args:
        model: dense, in float32.
        shards: what `collect_scores` wrote.
        method: whose scores they are.
    """

    def __init__(self, model: nn.Module, shards: Shards, method: Scored) -> None:
        super().__init__(model, shards.read(TEXT))
        self.method = method
        self.blocks = [block for block in self.anatomy.blocks if touched(method, block)]
        self.sizes = tuple(shards.read(SIZES).tolist())
        self.outliers = shards.read(OUTLIERS).tolist()
        self._scores = {
            layer.name: shards.read(f"{layer.name}.scores")
            for block in self.blocks
            for layer in touched(method, block)
        }
        self._now: tuple[float, ...] = (0.0,) * len(self.blocks)

    @torch.no_grad()
    def apply(self, genome: str) -> bool:
        """Give every block its sparsity; what has it already is left as it is."""
        wanted = Shares.read(genome).values
        for block, share, before in zip(self.blocks, wanted, self._now, strict=True):
            if share != before:
                step = self.method.model_copy(update={"sparsity": share})
                for layer in touched(step, block):
                    pruned = step.lowest(self._scores[layer.name])
                    layer.set_weight(self.weights[layer.name].masked_fill(pruned, 0))
        self._now = wanted
        return True

    def restore(self) -> None:
        super().restore()
        self._now = (0.0,) * len(self.blocks)

    def zeros(self) -> float:
        """The fraction of the prunable weights that is zero now."""
        layers = [layer for block in self.blocks for layer in touched(self.method, block)]
        left = sum(int(layer.weight.detach().count_nonzero()) for layer in layers)
        return 1 - left / sum(self.sizes)
