"""The facts that `modicum doctor` shows."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version

CORE = (
    "torch",
    "transformers",
    "safetensors",
    "tokenizers",
    "pydantic",
    "numpy",
    "matplotlib",
    "typer",
    "rich",
)
EXTRAS = {
    "compressed-tensors": "compressed",
    "datasets": "datasets",
    "accelerate": "train",
    "peft": "train",
    "diffusers": "images",
    "lpips": "lpips",
    "fastapi": "viewer",
    "opencv-python-headless": "video",
}


@dataclass(frozen=True)
class Fact:
    """One line of the check-up."""

    value: str
    good: bool = True
    remedy: str = ""


def checkup() -> dict[str, Fact]:
    """Versions, accelerators, threads, memory, disk, extras and nano models."""
    facts = {"python": Fact(platform.python_version()), "modicum": Fact(version("modicum"))}
    facts |= {name: _package(name, "pip install modicum") for name in CORE}
    facts |= {name: _package(name, f"pip install 'modicum[{extra}]'") for name, extra in EXTRAS.items()}
    facts |= {
        "accelerator": _accelerator(),
        "threads": _threads(),
        "free disk": _disk(),
        "nano models": _zoo(),
    }
    return facts


def _package(name: str, remedy: str) -> Fact:
    try:
        return Fact(metadata(name)["Version"])
    except PackageNotFoundError:
        return Fact("not installed", False, remedy)


def _accelerator() -> Fact:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return Fact(", ".join(f"{p.name} ({p.total_memory / 1e9:.0f} GB)" for p in names))
    if torch.backends.mps.is_available():
        return Fact("Apple GPU (mps)")
    return Fact("none; everything runs on the CPU", False)


def _threads() -> Fact:
    import torch

    return Fact(f"{torch.get_num_threads()} of {os.cpu_count()} cores")


def _disk() -> Fact:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    return Fact(f"{free / 1e9:.0f} GB", free > 5e9, "" if free > 5e9 else "large models need more")


def _zoo() -> Fact:
    from modicum import zoo

    names = zoo.names()
    return Fact(", ".join(names) or "none", bool(names), "" if names else "reinstall modicum")
