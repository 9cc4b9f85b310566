"""Cutting groups out is the same function as zeroing them, in every family that has heads or neurons."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modicum.errors import InvalidSetting, UnsupportedModel
from modicum.models import Anatomy
from modicum.models.surgery import Cuttable, cut, cuttable, masked, zero
from modicum.prune.flap import compensate

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "gemma": ("gemma", {}),
    "qwen3": ("qwen3", {}),
    "phi3": ("phi3", {}),
    "opt": ("opt", {}),
    "gpt2": ("gpt2", {}),
    "bert": ("bert", {}),
    "vit": ("vit", {}),
    "qwen2_moe": ("qwen2_moe", {}),
    "mixtral": ("mixtral", {}),
}


def built(toolbox: Any, family: str) -> Any:
    name, settings_ = FAMILIES[family]
    return toolbox.build(name, **settings_)


def choice(unit: Cuttable, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + unit.block)
    return torch.randperm(unit.count, generator=generator)[:count].sort().values


def others(unit: Cuttable, kept: Tensor) -> Tensor:
    stays = torch.zeros(unit.count, dtype=torch.bool)
    stays[kept] = True
    return (~stays).nonzero()[:, 0]


def both(model: Any, count: Any, seed: int = 0) -> tuple[Any, Any, int]:
    """A model with groups at zero, one with the same groups cut, and the parameters of these groups."""
    zeroed, smaller, gone = model, copy.deepcopy(model), 0
    anatomy, kept = Anatomy.of(smaller), {}
    for dense, unit in zip(cuttable(Anatomy.of(zeroed)), cuttable(anatomy), strict=True):
        kept[unit] = choice(unit, count(unit), seed)
        removed = others(unit, kept[unit])
        zero(dense, removed)
        gone += len(removed) * unit.size
    cut(anatomy, kept)
    return zeroed, smaller, gone


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_cutting_is_zeroing(family: str, toolbox: Any) -> None:
    model = built(toolbox, family)
    before, whole = size(model), toolbox.logits_of(model)

    def uneven(unit: Cuttable) -> int:
        if unit.kind == "heads":
            return max(1, unit.count - 1 if family == "phi3" else unit.count - unit.block % 2)
        return unit.count // (2 + unit.block)

    zeroed, smaller, gone = both(model, uneven)
    torch.testing.assert_close(toolbox.logits_of(smaller), toolbox.logits_of(zeroed), rtol=0, atol=1e-5)
    assert (toolbox.logits_of(smaller) - whole).abs().max() > 1e-4
    assert gone > 0
    assert size(smaller) == before - gone


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2"])
def test_the_cache_holds_fewer_heads(family: str, toolbox: Any) -> None:
    zeroed, smaller, _ = both(built(toolbox, family), lambda unit: max(1, unit.count // (1 + unit.block % 2)))
    ids = toolbox.inputs_of(smaller)["input_ids"]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    expected = zeroed.generate(ids, **options)
    assert torch.equal(smaller.generate(ids, **options), expected)
    kept = smaller(ids, use_cache=True).past_key_values.layers[1].keys.shape[1]
    assert kept < zeroed(ids, use_cache=True).past_key_values.layers[1].keys.shape[1]


@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_any_number_of_heads(data: st.DataObject, toolbox: Any) -> None:
    group = data.draw(st.integers(1, 3))
    heads = data.draw(st.integers(1, 4))
    model = toolbox.build(
        "qwen3", num_attention_heads=group * heads, num_key_value_heads=heads, hidden_size=24, head_dim=8
    )
    counts = data.draw(st.lists(st.integers(1, heads), min_size=3, max_size=3))
    zeroed, smaller, gone = both(
        model,
        lambda unit: counts[unit.block] if unit.kind == "heads" else unit.count,
        data.draw(st.integers(0, 99)),
    )
    torch.testing.assert_close(toolbox.logits_of(smaller), toolbox.logits_of(zeroed), rtol=0, atol=1e-5)
    for block, count in zip(smaller.model.layers, counts, strict=True):
        assert block.self_attn.k_proj.out_features == 8 * count
        assert block.self_attn.q_proj.out_features == group * block.self_attn.k_proj.out_features
    assert gone == sum(heads - count for count in counts) * (2 * group + 2) * 8 * 24


def test_a_key_value_head_goes_with_its_query_heads(toolbox: Any) -> None:
    model = toolbox.build("llama")
    heads = cuttable(Anatomy.of(model), ["heads"])[0]
    q, k, _, o = heads.parts
    assert [part.members.shape for part in heads.parts] == [(2, 32), (2, 16), (2, 16), (2, 32)]
    assert torch.equal(q.members[1], torch.arange(32, 64))
    assert torch.equal(k.members[1], torch.arange(16, 32))
    assert o.of(o.layer.weight).shape == (2, 32, 64)
    assert torch.equal(o.of(o.layer.weight)[1], o.layer.weight[:, 32:].t())
    assert torch.equal(q.of(q.layer.weight)[1], q.layer.weight[32:])
    assert heads.size == 64 * (32 + 16 + 16 + 32)


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_fused_matrices_are_cut_in_several_places(family: str, toolbox: Any) -> None:
    units = {unit.kind: unit for unit in cuttable(Anatomy.of(built(toolbox, family))) if unit.block == 0}
    rows = torch.cat([part.members.flatten() for part in units["heads"].parts[:-1]])
    assert len({part.layer for part in units["heads"].parts}) == 2
    assert rows.sort().values.equal(torch.arange(units["heads"].parts[0].layer.out_features))
    if family == "phi3":
        gate, up, _ = units["neurons"].parts
        assert gate.layer is up.layer
        assert torch.equal(up.members - gate.members, torch.full_like(up.members, 96))


@pytest.mark.parametrize("family", ["llama", "gpt2", "vit"])
def test_masks_leave_the_weights_alone(family: str, toolbox: Any) -> None:
    model = built(toolbox, family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    whole = toolbox.logits_of(model)
    units = cuttable(Anatomy.of(model))
    kept = {unit: choice(unit, (unit.count + 1) // 2, 3) for unit in units}
    masks = {
        unit: torch.zeros(unit.count, dtype=torch.bool).index_fill(0, k, True) for unit, k in kept.items()
    }
    with masked(masks):
        found = toolbox.logits_of(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(toolbox.logits_of(model), whole)
    for unit, groups in kept.items():
        zero(unit, others(unit, groups))
    torch.testing.assert_close(found, toolbox.logits_of(model), rtol=0, atol=1e-5)


class TestConfig:
    @pytest.mark.parametrize("family", ["llama", "gemma", "qwen3", "phi3", "vit"])
    def test_it_says_what_all_blocks_agree_on(self, family: str, toolbox: Any) -> None:
        _, smaller, _ = both(built(toolbox, family), lambda unit: unit.count // 2)
        assert smaller.config.num_attention_heads == 2
        assert smaller.config.intermediate_size == 48
        assert type(smaller)(smaller.config).state_dict().keys() == smaller.state_dict().keys()
        smaller.load_state_dict(type(smaller)(smaller.config).state_dict())

    @pytest.mark.parametrize(
        ("family", "name"), [("opt", "ffn_dim"), ("gpt2", "n_inner"), ("bert", "intermediate_size")]
    )
    def test_neurons_alone(self, family: str, name: str, toolbox: Any) -> None:
        _, smaller, _ = both(
            built(toolbox, family), lambda unit: 40 if unit.kind == "neurons" else unit.count
        )
        assert getattr(smaller.config, name) == 40
        smaller.load_state_dict(type(smaller)(smaller.config).state_dict())

    def test_it_stays_where_blocks_differ(self, toolbox: Any) -> None:
        _, smaller, _ = both(built(toolbox, "llama"), lambda unit: unit.count - unit.block % 2)
        assert smaller.config.num_attention_heads == 4
        assert smaller.config.intermediate_size == 96
        assert smaller.model.layers[1].mlp.intermediate_size == 95

    def test_it_stays_where_its_class_refuses(self, toolbox: Any) -> None:
        model = toolbox.build("llama", num_attention_heads=4, num_key_value_heads=4)
        _, smaller, _ = both(model, lambda unit: 3 if unit.kind == "heads" else unit.count)
        assert smaller.config.num_attention_heads == 4  # 3 does not divide 64

    def test_a_model_that_reads_its_heads_from_it(self, toolbox: Any) -> None:
        with pytest.raises(UnsupportedModel, match="reads its number of heads from the config"):
            both(built(toolbox, "phi3"), lambda unit: unit.count - unit.block % 2)


class TestRefusals:
    @pytest.mark.parametrize("kept", [[], [1, 0], [0, 0], [0, 9], [-1]])
    def test_no_choice(self, kept: list[int], toolbox: Any) -> None:
        anatomy = Anatomy.of(toolbox.build("llama"))
        unit = cuttable(anatomy)[0]
        with pytest.raises(InvalidSetting, match="is no choice of the 2 heads"):
            cut(anatomy, {unit: torch.tensor(kept, dtype=torch.long)})

    def test_compressed_layers(self, toolbox: Any) -> None:
        import modicum

        model = modicum.compress(toolbox.build("llama"), "quantize.rtn")
        with pytest.raises(UnsupportedModel, match="compressed already"):
            cuttable(Anatomy.of(model))  # type: ignore[arg-type]

    def test_nothing_to_cut(self, toolbox: Any) -> None:
        with pytest.raises(UnsupportedModel, match="no heads and no neurons"):
            cuttable(Anatomy.of(toolbox.build("mamba")))

    def test_a_model_of_another_kind(self) -> None:
        from modicum.models.dit import DiT, DiTConfig

        config = DiTConfig(input_size=4, patch_size=2, hidden_size=16, depth=1, num_heads=2, num_classes=3)
        with pytest.raises(UnsupportedModel, match="not a transformers model"):
            cuttable(Anatomy.of(DiT(config)))

    def test_norms_over_all_heads_keep_them_whole(self) -> None:
        import transformers as tf

        config = tf.OlmoeConfig(
            vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=4, num_experts=4, num_experts_per_tok=2, pad_token_id=0,
        )  # fmt: skip
        with pytest.raises(UnsupportedModel, match="no heads"):
            cuttable(Anatomy.of(tf.OlmoeForCausalLM(config)), ["heads"])


def test_an_input_that_never_changes_costs_nothing(toolbox: Any) -> None:
    """Removed channels that are constant live on in the bias."""
    model = toolbox.build("llama")
    anatomy = Anatomy.of(model)
    neurons = cuttable(anatomy, ["neurons"])[1]
    layer = neurons.reader.layer
    constant = torch.zeros(layer.in_features)
    constant[:50] = torch.randn(50)

    def freeze(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        held = args[0].clone()
        held[..., :50] = constant[:50]
        return (held,)

    with layer.module.register_forward_pre_hook(freeze):
        expected = toolbox.logits_of(model)
    kept = torch.arange(50, layer.in_features)
    compensate(neurons, kept, constant)
    cut(anatomy, {neurons: kept})
    torch.testing.assert_close(toolbox.logits_of(model), expected, rtol=0, atol=1e-5)
