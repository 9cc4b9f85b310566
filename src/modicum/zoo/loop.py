"""The small training loop of the nano models: one process, killed and resumed at will.

A nano model trains in minutes to an hour on a CPU. What the loop owes its recipe is a schedule, a checkpoint
that holds everything (weights, both moments of Adam, the step, the time spent) in one safetensors file that
is replaced atomically, and a line of progress. With a budget in steps the result does not depend on
interruptions, to the byte: the recipe's loss is a function of the step alone. A budget in minutes follows the
clock.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from modicum.errors import CheckpointError, InvalidSetting, NotFinite

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of optimizer steps, or minutes of wall time (resumed runs add up)."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.steps, self.minutes) if value is not None]
        if len(given) != 1 or given[0] <= 0:
            raise InvalidSetting(
                "A training needs --steps or --minutes, above zero.", "Give exactly one of the two."
            )

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget that is spent, in [0, 1]."""
        spent = step / self.steps if self.steps else seconds / (60 * (self.minutes or 1))
        return min(spent, 1.0)


@dataclass
class Loop:
    """AdamW with warm-up and cosine decay to zero, gradient clipping at 1.

    Attributes:
        model: trained in place; its parameters are float32.
        loss_at: `(step, progress) -> scalar loss`; must depend on nothing else.
        budget: how long.
        identity: text that names recipe, seed and data; a checkpoint of another identity is refused.
        work: directory of the checkpoint.
        lr: peak learning rate.
        warmup: steps over which it rises.
        save_seconds: at most so much training is lost when the process is killed.
        report: receives one line of progress, now and then.
    """

    model: nn.Module
    loss_at: Callable[[int, float], Tensor]
    budget: Budget
    identity: str
    work: Path
    lr: float
    warmup: int = 200
    save_seconds: float = 60.0
    report: Callable[[str], None] = print
    step: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.95), fused=True)

    def run(self) -> None:
        """Train to the end of the budget, from the checkpoint if there is one."""
        if (self.work / CHECKPOINT).exists():
            self.resume()
        began, saved, told, mean = time.monotonic() - self.seconds, time.monotonic(), 0.0, math.nan
        while (progress := self.budget.progress(self.step, self.seconds)) < 1:
            loss = self._train_step(progress)
            mean = loss if math.isnan(mean) else 0.98 * mean + 0.02 * loss
            now = time.monotonic()
            self.seconds = now - began
            if now - told > 10:
                told = now
                self.report(
                    f"step {self.step}  {progress:6.1%}  loss {mean:.4f}  {self.seconds / 60:.1f} min"
                )
            if now - saved > self.save_seconds:
                saved = now
                self.save()
        self.save()

    def _train_step(self, progress: float) -> float:
        factor = min(1.0, (self.step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        loss = self.loss_at(self.step, progress)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        value = loss.item()
        if not math.isfinite(value):
            raise NotFinite(
                f"The loss is {value} at step {self.step}.", "Lower the learning rate, or start again."
            )
        return value

    def save(self) -> None:
        """Write weights, moments, step and time; the file is complete or the old one stays."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.model.named_parameters():
            tensors[f"weight.{name}"] = parameter.detach()
            for moment in ("exp_avg", "exp_avg_sq"):
                if parameter in self.optimizer.state:
                    tensors[f"{moment}.{name}"] = self.optimizer.state[parameter][moment]
        self.work.mkdir(parents=True, exist_ok=True)
        partial = self.work / f"{CHECKPOINT}.partial"
        metadata = {"identity": self.identity, "step": str(self.step), "seconds": repr(self.seconds)}
        save_file(tensors, partial, metadata)
        os.replace(partial, self.work / CHECKPOINT)

    def resume(self) -> None:
        """Load the checkpoint of the work directory.

        Raises:
            CheckpointError: it belongs to another recipe, budget or seed.
        """
        path = self.work / CHECKPOINT
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            if metadata["identity"] != self.identity:
                raise CheckpointError(
                    f"{path} belongs to another training ({metadata['identity']}).",
                    "Name another --work directory.",
                )
            self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    parameter.copy_(file.get_tensor(f"weight.{name}"))
                    if f"exp_avg.{name}" in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                        self.optimizer.state[parameter] = {
                            "step": torch.tensor(float(self.step)),
                            "exp_avg": file.get_tensor(f"exp_avg.{name}"),
                            "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{name}"),
                        }
        self.report(f"resumed at step {self.step}")
