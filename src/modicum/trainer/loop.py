"""The training loop: AdamW through Accelerate, so that one process and many run the same code.

Every step draws its randomness from a seed that follows from the step alone. With batches and losses that do the same,
a training that was killed and taken up again ends with the same bytes as one that was not. A step whose loss or
gradient is not finite is left out and counted; ten in a row end the training with an error.

Under `accelerate launch` the model is wrapped for DDP or FSDP as its settings say, and process r of n reads the batches
r, n + r, 2n + r, ...
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modicum.errors import InvalidSetting, NotFinite
from modicum.trainer import checkpoints
from modicum.trainer.average import Average
from modicum.trainer.history import History, Watch, nothing
from modicum.trainer.processes import accelerator, cuda_devices
from modicum.trainer.records import Record, Trained
from modicum.trainer.settings import Group, Settings
from modicum.trainer.sources import Batches, Loss, Moment, batch_seed

SKIPPED_IN_A_ROW = 10
REPORT_SECONDS = 5.0


@dataclass
class Trainer:
    """One training of one model, in place.

    Attributes:
        model: in the mode (train or eval) in which its losses are computed; parameters that need no gradient stay.
        groups: what is trained, at which learning rates.
        loss: see `modicum.trainer.sources`.
        batches: see `modicum.trainer.sources`.
        settings: length, schedule, arithmetic.
        work: directory of the checkpoints; None keeps none.
        identity: names recipe, model and data; a checkpoint of another identity is refused.
        device: where a single process works; under `accelerate launch` every process has its own.
        callbacks: called after every step, on every process.
        report: receives a line of progress now and then, in one process.
        watch: what the history records beside the loss; asked while the model holds its averages, if there are some.
    """

    model: nn.Module
    groups: Sequence[Group]
    loss: Loss
    batches: Batches
    settings: Settings
    work: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    callbacks: Sequence[Callable[[Record], None]] = ()
    report: Callable[[str], None] = lambda line: None
    watch: Watch = nothing
    step: int = field(default=0, init=False)
    skipped: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)
    average: Average | None = field(default=None, init=False)
    history: History = field(init=False)

    def __post_init__(self) -> None:
        self._in_a_row = 0
        self._mean = math.nan
        self.history = History(self.settings.steps, self._watched)
        self._accelerator = accelerator(self.device)
        self._prepare()
        self._resume()

    def run(self) -> Trained:
        """Train to the last step, from the newest checkpoint in `work` if there is one.

        Raises:
            NotFinite: ten steps in a row had a loss or a gradient that is not finite.
        """
        began, told = time.monotonic() - self.seconds, -math.inf
        with torch.random.fork_rng(devices=cuda_devices(self._accelerator.device)):
            while self.step < self.settings.steps:
                record = self._train_step()
                now = time.monotonic()
                self.seconds = now - began
                if now - told > REPORT_SECONDS or self.step == self.settings.steps:
                    told = now
                    self._tell(record)
                if self.step % self.settings.save_every == 0 or self.step == self.settings.steps:
                    self._save()
        return Trained(self.step, self.skipped, self._mean, self.seconds)

    def _prepare(self) -> None:
        groups = [
            {
                "params": [p for p in group.parameters if p.requires_grad],
                "lr": group.lr,
                "weight_decay": group.weight_decay,
            }
            for group in self.groups
        ]
        groups = [group for group in groups if group["params"]]
        if not groups:
            raise InvalidSetting("No parameter of the model is trained.", "Unfreeze what is to be trained.")
        optimizer = torch.optim.AdamW(groups, betas=self.settings.betas)
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]
        # Preparing sets nothing but wrappers; the mode of the model is the caller's.
        self._wrapped, self._optimizer = self._accelerator.prepare(self.model, optimizer)
        checkpoints.leave_out_frozen(self._accelerator, self._wrapped)
        if self.settings.average is not None:
            trained = ((n, p) for n, p in self._wrapped.named_parameters() if p.requires_grad)
            self.average = Average(trained, self.settings.average)

    def _train_step(self) -> Record:
        factor = self.settings.factor(self.step)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        loss = self._accelerator.reduce(self._gradients(), reduction="mean").item()
        trained = (p for group in self._optimizer.param_groups for p in group["params"])
        gradient = float(self._accelerator.clip_grad_norm_(list(trained), self.settings.clip))
        skipped = not (math.isfinite(loss) and math.isfinite(gradient))
        if not skipped:
            self._optimizer.step()
            if self.average is not None:
                self.average.update()
        self._optimizer.zero_grad()
        self.step += 1
        self._count(loss, skipped)
        record = Record(self.step, loss, gradient, factor, skipped)
        self.history.add(record)
        for callback in self.callbacks:
            callback(record)
        return record

    def _gradients(self) -> Tensor:
        """Gradients of the mean loss over the batches of a step, and that loss."""
        count, total = self.settings.accumulate, torch.zeros((), device=self._accelerator.device)
        for part in range(count):
            last = part == count - 1
            with nullcontext() if last else self._accelerator.no_sync(self._wrapped):
                loss = self._loss_of(self.step * count + part)
                self._accelerator.backward(loss / count)
            total += loss.detach().float() / count
        return total

    def _loss_of(self, index: int) -> Tensor:
        device, ranks = self._accelerator.device, self._accelerator.num_processes
        index = index * ranks + self._accelerator.process_index
        seed = batch_seed(self.settings.seed, index)
        torch.manual_seed(seed)  # dropout inside the model knows no generator
        moment = Moment(self.step, self.settings.steps, torch.Generator(device).manual_seed(seed))
        batch = {name: value.to(device) for name, value in self.batches(index).items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.bf16):
            return self.loss(self._wrapped, batch, moment)

    def _count(self, loss: float, skipped: bool) -> None:
        if not skipped:
            self._in_a_row = 0
            self._mean = loss if math.isnan(self._mean) else 0.98 * self._mean + 0.02 * loss
            return
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row == SKIPPED_IN_A_ROW:
            raise NotFinite(
                f"{SKIPPED_IN_A_ROW} steps in a row, up to {self.step}, had a loss or gradient that is not finite.",
                "Lower the learning rate, or train in float32.",
            )

    def _save(self) -> None:
        if self.work is None:
            return
        state = {
            "identity": self._identity(),
            "step": self.step,
            "skipped": self.skipped,
            "in_a_row": self._in_a_row,
            "seconds": self.seconds,
            "loss": None if math.isnan(self._mean) else self._mean,
            "history": self.history.state(),
        }
        averages = self.average.values if self.average is not None else {}
        checkpoints.save(self._accelerator, self.work, state, averages)

    def _resume(self) -> None:
        found = checkpoints.latest(self.work) if self.work is not None else None
        if found is None:
            return
        state, averages = checkpoints.load(self._accelerator, found, self._identity())
        self.step, self.skipped, self.seconds = state["step"], state["skipped"], state["seconds"]
        self._in_a_row, self._mean = (
            state["in_a_row"],
            state["loss"] if state["loss"] is not None else math.nan,
        )
        if "history" in state:  # older checkpoints have none
            self.history.restore(state["history"])
        if self.average is not None:
            for name, value in checkpoints.load_averages(averages).items():
                self.average.values[name].copy_(value)
        self.report(f"resumed at step {self.step}")

    def state_dict(self) -> dict[str, Tensor]:
        """All weights of the model, on every process whole; the averages where there are some."""
        with self.averaged():
            state: dict[str, Tensor] = self._accelerator.get_state_dict(self._wrapped)
            return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which the model holds the averages of its weights, where there are some."""
        return self.average.in_place() if self.average is not None else nullcontext()

    def _watched(self) -> dict[str, Tensor]:
        if self.watch is nothing:
            return {}
        with self.averaged():  # copied before the model holds its own weights again
            return {name: value.detach().clone() for name, value in self.watch().items()}

    def _identity(self) -> dict[str, Any]:
        fixed = self.settings.model_dump(mode="json", exclude={"save_every"})
        return {**self.identity, **fixed, "processes": self._accelerator.num_processes}

    def _tell(self, record: Record) -> None:
        if not self._accelerator.is_main_process:
            return
        left = self.seconds / self.step * (self.settings.steps - self.step)
        skipped = f"  {self.skipped} skipped" if self.skipped else ""
        self.report(
            f"step {record.step}/{self.settings.steps}  loss {self._mean:.4f}{skipped}  {_duration(left)} left"
        )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
