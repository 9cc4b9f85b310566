"""The same questions for every candidate: what calibration asks of a model when it compares versions of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from modicum.data.samples import Samples
from modicum.trainer.objective import Objective, Question, check_batch
from modicum.trainer.sources import batch_seed


def questions(
    objective: Objective, data: Samples, samples: int, batch: int, seed: int, device: torch.device
) -> Iterator[Question]:
    """Questions about `samples` samples (all of them, if there are fewer), without dropped labels.

    Args:
        objective: asks.
        data: of which.
        samples: how many.
        batch: per question.
        seed: of the choice and of all noise; the same seed asks the same.
        device: where the model is.
    """
    size = min(batch, samples, data.count)
    source = data.batches(size, seed)
    for index in range(min(samples, data.count) // size):
        tensors = source(index)
        check_batch(objective, tensors)
        generator = torch.Generator(device).manual_seed(batch_seed(seed, index))
        moved = {name: value.to(device) for name, value in tensors.items()}
        yield objective.ask(moved, generator, training=False)


def passes(
    model: nn.Module, objective: Objective, data: Samples, samples: int, seed: int, batch: int = 32
) -> list[Callable[[], Tensor]]:
    """Forward passes of a model over what it is asked in training: the batches that its layers are calibrated on.

    Args:
        model: on its device.
        objective: asks.
        data: of which.
        samples: how many.
        seed: of the choice and of all noise.
        batch: samples per pass.
    """
    device = next(model.parameters()).device
    asked = questions(objective, data, samples, batch, seed, device)
    return [partial(objective.answer, model, question) for question in asked]


def repeated(question: Question, times: int) -> dict[str, Tensor]:
    """A question asked `times` times over, sample by sample: rows 0 0 0 1 1 1 ..."""
    return {name: value.repeat_interleave(times, dim=0) for name, value in question.items()}
