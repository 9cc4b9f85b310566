"""Names on disk find their parameters, whatever their dialect; what is missing or misshapen is named."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from modicum.errors import CheckpointError
from modicum.models import Anatomy, CheckpointMap, disk_names, skeleton


def checkpoint(tiny, folder) -> dict[str, torch.Tensor]:
    tiny.model.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def fill_and_run(tiny, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    model = skeleton(tiny.model.config)
    names = CheckpointMap(tensors, model)
    names.check(shapes(tensors))
    names.load("", tensors.__getitem__)
    with torch.no_grad():
        return model(**tiny.batch()).logits


def test_every_tensor_of_a_checkpoint_is_used(tiny, tmp_path) -> None:
    tensors = checkpoint(tiny, tmp_path)
    names = CheckpointMap(tensors, tiny.model)
    used = [source.name for name in names.needed() for source in names.sources(name)]
    assert sorted(used) == sorted(tensors)
    assert names.missing() == []


def test_split_inverts_assemble(tiny, tmp_path) -> None:
    tensors = checkpoint(tiny, tmp_path)
    names = CheckpointMap(tensors, tiny.model)
    for name in names.needed():
        own = {source.name: tensors[source.name] for source in names.sources(name)}
        parts = names.split(name, names.assemble(name, own))
        assert parts.keys() == own.keys()
        assert all(torch.equal(parts[key], own[key]) for key in own)


def test_each_layer_knows_its_tensor(tiny, tmp_path) -> None:
    tensors = checkpoint(tiny, tmp_path)
    names = CheckpointMap(tensors, tiny.model)
    for layer in Anatomy.of(tiny.model).layers():
        stored = tensors[names.source_of(layer).name]
        matrix = stored.t() if layer.kind == "conv1d" else stored.flatten(1)
        assert torch.equal(matrix, layer.weight)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "vit", "opt", "mixtral", "mamba"])
def test_the_base_prefix_may_be_absent(make_tiny, tmp_path, name: str) -> None:
    tiny = make_tiny(name)
    prefix = f"{tiny.model.base_model_prefix}."
    bare = {key.removeprefix(prefix): value for key, value in checkpoint(tiny, tmp_path).items()}
    assert torch.equal(fill_and_run(tiny, bare), tiny.logits())


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit", "mixtral"])
def test_the_base_prefix_may_be_too_many(make_tiny, tmp_path, name: str) -> None:
    tiny = make_tiny(name)
    model = tiny.model.base_model
    names = CheckpointMap(checkpoint(tiny, tmp_path), model)
    assert names.missing() == []


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "vit"])
def test_the_models_own_names_are_accepted(make_tiny, name: str) -> None:
    tiny = make_tiny(name)
    state = {key: value.clone() for key, value in tiny.model.state_dict().items()}
    assert torch.equal(fill_and_run(tiny, state), tiny.logits())


def test_early_bert_and_mamba_names_are_accepted(make_tiny, tmp_path) -> None:
    for name, old, new in [("bert", "LayerNorm.weight", "LayerNorm.gamma"), ("mamba", "dings.", "ding.")]:
        tiny = make_tiny(name)
        early = {k.replace(old, new): v for k, v in checkpoint(tiny, tmp_path / name).items()}
        assert any(new in key for key in early)
        assert torch.equal(fill_and_run(tiny, early), tiny.logits())


def test_tied_parameters_may_be_stored_under_either_name_or_both(make_tiny, tmp_path) -> None:
    tiny = make_tiny("llama-tied")
    tensors = checkpoint(tiny, tmp_path)
    table = tensors.pop("model.embed_tokens.weight")
    assert torch.equal(fill_and_run(tiny, {**tensors, "lm_head.weight": table}), tiny.logits())
    both = {**tensors, "lm_head.weight": table, "model.embed_tokens.weight": table.clone()}
    assert torch.equal(fill_and_run(tiny, both), tiny.logits())
    both["lm_head.weight"] = table + 1
    with pytest.raises(CheckpointError, match="two different"):
        fill_and_run(tiny, both)


def test_missing_counters_keep_their_initial_value(make_tiny, tmp_path) -> None:
    tiny = make_tiny("resnet")
    tensors = {k: v for k, v in checkpoint(tiny, tmp_path).items() if "num_batches" not in k}
    assert torch.equal(fill_and_run(tiny, tensors), tiny.logits())


def test_missing_tensors_are_named(make_tiny, tmp_path) -> None:
    tiny = make_tiny("mixtral")
    tensors = checkpoint(tiny, tmp_path)
    del tensors["model.norm.weight"]
    del tensors["model.layers.1.block_sparse_moe.experts.3.w3.weight"]
    names = CheckpointMap(tensors, tiny.model)
    assert names.missing() == ["model.layers.1.mlp.experts.gate_up_proj", "model.norm.weight"]
    assert names.missing("model.layers.0") == []
    with pytest.raises(CheckpointError, match=r"1\.mlp\.experts\.gate_up_proj, model\.norm\.weight"):
        names.check(shapes(tensors))
    with pytest.raises(CheckpointError, match=r"experts\.3\.w3\.weight"):
        names.sources("model.layers.1.mlp.experts.gate_up_proj")
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight, .* and \d\d more"):
        CheckpointMap([], tiny.model).check({})


def test_other_shapes_are_named_with_both(make_tiny, tmp_path) -> None:
    tiny = make_tiny("llama")
    tensors = checkpoint(tiny, tmp_path)
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(40, 32)
    told = r"layers\.2\.mlp\.up_proj\.weight: the config says \[48, 32\], the file holds \[40, 32\]"
    names = CheckpointMap(tensors, tiny.model)
    with pytest.raises(CheckpointError, match=told):
        names.check(shapes(tensors))
    names.check(shapes(tensors), "model.layers.1")
    with pytest.raises(CheckpointError, match=told):
        names.load("model.layers.2", tensors.__getitem__)


def test_expert_shapes_are_checked_one_by_one(make_tiny, tmp_path) -> None:
    tiny = make_tiny("olmoe")
    tensors = checkpoint(tiny, tmp_path)
    tensors["model.layers.0.mlp.experts.2.up_proj.weight"] = torch.zeros(48, 31)
    with pytest.raises(CheckpointError, match=r"experts\.2\.up_proj\.weight: the config says \[48, 32\]"):
        CheckpointMap(tensors, tiny.model).load("", tensors.__getitem__)


def test_the_models_own_name_comes_first(make_tiny) -> None:
    family = Anatomy.of(make_tiny("vit").model).family
    names = disk_names(family, "vit.layers.0.mlp.fc1.weight", "vit")
    assert names[:2] == ["vit.layers.0.mlp.fc1.weight", "layers.0.mlp.fc1.weight"]
    assert "vit.encoder.layer.0.intermediate.dense.weight" in names
