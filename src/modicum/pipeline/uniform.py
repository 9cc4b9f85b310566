"""Pad layers of different widths and head counts to one size, for servers that know only equal layers.

vLLM, llama.cpp and plain transformers build every layer from one config. A model whose layers were cut to different
sizes is given back rows and columns of zeros, up to the largest layer, placed so that nothing they compute reaches
the output:

- feed-forward: zero rows of gate and up give act(0) * 0 = 0, and the columns of down that read them are zero;
- attention: a zero head attends evenly to values that are zero, and the columns of o that read it are zero. Query
  heads belong to key-value heads by position (head i reads key-value head i // group), so q and o are padded as a
  grid [key-value heads, group, head_dim], not at the end.

The function is unchanged up to the order of sums. The bytes come back too: this trades size for compatibility.
A padded expert, in contrast, would take part in the router's choice, which a zero row does not prevent.
"""

from __future__ import annotations

import copy
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from modicum.errors import OutputExists, UnsupportedModel
from modicum.formats.irregular import differences
from modicum.formats.manifest import Manifest
from modicum.formats.shards import Shards
from modicum.models import Anatomy, Block, Layer, skeleton
from modicum.pipeline.loading import load_model
from modicum.pipeline.saving import forms_of, regular_config, save_model
from modicum.weights.base import WeightForm

GATED = ("llama", "mistral", "qwen2", "qwen3", "gemma")
"""Model types whose config names the sizes in the same way, and whose blocks pad as described."""

Grid = tuple[int, ...]


@torch.no_grad()
def export_uniform(directory: Path, out: Path) -> int:
    """Write a checkpoint whose layers have equal shapes and whose config.json says all of them.

    Packed layers are expanded. A model that is regular already is written as it is.

    Args:
        directory: a checkpoint that modicum can open.
        out: the directory to write.

    Returns:
        Bytes of the weights.

    Raises:
        UnsupportedModel: layers differ and the architecture is none that can be padded.
        OutputExists: `out` is there.
    """
    if out.exists():
        raise OutputExists(f"{out} exists.", "Choose another --out.")
    model = load_model(directory)
    config = regular_config(model)
    regular = skeleton(config)
    expand(model, regular)
    if irregular(model, regular):
        pad(model, config)
        model.config = config
        _refuse_rest(model)
    save_model(model, out, directory)
    return Shards(out).nbytes()


def is_uniform(directory: Path) -> bool:
    """Whether the layers of a checkpoint have the shapes that its config.json implies."""
    manifest = Manifest.present(directory)
    return manifest is None or not (manifest.shapes or manifest.attributes)


def irregular(model: nn.Module, regular: nn.Module) -> list[str]:
    """Names of what differs between a dense model and the regular model of its config."""
    forms = forms_of(model)
    shapes, attributes = differences(model, regular, forms)
    return [*shapes, *attributes, *forms]


def _refuse_rest(model: Any) -> None:
    rest = irregular(model, skeleton(model.config))
    if rest:
        raise UnsupportedModel(
            f"{rest[0]} has a size that zeros cannot make regular.",
            "Open the model with modicum.load instead.",
        )


def expand(model: nn.Module, regular: nn.Module) -> None:
    """Put dense modules, of the kind that the architecture has there, in the place of all weight forms."""
    for name, form in list(model.named_modules()):
        if isinstance(form, WeightForm):
            twin = regular.get_submodule(name)
            weight = form.to_dense()
            dense = copy.deepcopy(twin)
            _fill(dense, weight.t() if isinstance(twin, Conv1D) else weight, form.bias)
            model.set_submodule(name, dense)


def _fill(module: Any, weight: Tensor, bias: Tensor | None) -> None:
    module.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    module.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape


def pad(model: nn.Module, config: Any) -> None:
    """Pad every block of a dense model, in place, and write the common sizes into `config`.

    Raises:
        UnsupportedModel: see `export_uniform`.
    """
    _refuse_other(config)
    blocks = Anatomy.of(model).blocks
    head_dim = _head_dim(blocks)
    sizes = [_sizes(block, head_dim) for block in blocks]
    kv, group, width = (max(1, *(size[i] for size in sizes)) for i in range(3))
    kv, group = _accepted(config, kv, group)
    config.update(
        {
            "num_attention_heads": kv * group,
            "num_key_value_heads": kv,
            "head_dim": head_dim,
            "intermediate_size": width,
        }
    )
    _declare_biases(config, blocks)
    regular = skeleton(config)
    for block, size in zip(blocks, sizes, strict=True):
        old, new = _grids(*size, head_dim), _grids(kv, group, width, head_dim)
        for layer in block.layers:
            _pad_layer(model, layer, old[layer.role], new[layer.role], regular.get_submodule(layer.name))
        block.attention.num_key_value_groups = group  # type: ignore[union-attr]
        block.mlp.intermediate_size = width  # type: ignore[union-attr]


