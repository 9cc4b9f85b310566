"""Gradients taken block by block equal those of the whole model at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from modicum.calibrate.gradients import SCALE
from modicum.errors import UnsupportedModel, UnusableData
from modicum.models import Anatomy
from modicum.pipeline.gradients import loaded_gradients
from modicum.prune.pruner_zero import PrunerZero

ALL = [PrunerZero()]


def batches(padded: bool = False) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for size, length in ((2, 11), (1, 17)):
        batch = {"input_ids": torch.randint(3, 2048, (size, length), generator=generator)}
        if padded:
            batch["attention_mask"] = torch.ones(size, length, dtype=torch.long)
            batch["attention_mask"][0, :4] = 0
        made.append(batch)
    return made


def at_once(model: Any, data: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The statistic by plain backpropagation, one window at a time."""
    sums: dict[str, Tensor] = {}
    layers = list(Anatomy.of(model).layers())
    for batch in data:
        for i in range(len(batch["input_ids"])):
            row = {key: value[i : i + 1] for key, value in batch.items()}
            labels = row["input_ids"].masked_fill(row.get("attention_mask", torch.ones(1)) == 0, -100)
            model.zero_grad()
            model(**row, labels=labels).loss.backward()
            for layer in layers:
                gradient = layer.matrix(layer.tensor.grad)
                sums[layer.name] = sums.get(layer.name, 0) + (SCALE * gradient.float()).square()
    return {name: total.sqrt() for name, total in sums.items()}


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "opt"])
@pytest.mark.parametrize("padded", [False, True])
def test_blocks_one_by_one_give_what_the_whole_model_gives(name: str, padded: bool, toolbox: Any) -> None:
    model = toolbox.build(name)
    expected = at_once(model, batches(padded))
    model.requires_grad_(False)
    found = loaded_gradients(Anatomy.of(model), ALL, batches(padded))
    assert found.keys() == expected.keys()
    for layer, gradient in found.items():
        scale = float(expected[layer].max())
        assert scale > 0
        torch.testing.assert_close(gradient, expected[layer], rtol=1e-3, atol=1e-5 * scale, msg=layer)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_only_what_is_asked_for_is_computed(toolbox: Any) -> None:
    model = toolbox.build("llama")
    everything = loaded_gradients(Anatomy.of(model), ALL, batches())
    steps = [PrunerZero(only=("*.layers.1.*.q_proj",)), PrunerZero(only=("down",), metric="wanda")]
    found = loaded_gradients(Anatomy.of(model), steps, batches())
    assert list(found) == ["model.layers.1.self_attn.q_proj"]
    torch.testing.assert_close(*(g["model.layers.1.self_attn.q_proj"] for g in (found, everything)))
    assert loaded_gradients(Anatomy.of(model), [PrunerZero(metric="ria")], batches()) == {}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near(dtype: str, toolbox: Any) -> None:
    exact = loaded_gradients(Anatomy.of(toolbox.build("llama")), ALL, batches())
    found = loaded_gradients(Anatomy.of(toolbox.build("llama", dtype)), ALL, batches())
    for layer, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert float((gradient - exact[layer]).norm() / exact[layer].norm()) < 0.3


def test_models_and_data_without_a_loss_are_refused(toolbox: Any) -> None:
    model = toolbox.build("llama")
    with pytest.raises(UnusableData, match="windows of token ids"):
        loaded_gradients(Anatomy.of(model), ALL, [{"inputs_embeds": torch.randn(1, 5, 64)}])
    with pytest.raises(UnusableData, match="two tokens"):
        loaded_gradients(Anatomy.of(model), ALL, [torch.full((1, 1), 5)])
    with pytest.raises(UnsupportedModel, match="no loss"):
        loaded_gradients(Anatomy.of(model.model), ALL, batches())
