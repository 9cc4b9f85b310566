"""Training that moves no zero: all weights at once, or a low-rank update that is merged under the mask."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum.errors import UnsupportedModel
from modicum.models import Anatomy, Layer
from modicum.trainer import Group, Trainer, held_zeros, merged_lora
from modicum.trainer import Settings as TrainerSettings
from modicum.trainer.merged_lora import LowRankUpdate


@torch.no_grad()
def halved(layers: list[Layer]) -> dict[str, Tensor]:
    """Set half of all weights of some layers to zero; their masks, True where zero."""
    generator = torch.Generator().manual_seed(0)
    masks = {layer.name: torch.rand(layer.weight.shape, generator=generator) < 0.5 for layer in layers}
    for layer in layers:
        layer.set_weight(layer.weight.masked_fill(masks[layer.name], 0))
    return masks


def trained(model: Any, weights: list[Any], toolbox: Any, steps: int = 5) -> Trainer:
    """A few steps of next-token prediction with a weight decay and a moving average."""
    tokens = toolbox.inputs_of(model)["input_ids"]

    def loss(network: Any, batch: dict[str, Tensor], at: Any) -> Tensor:
        return network(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss

    how = TrainerSettings(steps=steps, average=0.5)
    trainer = Trainer(model, [Group(weights, 1e-2, 0.1)], loss, lambda index: {"input_ids": tokens}, how)
    trainer.run()
    assert trainer.average is not None
    trainer.average.write(trainer.average.values)
    return trainer


class TestAllWeights:
    @pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
    def test_zeros_stay_and_the_rest_moves(self, name: str, toolbox: Any) -> None:
        model = toolbox.build(name)
        layers = list(Anatomy.of(model).layers())
        masks, before = halved(layers), {layer.name: layer.weight.detach().clone() for layer in layers}
        with held_zeros(layers):
            trained(model, list(model.parameters()), toolbox)
        for layer in layers:
            assert torch.equal(layer.weight == 0, masks[layer.name])
            moved = (layer.weight != before[layer.name])[~masks[layer.name]]
            assert layer.expert is not None or bool(moved.all())
        assert all(parameter._backward_hooks in (None, {}) for parameter in model.parameters())

    def test_what_is_not_held_comes_back(self, toolbox: Any) -> None:
        model = toolbox.build("mixtral")
        experts = [layer for layer in Anatomy.of(model).layers() if layer.expert is not None]
        masks, held = halved(experts), [layer for layer in experts if layer.expert == 0]
        with held_zeros(held):
            trained(model, list(model.parameters()), toolbox)
        assert all(torch.equal(layer.weight == 0, masks[layer.name]) for layer in held)
        others = [layer for layer in experts if layer.expert != 0]
        assert any(bool((layer.weight != 0).all()) for layer in others)

    def test_gradients_of_zeros_do_not_shorten_the_rest(self, toolbox: Any) -> None:
        model = toolbox.build("llama")
        layer = Anatomy.of(model).layer("model.layers.0.mlp.up_proj")
        halved([layer])
        with held_zeros([layer]):
            model(**toolbox.inputs_of(model)).logits.square().mean().backward()
        gradient = layer.tensor.grad
        assert gradient is not None
        assert torch.equal(gradient == 0, layer.weight == 0)


class TestLowRank:
    @pytest.mark.parametrize("name", ["llama", "gpt2"])
    def test_what_is_merged_is_what_was_trained(self, name: str, toolbox: Any) -> None:
        model = toolbox.build(name)
        anatomy = Anatomy.of(model)
        layers = list(anatomy.layers())
        masks, others = halved(layers[1:]), {n: p.detach().clone() for n, p in model.named_parameters()}
        touched = {layer.parameter_names[0] for layer in layers}
        start = toolbox.logits_of(model)
        with merged_lora(anatomy, 2, 4, 0, masks) as weights:
            torch.testing.assert_close(toolbox.logits_of(model), start)
            trained(model, weights, toolbox)
            learned = toolbox.logits_of(model)
        assert torch.equal(toolbox.logits_of(model), learned)
        assert not torch.equal(learned, start)
        for layer in layers[1:]:
            assert torch.equal(layer.weight == 0, masks[layer.name])
        for key, parameter in model.named_parameters():
            assert parameter.requires_grad
            assert torch.equal(parameter, others[key]) is (key not in touched)

    def test_an_interrupted_training_leaves_the_weights(self, toolbox: Any) -> None:
        model = toolbox.build("llama")
        before = {name: value.clone() for name, value in model.state_dict().items()}

        def stopped() -> None:
            with merged_lora(Anatomy.of(model), 2, 4, 0) as weights:
                trained(model, weights, toolbox, steps=2)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            stopped()
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_a_model_without_linear_layers(self, toolbox: Any) -> None:
        anatomy = Anatomy.of(toolbox.build("resnet"))
        with pytest.raises(UnsupportedModel, match="no linear layer"), merged_lora(anatomy, 2, 4, 0):
            pass

    @settings(deadline=None, max_examples=25)
    @given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.booleans(), st.integers(0, 99))
    def test_the_formula(self, rows: int, columns: int, rank: int, masked: bool, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(rows, columns, generator=generator)
        mask = torch.rand(rows, columns, generator=generator) < 0.5
        weight[mask] = 0
        update = LowRankUpdate(weight, rank, 2.0, masked, generator)
        assert torch.equal(update(weight), weight)
        with torch.no_grad():
            update.b.normal_(generator=generator)
        expected = weight + 2.0 * (update.b @ update.a)
        expected = expected * (~mask if masked else 1)
        torch.testing.assert_close(update(weight), expected)
        assert not masked or bool((update(weight)[mask] == 0).all())
