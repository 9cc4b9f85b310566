"""What a candidate is worth: the perplexity of a small language model that it was applied to.

A candidate is tried on a quarter of the text first. If that shows that it is clearly worse than what nobody would keep,
the estimate is all that is wanted of it; if not, the other three quarters follow. No window is computed twice.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from modicum.calibrate.block import CalibratedBlock
from modicum.errors import NotFinite
from modicum.evaluate.perplexity import Perplexity, perplexity
from modicum.models import Anatomy, capture
from modicum.pipeline.gradients import loaded_gradients
from modicum.pipeline.run import calibrate
from modicum.pipeline.sweep import Steps
from modicum.search.individual import Outcome

FEW = 4  # a candidate is first tried on every fourth window


class Pricing(ABC):
    """The fitness of candidates on one model, which holds what the last candidate made of it between calls.

    Args:
        model: dense, in float32.
        text: of the evaluations, int64 [windows, length].
    """

    def __init__(self, model: nn.Module, text: Tensor) -> None:
        self.model, self.anatomy = model, Anatomy.of(model)
        self.weights = {layer.name: layer.weight.detach().clone() for layer in self.anatomy.layers()}
        first = torch.arange(len(text)) % FEW == 0
        self.few, self.rest = text[first], text[~first]
        few = self._measured(self.few)
        self.dense, self.dense_few = self._completed(few), few.ppl

    @abstractmethod
    def apply(self, genome: str) -> bool:
        """Make of the dense model what a candidate says, in place; False if it cannot be done."""

    def __call__(self, genome: str, limit: float = math.inf) -> Outcome:
        """The perplexity under a candidate; an estimate, if a quarter of the text shows that it is beyond the limit."""
        began = time.perf_counter()
        fitness, full = self._price(genome, limit)
        return Outcome(fitness, full, time.perf_counter() - began)

    def restore(self) -> None:
        """Make the model dense again."""
        for layer in self.anatomy.layers():
            layer.set_weight(self.weights[layer.name])

    def held_out(self, genomes: Sequence[str], text: Tensor) -> list[float]:
        """Perplexities on another text, int64 [windows, length], of the dense model first."""
        self.restore()
        return [self._other(text), *(self._other(text) if self.apply(each) else math.inf for each in genomes)]

    def _other(self, text: Tensor) -> float:
        try:
            return self._measured(text).ppl
        except NotFinite:
            return math.inf

    def _price(self, genome: str, limit: float) -> tuple[float | None, bool]:
        try:
            if not self.apply(genome):
                return None, True
            few = self._measured(self.few)
            estimate = few.ppl * self.dense / self.dense_few
            if not math.isfinite(estimate):
                return None, True
            return (estimate, False) if estimate > limit else (self._completed(few), True)
        except NotFinite:
            return None, True

    def _measured(self, text: Tensor) -> Perplexity:
        return perplexity(self.model, text.flatten(), text.shape[1])

    def _completed(self, few: Perplexity) -> float:
        """The perplexity on the whole text, given that on the first quarter."""
        if not len(self.rest):
            return few.ppl
        rest = self._measured(self.rest)
        total = few.nll_per_token * few.tokens + rest.nll_per_token * rest.tokens
        return math.exp(min(total / (few.tokens + rest.tokens), 700.0))


def seen(model: nn.Module, steps: Steps, windows: Tensor) -> Iterator[CalibratedBlock]:
    """What steps want to know of each block of a dense model, block by block.

    Args:
        model: a language model in float32.
        steps: whose statistics are collected.
        windows: calibration, int64 [windows, length].
    """
    anatomy, batches = Anatomy.of(model), list(windows.split(8))
    gradients = loaded_gradients(anatomy, steps, batches)
    replay = capture(anatomy, batches)
    hidden = [states.clone() for states in replay.hidden]
    for block in anatomy.blocks:
        calibrated = calibrate(steps, block, replay, hidden, onward=True)
        own = {layer.name: gradients[layer.name] for layer in block.layers if layer.name in gradients}
        calibrated.add_gradients(own, windows.numel())
        yield calibrated
