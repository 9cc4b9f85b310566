"""What is found out about a coded checkpoint for its report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import modicum
from modicum import api
from modicum.api.depths import compare_depths
from modicum.formats.shards import Shards
from modicum.kernels.huffman.encoder import symbol_counts
from modicum.pipeline import coding
from modicum.pipeline.coding import describe_coding
from modicum.report.depth_rows import headline
from modicum.report.depths import render

VOCABULARY = 2048
METHODS = ("lossless.dfloat11", "lossless.byteplanes")


@pytest.mark.parametrize("method", METHODS)
def test_numbers_are_those_of_the_run_and_of_the_weights(
    method: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coding, "TIMED", 2 * VOCABULARY * 64)
    note = modicum.compress(tiny_llama, method, out=tmp_path / "coded").notes[method]
    found = describe_coding(tmp_path / "coded", tiny_llama)
    assert found is not None
    assert found.identical
    assert found.tensors == len(Shards(tiny_llama).tensors)
    assert (found.method, found.dtype) == (method, "bfloat16")
    assert {g.name: (g.nbytes, g.dense_nbytes) for g in found.groups} == {
        name: (group["nbytes"], group["dense_nbytes"]) for name, group in note["groups"].items()
    }
    assert 8 * found.nbytes / found.weights == pytest.approx(note["bits_per_weight"], abs=1e-4)
    assert found.bound == pytest.approx(note["bound"], abs=1e-4)
    assert sum(found.parts.values()) == found.nbytes
    assert set(found.parts) - {"tables"} == {"exponents", "other bits"}
    matrices = [t for t in load_file(tiny_llama / "model.safetensors").values() if t.dim() == 2]
    assert list(found.counts) == symbol_counts(matrices).tolist()
    assert found.decode is not None
    assert 0 < found.decode.lowest <= found.decode.median <= found.decode.highest
    monkeypatch.setattr(coding, "TIMED", 2 * VOCABULARY * 64 + 1)  # more than any group has
    untimed = describe_coding(tmp_path / "coded", tiny_llama)
    assert untimed is not None
    assert untimed.decode is None


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_dtypes(dtype: str, tmp_path: Path, toolbox: Any) -> None:
    original = toolbox.save("llama", tmp_path / "dense", dtype)
    modicum.compress(original, METHODS[0], out=tmp_path / "coded")
    found = describe_coding(tmp_path / "coded", original)
    assert found is not None
    assert found.identical
    assert found.dtype == dtype
    assert sum(found.counts) == found.weights
    assert found.information < 8 < found.bound


def test_another_model_is_not_called_the_original(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "other")
    tensors = load_file(tiny_llama / "model.safetensors")
    tensors["model.norm.weight"][3] = -tensors["model.norm.weight"][3]
    save_file(tensors, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    modicum.compress(tiny_llama, METHODS[0], out=tmp_path / "coded")
    found = describe_coding(tmp_path / "coded", tmp_path / "other")
    assert found is not None
    assert not found.identical
    assert found.difference is not None
    assert found.difference.startswith("model.norm.weight")


def test_weights_that_were_changed_before_are_not_compared(tiny_llama: Path, tmp_path: Path) -> None:
    modicum.compress(tiny_llama, ["prune.magnitude", METHODS[0]], out=tmp_path / "coded")
    found = describe_coding(tmp_path / "coded", tiny_llama)
    assert found is not None
    assert found.changed_by == ("prune.magnitude",)
    assert (found.tensors, found.difference, found.identical) == (0, None, False)
    pruned = sum(group.weights for group in found.groups if "layers" in group.name)
    assert pruned / 2 <= found.counts[0] < 0.6 * pruned


def test_steps_of_an_earlier_run_are_remembered(tiny_llama: Path, tmp_path: Path) -> None:
    modicum.compress(tiny_llama, {"steps": [{"prune.blocks": {"keep": [0, 2]}}]}, out=tmp_path / "short")
    modicum.compress(tmp_path / "short", METHODS[1], out=tmp_path / "coded")
    found = describe_coding(tmp_path / "coded", tiny_llama)
    assert found is not None
    assert found.changed_by == ("prune.blocks",)
    assert found.tensors == 0


def test_what_is_not_coded_has_nothing_to_tell(tiny_llama: Path, tmp_path: Path) -> None:
    assert describe_coding(tiny_llama, tiny_llama) is None
    tensors = load_file(tiny_llama / "model.safetensors")
    noise = {
        name: torch.randint(-(2**15), 2**15, t.shape, dtype=torch.int16).view(torch.bfloat16)
        for name, t in tensors.items()
    }
    shutil.copytree(tiny_llama, tmp_path / "noise")
    save_file(noise, tmp_path / "noise" / "model.safetensors", {"format": "pt"})
    modicum.compress(tmp_path / "noise", METHODS[0], out=tmp_path / "coded")
    assert describe_coding(tmp_path / "coded", tmp_path / "noise") is None


def test_a_comparison_carries_it_where_sizes_are_measured(tiny_llama: Path, tmp_path: Path) -> None:
    modicum.compress(tiny_llama, METHODS[0], out=tmp_path / "coded")
    options: dict[str, Any] = {"tokens": 300, "window": 32}
    measured = api.compare(tiny_llama, tmp_path / "coded", what={"size", "quality"}, **options)
    assert measured.coding is not None
    assert measured.coding.identical
    assert measured.after.perplexity == measured.before.perplexity
    assert api.compare(tiny_llama, tmp_path / "coded", what={"quality"}, **options).coding is None


def test_a_diffusion_transformer_is_reported_by_its_bytes(tmp_path: Path) -> None:
    modicum.compress("nano-dit", METHODS[0], out=tmp_path / "coded")
    comparison, images = compare_depths("nano-dit", [tmp_path / "coded"], count=2, steps=2)
    assert torch.equal(*images)
    assert comparison.entries[1].parameters == comparison.entries[0].parameters
    assert comparison.coding is not None
    assert comparison.coding.identical
    assert " % of the bytes, " in headline(comparison)
    assert "Every bit is that of the original" in render(comparison, images)
