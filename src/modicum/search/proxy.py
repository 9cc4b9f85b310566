"""What a pruning metric is worth: the perplexity of a small language model after one-shot pruning with it.

Everything that a metric may read is collected once, on the dense model, before the search begins: the size of the
gradient of every weight (G) and the norm of every input channel (X). So a candidate costs one mask per layer and one
evaluation. In a run of prune.pruner_zero, X comes from the blocks that were pruned before; that differs a little, and
not at all for metrics without X.

Gradients, norms and the tokens of the evaluation are kept in one file, which workers read instead of repeating the
work.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from modicum.errors import NotFinite
from modicum.evaluate.perplexity import perplexity
from modicum.formats.shards import Shards, write_tensors
from modicum.kernels.selection import prune_lowest
from modicum.models import Anatomy, capture
from modicum.pipeline.gradients import loaded_gradients
from modicum.pipeline.loading import load_model
from modicum.pipeline.run import calibrate
from modicum.prune.metrics import INPUTS, inputs_of, scores_of
from modicum.prune.pruner_zero import PrunerZero
from modicum.search.individual import Outcome
from modicum.symbolic import Node, Type, parse

MAGNITUDE = "abs(W)"
LETTERS = {**INPUTS, MAGNITUDE: Type.TENSOR}
"""What a genome may name. The magnitude is a letter of its own: a score has no use for the sign of a weight."""

EVERYTHING = "abs(W) * X * G"
FEW = 4  # a candidate is first tried on every fourth window


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
    anatomy, steps, batches = Anatomy.of(model), (PrunerZero(metric=EVERYTHING),), list(windows.split(8))
    gradients = loaded_gradients(anatomy, steps, batches)
    replay = capture(anatomy, batches)
    hidden = [states.clone() for states in replay.hidden]
    found = {"text": text}
    for block in anatomy.blocks:
        calibrated = calibrate(steps, block, replay, hidden, onward=True)
        own = {layer.name: gradients[layer.name] for layer in block.layers}
        calibrated.add_gradients(own, windows.numel())
        for layer in block.layers:
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


class Pruned:
    """The fitness of metrics on one model, which holds the weights of the last candidate between calls.

    Args:
        model: dense, in float32.
        shards: what `collect` wrote.
        sparsity: fraction of every output row that is pruned.
    """

    def __init__(self, model: nn.Module, shards: Shards, sparsity: float) -> None:
        self.model, self.sparsity = model, sparsity
        self.layers = list(Anatomy.of(model).layers())
        self.inputs = [_letters(layer.name, layer.weight, shards) for layer in self.layers]
        self.text = shards.read("text")  # [windows, length]
        self.dense = self.perplexity(self.text)
        self.dense_few = self.perplexity(self.text[::FEW])

    def __call__(self, genome: str, limit: float = float("inf")) -> Outcome:
        """The perplexity under a metric; an estimate, if a quarter of the text shows that it is beyond the limit."""
        began = time.perf_counter()
        fitness, full = self._measured(read(genome), limit)
        return Outcome(fitness, full, time.perf_counter() - began)

    def perplexity(self, text: Tensor) -> float:
        """Of the model as it is now, on windows [windows, length] that lie end to end."""
        return perplexity(self.model, text.flatten(), text.shape[1]).ppl

    @torch.no_grad()
    def prune(self, node: Node) -> bool:
        """Prune the dense model by a metric, in place; False if its scores are not finite."""
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

    def _measured(self, node: Node, limit: float) -> tuple[float | None, bool]:
        try:
            if not self.prune(node):
                return None, True
            estimate = self.perplexity(self.text[::FEW]) * self.dense / self.dense_few
            return (estimate, False) if estimate > limit else (self.perplexity(self.text), True)
        except NotFinite:
            return None, True


def _letters(name: str, weight: Tensor, shards: Shards) -> dict[str, Tensor]:
    weight = weight.detach().clone()
    read = {letter: shards.read(f"{name}.{letter}") for letter in "XG"}
    return {"W": weight, MAGNITUDE: weight.abs(), **read}


def held_out(fitness: Pruned, genomes: Sequence[str], text: Tensor) -> list[float]:
    """Perplexities on another text, int64 [windows, length], of the dense model first."""

    def price(genome: str | None) -> float:
        for layer, inputs in zip(fitness.layers, fitness.inputs, strict=True):
            layer.set_weight(inputs["W"])
        if genome is not None and not fitness.prune(read(genome)):
            return float("inf")
        try:
            return fitness.perplexity(text)
        except NotFinite:
            return float("inf")

    return [price(None), *map(price, genomes)]