def _refuse_other(config: Any) -> None:
    kind = str(config.model_type)
    if hasattr(config, "num_experts_per_tok"):
        raise UnsupportedModel(
            f"The layers of this {kind} model differ, and experts cannot be padded: the router would choose them.",
            "Open the model with modicum.load, which needs no equal layers.",
        )
    if kind not in GATED:
        raise UnsupportedModel(
            f"The layers of this {kind} model differ; zeros are placed for {', '.join(GATED)} only.",
            "Open the model with modicum.load, which needs no equal layers.",
        )


def _head_dim(blocks: tuple[Block, ...]) -> int:
    found = {int(block.attention.head_dim) for block in blocks}  # type: ignore[union-attr,arg-type]
    if len(found) != 1:
        raise UnsupportedModel(
            f"Heads of different sizes ({sorted(found)}) cannot be padded: zeros change the scale."
        )
    return found.pop()


def _sizes(block: Block, head_dim: int) -> tuple[int, int, int]:
    """Key-value heads, query heads per key-value head, and feed-forward width of a block."""
    rows = {layer.role: layer.out_features for layer in block.layers}
    return rows["k"] // head_dim, rows["q"] // rows["k"] if rows["k"] else 0, rows["up"]


def _accepted(config: Any, kv: int, group: int) -> tuple[int, int]:
    """The fewest heads, at least these, that the config class accepts: Llama's count must divide the hidden size."""
    hidden = int(config.hidden_size)
    if config.model_type != "llama" or hidden % (kv * group) == 0:
        return kv, group
    pairs = [(a, b) for a in range(kv, hidden + 1) for b in range(group, hidden // a + 1)]
    fitting = [pair for pair in pairs if hidden % prod(pair) == 0]
    if not fitting:
        raise UnsupportedModel(f"No count of at least {kv * group} heads divides the hidden size {hidden}.")
    return min(fitting, key=lambda pair: (prod(pair), pair[0]))


def _declare_biases(config: Any, blocks: tuple[Block, ...]) -> None:
    """Say so in the config if a layer has a bias that the config can name for all layers."""
    for key, roles in (("attention_bias", "qkvo"), ("mlp_bias", ("gate", "up", "down"))):
        if hasattr(config, key):
            biased = any(layer.bias is not None for b in blocks for layer in b.layers if layer.role in roles)
            setattr(config, key, bool(getattr(config, key)) or biased)


def _grids(kv: int, group: int, width: int, head_dim: int) -> dict[str, tuple[int, Grid]]:
    """For each role, the axis of the matrix that grows and the grid that lies on it."""
    queries, keys = (kv, group, head_dim), (kv, head_dim)
    return {
        "q": (0, queries),
        "k": (0, keys),
        "v": (0, keys),
        "o": (1, queries),
        "gate": (0, (width,)),
        "up": (0, (width,)),
        "down": (1, (width,)),
    }


def _pad_layer(
    model: nn.Module, layer: Layer, old: tuple[int, Grid], new: tuple[int, Grid], twin: nn.Module
) -> None:
    axis = old[0]
    weight = spread(layer.weight.detach(), axis, old[1], new[1])  # [out, in]
    bias = layer.bias
    if bias is not None and axis == 0:
        bias = spread(bias.detach(), 0, old[1], new[1])
    if twin.bias is not None and bias is None:
        bias = weight.new_zeros(weight.shape[0])
    if twin.bias is None and bias is not None:
        raise UnsupportedModel(
            f"{layer.name} has a bias, which config.json cannot say for this architecture."
        )
    _fill(model.get_submodule(layer.name), weight, bias)


def spread(tensor: Tensor, axis: int, old: Grid, new: Grid) -> Tensor:
    """Read one axis as the grid `old` and enlarge that to `new`, with zeros.

    Args:
        tensor: any shape; its `axis` has prod(old) entries.
        axis: which.
        old: sizes now.
        new: sizes to be, none smaller.

    Returns:
        The tensor with prod(new) entries along `axis`.
    """
    rows = tensor.movedim(axis, 0)
    rest = rows.shape[1:]
    grid = tensor.new_zeros(*new, *rest)
    grid[tuple(slice(size) for size in old)] = rows.reshape(*old, *rest)
    return grid.reshape(prod(new), *rest).movedim(0, axis).contiguous()
