"""modicum's own quantizer for transformers: `import modicum` and `from_pretrained` opens what modicum wrote.

The model is built from config.json on the meta device, then modicum.json says which parameters have another shape
than the config implies (layers of different widths, heads, experts) and which weights are stored in which form. The
forms are put in place before the weights are read. Forms that only save bytes on disk (masked, N:M) and forms of what
cannot be exchanged (convolutions, expert slices) give way to the original modules once their tensors are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from modicum.errors import CheckpointError
from modicum.formats.coded import CodedShards
from modicum.formats.coded_layout import Layout
from modicum.formats.coded_models import install, start
from modicum.formats.experts import ExpertStore
from modicum.formats.irregular import check, located, reshape, submodule
from modicum.formats.manifest import FORMAT, Manifest
from modicum.formats.shards import Shards
from modicum.models.storage import storage_of
from modicum.weights.base import WeightForm, from_spec
from modicum.weights.coded import Group

METHOD = "modicum"
# transformers only warns of a quantizer that it does not know, and opens the model with random weights. This entry
# of config.json makes it stop instead, with these words; the registered quantizer takes the entry out again.
GUARD = {"transformers_weights": "none without modicum: import modicum first"}


def config_entries() -> dict[str, Any]:
    """What config.json of a checkpoint in modicum's own format says beside the model's own settings."""
    return {"quantization_config": {"quant_method": METHOD, "format": FORMAT}, **GUARD}


@register_quantization_config(METHOD)
class ModicumConfig(QuantizationConfigMixin):
    """The `quantization_config` of config.json: a pointer to modicum.json beside it."""

    def __init__(self, format: int = FORMAT, **unused: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]
        self.format = format


@register_quantizer(METHOD)
class ModicumQuantizer(HfQuantizer):
    """Puts forms and irregular shapes in place before transformers reads the weights."""

    requires_calibration = False
    groups: Sequence[Group] = ()

    @property
    def is_trainable(self) -> bool:
        """Whether adapters on top can be trained: codes are decoded again for a backward pass, forms are not."""
        return bool(self.groups)

    def is_serializable(self) -> bool:
        """Forms are written by modicum's checkpoint writer, not by `save_pretrained`."""
        return False

    def update_attn_implementation(self, config: Any) -> Any:
        """Take the guard out: called with the config before any file is looked for."""
        for name in GUARD:
            if hasattr(config, name):
                delattr(config, name)
        return config

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Remember the compute dtype: forms are read as they are stored and cast afterwards."""
        self.dtype = dtype
        return dtype

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        if not checkpoint_files:
            raise CheckpointError("A modicum checkpoint needs its weight files beside modicum.json.")
        directory = Path(checkpoint_files[0]).parent
        manifest = located(Manifest.read(directory), model)
        reshape(model, manifest)
        self.originals = install_forms(model, manifest)
        check(model, manifest, Shards(directory))
        self.groups = _install_coded(model, manifest, directory)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        expand_stored(model, self.originals, self.dtype)
        if self.groups:
            start(model, self.groups)
        return model


def _install_coded(model: nn.Module, manifest: Manifest, directory: Path) -> list[Group]:
    """Stand-ins for the weights that are coded without loss.

    Raises:
        CheckpointError: they cannot run as they are stored.
    """
    layout = Layout.of(manifest, directory)
    if layout is None:
        return []
    if layout.method != "lossless.dfloat11":
        raise CheckpointError(
            f"{directory} is compressed for storage ({layout.method}), and no model runs from it.",
            "Open it with modicum.load, or write the original with modicum export --plain.",
        )
    return install(model, layout, CodedShards(directory, layout).stored.tensors)


def install_forms(model: nn.Module, manifest: Manifest) -> dict[str, nn.Module]:
    """Replace every layer that is stored in a form by that form, empty and on the meta device.

    Returns:
        The modules that were replaced, by name.

    Raises:
        CheckpointError: a layer of the manifest is not in the model, or its shape differs.
    """
    originals: dict[str, nn.Module] = {}
    for name, spec in manifest.forms().items():
        with torch.device("meta"):
            form = from_spec(spec)
        owner, marker, path = name.rpartition(".experts.")
        fused = submodule(model, f"{owner}.experts") if marker else None
        if fused is not None and not isinstance(fused, nn.ModuleList):
            if not isinstance(fused, ExpertStore):
                fused = ExpertStore(fused)
                model.set_submodule(f"{owner}.experts", fused)
            fused.add(path, form)
        else:
            originals[name] = _replace(model, name, form)
    return originals


def _replace(model: nn.Module, name: str, form: WeightForm) -> nn.Module:
    module = submodule(model, name)
    storage = None if isinstance(module, WeightForm) else storage_of(module)
    if storage is None or storage.shape != (form.out_features, form.in_features):
        raise CheckpointError(f"config.json and modicum.json disagree on the shape of {name}.")
    if storage.bias is not None and form.bias is None:
        raise CheckpointError(f"modicum.json gives {name} no bias, config.json does.")
    model.set_submodule(name, form)
    # Some models initialize a layer through its owner, which would look for a dense weight here.
    submodule(model, name.rpartition(".")[0])._is_hf_initialized = True
    return module


@torch.no_grad()
def expand_stored(
    model: nn.Module, originals: dict[str, nn.Module], dtype: torch.dtype | None = None
) -> None:
    """Check every loaded form, and put the original modules back where a form is only for storage.

    Args:
        model: with the forms of `install_forms`, filled.
        originals: what `install_forms` replaced.
        dtype: compute dtype; that of each form by default.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, ExpertStore):
            model.set_submodule(name, module.expanded(dtype))
    for name, original in originals.items():
        form: Any = model.get_submodule(name)
        form.check()
        if dtype is not None:
            form.to(dtype)
        storage = storage_of(original)
        if storage is not None and (form.expand_on_load or not storage.swappable):
            fill(original, form)
            model.set_submodule(name, original)


def fill(module: Any, form: WeightForm) -> None:
    """Give a linear layer or convolution the dense weight, and the bias, of `form`."""
    dense = form.to_dense()  # [out, in]
    turned = dense.t().contiguous() if isinstance(module, Conv1D) else dense.reshape(module.weight.shape)
    module.weight = nn.Parameter(turned, module.weight.requires_grad)
    if form.bias is not None:
        module.bias = nn.Parameter(form.bias.detach(), module.weight.requires_grad)
