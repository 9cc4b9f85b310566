"""The anatomy of the models that draw map by map."""

from __future__ import annotations

import pytest
import torch

from modicum.models import Anatomy
from modicum.models.infinity import Infinity, InfinityConfig
from modicum.models.var import VAR, VARConfig


def on_meta(kind: type[torch.nn.Module], config: object) -> torch.nn.Module:
    with torch.device("meta"):
        return kind(config)


@pytest.mark.parametrize(
    ("preset", "layers"), [("d16", 5 * 16), ("d30", 5 * 30), ("d36", 4 * 36)], ids=["d16", "d30", "shared"]
)
def test_var(preset: str, layers: int) -> None:
    config = VARConfig.preset(preset)
    model = on_meta(VAR, config)
    anatomy = Anatomy.of(model)
    assert (anatomy.family.name, len(anatomy.blocks)) == ("var", config.depth)
    assert len(list(anatomy.layers())) == layers
    assert anatomy.layer("transformer.blocks.0.attn.mat_qkv").role == "qkv"
    assert anatomy.blocks[1].attention is model.get_submodule("transformer.blocks.1.attn")
    assert {skipped.name.rpartition(".")[2] for skipped in anatomy.blocks[0].skipped} == (
        {"scale_mul_1H11", "ada_gss"} if config.shared_aln else {"scale_mul_1H11"}
    )


def test_infinity() -> None:
    config = InfinityConfig.preset("2b")
    anatomy = Anatomy.of(on_meta(Infinity, config))
    assert (anatomy.family.name, len(anatomy.blocks)) == ("infinity", 32)
    roles = [layer.role for layer in anatomy.blocks[31].layers]
    assert roles == ["qkv", "o", "q", "kv", "o", "fc1", "fc2"]
    assert anatomy.layer("transformer.blocks.3.ca.mat_kv").in_features == config.embed_dim


@pytest.mark.parametrize("kind", [VAR, Infinity])
def test_every_weight_is_accounted_for_once(kind: type[torch.nn.Module]) -> None:
    config = VARConfig.of_depth(2) if kind is VAR else InfinityConfig.preset("layer12")
    model = on_meta(kind, config)
    for part in (model, model.get_submodule("transformer")):
        anatomy = Anatomy.of(part)
        inside = [f"{layer.name}.weight" for layer in anatomy.layers()]
        skipped = [s.name for block in anatomy.blocks for s in block.skipped]
        outside = [s.name for s in anatomy.outside]
        named = list(inside + skipped + outside)
        wanted = [name for name, parameter in part.named_parameters() if parameter.dim() >= 2]
        assert sorted(name.removesuffix(".weight") for name in named) == sorted(
            name.removesuffix(".weight") for name in wanted
        )
