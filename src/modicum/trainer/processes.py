"""Where a training runs: in this process, or in the many that `accelerate launch` started."""

from __future__ import annotations

import os
from typing import Any

import torch

from modicum.errors import MissingExtra


def accelerator(device: torch.device) -> Any:
    """Accelerate's view of this process and its neighbours.

    Raises:
        MissingExtra: Accelerate is not installed.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingExtra.of("accelerate", "train", "Training") from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # a single process works on the current one
    return Accelerator(cpu=device.type == "cpu")


def is_first() -> bool:
    """Whether this process is the one that writes: the only one, or the first that `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def many() -> bool:
    """Whether `accelerate launch` started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def cuda_devices(device: torch.device) -> list[torch.device]:
    """The accelerators whose generator a training touches."""
    return [device] if device.type == "cuda" else []
