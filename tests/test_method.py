"""What every registered layer method owes the pipeline, whatever it does; and the registry itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from modicum import method as methods
from modicum.calibrate.statistics import MATRICES, Statistics
from modicum.errors import InvalidSetting, UnknownName
from modicum.kernels.selection import semi_structured
from modicum.method import LayerMethod, Method, Paper, Target, build, find, registry
from modicum.weights.base import WeightForm
from modicum.weights.dense import DenseWeight
from modicum.weights.properties import IntegerGrid, NMPattern, ZeroMask

LAYER_METHODS = sorted(name for name, kind in registry().items() if issubclass(kind, LayerMethod))
PATTERNS = st.sampled_from([None, "2:4", "1:4", "4:8", "1x8", "row"])


def some_settings(kind: type[Method]) -> st.SearchStrategy[dict[str, Any]]:
    """Settings of every kind that the schema allows; layer selection stays at its default."""
    fields = kind.model_json_schema()["properties"]
    return st.fixed_dictionaries(
        {}, optional={k: _values(k, f) for k, f in fields.items() if k not in ("only", "skip")}
    )


def _values(name: str, field: dict[str, Any]) -> st.SearchStrategy[Any]:
    if name == "pattern":
        return PATTERNS
    if "enum" in field:
        return st.sampled_from(field["enum"])
    if field.get("type") == "boolean":
        return st.booleans()
    if field.get("type") == "integer":
        least = field.get("minimum", 1)
        return st.integers(least, min(field.get("maximum", least + 40), least + 40))
    if field.get("type") == "number":
        low, high = field.get("minimum", 1e-3), field.get("maximum", field.get("exclusiveMaximum", 1))
        return st.floats(max(low, field.get("exclusiveMinimum", 0) + 1e-3), 0.95 * high)
    return st.just(field["default"])


@dataclass
class Case:
    """A method with settings, a layer, and what calibration saw of it."""

    method: LayerMethod
    target: Target
    statistics: Statistics

    def compress(self) -> WeightForm:
        return self.method.compress(self.target, self.statistics)


def build_or_skip(name: str, chosen: dict[str, Any]) -> LayerMethod:
    try:
        built = build(name, chosen)
    except InvalidSetting:
        assume(False)  # a combination that the schema cannot rule out, such as group_size 0
        raise
    assert isinstance(built, LayerMethod)
    return built


def inputs(tokens: int, width: int, generator: torch.Generator) -> Tensor:
    """Correlated inputs [tokens, width], one channel of which never fires."""
    mixed = torch.randn(tokens, width, generator=generator) @ torch.randn(width, width, generator=generator)
    mixed[:, torch.randint(width, (1,), generator=generator)] = 0
    return mixed / width**0.5


@st.composite
def cases(draw: st.DrawFn, name: str, zeros: bool = False, pruned: bool = False) -> Case:
    """`zeros`: an earlier step may have left some; `pruned`: it has left a 2:4 pattern."""
    built = build_or_skip(name, draw(some_settings(find(name))))
    step = 8 if pruned or getattr(built, "pattern", None) else 1
    rows, width = draw(st.integers(1, 20)), step * draw(st.integers(1, 48 // step))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    weight = torch.randn(rows, width, generator=generator).to(dtype)
    gone = None
    if pruned:
        gone = semi_structured(weight.float().abs(), 2, 4)
    elif zeros:
        gone = torch.rand(rows, width, generator=generator) < draw(st.floats(0, 1))
    if gone is not None:
        weight = weight.masked_fill(gone, 0)
    bias = torch.randn(rows, generator=generator).to(dtype) if draw(st.booleans()) else None
    statistics = Statistics(built.statistics())
    if built.statistics():
        statistics.update(inputs(draw(st.integers(1, 64)), width, generator))
    wanted = sorted(statistics.wanted & MATRICES)
    statistics.matrices = {kind: torch.rand(rows, width, generator=generator) for kind in wanted}
    return Case(built, Target("block.layer", draw(st.sampled_from("qkvo")), weight, bias, gone), statistics)


def meta(weight: Tensor) -> Tensor:
    return torch.empty_like(weight, device="meta")


def content(form: WeightForm) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in form.tensors().items()}


def everything(case: Case) -> list[Tensor]:
    """Copies of all tensors that a case hands to its method."""
    target = [case.target.weight, case.target.bias, case.target.zeros]
    sums = [getattr(case.statistics, kind) for kind in sorted(case.statistics.wanted)]
    return [tensor.clone() for tensor in (*target, *sums) if tensor is not None]


@pytest.mark.parametrize("name", LAYER_METHODS)
class TestEveryLayerMethod:
    @settings(deadline=None, max_examples=25)
    @given(data=st.data())
    def test_the_form_is_the_one_that_was_announced(self, name: str, data: st.DataObject) -> None:
        case = data.draw(cases(name))
        expected = case.method.expected_form(meta(case.target.weight))
        form = case.compress()
        form.check()
        assert form.nbytes == expected.nbytes
        assert {**form.spec(), "bias": False} == {**expected.spec(), "bias": False}

    @settings(deadline=None, max_examples=15)
    @given(data=st.data())
    def test_more_zeros_never_take_more_bytes(self, name: str, data: st.DataObject) -> None:
        case = data.draw(cases(name, zeros=True))
        expected = case.method.expected_form(meta(case.target.weight))
        form = case.compress()
        assert form.nbytes <= expected.nbytes
        assert (form.kind, form.out_features, form.in_features, form.dtype) == (
            (expected.kind, expected.out_features, expected.in_features, expected.dtype)
        )

    @settings(deadline=None, max_examples=25)
    @given(data=st.data())
    def test_what_it_gives_holds_for_the_plain_values(self, name: str, data: st.DataObject) -> None:
        case = data.draw(cases(name))
        form = case.compress()
        dense = form.to_dense()
        assert bool(torch.isfinite(dense).all())
        for promise in case.method.gives():
            assert promise.violation(dense, form) is None
            if case.target.weight.dtype == torch.float32 or not isinstance(promise, IntegerGrid):
                assert promise.violation(dense, DenseWeight.from_dense(dense)) is None

    @settings(deadline=None, max_examples=25)
    @given(data=st.data())
    def test_what_it_keeps_survives(self, name: str, data: st.DataObject) -> None:
        case = data.draw(cases(name, zeros=True))
        if ZeroMask in case.method.keeps:
            assert ZeroMask().violation(case.target.weight, case.compress()) is None
        if NMPattern in case.method.keeps:
            case = data.draw(cases(name, pruned=True))
            assert NMPattern(2, 4).violation(case.target.weight, case.compress()) is None

    @settings(deadline=None, max_examples=10)
    @given(data=st.data())
    def test_it_is_a_pure_function(self, name: str, data: st.DataObject) -> None:
        case = data.draw(cases(name, zeros=True))
        before = everything(case)
        first, second = content(case.compress()), content(case.compress())
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert all(torch.equal(old, new) for old, new in zip(before, everything(case), strict=True))

    @settings(deadline=None, max_examples=10)
    @given(data=st.data())
    def test_the_bias_goes_along(self, name: str, data: st.DataObject) -> None:
        case = data.draw(cases(name))
        form, bias = case.compress(), case.target.bias
        assert (form.bias is None) == (bias is None)
        assert bias is None or torch.equal(form.bias, bias)
        x = torch.randn(3, case.target.weight.shape[1]).to(form.dtype)
        torch.testing.assert_close(
            form(x), torch.nn.functional.linear(x, form.to_dense(), bias), atol=0.1, rtol=0.02
        )

    def test_its_settings_and_summary_are_documented(self, name: str) -> None:
        kind = find(name)
        assert len(kind.summary()) > 20
        assert all(field.description for field in kind.model_fields.values())
        assert kind.paper.venue == "baseline" or re.fullmatch(r"\d{4}\.\d{4,5}", kind.paper.arxiv)

    def test_a_setting_out_of_range_is_refused(self, name: str) -> None:
        for key, field in find(name).model_json_schema()["properties"].items():
            for bound, beyond in (("minimum", -1), ("maximum", 1), ("exclusiveMaximum", 0)):
                if bound in field:
                    with pytest.raises(InvalidSetting, match=f"{name}: {key}: "):
                        build(name, {key: field[bound] + beyond})

    def test_the_workspace_grows_with_the_matrix(self, name: str) -> None:
        method = build(name, {})
        assert isinstance(method, LayerMethod)
        small, large = (torch.empty(size, size, device="meta") for size in (64, 128))
        assert 0 < method.workspace(small) < method.workspace(large)


class TestRegistry:
    def test_names_are_family_and_file(self) -> None:
        found = registry()
        assert {"prune.magnitude", "prune.wanda", "prune.sparsegpt"} <= set(found)
        assert {"quantize.rtn", "quantize.gptq", "quantize.awq"} <= set(found)
        assert list(found) == sorted(found)
        for name, kind in found.items():
            assert name == kind.name == ".".join(kind.__module__.split(".")[-2:])
            assert kind.__module__ == f"modicum.{name}"

    def test_an_unknown_method_names_the_nearest(self) -> None:
        with pytest.raises(UnknownName, match=r"prune.wandra") as caught:
            build("prune.wandra", {})
        assert "'prune.wanda'" in caught.value.hint

    def test_an_unknown_setting_names_the_nearest(self) -> None:
        with pytest.raises(UnknownName, match=r"sparsty.*\n.*'sparsity'"):
            build("prune.wanda", {"sparsty": 0.5})

    def test_an_abstract_base_is_no_method(self) -> None:
        assert "quantize.grid" not in registry()

    def test_a_method_is_registered_by_being_defined(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(methods, "_REGISTRY", dict(methods._REGISTRY))

        class Toy(LayerMethod):
            """Keeps every weight as it is, for want of ambition."""

            paper: ClassVar[Paper] = Paper("Toy", "baseline")

            def expected_form(self, weight: Tensor) -> WeightForm:
                return DenseWeight.from_dense(weight)

            def compress(self, target: Target, statistics: Statistics) -> WeightForm:
                return DenseWeight.from_dense(target.weight)

        assert registry()[Toy.name] is Toy
        assert Toy.summary() == "Keeps every weight as it is, for want of ambition."
        assert Toy().statistics() == frozenset()

    def test_settings_are_frozen(self) -> None:
        method = build("quantize.rtn", {"bits": 3})
        with pytest.raises(ValueError, match="frozen"):
            method.bits = 4  # type: ignore[attr-defined]

    def test_a_long_value_is_shown_short(self) -> None:
        with pytest.raises(InvalidSetting) as caught:
            build("quantize.rtn", {"bits": "x" * 10_000})
        assert len(str(caught.value)) < 400


class TestTouches:
    @pytest.mark.parametrize(
        ("only", "skip", "touched"),
        [
            ((), (), True),
            (("q",), (), True),
            (("k",), (), False),
            (("*.q_proj",), (), True),
            (("q_proj",), (), True),
            (("model.layers.0.*",), (), False),
            (("model.layers.1.*",), (), True),
            (("q", "k"), ("*layers.1*",), False),
            ((), ("q",), False),
            ((), ("proj",), True),
        ],
    )
    def test_patterns(self, only: tuple[str, ...], skip: tuple[str, ...], touched: bool) -> None:
        method = build("quantize.rtn", {"only": only, "skip": skip})
        assert isinstance(method, LayerMethod)
        assert method.touches("model.layers.1.self_attn.q_proj", "q") is touched
