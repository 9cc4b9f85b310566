"""Zeros make layers of different sizes equal and leave the function as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

import modicum
from modicum.cli.app import app
from modicum.cli.failures import explain
from modicum.errors import OutputExists, UnsupportedModel
from modicum.formats.shards import Shards
from modicum.kernels.grids import IntegerScheme
from modicum.pipeline.uniform import export_uniform, is_uniform, spread
from modicum.weights.packed import PackedWeight

PLAIN = """
import sys, torch, transformers
from safetensors.torch import save_file
transformers.logging.set_verbosity_error()
ids, out, found = torch.load(sys.argv[1], weights_only=True), sys.argv[2], {}
for directory in sys.argv[3:]:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    with torch.no_grad():
        found[directory] = model.eval()(ids).logits
        found[directory + "+"] = model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
assert not any(name.startswith("modicum") for name in sys.modules)
save_file(found, out)
"""


def part(linear: Any, rows: Any = None, columns: Any = None) -> None:
    """Cut a linear layer down to some rows or columns."""
    weight = linear.weight.data
    weight = weight if rows is None else weight[rows]
    weight = weight if columns is None else weight[:, columns]
    if rows is not None and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.data[rows].clone())
    linear.weight = nn.Parameter(weight.clone())
    linear.out_features, linear.in_features = weight.shape


def uneven(toolbox: Any, name: str, kv: tuple[int, ...], group: tuple[int, ...], **settings: Any) -> Any:
    """A model of 4 key-value heads with 2 query heads each, cut differently in each block."""
    model = toolbox.build(name, num_attention_heads=8, num_key_value_heads=4, **settings)
    for block, width, heads, queries in zip(model.model.layers, (40, 77, 17), kv, group, strict=True):
        attention, mlp = block.self_attn, block.mlp
        dim = attention.head_dim
        rows = torch.arange(attention.q_proj.out_features).reshape(4, 2, dim)[:heads, :queries].reshape(-1)
        part(attention.q_proj, rows=rows)
        part(attention.k_proj, rows=slice(heads * dim))
        part(attention.v_proj, rows=slice(heads * dim))
        part(attention.o_proj, columns=rows)
        attention.num_key_value_groups = queries
        part(mlp.gate_proj, rows=slice(width))
        part(mlp.up_proj, rows=slice(width))
        part(mlp.down_proj, columns=slice(width))
    return model


def packed(model: Any) -> Any:
    for block in model.model.layers:
        for parent, leaf in (
            (block.mlp, "down_proj"),
            (block.self_attn, "o_proj"),
            (block.self_attn, "q_proj"),
        ):
            layer = getattr(parent, leaf)
            setattr(
                parent, leaf, PackedWeight.from_dense(layer.weight, IntegerScheme(4, -1, True), layer.bias)
            )
    return model


def compensated(model: Any) -> Any:
    model.model.layers[1].mlp.down_proj.bias = nn.Parameter(torch.randn(64))
    model.model.layers[2].self_attn.o_proj.bias = nn.Parameter(torch.randn(64))
    return model


MAKERS = {
    "llama": lambda t: uneven(t, "llama", (4, 1, 3), (1, 2, 2)),
    "biased": lambda t: uneven(t, "llama", (2, 1, 2), (1, 2, 1), attention_bias=True, mlp_bias=True),
    "odd": lambda t: uneven(t, "llama", (3, 1, 2), (1, 1, 1)),
    "tied": lambda t: uneven(t, "llama", (1, 2, 1), (2, 2, 2), tie_word_embeddings=True),
    "qwen3": lambda t: uneven(t, "qwen3", (3, 1, 2), (1, 1, 1)),
    "gemma": lambda t: uneven(t, "gemma", (3, 3, 2), (1, 1, 1)),
    "packed": lambda t: packed(uneven(t, "llama", (4, 1, 3), (1, 2, 2))),
    "compensated": lambda t: compensated(uneven(t, "llama", (4, 1, 3), (1, 2, 2))),
}


@pytest.fixture(scope="module")
def exported(toolbox: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path, Path]]:
    """Every model, where it was saved, and where it was padded."""
    root = tmp_path_factory.mktemp("uniform")
    made = {}
    for name, make in MAKERS.items():
        model, cut, out = make(toolbox), root / f"{name}-cut", root / name
        modicum.save(model, cut)
        assert export_uniform(cut, out) == Shards(out).nbytes()
        made[name] = model, cut, out
    return made


@pytest.fixture(scope="module")
def reopened(exported: Any, toolbox: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a process that knows no modicum computes with each padded directory."""
    root = tmp_path_factory.mktemp("fresh")
    torch.save(toolbox.inputs_of(exported["llama"][0])["input_ids"], root / "ids.pt")
    directories = [str(out) for _, _, out in exported.values()]
    line = [sys.executable, "-c", PLAIN, str(root / "ids.pt"), str(root / "found.safetensors"), *directories]
    done = subprocess.run(line, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return load_file(root / "found.safetensors")


@pytest.mark.parametrize("name", MAKERS)
def test_plain_transformers_computes_the_same(name: str, exported: Any, reopened: Any, toolbox: Any) -> None:
    model, _, out = exported[name]
    torch.testing.assert_close(reopened[str(out)], toolbox.logits_of(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_plain_transformers_continues_the_same(name: str, exported: Any, reopened: Any, toolbox: Any) -> None:
    model, _, out = exported[name]
    ids = toolbox.inputs_of(model)["input_ids"]
    expected = model.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert torch.equal(reopened[f"{out}+"], expected)


@pytest.mark.parametrize("name", MAKERS)
def test_the_config_says_all_sizes(name: str, exported: Any) -> None:
    model, cut, out = exported[name]
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["intermediate_size"] == 77
    assert config["head_dim"] == model.model.layers[0].self_attn.head_dim
    assert is_uniform(out)
    assert not is_uniform(cut)


def test_no_more_heads_than_needed(exported: Any) -> None:
    counts = {
        name: [
            json.loads((out / "config.json").read_text())[key]
            for key in ("num_key_value_heads", "num_attention_heads")
        ]
        for name, (_, _, out) in exported.items()
    }
    assert counts["llama"] == [4, 8]
    assert counts["qwen3"] == [3, 3]
    assert counts["odd"] == [4, 4]  # Llama's heads must divide the hidden size, 64
    assert counts["tied"] == [2, 4]


def test_what_is_uniform_is_copied(tiny_models: Any, tmp_path: Path) -> None:
    source = tiny_models("gpt2")
    assert is_uniform(source)
    export_uniform(source, tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_packed_layers_of_a_regular_model_are_expanded(toolbox: Any, tokens: Any, tmp_path: Path) -> None:
    model = modicum.compress(toolbox.build("gpt2"), "quantize.rtn", data=tokens)
    modicum.save(model, tmp_path / "packed")
    export_uniform(tmp_path / "packed", tmp_path / "out")
    again = modicum.load(tmp_path / "out")
    assert type(again.transformer.h[0].mlp.c_fc).__name__ == "Conv1D"
    torch.testing.assert_close(toolbox.logits_of(again), toolbox.logits_of(model), rtol=0, atol=1e-5)


def test_experts_are_refused(toolbox: Any, tmp_path: Path) -> None:
    model = toolbox.build("mixtral")
    mlp = model.model.layers[0].mlp
    mlp.gate.weight = nn.Parameter(mlp.gate.weight.data[:3].clone())
    for key in ("gate_up_proj", "down_proj"):
        setattr(mlp.experts, key, nn.Parameter(getattr(mlp.experts, key).data[:3].clone()))
    mlp.gate.num_experts = mlp.experts.num_experts = 3
    modicum.save(model, tmp_path / "cut")
    with pytest.raises(UnsupportedModel, match="router"):
        export_uniform(tmp_path / "cut", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_architectures_are_refused(toolbox: Any, tmp_path: Path) -> None:
    model = toolbox.build("opt")
    layer = model.model.decoder.layers[0]
    part(layer.fc1, rows=slice(10))
    part(layer.fc2, columns=slice(10))
    modicum.save(model, tmp_path / "cut")
    with pytest.raises(UnsupportedModel, match="opt"):
        export_uniform(tmp_path / "cut", tmp_path / "out")


def test_a_bias_that_no_config_can_say_is_refused(toolbox: Any, tmp_path: Path) -> None:
    model = uneven(toolbox, "qwen3", (3, 1, 2), (1, 1, 1))
    model.model.layers[0].mlp.down_proj.bias = nn.Parameter(torch.randn(64))
    modicum.save(model, tmp_path / "cut")
    with pytest.raises(UnsupportedModel, match=r"down_proj has a bias"):
        export_uniform(tmp_path / "cut", tmp_path / "out")


def test_nothing_is_overwritten(tiny_models: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExists):
        export_uniform(tiny_models("llama"), tmp_path / "out")


def test_the_command(exported: Any, toolbox: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, cut, _ = exported["llama"]
    assert explain(app, ["export", str(cut), "--uniform", "--out", str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["weights_bytes"] == Shards(tmp_path / "out").nbytes()
    assert told["already_uniform"] is False
    logits = toolbox.logits_of(modicum.load(tmp_path / "out"))
    torch.testing.assert_close(logits, toolbox.logits_of(model), rtol=0, atol=1e-5)
    assert explain(app, ["export", str(tmp_path / "out"), "--uniform", "--out", str(tmp_path / "copy")]) == 0
    assert "already" in capsys.readouterr().out
    assert explain(app, ["export", str(cut), "--out", str(tmp_path / "none")]) == 2
    assert "--uniform" in capsys.readouterr().err


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_spread_puts_zeros_between(data: st.DataObject) -> None:
    old = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    new = tuple(size + data.draw(st.integers(0, 3)) for size in old)
    axis = data.draw(st.integers(0, 1))
    count = int(torch.tensor(old).prod())
    matrix = torch.rand(count, 5) + 1
    matrix = matrix if axis == 0 else matrix.t()
    result = spread(matrix, axis, old, new)
    grid = result.movedim(axis, 0).reshape(*new, 5)
    inside = tuple(slice(size) for size in old)
    assert torch.equal(grid[inside].reshape(count, 5), matrix.movedim(axis, 0))
    assert grid.count_nonzero() == matrix.numel()
