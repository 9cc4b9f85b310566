"""Every fold of every family leaves the function as it is, whatever the scale."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modicum.errors import InvalidSetting
from modicum.models import Anatomy


def folded_names(tiny) -> set[str]:
    block = Anatomy.of(tiny.model).blocks[-1]
    return {fold.source_name.removeprefix(block.name + ".") for fold in block.folds}


def test_every_fold_preserves_the_output(tiny) -> None:
    before = tiny.logits()
    anatomy = Anatomy.of(tiny.model)
    for index, fold in enumerate(fold for block in anatomy.blocks for fold in block.folds):
        scale = torch.rand(fold.features, generator=torch.Generator().manual_seed(index)) * 3 + 0.2
        untouched = [layer.weight.clone() for layer in fold.targets]
        fold.apply(scale)
        assert not torch.equal(untouched[0], fold.targets[0].weight)
        torch.testing.assert_close(tiny.logits(), before, atol=2e-5, rtol=1e-4)


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), size=st.floats(0.1, 10))
def test_a_scale_and_its_inverse_cancel(make_tiny, seed: int, size: float) -> None:
    fold = Anatomy.of(make_tiny("gemma").model).blocks[0].folds[0]
    before = [fold.source.weight.clone(), *(layer.weight.clone() for layer in fold.targets)]
    scale = torch.rand(fold.features, generator=torch.Generator().manual_seed(seed)) + size
    fold.apply(scale)
    fold.apply(1 / scale)
    for old, new in zip(before, [fold.source.weight, *(x.weight for x in fold.targets)], strict=True):
        torch.testing.assert_close(old, new, atol=1e-5, rtol=1e-5)


def test_values_fold_into_the_output_only_without_grouped_heads(make_tiny) -> None:
    assert "self_attn.v_proj" in folded_names(make_tiny("llama"))
    assert "self_attn.v_proj" not in folded_names(make_tiny("llama-tied"))


def test_post_norm_blocks_have_no_norm_fold(make_tiny) -> None:
    assert folded_names(make_tiny("opt")) == {
        "self_attn_layer_norm",
        "final_layer_norm",
        "fc1",
        "self_attn.v_proj",
    }
    assert folded_names(make_tiny("opt-postnorm")) == {"fc1", "self_attn.v_proj"}


def test_the_router_follows_the_norm(make_tiny) -> None:
    block = Anatomy.of(make_tiny("mixtral").model).blocks[0]
    fold = next(f for f in block.folds if f.source_name.endswith("post_attention_layernorm"))
    assert [name for name, _ in fold.followers] == ["model.layers.0.mlp.gate"]
    assert len(fold.targets) == 8


@pytest.mark.parametrize("scale", [torch.ones(31), torch.zeros(32), torch.full((32,), torch.inf)])
def test_a_scale_that_cannot_be_undone_is_refused(make_tiny, scale: torch.Tensor) -> None:
    fold = Anatomy.of(make_tiny("llama").model).blocks[0].folds[0]
    with pytest.raises(InvalidSetting, match="32 positive finite"):
        fold.apply(scale)
