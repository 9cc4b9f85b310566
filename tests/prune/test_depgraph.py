"""DepGraph: exact counts, steps that add up, weak channels first, and a smaller model on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import modicum
from modicum.errors import InvalidSetting, UnsupportedModel
from modicum.method import Context
from modicum.models import Anatomy, Family
from modicum.models.channels import couple
from modicum.models.cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification, save
from modicum.prune.depgraph import DepGraph, importance

SIZES = CifarResNetConfig(width=8, pads=((2, 6), (0, 16)), inner=(8, 12, 8, 12, 24, 30))


def made(seed: int = 0) -> CifarResNetForImageClassification:
    torch.manual_seed(seed)
    return CifarResNetForImageClassification(SIZES).eval()


def context() -> Context:
    return Context(torch.Generator().manual_seed(0))


def widths(model: CifarResNetForImageClassification) -> list[int]:
    return sorted(len(group) for group in couple(model, model.dummy_inputs).groups)


def pruned(method: DepGraph, seed: int = 0) -> CifarResNetForImageClassification:
    model = made(seed)
    method.transform(Anatomy.of(model), context())
    return model


@settings(deadline=None, max_examples=8)
@given(ratio=st.floats(0, 0.95), steps=st.integers(1, 4))
def test_every_group_keeps_its_share_in_any_number_of_steps(ratio: float, steps: int) -> None:
    model = pruned(DepGraph(ratio=ratio, steps=steps))
    assert widths(model) == sorted(max(int(w * (1 - ratio) + 1e-9), 1) for w in (*SIZES.inner, 32))
    assert model(torch.randn(2, 3, 32, 32)).logits.shape == (2, 10)


def test_ratio_zero_changes_nothing() -> None:
    model, before = pruned(DepGraph(ratio=0)), made()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_globally_the_total_is_exact_and_groups_differ() -> None:
    model = pruned(DepGraph(ratio=0.5, scope="global"))
    total = sum(SIZES.inner) + 32
    assert sum(widths(model)) == int(total / 2)
    assert widths(model) != widths(pruned(DepGraph(ratio=0.5)))


def test_what_is_left_is_rounded_down_and_capped() -> None:
    assert all(width % 4 == 0 for width in widths(pruned(DepGraph(ratio=0.4, round_to=4))))
    assert widths(pruned(DepGraph(ratio=0.9, most=0.25))) == sorted(w - w // 4 for w in (*SIZES.inner, 32))
    with pytest.raises(InvalidSetting, match="cannot be rounded to 16"):
        pruned(DepGraph(round_to=16))


def test_planted_weak_channels_go() -> None:
    model = made()
    block = model.layer1[0]  # type: ignore[index]
    with torch.no_grad():
        for tensor in (block.conv1.weight, block.bn1.weight):  # type: ignore[union-attr]
            tensor[[1, 4, 6]] *= 1e-3
        block.conv2.weight[:, [1, 4, 6]] *= 1e-3  # type: ignore[union-attr, index]
    expected = block.bn1.weight[[0, 2, 3, 5, 7]].clone()  # type: ignore[union-attr, index]
    expected += torch.arange(5) / 100
    with torch.no_grad():
        block.bn1.weight[[0, 2, 3, 5, 7]] = expected  # type: ignore[union-attr, index]
    DepGraph(ratio=0.375).transform(Anatomy.of(model), context())
    assert torch.equal(model.layer1[0].bn1.weight, expected)  # type: ignore[index, union-attr, arg-type]


def test_the_score_is_the_mean_norm_over_the_layers_of_a_group() -> None:
    model = made(3)
    channels = couple(model, model.dummy_inputs)
    scores = importance(model, channels, 2)
    block = model.layer1[0]  # type: ignore[index]
    slot = next(s for s in channels.slots if s.tensor == "layer1.0.conv1.weight" and s.dim == 0)
    plain = (
        block.conv1.weight.square().sum((1, 2, 3))  # type: ignore[union-attr, operator]
        + block.bn1.weight.square()  # type: ignore[union-attr, operator]
        + block.conv2.weight.square().sum((0, 2, 3))  # type: ignore[union-attr, operator]
    ) / 3
    relative = (plain / plain.mean()).detach().double().numpy()
    np.testing.assert_allclose(scores[slot.channels], relative, rtol=1e-5)


def test_the_smaller_model_is_written_and_opened(tmp_path: Path) -> None:
    save(made(), tmp_path / "whole")
    modicum.compress(tmp_path / "whole", [{"prune.depgraph": {"ratio": 0.5}}], out=tmp_path / "half")
    model = modicum.load(tmp_path / "half")
    assert widths(model) == sorted(w // 2 for w in (*SIZES.inner, 32))
    expected = pruned(DepGraph())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x).logits, expected(x).logits)


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[0](x)


def test_a_model_without_an_example_is_refused() -> None:
    family = Family(name="bare", model_types=("bare",), blocks=("layers",), roles={"": "fc1"})
    anatomy = Anatomy(Bare(), family, (), ())
    with pytest.raises(UnsupportedModel, match="brings no example"):
        DepGraph().transform(anatomy, context())
