"""A model whose layers have different sizes comes back from disk bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import modicum
from modicum.errors import CheckpointError, OutputExists, UnsupportedModel
from modicum.formats.manifest import Manifest
from modicum.formats.shards import Shards
from modicum.kernels.grids import IntegerScheme
from modicum.weights.packed import PackedWeight

OPEN = """
import sys, torch, modicum, transformers
from safetensors.torch import save_file
transformers.logging.set_verbosity_error()
ids, out, found = torch.load(sys.argv[1], weights_only=True), sys.argv[2], {}
for directory in sys.argv[3:]:
    config = transformers.AutoConfig.from_pretrained(directory)
    model = getattr(transformers, config.architectures[0]).from_pretrained(directory).eval()
    with torch.no_grad():
        found[directory] = model(ids).logits
        found[directory + "+"] = model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
save_file(found, out)
"""


def keep(linear: Any, rows: Any = None, columns: Any = None) -> None:
    """Cut a linear layer down to some rows and columns."""
    weight = linear.weight.data
    if rows is not None:
        weight = weight[rows]
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.data[rows].clone())
    weight = weight if columns is None else weight[:, columns]
    linear.weight = nn.Parameter(weight.clone())
    linear.out_features, linear.in_features = weight.shape


def cut_width(block: Any, width: int) -> None:
    keep(block.mlp.gate_proj, rows=slice(width))
    keep(block.mlp.up_proj, rows=slice(width))
    keep(block.mlp.down_proj, columns=slice(width))


def cut_heads(block: Any, kv: int, group: int) -> None:
    """Leave `kv` key-value heads with `group` query heads each."""
    attention = block.self_attn
    dim, old = attention.head_dim, attention.num_key_value_groups
    queries = torch.arange(attention.q_proj.out_features).reshape(-1, old, dim)[:kv, :group].reshape(-1)
    keep(attention.q_proj, rows=queries)
    keep(attention.k_proj, rows=slice(kv * dim))
    keep(attention.v_proj, rows=slice(kv * dim))
    keep(attention.o_proj, columns=queries)
    attention.num_key_value_groups = group


def cut_experts(block: Any, experts: list[int], width: int) -> None:
    """Leave some experts, each with `width` channels."""
    mlp = block.mlp
    half = mlp.experts.gate_up_proj.shape[1] // 2
    rows = [*range(width), *range(half, half + width)]
    mlp.gate.weight = nn.Parameter(mlp.gate.weight.data[experts].clone())
    mlp.experts.gate_up_proj = nn.Parameter(mlp.experts.gate_up_proj.data[experts][:, rows].clone())
    mlp.experts.down_proj = nn.Parameter(mlp.experts.down_proj.data[experts][:, :, :width].clone())
    mlp.gate.num_experts = mlp.experts.num_experts = len(experts)


def cut_llama(toolbox: Any, name: str = "llama", **settings: Any) -> Any:
    model = toolbox.build(name, num_attention_heads=8, num_key_value_heads=4, **settings)
    for block, width, kv, group in zip(model.model.layers, (40, 96, 17), (4, 1, 3), (1, 2, 2), strict=True):
        cut_width(block, width)
        cut_heads(block, kv, group)
    return model


def cut_mixture(toolbox: Any, name: str) -> Any:
    model = toolbox.build(name)
    blocks = [block for block in model.model.layers if hasattr(block.mlp, "experts")]
    cut_experts(blocks[0], [0, 3], 20)
    cut_experts(blocks[1], [1, 2, 3], 32)
    return model


def packed_llama(toolbox: Any) -> Any:
    model = cut_llama(toolbox)
    for block in model.model.layers:
        block.mlp.up_proj = PackedWeight.from_dense(block.mlp.up_proj.weight, IntegerScheme(4, -1, True))
    return model


def compensated_llama(toolbox: Any) -> Any:
    """A bias where the config knows none."""
    model = cut_llama(toolbox)
    model.model.layers[1].mlp.down_proj.bias = nn.Parameter(torch.randn(64))
    return model


MAKERS = {
    "llama": cut_llama,
    "tied": lambda t: cut_llama(t, tie_word_embeddings=True),
    "biased": lambda t: cut_llama(t, attention_bias=True, mlp_bias=True),
    "qwen3": lambda t: cut_llama(t, "qwen3"),
    "mixtral": lambda t: cut_mixture(t, "mixtral"),
    "qwen2_moe": lambda t: cut_mixture(t, "qwen2_moe"),
    "packed": packed_llama,
    "compensated": compensated_llama,
}


def continued(model: Any, ids: Tensor) -> Tensor:
    return model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)


@pytest.fixture(scope="module")
def saved(toolbox: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """Every model and where it was saved."""
    root = tmp_path_factory.mktemp("saved")
    models = {name: make(toolbox) for name, make in MAKERS.items()}
    for name, model in models.items():
        modicum.save(model, root / name)
    return {name: (model, root / name) for name, model in models.items()}


@pytest.fixture(scope="module")
def reopened(saved: Any, toolbox: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What a fresh process computes with each directory."""
    root = tmp_path_factory.mktemp("fresh")
    torch.save(toolbox.inputs_of(saved["llama"][0])["input_ids"], root / "ids.pt")
    directories = [str(directory) for _, directory in saved.values()]
    line = [sys.executable, "-c", OPEN, str(root / "ids.pt"), str(root / "found.safetensors"), *directories]
    done = subprocess.run(line, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(root / "found.safetensors")


@pytest.mark.parametrize("name", MAKERS)
def test_a_fresh_process_computes_the_same_bits(name: str, saved: Any, reopened: Any, toolbox: Any) -> None:
    model, directory = saved[name]
    assert torch.equal(reopened[str(directory)], toolbox.logits_of(model))


@pytest.mark.parametrize("name", MAKERS)
def test_it_generates_with_a_cache(name: str, saved: Any, reopened: Any, toolbox: Any) -> None:
    model, directory = saved[name]
    assert torch.equal(reopened[f"{directory}+"], continued(model, toolbox.inputs_of(model)["input_ids"]))


@pytest.mark.parametrize("name", MAKERS)
def test_saved_loaded_and_saved_again_it_has_the_same_bytes(name: str, saved: Any, tmp_path: Path) -> None:
    _, directory = saved[name]
    again = modicum.save(modicum.load(directory), tmp_path / "again")
    assert again.files
    for file in again.files:
        assert (tmp_path / "again" / file).read_bytes() == (directory / file).read_bytes()
    assert (tmp_path / "again" / "modicum.json").read_text() == (directory / "modicum.json").read_text()


@pytest.mark.parametrize("name", ["llama", "packed"])
def test_without_its_head(name: str, saved: Any, toolbox: Any) -> None:
    import transformers

    model, directory = saved[name]
    base = transformers.AutoModel.from_pretrained(directory).eval()
    batch = toolbox.inputs_of(model)
    with torch.no_grad():
        assert torch.equal(base(**batch).last_hidden_state, model.model(**batch).last_hidden_state)


def test_a_saved_base_model(saved: Any, toolbox: Any, tmp_path: Path) -> None:
    model = saved["llama"][0]
    modicum.save(model.model, tmp_path / "base")
    batch = toolbox.inputs_of(model)
    with torch.no_grad():
        expected = model.model(**batch).last_hidden_state
        assert torch.equal(modicum.load(tmp_path / "base")(**batch).last_hidden_state, expected)


def test_cut_weights_are_smaller_on_disk(saved: Any) -> None:
    model, directory = saved["llama"]
    assert Shards(directory).nbytes() == sum(p.numel() * p.element_size() for p in model.parameters())


def test_the_loaded_model_has_the_true_sizes(saved: Any) -> None:
    model = modicum.load(saved["llama"][1])
    assert [block.mlp.up_proj.out_features for block in model.model.layers] == [40, 96, 17]
    mixture = modicum.load(saved["mixtral"][1])
    assert [block.mlp.experts.num_experts for block in mixture.model.layers] == [2, 3, 4]


def test_a_regular_model_needs_no_modicum(toolbox: Any, tmp_path: Path) -> None:
    model = toolbox.build("llama")
    manifest = modicum.save(model, tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    assert "quantization_config" not in json.loads((tmp_path / "a" / "config.json").read_text())
    assert not manifest.shapes
    assert not manifest.attributes
    ours, theirs = (load_file(tmp_path / x / "model.safetensors") for x in "ab")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("name", ["gpt2", "vit", "resnet", "mamba", "bert", "opt"])
def test_other_architectures(name: str, toolbox: Any, tmp_path: Path) -> None:
    model = toolbox.build(name)
    modicum.save(model, tmp_path / "out")
    assert torch.equal(toolbox.logits_of(modicum.load(tmp_path / "out")), toolbox.logits_of(model))


def test_a_narrow_gpt2_block(toolbox: Any, tmp_path: Path) -> None:
    """Conv1D keeps its matrix the other way round."""
    model = toolbox.build("gpt2")
    mlp = model.transformer.h[1].mlp
    mlp.c_fc.weight = nn.Parameter(mlp.c_fc.weight.data[:, :30].clone())
    mlp.c_fc.bias = nn.Parameter(mlp.c_fc.bias.data[:30].clone())
    mlp.c_fc.nf = 30
    mlp.c_proj.weight = nn.Parameter(mlp.c_proj.weight.data[:30].clone())
    mlp.c_proj.nx = 30
    modicum.save(model, tmp_path / "out")
    assert torch.equal(toolbox.logits_of(modicum.load(tmp_path / "out")), toolbox.logits_of(model))


def test_a_narrow_resnet_block_with_its_running_statistics(toolbox: Any, tmp_path: Path) -> None:
    model = toolbox.build("resnet")
    first, second = model.resnet.encoder.stages[0].layers[0].layer[:2]
    first.convolution.weight = nn.Parameter(first.convolution.weight.data[:5].clone())
    second.convolution.weight = nn.Parameter(second.convolution.weight.data[:, :5].clone())
    first.convolution.out_channels = second.convolution.in_channels = first.normalization.num_features = 5
    for key in ("weight", "bias"):
        setattr(first.normalization, key, nn.Parameter(getattr(first.normalization, key).data[:5].clone()))
    first.normalization.running_mean = torch.rand(5)
    first.normalization.running_var = torch.rand(5) + 0.5
    modicum.save(model, tmp_path / "out")
    assert torch.equal(toolbox.logits_of(modicum.load(tmp_path / "out")), toolbox.logits_of(model))


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_model_from_compressed_tensors(
    symmetric: bool, tiny_models: Any, toolbox: Any, tmp_path: Path
) -> None:
    import transformers

    recipe = {"steps": [{"quantize.rtn": {"group_size": 32, "symmetric": symmetric}}]}
    modicum.compress(tiny_models("llama"), recipe, out=tmp_path / "ct", form="compressed-tensors")
    for run_first in (False, True):
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ct").eval()
        if run_first:
            toolbox.logits_of(model)
        manifest = modicum.save(model, tmp_path / f"saved-{run_first}")
        # transformers cannot keep packed zero points; it has opened the asymmetric ones as dense layers
        assert {form["kind"] for form in manifest.forms().values()} == ({"packed"} if symmetric else set())
        again = modicum.load(tmp_path / f"saved-{run_first}")
        torch.testing.assert_close(toolbox.logits_of(again), toolbox.logits_of(model), rtol=0, atol=1e-5)


def test_forms_of_a_compressed_model(toolbox: Any, tokens: Tensor, tmp_path: Path) -> None:
    model = modicum.compress(toolbox.build("gpt2"), "quantize.rtn", data=tokens)
    modicum.save(model, tmp_path / "out")
    again = modicum.load(tmp_path / "out")
    assert isinstance(again.transformer.h[0].mlp.c_fc, PackedWeight)
    assert torch.equal(toolbox.logits_of(again), toolbox.logits_of(model))


def test_bfloat16_stays(saved: Any, toolbox: Any, tmp_path: Path) -> None:
    model = modicum.load(saved["llama"][1], dtype=torch.bfloat16)
    modicum.save(model, tmp_path / "out")
    again = modicum.load(tmp_path / "out")
    assert again.dtype == torch.bfloat16
    assert torch.equal(toolbox.logits_of(again), toolbox.logits_of(model))


def test_tokenizer_and_generation_settings_lie_beside_it(
    tiny_models: Any, toolbox: Any, tmp_path: Path
) -> None:
    source = tiny_models("llama")
    model = toolbox.build("llama")
    model.generation_config.max_new_tokens = 3
    modicum.save(model, tmp_path / "out", source)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["max_new_tokens"] == 3


def test_large_models_are_sharded(toolbox: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modicum.pipeline import saving

    real = saving.plan_shards
    monkeypatch.setattr(saving, "plan_shards", lambda sizes: real(sizes, 200_000))
    monkeypatch.setattr(saving, "join_all", lambda parts, root: _join(parts, root, 200_000))
    model = cut_llama(toolbox)
    manifest = modicum.save(model, tmp_path / "out")
    assert len(manifest.files) > 2
    assert torch.equal(toolbox.logits_of(modicum.load(tmp_path / "out")), toolbox.logits_of(model))


def _join(parts: Path, root: Path, limit: int) -> list[str]:
    from modicum.formats.merge import join_all

    return join_all(parts, root, limit)


def test_what_is_known_of_its_making_is_kept(toolbox: Any, tmp_path: Path) -> None:
    up = "model.layers.0.mlp.up_proj"
    known = Manifest(recipe={"steps": ["mine"]}, layers={up: {"role": "up", "form": {"kind": "gone"}}})
    modicum.save(cut_llama(toolbox), tmp_path / "out", manifest=known)
    read = Manifest.read(tmp_path / "out")
    assert read.recipe == {"steps": ["mine"]}
    assert read.layers == {up: {"role": "up", "form": None}}
    assert read.shapes[f"{up}.weight"] == [40, 64]


def test_nothing_is_overwritten_unasked(toolbox: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    modicum.save(toolbox.build("llama"), out)
    before = toolbox.hashes(out)
    with pytest.raises(OutputExists):
        modicum.save(cut_llama(toolbox), out)
    assert toolbox.hashes(out) == before
    modicum.save(cut_llama(toolbox), out, overwrite=True)
    assert modicum.load(out).model.layers[0].mlp.up_proj.out_features == 40
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_save_leaves_nothing(toolbox: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from modicum.pipeline import saving

    monkeypatch.setattr(saving, "write_tensors", lambda *unused: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        modicum.save(toolbox.build("llama"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_rebuilt_is_refused(toolbox: Any, tmp_path: Path) -> None:
    fewer = toolbox.build("llama")
    fewer.model.layers = fewer.model.layers[:2]
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.2"):
        modicum.save(fewer, tmp_path / "out")
    more = toolbox.build("llama")
    more.model.extra = nn.Linear(2, 2)
    with pytest.raises(UnsupportedModel, match=r"model\.extra"):
        modicum.save(more, tmp_path / "out")
    untied = toolbox.build("llama", tie_word_embeddings=True)
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.data + 1)
    with pytest.raises(UnsupportedModel, match="ties"):
        modicum.save(untied, tmp_path / "out")
    scaled = toolbox.build("llama")
    scaled.model.layers[0].self_attn.scaling *= 2
    with pytest.raises(UnsupportedModel, match="scaling"):
        modicum.save(scaled, tmp_path / "out")
    with pytest.raises(UnsupportedModel, match="transformers"):
        modicum.save(nn.Linear(2, 2), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_block_fewer_with_a_config_that_says_so(toolbox: Any, tmp_path: Path) -> None:
    model = cut_llama(toolbox)
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    modicum.save(model, tmp_path / "out")
    assert torch.equal(toolbox.logits_of(modicum.load(tmp_path / "out")), toolbox.logits_of(model))


UP, K = "model.layers.0.mlp.up_proj.weight", "model.layers.1.self_attn.k_proj.weight"
EXPERTS = "model.layers.0.mlp.experts"
BROKEN = {
    "negative": ("llama", "shapes", UP, [-40, 64]),
    "absurd": ("llama", "shapes", UP, [1 << 40, 64]),
    "beyond 64 bits": ("llama", "shapes", UP, [1 << 70, 64]),
    "one more": ("llama", "shapes", UP, [41, 64]),
    "another rank": ("llama", "shapes", UP, [40, 8, 8]),
    "scalar": ("llama", "shapes", UP, []),
    "no number": ("llama", "shapes", UP, ["a", 64]),
    "unknown": ("llama", "shapes", "model.layers.9.mlp.up_proj.weight", [1, 1]),
    "not a tensor": ("llama", "shapes", "model.layers.0.mlp", [1, 1]),
    "missing shape": ("llama", "shapes", UP, None),
    "keys": ("llama", "shapes", K, [16, 64]),
    "groups": ("llama", "attributes", "model.layers.0.self_attn.num_key_value_groups", 3),
    "many groups": ("llama", "attributes", "model.layers.0.self_attn.num_key_value_groups", 1 << 40),
    "negative groups": ("llama", "attributes", "model.layers.0.self_attn.num_key_value_groups", -1),
    "missing groups": ("llama", "attributes", "model.layers.0.self_attn.num_key_value_groups", None),
    "not an integer": ("llama", "attributes", "model.layers.0.self_attn.scaling", 3),
    "no such attribute": ("llama", "attributes", "model.layers.0.self_attn.nothing", 3),
    "a method": ("llama", "attributes", "model.layers.0.forward", 3),
    "experts": ("mixtral", "attributes", f"{EXPERTS}.num_experts", 4),
    "router": ("mixtral", "attributes", "model.layers.0.mlp.gate.num_experts", 1 << 40),
    "absurd experts": ("mixtral", "shapes", f"{EXPERTS}.gate_up_proj", [1 << 40, 40, 64]),
    "wider experts": ("mixtral", "shapes", f"{EXPERTS}.gate_up_proj", [2, 42, 64]),
    "huge width": ("mixtral", "shapes", f"{EXPERTS}.down_proj", [2, 64, 1 << 36]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_manifest_ends_in_a_sentence(case: str, saved: Any, tmp_path: Path) -> None:
    name, table, key, value = BROKEN[case]
    directory = tmp_path / "damaged"
    directory.mkdir()
    for file in saved[name][1].iterdir():
        (directory / file.name).symlink_to(file)
    manifest = json.loads((directory / "modicum.json").read_text())
    if value is None:
        del manifest[table][key]
    else:
        manifest[table][key] = value
    (directory / "modicum.json").unlink()
    (directory / "modicum.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError):
        modicum.load(directory)
