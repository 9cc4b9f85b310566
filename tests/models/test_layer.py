"""A layer can be replaced, written and put back, wherever its matrix lives."""

from __future__ import annotations

import pytest
import torch

from modicum.errors import UnsupportedModel
from modicum.models import Anatomy
from modicum.weights.dense import DenseWeight


def replace_all(anatomy: Anatomy, factor: float) -> None:
    for layer in anatomy.layers():
        bias = None if layer.bias is None else layer.bias.detach().clone()
        layer.replace(DenseWeight.from_dense(layer.weight.detach().clone() * factor, bias))


def test_replacing_changes_the_output_and_restoring_is_exact(tiny) -> None:
    before, state = tiny.logits(), {k: v.clone() for k, v in tiny.model.state_dict().items()}
    anatomy = Anatomy.of(tiny.model)
    replace_all(anatomy, 0.5)
    assert not torch.allclose(tiny.logits(), before, atol=1e-4)
    assert all(layer.form is not None for layer in anatomy.layers())
    for layer in anatomy.layers():
        layer.restore()
    after = tiny.model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[key], state[key]) for key in state)
    assert torch.equal(tiny.logits(), before)
    assert all(layer.form is None for layer in anatomy.layers())


def test_an_identical_form_changes_nothing(tiny) -> None:
    before = tiny.logits()
    replace_all(Anatomy.of(tiny.model), 1.0)
    torch.testing.assert_close(tiny.logits(), before, atol=1e-5, rtol=1e-5)


def test_each_layer_alone_reaches_the_output(tiny) -> None:
    before = tiny.logits()
    for layer in Anatomy.of(tiny.model).layers():
        layer.replace(DenseWeight.from_dense(layer.weight.detach() * 0.0, layer.bias))
        # An expert that no token of the batch visits is the only matrix that may be idle.
        assert layer.expert is not None or not torch.equal(tiny.logits(), before), layer.name
        layer.restore()


def test_replacing_twice_keeps_the_first_original(tiny) -> None:
    before = tiny.logits()
    anatomy = Anatomy.of(tiny.model)
    replace_all(anatomy, 0.5)
    replace_all(anatomy, 0.5)
    for layer in anatomy.layers():
        layer.restore()
    assert torch.equal(tiny.logits(), before)


def test_written_values_are_read_back(tiny) -> None:
    for layer in Anatomy.of(tiny.model).layers():
        values = torch.randn(layer.out_features, layer.in_features, dtype=torch.float64)
        bias = None if layer.bias is None else torch.randn(layer.out_features)
        layer.set_weight(values, bias)
        assert torch.equal(layer.weight, values.float())
        assert bias is None or torch.equal(layer.bias, bias)


def test_writing_after_replacing_takes_the_form_out(tiny) -> None:
    before = tiny.logits()
    layer = next(iter(Anatomy.of(tiny.model).layers()))
    dense = layer.weight.detach().clone()
    layer.replace(DenseWeight.from_dense(dense * 2, layer.bias))
    layer.set_weight(dense * 3)
    assert layer.form is None
    assert torch.equal(layer.weight, dense * 3)
    layer.restore()
    assert torch.equal(tiny.logits(), before)


def test_the_model_runs_on_the_form_itself(make_tiny) -> None:
    tiny = make_tiny("gpt2")
    layer = Anatomy.of(tiny.model).layer("transformer.h.0.attn.c_attn")
    form = DenseWeight.from_dense(layer.weight.detach(), layer.bias)
    layer.replace(form)
    assert tiny.model.transformer.h[0].attn.c_attn is layer.module is form


def test_forms_of_a_loaded_model_are_layers(make_tiny) -> None:
    tiny = make_tiny("llama")
    replace_all(Anatomy.of(tiny.model), 0.5)
    loaded = Anatomy.of(tiny.model)
    assert len(list(loaded.layers())) == 21
    assert all(isinstance(layer.form, DenseWeight) for layer in loaded.layers())
    with pytest.raises(UnsupportedModel, match="DenseWeight"):
        next(loaded.layers()).set_weight(torch.zeros(32, 32))


def test_channels_last_convolutions_are_written(make_tiny) -> None:
    tiny = make_tiny("resnet")
    tiny.model.to(memory_format=torch.channels_last)
    layer = next(Anatomy.of(tiny.model).layers())
    values = torch.randn(layer.out_features, layer.in_features)
    layer.set_weight(values)
    convolution = tiny.model.get_parameter(layer.parameter_names[0])
    assert torch.equal(convolution, values.reshape(convolution.shape))


@pytest.mark.parametrize("name", ["llama", "gpt2", "resnet", "mixtral"])
def test_another_shape_is_refused(make_tiny, name: str) -> None:
    layer = list(Anatomy.of(make_tiny(name).model).layers())[-1]
    wrong = torch.zeros(layer.out_features + 1, layer.in_features)
    with pytest.raises(UnsupportedModel, match=layer.name):
        layer.set_weight(wrong)
    with pytest.raises(UnsupportedModel, match=layer.name):
        layer.replace(DenseWeight.from_dense(wrong))


def test_a_bias_has_nowhere_to_go(make_tiny) -> None:
    layer = next(Anatomy.of(make_tiny("llama").model).layers())
    with pytest.raises(UnsupportedModel, match="no bias"):
        layer.set_weight(layer.weight, torch.zeros(layer.out_features))
