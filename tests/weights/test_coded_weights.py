"""Weights that exist only while they are used: memory, what may read them, training on top, compilation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import modicum
from modicum.errors import CheckpointError, UnsupportedModel
from modicum.kernels.huffman.encoder import encode
from modicum.weights.absent import Absent
from modicum.weights.coded import CodedWeights, Group, Place

WIDTH, DEPTH = 64, 5


class Chain(nn.Module):
    """Linear layers, each one group."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(DEPTH))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def dense_chain() -> Chain:
    torch.manual_seed(0)
    return Chain().to(torch.bfloat16).requires_grad_(False)


def coded(model: Chain) -> CodedWeights:
    """Take the weights of a chain out and put codes in."""
    groups = []
    for index, layer in enumerate(model.layers):
        encoded = encode([layer.weight.detach()])  # type: ignore[arg-type, list-item]
        assert encoded is not None
        for name, array in encoded.tensors().items():
            layer.register_buffer(name, array)
        place = Place(layer, "weight", (WIDTH, WIDTH), f"layers.{index}.weight")
        del layer._parameters["weight"]
        groups.append(Group(f"layers.{index}", layer, torch.bfloat16, torch.bfloat16, [(layer, (place,))]))
    return CodedWeights(groups)


def inputs() -> Tensor:
    return torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)


def test_a_forward_pass_holds_one_decoded_group() -> None:
    model = dense_chain()
    wanted = model(inputs())
    weights = coded(model)
    assert torch.equal(model(inputs()), wanted)
    (lane,) = weights._lanes.values()
    (buffer,) = lane.slots[0].memory.values()
    assert buffer.numel() == WIDTH * WIDTH
    assert sum(p.numel() for p in model.parameters()) == 0

    class Largest(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = func(*args, **(kwargs or {}))
            known = {buffer.untyped_storage().data_ptr()}
            if isinstance(found, Tensor) and found.untyped_storage().data_ptr() not in known:
                self.made = max(self.made, found.untyped_storage().nbytes())
            return found

    with Largest() as seen, torch.no_grad():
        model(inputs())
    assert seen.made < buffer.nbytes  # activations and tables; another weight would be as large


def test_outside_a_pass_a_weight_is_a_shape() -> None:
    model = dense_chain()
    coded(model)
    weight: Any = model.layers[0].weight
    assert isinstance(weight, Absent)
    assert (weight.shape, weight.dtype, weight.t().shape) == ((WIDTH, WIDTH), torch.bfloat16, (WIDTH, WIDTH))
    for use in (lambda: weight + 1, lambda: weight.tolist(), lambda: nn.functional.linear(weight, inputs()),
                lambda: weight.clone(), lambda: weight[0], weight.zero_):  # fmt: skip
        with pytest.raises(UnsupportedModel, match=r"layers\.0\.weight|A weight"):
            use()
    model(inputs())
    assert isinstance(model.layers[0].weight, Absent)


def test_an_error_inside_a_pass_leaves_no_weight_behind() -> None:
    model = dense_chain()
    coded(model)
    with pytest.raises(RuntimeError):
        model(inputs()[:, :3])
    assert isinstance(model.layers[0].weight, Absent)


def test_gradients_through_codes_are_those_through_weights() -> None:
    """What LoRA needs: the next group must not overwrite what a backward pass reads."""
    model, grads = dense_chain(), []
    for prepare in (lambda: None, lambda: coded(model)):
        prepare()
        x = inputs().requires_grad_()
        model(x).float().pow(2).sum().backward()
        grads.append(x.grad)
    assert grads[0] is not None
    assert grads[1] is not None
    assert torch.equal(grads[0], grads[1])
    assert float(grads[0].abs().max()) > 0


def test_modes_of_autograd_may_change_between_passes() -> None:
    model = dense_chain()
    wanted = model(inputs())
    coded(model)
    for mode in (torch.inference_mode(), torch.no_grad(), torch.enable_grad(), torch.inference_mode()):
        with mode:
            assert torch.equal(model(inputs()), wanted)


def test_a_compiled_model_is_not_silently_wrong() -> None:
    model = dense_chain()
    wanted = model(inputs())
    coded(model)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(compiled(inputs()), wanted)


def test_damaged_arrays_are_refused_before_the_first_pass() -> None:
    model = dense_chain()
    weights = coded(model)
    model.layers[2].output_positions[-1] = 77  # type: ignore[index, operator]
    with pytest.raises(CheckpointError, match=r"layers\.2"):
        weights.check()


def test_adapters_train_on_top(tmp_path: Path, toolbox: Any) -> None:
    peft = pytest.importorskip("peft")
    original = toolbox.save("llama", tmp_path / "dense", "bfloat16")
    modicum.compress(original, "lossless.dfloat11", out=tmp_path / "coded")
    found = []
    for directory in (original, tmp_path / "coded"):
        model = modicum.load(directory).requires_grad_(False)
        torch.manual_seed(3)
        config = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        tuned = peft.get_peft_model(model, config)
        batch = toolbox.inputs_of(model)
        tuned(**batch, labels=batch["input_ids"]).loss.backward()
        found.append({name: p.grad for name, p in tuned.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(grad, found[1][name]) for name, grad in found[0].items())
