"""Which layers of a loaded model are multiplied by the sparse kernels of its device, and why the others are not.

An N:M layer is known by its stored form, or by what modicum.json promises of it where the weights are stored dense. A
promise is not believed: weights may have been trained since, and are looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from modicum.errors import InvalidSetting
from modicum.formats.manifest import Manifest
from modicum.formats.native import ModicumConfig, ModicumQuantizer
from modicum.kernels import sparse24
from modicum.models.storage import storage_of
from modicum.weights.base import WeightForm
from modicum.weights.semi_structured import SemiStructuredWeight

OFF = "sparse kernels were not asked for"
_PROMISE = re.compile(r"a (\d+):(\d+) pattern")


@dataclass(frozen=True)
class SparseProducts:
    """What loading made of the layers with an N:M pattern; a loaded model has it as `sparse_products`.

    Attributes:
        kernel: name of the kernel; empty if no layer uses one.
        layers: names of the layers that it multiplies.
        dense: why each of the others is multiplied as a dense matrix, by name.
    """

    kernel: str
    layers: tuple[str, ...]
    dense: Mapping[str, str]

    def __str__(self) -> str:
        """One line for people."""
        if not self.dense:
            return f"all {len(self.layers)} N:M layers are multiplied by {self.kernel}"
        name, reason = next(iter(self.dense.items()))
        beginning = f"{len(self.layers)} by {self.kernel}, " if self.layers else ""
        return f"N:M layers: {beginning}{len(self.dense)} as dense ones ({name}: {reason})"


@torch.no_grad()
def to_device(
    model: Any, manifest: Manifest, device: torch.device, sparse_kernels: bool
) -> SparseProducts | None:
    """Move a dense model, and let those of its layers be 2:4 matrices there that the kernels of the device take.

    Layers are moved one after the other, so that the device never holds more than one of them dense.

    Args:
        model: loaded, with dense layers.
        manifest: what is known of them.
        device: where it goes.
        sparse_kernels: whether they are asked for; else every layer stays dense.

    Returns:
        What became of every N:M layer; None if there is none.
    """
    patterns = patterns_of(manifest)
    dense = {name: _made_sparse(model, name, *patterns[name], device, sparse_kernels) for name in patterns}
    model.to(device)
    layers = tuple(name for name, reason in dense.items() if not reason)
    for name in layers:
        model.get_submodule(name).enter_kernel_layout()
    if layers:  # `save_pretrained` would write what nobody reads; a quantizer makes it refuse
        model.hf_quantizer = ModicumQuantizer(ModicumConfig())
    kernel = sparse24.kernel_for(device) if layers else None
    left = {name: reason for name, reason in dense.items() if reason}
    return SparseProducts(kernel.name if kernel else "", layers, left) if patterns else None


def patterns_of(manifest: Manifest) -> dict[str, tuple[int, int]]:
    """(N, M) of every layer that has such a pattern, by name."""
    found = {}
    for name, promises in manifest.promises.items():
        for match in filter(None, map(_PROMISE.fullmatch, promises)):
            found[name] = (int(match[1]), int(match[2]))
    for name, spec in manifest.forms().items():
        if spec.get("kind") == SemiStructuredWeight.kind:
            found[name] = (int(spec["settings"]["n"]), int(spec["settings"]["m"]))
    return found


def _made_sparse(model: nn.Module, name: str, n: int, m: int, device: torch.device, wanted: bool) -> str:
    """Put a 2:4 matrix on the device in the place of a layer, or say why not."""
    if not wanted:
        return OFF
    try:
        storage = storage_of(model.get_submodule(name))
    except AttributeError:
        storage = None
    if storage is None or not storage.swappable:
        return "it is not a linear layer of its own"
    if isinstance(storage.module, WeightForm):
        return f"it stays {storage.module.kind}"
    weight = storage.weight.detach()  # [out, in]
    refusal = sparse24.refusal((n, m), storage.shape, weight.dtype, device)
    if refusal:
        return refusal
    try:
        form = SemiStructuredWeight.from_dense(weight.to(device).contiguous(), bias=storage.bias)
    except InvalidSetting:
        return "more than 2 of 4 neighbouring weights are not zero"
    model.set_submodule(name, form)
    return ""
