"""Every matrix of every family is accounted for exactly once, and what is unknown is refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers as tf

from modicum.errors import UnknownName, UnsupportedModel
from modicum.models import Anatomy, Family, Fold, capture, family_of, register, supported
from modicum.models.families import _FAMILIES


def matrices(model) -> dict[str, tuple[int, ...]]:
    """Independent enumeration: parameters with two or more dimensions, tied ones once."""
    return {name: tuple(p.shape) for name, p in model.named_parameters() if p.dim() >= 2}


def accounted(anatomy: Anatomy) -> list[str]:
    names = [layer.parameter_names[0] for layer in anatomy.layers() if layer.expert in (None, 0)]
    fused = [n for n in names if n.endswith("gate_up_proj")]
    for name in set(fused):
        names.remove(name)  # gate and up are two halves of one parameter
    skipped = [item.name for block in anatomy.blocks for item in block.skipped]
    return names + skipped + [item.name for item in anatomy.outside]


def test_every_matrix_is_found_exactly_once(tiny) -> None:
    anatomy = Anatomy.of(tiny.model)
    found = sorted(name.removesuffix(".weight") for name in accounted(anatomy))
    assert found == sorted(name.removesuffix(".weight") for name in matrices(tiny.model))


def test_layers_hold_all_numbers_of_their_parameters(tiny) -> None:
    anatomy = Anatomy.of(tiny.model)
    parameters = dict(tiny.model.named_parameters())
    names = {layer.parameter_names[0] for layer in anatomy.layers()}
    in_layers = sum(layer.weight.numel() for layer in anatomy.layers())
    assert in_layers == sum(parameters[name].numel() for name in names)
    assert in_layers == anatomy.describe()["layer_parameters"]


def test_layer_names_are_unique_and_found_again(tiny) -> None:
    anatomy = Anatomy.of(tiny.model)
    layers = list(anatomy.layers())
    assert len({layer.name for layer in layers}) == len(layers) > 0
    assert all(anatomy.layer(layer.name) is layer for layer in layers)
    assert [layer.block for layer in layers] == sorted(layer.block for layer in layers)
    for layer in layers:
        assert layer.weight.shape == (layer.out_features, layer.in_features)
        assert layer.name.startswith(anatomy.blocks[layer.block].name + ".")


def test_weight_is_a_view_of_the_live_parameter(tiny) -> None:
    parameters = dict(tiny.model.named_parameters())
    for layer in Anatomy.of(tiny.model).layers():
        live = parameters[layer.parameter_names[0]].untyped_storage().data_ptr()
        assert layer.weight.untyped_storage().data_ptr() == live


def test_no_value_is_touched_on_the_meta_device(tiny) -> None:
    with torch.device("meta"):
        model = type(tiny.model)(tiny.config)
    anatomy = Anatomy.of(model)
    assert [layer.name for layer in anatomy.layers()] == [
        layer.name for layer in Anatomy.of(tiny.model).layers()
    ]
    assert all(layer.weight.is_meta for layer in anatomy.layers())


def test_blocks_of_the_base_model_alone(tiny) -> None:
    base = tiny.model.base_model
    assert len(Anatomy.of(base).blocks) == len(Anatomy.of(tiny.model).blocks)


def test_roles_are_in_execution_order(make_tiny) -> None:
    block = Anatomy.of(make_tiny("opt").model).blocks[0]
    assert [layer.role for layer in block.layers] == ["q", "k", "v", "o", "fc1", "fc2"]


def test_experts_are_slices_of_the_fused_tensors(make_tiny) -> None:
    block = Anatomy.of(make_tiny("mixtral").model).blocks[1]
    experts = block.experts
    fused = block.module.mlp.experts
    assert experts.num_experts == 4
    assert experts.router == "model.layers.1.mlp.gate"
    for e in range(4):
        assert torch.equal(experts.gate[e].weight, fused.gate_up_proj[e, :48])
        assert torch.equal(experts.up[e].weight, fused.gate_up_proj[e, 48:])
        assert torch.equal(experts.down[e].weight, fused.down_proj[e])
    assert experts.down[3].name == "model.layers.1.mlp.experts.3.down_proj"
    assert experts.down[3].parameter_names == ("model.layers.1.mlp.experts.down_proj",)


def test_dense_blocks_of_a_mixture_have_no_experts(make_tiny) -> None:
    blocks = Anatomy.of(make_tiny("qwen3_moe").model).blocks
    assert [block.experts is None for block in blocks] == [True, False, False]


def test_unknown_layer_name_offers_the_nearest(make_tiny) -> None:
    anatomy = Anatomy.of(make_tiny("llama").model)
    with pytest.raises(UnknownName, match=r"model\.layers\.0\.self_attn\.q_proj"):
        anatomy.layer("model.layers.0.self_attn.q_prj")


def gpt_neo() -> tf.GPTNeoForCausalLM:
    config = tf.GPTNeoConfig(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        vocab_size=64,
        attention_types=[[["global", "local"], 1]],
        window_size=4,
        bos_token_id=1,
        eos_token_id=2,
    )
    return tf.GPTNeoForCausalLM(config).eval()


NEO = Family(
    name="gpt_neo",
    model_types=("gpt_neo",),
    blocks=("h",),
    roles={
        "attn.attention.q_proj": "q",
        "attn.attention.k_proj": "k",
        "attn.attention.v_proj": "v",
        "attn.attention.out_proj": "o",
        "mlp.c_fc": "fc1",
        "mlp.c_proj": "fc2",
    },
    attention="attn",
    mlp="mlp",
    folds=(Fold("ln_2", ("mlp.c_fc",), "mlp"),),
    tuple_output=2,
)


def test_an_unknown_architecture_can_be_described(monkeypatch) -> None:
    model = gpt_neo()
    with pytest.raises(UnsupportedModel) as refusal:
        Anatomy.of(model)
    assert "'gpt_neo'" in str(refusal.value)
    assert all(name in str(refusal.value) for name in supported())
    assert "modicum.models.register(Family(" in str(refusal.value)
    monkeypatch.setitem(_FAMILIES, "gpt_neo", NEO)  # undone after the test
    assert register(NEO) is family_of(model.config)
    assert sorted(n.removesuffix(".weight") for n in accounted(Anatomy.of(model))) == sorted(
        n.removesuffix(".weight") for n in matrices(model)
    )


def test_a_described_architecture_can_be_run_block_by_block() -> None:
    model, tokens = gpt_neo(), torch.randint(0, 64, (2, 9))
    anatomy = Anatomy.of(model, NEO)
    replay = capture(anatomy, [tokens])
    hidden = replay.hidden[0]
    with torch.no_grad():
        for block in anatomy.blocks:
            hidden = replay.run_block(block, hidden, 0)
        assert torch.equal(
            model.lm_head(model.transformer.ln_f(hidden)), model(tokens, use_cache=False).logits
        )


def test_something_that_is_no_transformers_model_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="Linear"):
        Anatomy.of(torch.nn.Linear(2, 2))


def test_a_matrix_that_the_entry_does_not_explain_is_named() -> None:
    roles = {path: role for path, role in NEO.roles.items() if role != "fc2"}
    with pytest.raises(UnsupportedModel, match=r"transformer\.h\.0\.mlp\.c_proj"):
        Anatomy.of(gpt_neo(), replace(NEO, roles=roles))
    explained = Anatomy.of(gpt_neo(), replace(NEO, roles=roles, skip={"mlp.c_proj": "a test"}))
    assert [item.name for item in explained.blocks[1].skipped] == ["transformer.h.1.mlp.c_proj"]


def test_a_wrong_block_path_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="no blocks at 'layers'"):
        Anatomy.of(gpt_neo(), replace(NEO, blocks=("layers",)))


def test_a_role_on_a_module_that_is_no_matrix_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="ln_1 is a LayerNorm"):
        Anatomy.of(gpt_neo(), replace(NEO, roles={**NEO.roles, "ln_1": "q"}))
