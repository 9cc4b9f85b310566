"""Coded models on a GPU compute what dense ones compute there, bit for bit, however streams and buffers interleave.

Where decoding and multiplying overlap, products are of rows that pick single weights: the order of a sum then does not
matter, and only the weights do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modicum
from modicum.errors import CheckpointError
from modicum.kernels.huffman.encoder import encode
from modicum.pipeline.coded import load_coded
from modicum.weights.coded import CodedWeights, Group, Place

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

METHOD = "lossless.dfloat11"
WIDTH, DEPTH, PASSES = 2048, 8, 30


def on_gpu(inputs: dict[str, Any]) -> dict[str, Any]:
    return {key: value.cuda() for key, value in inputs.items()}


@torch.no_grad()
def logits_of(model: Any, toolbox: Any) -> Tensor:
    return model(**on_gpu(toolbox.inputs_of(model))).logits


@pytest.fixture(scope="module", params=["llama", "qwen2_moe", "mixtral", "gpt2", "bert", "opt"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, toolbox: Any) -> Any:
    """A model on disk, and the same coded."""
    root = tmp_path_factory.mktemp(request.param)
    original = toolbox.save(request.param, root / "dense", "bfloat16")
    modicum.compress(original, METHOD, out=root / "coded")
    return original, root / "coded"


class TestModels:
    def test_every_pass_is_the_dense_one(self, pair: tuple[Path, Path], toolbox: Any) -> None:
        dense, coded = (modicum.load(directory, device="cuda") for directory in pair)
        wanted = logits_of(dense, toolbox)
        for _ in range(5):
            assert torch.equal(logits_of(coded, toolbox), wanted)

    def test_codes_stay_with_the_host(self, pair: tuple[Path, Path], toolbox: Any) -> None:
        wanted = logits_of(modicum.load(pair[0], device="cuda"), toolbox)
        coded: Any = load_coded(pair[1], device="cuda", offload=True)
        hosted = [array for group in coded.coded_weights.groups for array in group.hosted.values()]
        assert hosted
        assert all(array.is_pinned() for array in hosted)
        for _ in range(5):
            assert torch.equal(logits_of(coded, toolbox), wanted)

    def test_a_model_may_move(self, pair: tuple[Path, Path], toolbox: Any) -> None:
        dense, coded = (modicum.load(directory, device="cuda") for directory in pair)
        wanted = logits_of(dense, toolbox)
        for _ in range(2):
            assert torch.equal(logits_of(coded, toolbox), wanted)
            coded.to("cpu")
            with torch.no_grad():
                coded(**toolbox.inputs_of(coded))
            coded.to("cuda")
        assert torch.equal(logits_of(coded, toolbox), wanted)

    def test_damaged_gaps_are_refused_before_the_first_pass(
        self, pair: tuple[Path, Path], tmp_path: Path
    ) -> None:
        from safetensors.torch import load_file, save_file

        for file in pair[1].iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        tensors = load_file(tmp_path / "model.safetensors")
        key = next(name for name in sorted(tensors) if name.endswith(".gaps"))
        tensors[key][3] ^= 1
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match="gap of chunk"):
            modicum.load(tmp_path, device="cuda")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_dtypes(dtype: str, tmp_path: Path, toolbox: Any) -> None:
    original = toolbox.save("llama", tmp_path / "dense", dtype)
    modicum.compress(original, METHOD, out=tmp_path / "coded")
    dense, coded = (modicum.load(d, device="cuda") for d in (original, tmp_path / "coded"))
    for _ in range(3):
        assert torch.equal(logits_of(coded, toolbox), logits_of(dense, toolbox))


@pytest.mark.parametrize("family", ["var", "infinity"])
def test_models_that_draw(
    family: str, tiny_var: Path, tiny_infinity: Path, tmp_path: Path, toolbox: Any
) -> None:
    original = tiny_var if family == "var" else tiny_infinity
    modicum.compress(original, METHOD, out=tmp_path / "coded")
    drawn = []
    for directory in (original, tmp_path / "coded"):
        model: Any = modicum.load(directory, device="cuda")
        if family == "var":
            drawn.append(model.generate([0, 2], seed=1))
        else:
            from modicum.models.infinity import TextFeatures

            text = torch.randn(5, 256, generator=torch.Generator().manual_seed(0))
            drawn.append(model.generate(TextFeatures(text.cuda(), (5,)), seed=1))
    assert torch.equal(*drawn)


def picking(rows: int) -> Tensor:
    """One-hot vectors, [rows, WIDTH]."""
    return torch.eye(WIDTH, device="cuda", dtype=torch.bfloat16)[torch.randint(WIDTH, (rows,), device="cuda")]


class Chain(nn.Module):
    """Matrices large enough that decoding and multiplying really overlap; gives one output after another."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(DEPTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([layer(x) for layer in self.layers])


class TestOverlap:
    @pytest.fixture
    def twins(self) -> tuple[Chain, Chain, CodedWeights]:
        torch.manual_seed(0)
        dense = Chain().to("cuda", torch.bfloat16).requires_grad_(False)
        coded = Chain().to("cuda", torch.bfloat16).requires_grad_(False)
        groups = []
        for index, (layer, like) in enumerate(zip(coded.layers, dense.layers, strict=True)):
            encoded = encode([like.weight.detach().cpu()])  # type: ignore[arg-type, list-item]
            assert encoded is not None
            for name, array in encoded.tensors().items():
                layer.register_buffer(name, array.cuda())
            place = Place(layer, "weight", (WIDTH, WIDTH), f"layers.{index}.weight")
            del layer._parameters["weight"]
            groups.append(
                Group(f"layers.{index}", layer, torch.bfloat16, torch.bfloat16, [(layer, (place,))])
            )
        return dense, coded, CodedWeights(groups, torch.cuda)

    @pytest.mark.parametrize("rows", [1, 64, 8192])
    def test_many_passes_without_waiting(self, twins: Any, rows: int) -> None:
        """The host runs ahead of the GPU; all results are compared at the end."""
        dense, coded, _ = twins
        inputs = [picking(rows) for _ in range(PASSES)]
        with torch.no_grad():
            found = [coded(x) for x in inputs]
            wanted = [dense(x) for x in inputs]
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))

    def test_passes_on_several_streams(self, twins: Any) -> None:
        dense, coded, _ = twins
        streams = [torch.cuda.Stream() for _ in range(3)]
        x = picking(1024)
        with torch.no_grad():
            wanted = dense(x)
            torch.cuda.synchronize()
            found = []
            for index in range(PASSES):
                with torch.cuda.stream(streams[index % 3]):
                    found.append(coded(x))
        torch.cuda.synchronize()
        assert all(torch.equal(result, wanted) for result in found)

    def test_a_deleted_model_gives_no_memory_away_that_is_in_use(self, twins: Any) -> None:
        dense, coded, weights = twins
        x = picking(1024)
        with torch.no_grad():
            coded(x)
            found = coded(x)  # decoding ahead for a pass that never comes
            wanted = dense(x)
            weights._lanes.clear()
            others = [torch.zeros(WIDTH, WIDTH, device="cuda", dtype=torch.bfloat16) for _ in range(8)]
        torch.cuda.synchronize()
        assert torch.equal(found, wanted)
        assert all(not other.any() for other in others)
