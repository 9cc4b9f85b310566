"""modicum's own quantizer for transformers: `import modicum` and `from_pretrained` opens what modicum wrote.

The model is built from config.json on the meta device, then modicum.json says which parameters have another shape
than the config implies (layers of different widths, heads, experts) and which weights are stored in which form. The
forms are put in place before the weights are read; storage forms (masked, N:M, expert slices) become ordinary dense
modules once their tensors are there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from modicum.errors import CheckpointError
from modicum.formats.experts import ExpertStore
from modicum.formats.manifest import FORMAT, Manifest
from modicum.weights.base import WeightForm, from_spec

METHOD = "modicum"


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
    is_trainable = False

    def is_serializable(self) -> bool:
        """Forms are written by modicum's checkpoint writer, not by `save_pretrained`."""
        return False

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        if not checkpoint_files:
            raise CheckpointError("A modicum checkpoint needs its weight files beside modicum.json.")
        self.manifest = Manifest.read(Path(checkpoint_files[0]).parent)
        reshape(model, self.manifest)
        install_forms(model, self.manifest)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        expand_stored(model)
        return model


def reshape(model: nn.Module, manifest: Manifest) -> None:
    """Give the parameters listed in the manifest their own shapes, and modules the integers that go with them.

    Raises:
        CheckpointError: the manifest names a parameter or an attribute that the model does not have.
    """
    for name, shape in manifest.shapes.items():
        path, _, leaf = name.rpartition(".")
        module = _submodule(model, path)
        old = getattr(module, leaf, None)
        if not isinstance(old, nn.Parameter):
            raise CheckpointError(f"modicum.json gives a shape for {name}, which the model does not have.")
        setattr(
            module,
            leaf,
            nn.Parameter(torch.empty(shape, dtype=old.dtype, device=old.device), old.requires_grad),
        )
        if isinstance(module, nn.Linear) and leaf == "weight":
            module.out_features, module.in_features = shape
    for name, value in manifest.attributes.items():
        path, _, leaf = name.rpartition(".")
        module = _submodule(model, path)
        if type(getattr(module, leaf, None)) is not int:
            raise CheckpointError(f"modicum.json sets {name}, which is not an integer of the model.")
        setattr(module, leaf, value)


def install_forms(model: nn.Module, manifest: Manifest) -> None:
    """Replace every layer that is stored in a form by that form, empty and on the model's device.

    Raises:
        CheckpointError: a layer of the manifest is not in the model, or its shape differs.
    """
    stores: dict[str, ExpertStore] = {}
    for name, spec in manifest.forms().items():
        owner, marker, rest = name.partition(".experts.")
        if marker and not isinstance(_submodule(model, owner + ".experts"), nn.ModuleList):
            path = owner + ".experts"
            if path not in stores:
                stores[path] = ExpertStore(_submodule(model, path))
                model.set_submodule(path, stores[path])
            stores[path].add(rest, from_spec(spec))
        else:
            model.set_submodule(name, _form_for(_submodule(model, name), name, spec))


def _form_for(module: nn.Module, name: str, spec: dict[str, Any]) -> WeightForm:
    form = from_spec(spec)
    weight = getattr(module, "weight", None)
    if weight is None or weight.numel() != form.in_features * form.out_features:
        raise CheckpointError(f"config.json and modicum.json disagree on the shape of {name}.")
    return form


def _submodule(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise CheckpointError(
            f"modicum.json names {path}, which the model of config.json does not have."
        ) from error


@torch.no_grad()
def expand_stored(model: nn.Module) -> None:
    """Check every loaded form, and turn forms that are only for storage into dense modules."""
    for name, module in list(model.named_modules()):
        if isinstance(module, ExpertStore):
            model.set_submodule(name, module.expanded())
        elif isinstance(module, WeightForm) and not _inside_store(model, name):
            module.check()
            if module.expand_on_load:
                model.set_submodule(name, dense_linear(module))


def _inside_store(model: nn.Module, name: str) -> bool:
    parent = name.partition(".experts.")[0] + ".experts"
    return parent != name + ".experts" and isinstance(_submodule(model, parent), ExpertStore)


def dense_linear(form: WeightForm) -> nn.Linear:
    """An ordinary linear layer with the weight of `form`."""
    weight = form.to_dense()
    linear = nn.Linear(form.in_features, form.out_features, form.bias is not None, "meta", weight.dtype)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if form.bias is not None:
        linear.bias = nn.Parameter(form.bias.detach(), requires_grad=False)
    return linear
