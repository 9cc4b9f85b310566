"""Generators on disk, and those that travel with the package.

    config.json          sizes, and how to paint by default; the form of every compressed matrix
    model.safetensors    parameters in bfloat16, or the stored tensors of forms
    upscaler.safetensors the last stage in bfloat16, if there is one; its sizes are those of its tensors

Compressed matrices are small on disk only: opened, they are plain float32 ones, which a CPU multiplies fastest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from modicum.apps.pixelgen.generator.model import Generator
from modicum.apps.pixelgen.generator.network import GeneratorConfig, PixelNetwork
from modicum.apps.pixelgen.generator.upscale import Upscaler
from modicum.errors import CheckpointError, UnknownName
from modicum.models.state_files import fill, read_json, read_tensors, stored, write_directory
from modicum.weights.base import WeightForm, from_spec

CONFIG, MODEL, UPSCALER = "config.json", "model.safetensors", "upscaler.safetensors"
KIND = "a PixelGen generator"
_WEIGHTS = Path(__file__).parents[1] / "weights"


def names() -> list[str]:
    """Names of the generators that travel with the package."""
    return sorted(entry.name for entry in _WEIGHTS.glob("[!._]*") if (entry / CONFIG).is_file())


def locate(model: str | Path) -> Path:
    """The directory of a generator.

    Raises:
        UnknownName: neither a directory nor a shipped generator.
    """
    if Path(model).is_dir():
        return Path(model)
    if str(model) not in names():
        raise UnknownName.among("generator", str(model), names())
    return _WEIGHTS / str(model)


def load(model: str | Path, device: str = "cpu") -> Generator:
    """Open a generator by directory or name, ready to paint; see `Generator.load`."""
    directory = locate(model)
    data = read_json(directory / CONFIG, KIND)
    if data.get("model_type") != GeneratorConfig.model_type:
        raise CheckpointError(f"{directory} holds another kind of model.", f"Give a directory with {KIND}.")
    forms, painting = data.pop("forms", {}), data.pop("painting", {})
    config = cast(GeneratorConfig, GeneratorConfig.from_dict(data))
    tensors = read_tensors(directory / MODEL)
    try:
        plain = _expanded(tensors, forms)
        generator = Generator(assemble(config, plain).to(device), **painting)
    except TypeError as error:
        raise CheckpointError(f"{directory / CONFIG} is damaged: {error}", "Copy it again.") from error
    if (directory / UPSCALER).is_file():
        generator.upscaler = load_upscaler(directory / UPSCALER).to(device)
    return generator


def load_upscaler(file: Path) -> Upscaler:
    """The last stage, float32, ready to use.

    Raises:
        CheckpointError: the file is unreadable or holds something else.
    """
    tensors = read_tensors(file)
    if "enter.bias" not in tensors:
        raise CheckpointError(f"{file} holds no upscaler.", "Copy it again, or leave it out.")
    depth = sum(name.startswith("body.") and name.endswith(".first.bias") for name in tensors)
    with torch.device("meta"):
        upscaler = Upscaler(len(tensors["enter.bias"]), depth)
    fill(upscaler, tensors, "upscaler", lambda name: torch.float32)
    return upscaler.eval()


def assemble(config: GeneratorConfig, tensors: Mapping[str, Tensor]) -> PixelNetwork:
    """A network in evaluation mode, float32.

    Raises:
        CheckpointError: names or shapes do not fit the config; the message lists them.
    """
    with torch.device("meta"):
        network = PixelNetwork(config)
    fill(network, tensors, "generator", lambda name: torch.float32)
    return network.eval()


def save(
    generator: Generator, out: str | Path, *, half: bool = True, extra: Mapping[str, str] | None = None
) -> Path:
    """Write a generator as a directory that `load` opens.

    Args:
        generator: to write; compressed matrices are stored in their forms.
        out: directory that does not exist yet.
        half: store everything else in bfloat16.
        extra: further text files, by name.

    Raises:
        OutputExists: `out` is there already.
    """
    network = generator.network
    forms = {name: module for name, module in network.named_modules() if isinstance(module, WeightForm)}
    config: dict[str, Any] = {
        **network.config.to_dict(),
        "painting": {"steps": generator.steps, "temperature": generator.temperature},
        **({"forms": {name: form.spec() for name, form in forms.items()}} if forms else {}),
    }
    tensors = stored(network, lambda name: half and not name.startswith(tuple(f"{form}." for form in forms)))
    texts = {CONFIG: json.dumps(config, indent=2) + "\n", **(extra or {})}
    files = {MODEL: tensors}
    if generator.upscaler is not None:
        files[UPSCALER] = stored(generator.upscaler, lambda name: half)
    return write_directory(Path(out), texts, files)


def _expanded(tensors: dict[str, Tensor], forms: Mapping[str, Mapping[str, Any]]) -> dict[str, Tensor]:
    """The tensors with every form replaced by the matrix that it stands for."""
    plain = dict(tensors)
    for name, spec in forms.items():
        form = from_spec(spec)
        own = {suffix: plain.pop(f"{name}.{suffix}", None) for suffix in form.tensors()}
        if missing := [suffix for suffix, tensor in own.items() if tensor is None]:
            raise CheckpointError(f"{name} lacks {missing[0]}.", "Copy the generator again.")
        form.load_state_dict(own)
        form.check()
        plain[f"{name}.weight"] = form.to_dense()
        if form.bias is not None:
            plain[f"{name}.bias"] = form.bias.data
    return plain
