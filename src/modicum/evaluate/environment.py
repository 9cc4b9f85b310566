"""The facts of a machine without which a measured number cannot be judged."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from modicum.version import __version__


def environment(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Versions, processor, threads, load and device, as JSON-serialisable values; None where unknown.

    The load averages (1, 5, 15 minutes) tell whether other programs shared the machine that was timed.
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "modicum": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "system": platform.platform(terse=True),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "device": device_name(device),
    }


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The processor's own name where the system tells it, else its architecture."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or None


def device_name(device: torch.device | str) -> str:
    """The device with the accelerator's name, e.g. "cuda:0 (NVIDIA H200)"."""
    device = torch.device(device)
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
