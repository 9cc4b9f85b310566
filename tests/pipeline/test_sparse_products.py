"""Loading for a device with sparse tensor cores: which layers stay 2:4, and what is said of the others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

import modicum
from modicum.evaluate.size import memory_size
from modicum.kernels import sparse24
from modicum.weights import SemiStructuredWeight

MIXED = {
    "steps": [
        {"prune.magnitude": {"pattern": "2:4", "only": ["self_attn.*", "up_proj"]}},
        {"prune.magnitude": {"pattern": "4:8", "only": ["gate_proj"]}},
        {"prune.magnitude": {"sparsity": 0.5, "only": ["down_proj"]}},
    ]
}
ATTENTION = ("q_proj", "o_proj")  # 64 x 64; k, v are 32 x 64 and up is 96 x 64


def multiply_here(x: Tensor, packed: sparse24.Packed, out_features: int) -> Tensor:
    return (x.float() @ sparse_semi_structured_to_dense_cutlass(*packed).float().T).to(x.dtype)


HERE = replace(sparse24.CUTLASS, name="processor", rows=64, multiply=multiply_here)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that has sparse tensor cores, for matrices of 64 outputs or a multiple."""
    monkeypatch.setattr(sparse24, "kernel_for", lambda device: HERE)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A Llama with 2:4, 4:8 and unstructured layers."""
    out = tmp_path_factory.mktemp("sparse") / "mixed"
    modicum.compress(tiny_llama, MIXED, out=out, form="modicum")
    return out


def sparse_layers(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, SemiStructuredWeight)}


def test_layers_that_fit_stay_sparse_and_the_rest_is_explained(
    kernel: None, mixed: Path, toolbox: Any
) -> None:
    model: Any = modicum.load(mixed, sparse_kernels=True)
    expected = {f"model.layers.{i}.self_attn.{name}" for i in range(3) for name in ATTENTION}
    assert sparse_layers(model) == expected
    products = model.sparse_products
    assert set(products.layers) == expected
    assert products.kernel == "processor"
    assert set(products.dense) == {
        f"model.layers.{i}.{name}"
        for i in range(3)
        for name in ("self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.gate_proj")
    }
    assert products.dense["model.layers.0.mlp.gate_proj"] == "4:8 is not 2:4"
    assert "[96, 64]" in products.dense["model.layers.1.mlp.up_proj"]
    assert "6 by processor, 12 as dense ones" in str(products)
    plain = modicum.load(mixed)
    torch.testing.assert_close(
        toolbox.logits_of(model).float(), toolbox.logits_of(plain).float(), rtol=0.05, atol=0.05
    )


def test_no_dense_copy_is_kept(kernel: None, mixed: Path) -> None:
    model: Any = modicum.load(mixed, sparse_kernels=True)
    plain = modicum.load(mixed)
    saved = sum(2 * 64 * 64 * 7 // 16 for _ in model.sparse_products.layers)
    assert memory_size(plain) - memory_size(model) == saved


def test_without_being_asked_everything_is_dense(kernel: None, mixed: Path) -> None:
    model: Any = modicum.load(mixed)
    assert not sparse_layers(model)
    assert model.sparse_products.layers == ()
    assert set(model.sparse_products.dense.values()) == {"sparse kernels were not asked for"}


def test_float32_is_dense(kernel: None, mixed: Path) -> None:
    model: Any = modicum.load(mixed, dtype=torch.float32, sparse_kernels=True)
    assert not sparse_layers(model)
    assert "float32" in model.sparse_products.dense["model.layers.0.self_attn.q_proj"]


def test_a_processor_runs_dense_and_says_so(mixed: Path, tiny_llama: Path) -> None:
    model: Any = modicum.load(mixed, sparse_kernels=True)
    assert not sparse_layers(model)
    assert model.sparse_products.dense["model.layers.0.self_attn.q_proj"] == "there is no kernel for cpu"
    assert str(model.sparse_products).startswith("N:M layers: 18 as dense ones (model.layers.0.mlp.gate_proj")
    assert not hasattr(modicum.load(tiny_llama), "sparse_products")


def test_a_promise_is_enough_if_the_weights_keep_it(kernel: None, tiny_llama: Path, tmp_path: Path) -> None:
    steps = {"steps": [{"prune.magnitude": {"pattern": "2:4", "only": ["q_proj"]}}]}
    out = tmp_path / "plain"
    modicum.compress(tiny_llama, steps, out=out, form="plain")
    model: Any = modicum.load(out, sparse_kernels=True)
    assert str(model.sparse_products) == "all 3 N:M layers are multiplied by processor"
    with pytest.raises(ValueError, match="modicum"):
        model.save_pretrained(tmp_path / "unreadable")
    trained = load_file(out / "model.safetensors")
    trained["model.layers.1.self_attn.q_proj.weight"][5, :3] = 1.0
    save_file(trained, out / "model.safetensors", metadata={"format": "pt"})
    products = modicum.load(out, sparse_kernels=True).sparse_products
    assert products.dense == {
        "model.layers.1.self_attn.q_proj": "more than 2 of 4 neighbouring weights are not zero"
    }
    assert len(products.layers) == 2


def test_what_is_no_linear_layer_stays(kernel: None, tiny_models: Any, tmp_path: Path) -> None:
    steps = {"steps": [{"prune.magnitude": {"pattern": "2:4"}}]}
    modicum.compress(tiny_models("mixtral", "bfloat16"), steps, out=tmp_path / "experts")
    products = modicum.load(tmp_path / "experts", sparse_kernels=True).sparse_products
    reasons = {name: reason for name, reason in products.dense.items() if ".experts." in name}
    assert reasons
    assert set(reasons.values()) == {"it is not a linear layer of its own"}


def test_a_transposed_layer_is_turned(kernel: None, tiny_models: Any, tmp_path: Path, toolbox: Any) -> None:
    steps = {"steps": [{"prune.magnitude": {"pattern": "2:4"}}]}
    modicum.compress(tiny_models("gpt2", "bfloat16"), steps, out=tmp_path / "gpt2")
    model: Any = modicum.load(tmp_path / "gpt2", sparse_kernels=True)
    assert len(model.sparse_products.layers) == 12
    plain = modicum.load(tmp_path / "gpt2")
    torch.testing.assert_close(
        toolbox.logits_of(model).float(), toolbox.logits_of(plain).float(), rtol=0.05, atol=0.1
    )


def test_integers_stay_packed(kernel: None, tiny_llama: Path, tmp_path: Path) -> None:
    steps = [{"prune.magnitude": {"pattern": "2:4"}}, {"quantize.rtn": {"group_size": 32}}]
    modicum.compress(tiny_llama, {"steps": steps}, out=tmp_path / "packed", form="modicum")
    model: Any = modicum.load(tmp_path / "packed", sparse_kernels=True)
    assert not sparse_layers(model)
    assert set(model.sparse_products.dense.values()) == {"it stays packed"}


def test_a_model_in_kernel_order_is_saved_as_it_was(kernel: None, mixed: Path, tmp_path: Path) -> None:
    modicum.save(modicum.load(mixed, sparse_kernels=True), tmp_path / "again")
    again = modicum.load(tmp_path / "again")
    before = dict(modicum.load(mixed).named_parameters())
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_logits_of_the_dense_model(mixed: Path) -> None:
    model: Any = modicum.load(mixed, device="cuda", sparse_kernels=True)
    if not model.sparse_products.layers:
        pytest.skip(str(model.sparse_products))
    assert {name.rsplit(".", 1)[1] for name in model.sparse_products.layers} >= set(ATTENTION)
    plain: Any = modicum.load(mixed, device="cuda")
    ids = torch.randint(3, 2048, (2, 11), generator=torch.Generator().manual_seed(1)).cuda()
    with torch.no_grad():
        found, expected = model(ids).logits.float(), plain(ids).logits.float()
    assert (found - expected).norm() < 0.02 * expected.norm()
