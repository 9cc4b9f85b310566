"""Checkpoints of a training: a directory per saved step, complete or absent, that knows which training it belongs to.

    WORK/step-00000400/training.json        identity, step, counts; written last
                       model.safetensors    what is trained, and the optimizer, as Accelerate lays them out
                       average-0.safetensors   moving averages, one file per process

A new checkpoint is written beside the old one and takes its place when it is complete.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modicum.errors import CheckpointError

STATE = "training.json"
_SAVING = "saving"


def leave_out_frozen(accelerator: Any, model: nn.Module) -> None:
    """Keep weights that are not trained out of all checkpoints; they are where the training began."""
    named = model.named_parameters(remove_duplicate=False)
    frozen = [name for name, parameter in named if not parameter.requires_grad]

    def hook(models: list[nn.Module], states: list[dict[str, Tensor]], directory: str) -> None:
        for state in states:
            for name in frozen:
                state.pop(name, None)

    accelerator.register_save_state_pre_hook(hook)


def latest(work: Path) -> Path | None:
    """The newest complete checkpoint in `work`."""
    complete = (path for path in work.glob("step-*") if (path / STATE).is_file())
    return max(complete, default=None)


def save(accelerator: Any, work: Path, state: Mapping[str, Any], average: Mapping[str, Tensor]) -> None:
    """Write a checkpoint of everything that `accelerator` prepared; every process calls this.

    Args:
        accelerator: holds the model and the optimizer.
        work: directory of the checkpoints.
        state: plain values, among them "step".
        average: moving averages of this process; none are stored if it is empty.
    """
    partial = work / _SAVING
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    with _quiet():
        accelerator.save_state(str(partial))
    if average:
        save_file(dict(average), partial / _average_file(accelerator))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        (partial / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        _publish(partial, work / f"step-{state['step']:08d}")
    accelerator.wait_for_everyone()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Accelerate from warning of tied weights, which it stores once and restores."""
    log = logging.getLogger("accelerate")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _publish(partial: Path, final: Path) -> None:
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    for older in final.parent.glob("step-*"):
        if older != final:
            shutil.rmtree(older)


def load(accelerator: Any, checkpoint: Path, identity: Mapping[str, Any]) -> tuple[dict[str, Any], Path]:
    """Put a checkpoint into what `accelerator` prepared.

    Returns:
        The plain values of the checkpoint, and where the averages of this process are.

    Raises:
        CheckpointError: it is damaged, or belongs to a training of another identity.
    """
    state = read_state(checkpoint)
    check_identity(checkpoint, state["identity"], identity)
    try:
        accelerator.load_state(str(checkpoint), strict=False)  # what is frozen is not in it
    except Exception as error:  # whatever a damaged file makes torch, safetensors or Accelerate stumble on
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{checkpoint} cannot be loaded: {reason}", "Delete it to begin the training again."
        ) from error
    return state, checkpoint / _average_file(accelerator)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The plain values of a checkpoint.

    Raises:
        CheckpointError: they are damaged.
    """
    try:
        state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        if {"identity", "step", "skipped", "in_a_row", "seconds", "loss"} <= state.keys():
            return state
    except (OSError, ValueError, AttributeError):
        pass
    raise CheckpointError(f"{checkpoint / STATE} is damaged.", f"Delete {checkpoint} to begin again.")


def check_identity(checkpoint: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse to continue a training of something else.

    Raises:
        CheckpointError: names the settings that differ.
    """
    wanted = json.loads(json.dumps(wanted))
    keys = sorted(found.keys() | wanted.keys())
    differing = [key for key in keys if found.get(key) != wanted.get(key)]
    if differing:
        shown = ", ".join(
            f"{key} {found.get(key)!r} there, {wanted.get(key)!r} here" for key in differing[:3]
        )
        raise CheckpointError(
            f"{checkpoint} belongs to another training ({shown}).",
            "Repeat the command that began it, or name another directory.",
        )


def load_averages(file: Path) -> dict[str, Tensor]:
    """The moving averages of a checkpoint.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return load_file(file)
    except Exception as error:  # safetensors raises several unrelated classes
        raise CheckpointError(f"{file} cannot be read.", f"Delete {file.parent} to begin again.") from error


def _average_file(accelerator: Any) -> str:
    return f"average-{accelerator.process_index}.safetensors"
