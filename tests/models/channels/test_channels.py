"""Channels: cutting is zeroing, whatever ties them; counts stay even; what has no rule is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.errors import InvalidSetting, UnsupportedModel
from modicum.models.channels import couple, cut, zero
from modicum.models.channels.coupling import components


def conv(a: int, b: int, groups: int = 1, bias: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(a, b, 3, padding=1, groups=groups, bias=bias), nn.BatchNorm2d(b), nn.ReLU()
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 8), conv(8, 6), conv(6, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(self.a(x))
        return self.head(x.mean([2, 3]))


class Concatenating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 4), conv(12, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.head(F.adaptive_avg_pool2d(self.c(torch.cat([x, self.b(x)], dim=1)), 1).flatten(1))


class Splitting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(4, 6), conv(4, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, dim=1)
        return self.head((self.b(left) * self.c(right)).mean((2, 3)))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 16, groups=8), conv(16, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.a(x))).mean((2, 3)))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 12), conv(12, 9, groups=3), conv(9, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.a(x))).mean((2, 3)))


class Flattening(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.pool = conv(3, 7, bias=True), nn.MaxPool2d(2)
        self.hidden, self.head = nn.Linear(7 * 16, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.a(x))
        return self.head(torch.relu(self.hidden(x.view(x.size(0), -1))))


class Excited(nn.Module):
    """Squeeze and excitation with a shared convolution that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = conv(3, 8), conv(8, 8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.stem(x)))
        weight = torch.sigmoid(self.excite(torch.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.head((x * weight).mean([2, 3]))


NETS = [Residual, Concatenating, Splitting, Depthwise, Grouped, Flattening, Excited]
EXAMPLE = {"x": torch.zeros(2, 3, 8, 8)}


def made(kind: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A net whose batch norms do something."""
    torch.manual_seed(seed)
    model = kind().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


@settings(deadline=None, max_examples=35)
@given(kind=st.sampled_from(NETS), seed=st.integers(0, 1000), share=st.floats(0, 0.9))
def test_cutting_is_zeroing(kind: type[nn.Module], seed: int, share: float) -> None:
    model = made(kind, seed)
    channels = couple(model, EXAMPLE)
    rng, removed = np.random.default_rng(seed), np.zeros(len(channels), dtype=bool)
    for group in channels.groups:
        removed[rng.permutation(group)[: int(share * len(group))]] = True
    zeroed = copy.deepcopy(model)
    zero(zeroed, channels, removed)
    cut(model, channels, removed)
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(model(x), zeroed(x), atol=1e-5, rtol=1e-5)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert list(module.weight.shape[:2]) == [module.out_channels, module.in_channels // module.groups]


@pytest.mark.parametrize("kind", NETS)
def test_removing_nothing_changes_nothing(kind: type[nn.Module]) -> None:
    model = made(kind)
    before = copy.deepcopy(model.state_dict())
    channels = couple(model, EXAMPLE)
    cut(model, channels, np.zeros(len(channels), dtype=bool))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_what_is_added_goes_together() -> None:
    channels = couple(made(Residual), EXAMPLE)
    assert sorted(len(group) for group in channels.groups) == [6, 8]
    wide = max(channels.groups, key=len)
    touching = {slot.tensor for slot in channels.slots if np.isin(slot.channels, wide).any()}
    assert touching >= {"stem.0.weight", "b.0.weight", "b.1.weight", "a.0.weight", "head.weight"}


def test_groups_lose_the_same_number() -> None:
    model = made(Grouped)
    channels = couple(model, EXAMPLE)
    removed = np.zeros(len(channels), dtype=bool)
    removed[[group[0] for group in channels.groups]] = True
    cut(model, channels, removed)
    grouped: nn.Conv2d = model.b[0]  # type: ignore[index, assignment]
    assert (grouped.in_channels, grouped.out_channels, grouped.groups) == (9, 6, 3)
    model(torch.randn(1, 3, 8, 8))


def test_cutting_in_steps_is_cutting_at_once() -> None:
    model = made(Residual)
    channels = couple(model, EXAMPLE)
    narrow = min(channels.groups, key=len)
    at_once, removed = copy.deepcopy(model), np.zeros(len(channels), dtype=bool)
    removed[narrow[[1, 3, 4]]] = True
    cut(at_once, channels, removed)
    for position in (1, 2, 2):  # the same three, counted in what is left
        channels = couple(model, EXAMPLE)
        removed = np.zeros(len(channels), dtype=bool)
        removed[min(channels.groups, key=len)[position]] = True
        cut(model, channels, removed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), at_once.parameters(), strict=True))


def test_inputs_outputs_and_whole_layers_stay() -> None:
    model = made(Residual)
    channels = couple(model, EXAMPLE)
    assert int(channels.fixed.sum()) == 3 + 5
    with pytest.raises(InvalidSetting, match="outputs of the model"):
        cut(model, channels, channels.fixed)
    removed = np.zeros(len(channels), dtype=bool)
    removed[min(channels.groups, key=len)] = True
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidSetting, match=r"left of a\.0\.weight"):
        cut(model, channels, removed)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


class Counted(nn.Module):
    """Sizes that stand in the code: of the pieces of a split, and of a view."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(3, 6), conv(5, 6)
        self.hidden, self.head = nn.Linear(6 * 64, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.split(self.a(x), [3, 5], dim=1)
        x = self.b(left) + self.c(right)
        return self.head(self.hidden(x.view(-1, 384)))


def test_widths_that_the_code_says_stay() -> None:
    model = made(Counted)
    channels = couple(model, EXAMPLE)
    assert [len(group) for group in channels.groups] == [10]
    removed = np.zeros(len(channels), dtype=bool)
    removed[channels.groups[0][:4]] = True
    cut(model, channels, removed)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 5)


class Uneven(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).chunk(2, dim=1)[0]


class Sorting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sort(self.a(x), dim=1).values


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Picking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = conv(3, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x)[:, 2:5]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Sorting, "No rule says where the channels of sort"),
        (Deciding, "Deciding cannot be followed"),
        (Picking, "by index"),
    ],
)
def test_what_has_no_rule_is_named(kind: type[nn.Module], says: str) -> None:
    with pytest.raises(UnsupportedModel, match=says):
        couple(kind().eval(), EXAMPLE)


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=30))
def test_components_are_those_of_the_graph(edges: list[tuple[int, int]]) -> None:
    ties = [(np.array([a]), np.array([b])) for a, b in edges]
    of = components(20, ties)
    reach = np.eye(20, dtype=bool)
    for a, b in edges:
        reach[a, b] = reach[b, a] = True
    for _ in range(5):
        reach = reach @ reach
    assert np.array_equal(of[:, None] == of[None], reach)
    assert set(of) == set(range(of.max() + 1))
