"""What a pruning metric is worth: the perplexity of a small language model after one-shot pruning with it.

Everything that a metric may read is collected once, on the dense model, before the search begins: the size of the
gradient of every weight (G) and the norm of every input channel (X). So a candidate costs one mask per layer and one
evaluation. In a run of prune.pruner_zero, X comes from the blocks that were pruned before; that differs a little, and
not at all for metrics without X.

Gradients, norms and the tokens of the evaluation are kept in one file, which workers read instead of repeating the
work.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from modicum.formats.shards import Shards, write_tensors
from modicum.kernels.selection import prune_lowest
from modicum.pipeline.loading import load_model
from modicum.prune.metrics import INPUTS, inputs_of, scores_of
from modicum.prune.pruner_zero import PrunerZero
from modicum.search.pricing import Pricing, seen
from modicum.symbolic import Node, Type, parse

MAGNITUDE = "abs(W)"
LETTERS = {**INPUTS, MAGNITUDE: Type.TENSOR}
"""What a genome may name. The magnitude is a letter of its own: a score has no use for the sign of a weight."""

EVERYTHING = "abs(W) * X * G"


def read(genome: str) -> Node:
    """The expression of a genome; `abs(W)` is one input."""
    return parse(genome, LETTERS, {MAGNITUDE: MAGNITUDE})


@torch.no_grad()
def collect(model: nn.Module, windows: Tensor, text: Tensor, file: Path) -> None:
    """Write what metrics read of a dense model, and the text that it is evaluated on.

    Args:
        model: a language model in float32.
        windows: calibration, int64 [windows, length].
        text: of the evaluations, int64 [windows, length].
        file: to write.
    """
    found = {"text": text}
    for calibrated in seen(model, (PrunerZero(metric=EVERYTHING),), windows):
        for layer in calibrated.block.layers:
            values = inputs_of(read(EVERYTHING), layer.weight, calibrated.layer_statistics(layer))
            found |= {f"{layer.name}.{letter}": values[letter].contiguous() for letter in "XG"}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(file, found)


@dataclass(frozen=True)
class Proxy:
    """Makes the fitness; small enough to be sent to every worker.

    Attributes:
        model: directory of the language model.
        statistics: the file that `collect` wrote.
        sparsity: fraction of every output row that is pruned.
    """

    model: Path
    statistics: Path
    sparsity: float

    def __call__(self) -> Pruned:
        """The model, loaded."""
        return Pruned(load_model(self.model, torch.float32), Shards(self.statistics), self.sparsity)


class Pruned(Pricing):
    """The fitness of metrics.

    Args:
        model: dense, in float32.
        shards: what `collect` wrote.
        sparsity: fraction of every output row that is pruned.
    """

    def __init__(self, model: nn.Module, shards: Shards, sparsity: float) -> None:
        super().__init__(model, shards.read("text"))
        self.layers, self.sparsity = list(self.anatomy.layers()), sparsity
        self.inputs = [_letters(layer.name, self.weights[layer.name], shards) for layer in self.layers]

    @torch.no_grad()
    def apply(self, genome: str) -> bool:
        """Prune the dense model by a metric, in place; False if its scores are not finite."""
        node = read(genome)
        for layer, inputs in zip(self.layers, self.inputs, strict=True):
            weight = inputs["W"]
            scores = scores_of(node, inputs, weight)
            if scores is None:
                return False
            pruned = prune_lowest(scores, int(self.sparsity * weight.shape[1]))
            layer.set_weight(weight.masked_fill(pruned, 0))
        return True

    def slice(self, rows: int, columns: int) -> dict[str, Tensor]:
        """The letters of a corner of the layer in the middle: a small example of what is real."""
        whole = self.inputs[len(self.inputs) // 2]
        norms = whole["X"][:columns]
        return {name: values[:rows, :columns] for name, values in whole.items() if name != "X"} | {"X": norms}


def _letters(name: str, weight: Tensor, shards: Shards) -> dict[str, Tensor]:
    read = {letter: shards.read(f"{name}.{letter}") for letter in "XG"}
    return {"W": weight, MAGNITUDE: weight.abs(), **read}
