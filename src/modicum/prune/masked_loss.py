"""The calibration loss of a model under many choices of blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modicum.models import Anatomy
from modicum.models.depth import gate, ungate
from modicum.trainer.objective import Objective, Question
from modicum.trainer.questions import repeated

ROWS = 64  # samples per forward pass, each under a mask of its own


@torch.no_grad()
def masked_losses(anatomy: Anatomy, objective: Objective, asked: Sequence[Question], masks: Tensor) -> Tensor:
    """Mean loss over all questions, for every mask; the blocks that are off pass their input on.

    Samples of one batch may have different blocks switched off, so many masks share a forward pass.

    Args:
        anatomy: of the model, in evaluation mode.
        objective: asks for the loss.
        asked: questions.
        masks: 0/1 `[masks, blocks]`; 1 is on.

    Returns:
        float64 `[masks]`.
    """
    switches = gate(anatomy)
    total, samples = torch.zeros(len(masks), dtype=torch.float64), 0
    try:
        for question in asked:
            size = len(next(iter(question.values())))
            samples += size
            parts = masks.split(max(ROWS // size, 1))
            losses = []
            for part in parts:
                many = repeated(question, len(part))  # rows: sample 0 under every mask, sample 1, ...
                device = next(iter(many.values())).device
                for switch, mask in zip(switches, part.to(device).repeat(size, 1).unbind(1), strict=True):
                    switch.mask = mask
                loss = objective.loss(objective.answer(anatomy.model, many), many)
                losses.append(loss.double().view(size, len(part)).sum(0).cpu())
            total += torch.cat(losses)
    finally:
        ungate(anatomy)
    return total / samples
