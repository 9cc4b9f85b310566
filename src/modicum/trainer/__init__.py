"""The one training loop: losses, data and parameter groups plug in; a killed training goes on with the same bytes."""

from __future__ import annotations

from modicum.trainer.average import Average, usual_decay
from modicum.trainer.history import History
from modicum.trainer.loop import Trainer
from modicum.trainer.lora import lora
from modicum.trainer.merged_lora import merged_lora
from modicum.trainer.objective import Objective, check_batch
from modicum.trainer.objectives import objective_of
from modicum.trainer.processes import is_first
from modicum.trainer.records import Record, Trained
from modicum.trainer.settings import Group, Settings
from modicum.trainer.sources import Batch, Batches, Loss, Moment
from modicum.trainer.zeros import held_zeros

__all__ = [
    "Average",
    "Batch",
    "Batches",
    "Group",
    "History",
    "Loss",
    "Moment",
    "Objective",
    "Record",
    "Settings",
    "Trained",
    "Trainer",
    "check_batch",
    "held_zeros",
    "is_first",
    "lora",
    "merged_lora",
    "objective_of",
    "usual_decay",
]
