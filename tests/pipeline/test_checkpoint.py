"""The written directory: what transformers opens without us, how large it is, and what travels along."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import modicum
from modicum import api
from modicum.formats.manifest import Manifest
from modicum.formats.shards import Shards, read_header
from modicum.pipeline.recipe import parse

METHODS: dict[str, list[Any]] = {
    "magnitude": ["prune.magnitude"],
    "wanda": [{"prune.wanda": {"pattern": "2:4"}}],
    "sparsegpt": [{"prune.sparsegpt": {"sparsity": 0.5}}],
    "rtn": [{"quantize.rtn": {"group_size": 32}}],
    "gptq": [{"quantize.gptq": {"bits": 3, "group_size": 32}}],
    "awq": [{"quantize.awq": {"group_size": 32, "symmetric": False}}],
    "both": [{"prune.sparsegpt": {"sparsity": 0.5}}, {"quantize.gptq": {"group_size": 32}}],
}
FORMATS = ("plain", "modicum", "compressed-tensors")
STORABLE = [
    (method, form)
    for method in METHODS
    for form in FORMATS
    if form != "compressed-tensors" or "quantize" in str(METHODS[method])
]


@pytest.mark.parametrize(("method", "form"), STORABLE)
def test_what_is_loaded_computes_what_was_saved(
    method: str, form: Any, tiny_models: Any, tokens: torch.Tensor, tmp_path: Path, toolbox: Any
) -> None:
    recipe = parse(METHODS[method])
    api.prepare(tiny_models("llama"), recipe, tmp_path / "out", data=tokens, form=form).execute()
    memory = api.load(tiny_models("llama"))
    api.compress(memory, recipe, data=tokens)
    wanted = toolbox.logits_of(memory)
    assert torch.equal(toolbox.logits_of(api.load(tmp_path / "out")), wanted)
    by_transformers = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert torch.equal(toolbox.logits_of(by_transformers), wanted)


WITHOUT_US = """
import sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
ids = torch.tensor([[5, 9, 300, 7, 1999, 4]])
found = {}
for path in sys.argv[2:]:
    model, report = AutoModelForCausalLM.from_pretrained(path, dtype="auto", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    with torch.no_grad():
        found[path] = model(ids).logits.contiguous()
assert not any(name.partition(".")[0] == "modicum" for name in sys.modules)
save_file(found, sys.argv[1])
"""
PORTABLE: dict[str, dict[str, Any]] = {
    "sym2": {"bits": 2, "group_size": 32},
    "sym3": {"bits": 3, "group_size": 32},
    "sym4": {"bits": 4, "group_size": 32},
    "sym8": {"bits": 8, "group_size": 32},
    "row4": {"bits": 4, "group_size": -1},
    "asym4": {"bits": 4, "group_size": 32, "symmetric": False},
}


def test_transformers_opens_portable_formats_without_modicum(
    tiny_models: Any, tokens: torch.Tensor, tmp_path: Path
) -> None:
    """One process that never imports modicum opens them all and gets our logits."""
    recipes = {name: [{"quantize.rtn": given}] for name, given in PORTABLE.items()}
    mixed = [
        {"quantize.rtn": {"bits": 4, "group_size": 32, "only": ["q", "k"]}},
        {"quantize.rtn": {"bits": 8, "group_size": 16, "only": ["down"]}},
    ]
    recipes |= {"mixed": mixed, "plain": ["prune.wanda"]}
    for name, steps in recipes.items():
        manifest = api.prepare(tiny_models("llama"), steps, tmp_path / name, data=tokens).execute()
        assert manifest.layers
        assert "modicum" not in (tmp_path / name / "config.json").read_text()
    folders = [str(tmp_path / name) for name in recipes]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, str(tmp_path / "logits.safetensors"), *folders],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = Shards(tmp_path / "logits.safetensors")
    ids = torch.tensor([[5, 9, 300, 7, 1999, 4]])
    for name, folder in zip(recipes, folders, strict=True):
        memory: Any = api.load(tiny_models("llama"))
        api.compress(memory, recipes[name], data=tokens)
        with torch.no_grad():
            assert torch.equal(found.read(folder), memory(ids).logits), name


def test_importing_modicum_is_enough_for_the_native_format(
    tiny_llama: Path, tokens: torch.Tensor, tmp_path: Path
) -> None:
    api.prepare(tiny_llama, METHODS["gptq"], tmp_path / "out", data=tokens, form="modicum").execute()
    script = """
import sys, torch, modicum
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(sum(type(m).__name__ == "PackedWeight" for m in model.modules()))
"""
    line = [sys.executable, "-c", script, str(tmp_path / "out")]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["21"]


@pytest.mark.parametrize("settings", [{"sparsity": 0.5}, {"pattern": "2:4"}], ids=["masked", "2:4"])
def test_half_the_weights_take_little_more_than_half_the_bytes(
    settings: dict[str, Any], tiny_llama: Path, tokens: torch.Tensor, tmp_path: Path
) -> None:
    run = api.prepare(tiny_llama, [{"prune.wanda": settings}], tmp_path / "out", data=tokens, form="modicum")
    run.execute()
    names = tuple(f"{layer.name}." for layer in run.plan.layers)
    stored = read_header(tmp_path / "out" / "model.safetensors")
    kept = sum(at.nbytes for name, at in stored.items() if name.startswith(names))
    dense = sum(layer.before for layer in run.plan.layers)
    assert 0.5 * dense < kept <= 0.57 * dense


@pytest.fixture(scope="module")
def written(tiny_llama: Path, tokens: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("written") / "out"
    api.prepare(tiny_llama, METHODS["both"], out, data=tokens).execute()
    return out


def test_everything_that_belongs_to_a_model_travels_along(written: Path, tiny_llama: Path) -> None:
    assert {file.name for file in written.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "modicum.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (written / name).read_bytes() == (tiny_llama / name).read_bytes()
    text = "def read(self):\n    return 1"
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (written, tiny_llama))
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]


def test_modicum_json_says_what_was_done(written: Path) -> None:
    manifest = Manifest.read(written)
    assert manifest.files == {
        name: hashlib.sha256((written / name).read_bytes()).hexdigest() for name in ["model.safetensors"]
    }
    assert manifest.versions["modicum"] == modicum.__version__
    assert parse(manifest.recipe) == parse(METHODS["both"])
    layers = manifest.layers
    assert len(layers) == 21
    stored = Shards(written)
    for name, record in layers.items():
        held = [f"{name}.{key}" for key in ("weight_packed", "weight_scale", "weight_shape")]
        assert record["nbytes"] == stored.nbytes(held)
        assert 0.5 <= record["sparsity"] < 0.75
        assert 0 < record["output_error"] < 1
        assert manifest.promises[name]
    assert "/" not in json.dumps(manifest.source)


def test_another_compute_dtype(written: Path, tiny_llama: Path, tokens: torch.Tensor, tmp_path: Path) -> None:
    api.prepare(tiny_llama, METHODS["both"], tmp_path / "native", data=tokens, form="modicum").execute()
    ids = tokens[:1]
    for folder in (written, tmp_path / "native"):
        wide: Any = api.load(folder, dtype=torch.float32)
        narrow: Any = api.load(folder)
        with torch.no_grad():
            a, b = wide(ids).logits, narrow(ids).logits
        assert a.dtype == torch.float32
        assert b.dtype == torch.bfloat16
        torch.testing.assert_close(a, b.float(), rtol=0.1, atol=0.1)


def test_compressing_in_another_dtype_stores_that_dtype(
    tiny_llama: Path, tokens: torch.Tensor, tmp_path: Path
) -> None:
    recipe = parse(["prune.wanda"])
    api.prepare(tiny_llama, recipe, tmp_path / "out", data=tokens, dtype=torch.float32).execute()
    loaded: Any = api.load(tmp_path / "out")
    assert loaded.dtype == torch.float32
    memory: Any = api.load(tiny_llama, dtype=torch.float32)
    api.compress(memory, recipe, data=tokens)
    with torch.no_grad():
        assert torch.equal(loaded(tokens[:1]).logits, memory(tokens[:1]).logits)


def test_a_plain_result_can_be_compressed_again(
    tiny_llama: Path, tokens: torch.Tensor, tmp_path: Path
) -> None:
    api.prepare(tiny_llama, ["prune.wanda"], tmp_path / "pruned", data=tokens).execute()
    api.prepare(tmp_path / "pruned", ["quantize.rtn"], tmp_path / "both").execute()
    assert len(Manifest.read(tmp_path / "both").layers) == 21
