"""The layout of diffusers' `DiTTransformer2DModel`, there and back, bit for bit.

What differs from the original names: q, k and v are three matrices instead of the thirds of one, the position table
is not stored, and EVERY block holds its own copy of the time and class embedders. The copies must be equal; only then
is the model one that we can compute.

Two constants differ as well, and are not in any file: diffusers divides the exponents of its time frequencies by 127
where the authors divide by 128, and its second norm has eps 1e-5 where theirs has 1e-6. Weights of the authors run
inexactly there until `exact` has put that right; weights that were trained inside diffusers expect its constants, and
are another model here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from modicum.errors import CheckpointError, InvalidSetting
from modicum.models.checkpoint_map import CheckpointMap, SourceTensor
from modicum.models.dit.config import DiTConfig
from modicum.models.dit.embeddings import positions
from modicum.models.dit.transformer import NORM_EPS

CLASS = "DiTTransformer2DModel"
POSITIONS = "pos_embed"
_OUTER = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_SHARED = {
    "t_embedder.mlp.0": "norm1.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "norm1.emb.timestep_embedder.linear_2",
    "y_embedder.embedding_table": "norm1.emb.class_embedder.embedding_table",
}
_BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
_QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
_KINDS = ("weight", "bias")


def from_diffusers(tensors: Mapping[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """The state dict with original names; what it does not know keeps its name.

    Args:
        tensors: with the names of diffusers.
        config: sizes.

    Raises:
        CheckpointError: two blocks hold different embedders, or only part of q, k and v.
    """
    left = dict(tensors)
    ours = {POSITIONS: positions(config.hidden_size, config.grid)}
    for name, theirs in _names(config):
        if theirs in left:
            ours[name] = left.pop(theirs)
    for index in range(config.depth):
        for kind in _KINDS:
            ours |= _joined(left, index, kind)
        _drop_copies(left, ours, index)
    return ours | left


def to_diffusers(tensors: Mapping[str, Tensor], config: DiTConfig) -> dict[str, Tensor]:
    """The state dict with the names of diffusers, every block with its own copy of the embedders.

    Args:
        tensors: with original names.
        config: sizes.
    """
    theirs = {name: tensors[ours] for ours, name in _names(config) if ours in tensors}
    for index in range(config.depth):
        for kind in _KINDS:
            parts = tensors[f"blocks.{index}.attn.qkv.{kind}"].chunk(3)
            theirs |= {
                f"transformer_blocks.{index}.{name}.{kind}": part.clone()
                for name, part in zip(_QKV, parts, strict=True)
            }
            theirs |= {
                f"transformer_blocks.{index}.{name}.{kind}": tensors[f"{ours}.{kind}"].clone()
                for ours, name in _SHARED.items()
                if f"{ours}.{kind}" in tensors
            }
    return theirs


class DiffusersMap(CheckpointMap):
    """Which tensors of diffusers feed which parameter of a DiT; its position table follows from the sizes."""

    def sources(self, name: str) -> list[SourceTensor]:
        if name == POSITIONS:
            return []
        shape = self._shapes[name]
        if ".attn.qkv." in name:
            block, kind = name.split(".")[1], name.rpartition(".")[2]
            third = (shape[0] // 3, *shape[1:])
            wanted = [SourceTensor(f"transformer_blocks.{block}.{q}.{kind}", None, None, third) for q in _QKV]
        else:
            wanted = [SourceTensor(dict(_names(self.model.config))[name], None, None, shape)]  # type: ignore[arg-type]
        absent = [source.name for source in wanted if source.name not in self.available]
        if absent:
            raise self._lacks(absent)
        return wanted

    def needed(self, prefix: str = "", skip: Sequence[str] = ()) -> list[str]:
        return [name for name in super().needed(prefix, skip) if name != POSITIONS]


def read_config(data: Mapping[str, Any]) -> DiTConfig:
    """Sizes out of the config.json of a `DiTTransformer2DModel`."""
    channels = data.get("in_channels", 4)
    out_channels = data.get("out_channels") or channels
    if out_channels not in (channels, 2 * channels):
        raise InvalidSetting(
            f"{out_channels} output channels for {channels} input channels are neither noise nor noise and variance.",
            "Give a model with as many, or twice as many.",
        )
    heads = data.get("num_attention_heads", 16)
    sizes = {
        "input_size": data.get("sample_size", 32),
        "patch_size": data.get("patch_size", 2),
        "in_channels": channels,
        "hidden_size": heads * data.get("attention_head_dim", 72),
        "depth": data.get("num_layers", 28),
        "num_heads": heads,
        "num_classes": data.get("num_embeds_ada_norm", 1000),
        "learn_sigma": out_channels == 2 * channels,
    }
    return DiTConfig.from_dict(sizes)


def write_config(config: DiTConfig) -> dict[str, Any]:
    """The config.json for diffusers.

    Raises:
        InvalidSetting: a model that diffusers' class cannot be.
    """
    if config.kind != "dit" or config.mlp_ratio != 4 or config.class_dropout_prob == 0:
        raise InvalidSetting(
            f"diffusers' {CLASS} has kind 'dit', mlp_ratio 4 and a 'no label'; this model has kind {config.kind!r}, "
            f"mlp_ratio {config.mlp_ratio:g} and class_dropout_prob {config.class_dropout_prob:g}.",
            "Save it in modicum's own layout.",
        )
    return {
        "_class_name": CLASS,
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "num_layers": config.depth,
        "sample_size": config.input_size,
        "patch_size": config.patch_size,
        "num_embeds_ada_norm": config.num_classes,
        "norm_eps": NORM_EPS,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
    }


def exact(model: nn.Module) -> nn.Module:
    """Give a `DiTTransformer2DModel` of diffusers the constants of the authors, in place."""
    for block in cast("nn.ModuleList", model.transformer_blocks):
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # type: ignore[union-attr]
        block.norm3.eps = NORM_EPS  # type: ignore[union-attr]
    return model


def _names(config: DiTConfig) -> Iterator[tuple[str, str]]:
    """Pairs (ours, theirs) of tensors that differ in name only; block 0 stands for the shared ones."""
    for kind in _KINDS:
        yield from ((f"{ours}.{kind}", f"{theirs}.{kind}") for ours, theirs in _OUTER.items())
        yield from ((f"{o}.{kind}", f"transformer_blocks.0.{theirs}.{kind}") for o, theirs in _SHARED.items())
        for index in range(config.depth):
            for ours, theirs in _BLOCK.items():
                yield f"blocks.{index}.{ours}.{kind}", f"transformer_blocks.{index}.{theirs}.{kind}"


def _joined(left: dict[str, Tensor], index: int, kind: str) -> dict[str, Tensor]:
    """q, k and v of a block as one; taken out of `left`."""
    names = [f"transformer_blocks.{index}.{name}.{kind}" for name in _QKV]
    found = [left.pop(name) for name in names if name in left]
    if len(found) not in (0, 3):
        raise CheckpointError(
            f"Block {index} holds {len(found)} of the three tensors {', '.join(names)}.",
            "Download or copy the checkpoint again.",
        )
    return {f"blocks.{index}.attn.qkv.{kind}": torch.cat(found)} if found else {}


def _drop_copies(left: dict[str, Tensor], ours: Mapping[str, Tensor], index: int) -> None:
    """Take a block's copies of the embedders out of `left`."""
    for name, theirs in _SHARED.items():
        for kind in _KINDS:
            copy, kept = (
                left.pop(f"transformer_blocks.{index}.{theirs}.{kind}", None),
                ours.get(f"{name}.{kind}"),
            )
            if copy is not None and (kept is None or not torch.equal(copy, kept)):
                raise CheckpointError(
                    f"transformer_blocks.{index}.{theirs}.{kind} differs from that of block 0.",
                    "One embedder has to serve all blocks: train the copies together, or keep them frozen.",
                )
