"""A model without weights, filled from its checkpoint, is the model that from_pretrained gives."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from modicum.errors import CheckpointError, UnsupportedModel
from modicum.models import Anatomy, CheckpointMap, load_tensors, release, skeleton
from modicum.weights.dense import DenseWeight


def saved(tiny, folder: Path):
    """The tiny model's checkpoint, opened."""
    tiny.model.save_pretrained(folder)
    return safe_open(folder / "model.safetensors", "pt")


def outside(file, names: CheckpointMap, blocks: list[str], name: str) -> torch.Tensor:
    """Reads `name`, which must not be needed by a block."""
    needed = {s.name for block in blocks for n in names.needed(block) for s in names.sources(n)}
    assert name not in needed
    return file.get_tensor(name)


def test_filled_from_disk_it_equals_from_pretrained(tiny, tmp_path: Path) -> None:
    file = saved(tiny, tmp_path)
    reference = type(tiny.model).from_pretrained(tmp_path).eval()
    model = skeleton(reference.config)
    CheckpointMap(file.keys(), model).load("", file.get_tensor)
    with torch.no_grad():
        assert torch.equal(model(**tiny.batch()).logits, reference(**tiny.batch()).logits)
    assert model.state_dict().keys() == reference.state_dict().keys()


def test_block_by_block_it_runs_without_the_rest(tiny, tmp_path: Path) -> None:
    file = saved(tiny, tmp_path)
    expected = tiny.logits()
    model = skeleton(tiny.model.config)
    names = CheckpointMap(file.keys(), model)
    anatomy = Anatomy.of(model)
    for block in anatomy.blocks:
        names.load(block.name, file.get_tensor)
        assert not any(p.is_meta for p in block.module.parameters())
    blocks = [block.name for block in anatomy.blocks]
    names.load("", lambda name: outside(file, names, blocks, name), skip=blocks)
    with torch.no_grad():
        assert torch.equal(model(**tiny.batch()).logits, expected)


def test_writing_into_a_loaded_block_never_reaches_the_file(tiny, tmp_path: Path) -> None:
    file = saved(tiny, tmp_path)
    model = skeleton(tiny.model.config)
    names = CheckpointMap(file.keys(), model)
    anatomy = Anatomy.of(model)
    names.load("", file.get_tensor)
    for layer in anatomy.layers():
        layer.set_weight(torch.zeros(layer.out_features, layer.in_features))
    names.load("", file.get_tensor)
    with torch.no_grad():
        assert torch.equal(model(**tiny.batch()).logits, tiny.logits())


def test_no_parameter_is_allocated(tiny) -> None:
    model = skeleton(tiny.model.config)
    assert all(p.is_meta for p in model.parameters())
    assert not any(b.is_meta for b in model.buffers())
    shapes = {name: p.shape for name, p in tiny.model.named_parameters()}
    assert {name: p.shape for name, p in model.named_parameters()} == shapes


def test_computed_buffers_hold_their_values(tiny) -> None:
    buffers = dict(skeleton(tiny.model.config).named_buffers())
    stored = tiny.model.state_dict().keys()
    for name, buffer in tiny.model.named_buffers():
        assert name in stored or torch.equal(buffers[name], buffer)


def test_a_model_larger_than_any_memory_can_be_built(make_tiny) -> None:
    config = make_tiny("mixtral").config
    config.hidden_size, config.intermediate_size, config.vocab_size = 2**16, 2**20, 2**20
    config.num_hidden_layers, config.num_local_experts, config.head_dim = 2, 64, 8
    model = skeleton(config, torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) > 10**13
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert Anatomy.of(model).describe()["layers"] == 2 * (4 + 3 * 64)


def test_neither_config_nor_random_state_changes(make_tiny) -> None:
    config = make_tiny("vit").model.config
    before, state = config.to_dict(), torch.get_rng_state()
    skeleton(config, torch.float16)
    assert config.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_values_are_cast_to_the_models_dtype(make_tiny, tmp_path: Path) -> None:
    tiny = make_tiny("llama")
    file = saved(tiny, tmp_path)
    model = skeleton(tiny.model.config, torch.bfloat16)
    CheckpointMap(file.keys(), model).load("", file.get_tensor)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_tied_parameters_stay_one(make_tiny) -> None:
    tiny = make_tiny("llama-tied")
    model = skeleton(tiny.model.config)
    load_tensors(model, {"lm_head.weight": torch.ones(64, 32)})
    assert model.lm_head.weight is model.model.embed_tokens.weight
    release(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.is_meta


def test_a_released_block_is_really_gone(make_tiny) -> None:
    anatomy = Anatomy.of(make_tiny("mixtral").model)
    block = anatomy.blocks[0]
    held = [weakref.ref(p) for p in block.module.parameters()]
    for layer in block.layers:
        layer.replace(DenseWeight.from_dense(layer.weight.detach().clone()))
        held.append(weakref.ref(layer.form))
    del layer
    block.release()
    gc.collect()
    assert not any(ref() is not None for ref in held)
    assert all(p.is_meta for p in block.module.parameters())
    assert not any(p.is_meta for p in anatomy.blocks[1].module.parameters())


def test_an_auto_class_serves_configs_without_architecture(make_tiny) -> None:
    import transformers as tf

    config = make_tiny("llama").config
    config.architectures = None
    with pytest.raises(UnsupportedModel, match="names no architecture"):
        skeleton(config)
    assert isinstance(skeleton(config, auto_class=tf.AutoModelForCausalLM), tf.LlamaForCausalLM)


def test_an_unknown_class_is_named(make_tiny) -> None:
    config = make_tiny("llama").config
    config.architectures = ["LlamaForTelepathy"]
    with pytest.raises(UnsupportedModel, match="LlamaForTelepathy"):
        skeleton(config)


def test_unknown_names_and_other_shapes_are_refused(make_tiny) -> None:
    model = make_tiny("llama").model
    with pytest.raises(CheckpointError, match="no tensor named 'nobody'"):
        load_tensors(model, {"nobody": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"says \[64, 32\], got \[1\]"):
        load_tensors(model, {"lm_head.weight": torch.zeros(1)})
