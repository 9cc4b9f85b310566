"""FLAP, HyWIA and the evolutionary search: formulas, limits, and what is left of a model."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import modicum
from modicum.allocate.width import parameters
from modicum.calibrate.statistics import Statistics
from modicum.calibrate.taylor import expand_loss
from modicum.data.samples import Table
from modicum.errors import InvalidSetting, UnsupportedModel, UnusableData
from modicum.method import Context, build
from modicum.models import Anatomy
from modicum.models.surgery import cut, cuttable, masked
from modicum.prune.flap import FLAP, standard_scores
from modicum.prune.hywia import HyWIA, attention, coarse, fine, usual_whole
from modicum.prune.search_llm import LOG, SearchLLM, group_importance, reform_readers

SMALL: dict[str, Any] = {"samples": 8, "length": 12, "batch": 4}
SEARCH: dict[str, Any] = {
    **SMALL, "windows": 4, "generations": 2, "population": 8, "top": 4, "mutations": 4, "crossovers": 2,
    "fewest_heads": 0.5,
}  # fmt: skip
METHODS: dict[str, Any] = {
    "flap": FLAP(**SMALL),
    "hywia": HyWIA(**SMALL, whole=(0, 0)),
    "hywia-global": HyWIA(**SMALL, whole=(0, 0), scope="global"),
    "search": SearchLLM(**SEARCH),
}


def data() -> Table:
    return Table({"input_ids": torch.randint(3, 2048, (16, 12), generator=torch.Generator().manual_seed(3))})


def context(source: Any = None, work: Path | None = None) -> Context:
    return Context(torch.Generator().manual_seed(5), data=source or data(), work_directory=work)


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_so_much_goes(method: Any, family: str, toolbox: Any) -> None:
    model = toolbox.build(family)
    before, held = size(model), context()
    units = cuttable(Anatomy.of(model))
    budget = 0.3 * parameters(units)
    narrower = method.model_copy(update={"ratio": 0.3}).transform(Anatomy.of(model), held)
    assert before - size(model) == pytest.approx(budget, rel=0.04)
    notes = held.notes[method.name]
    assert notes["parameters"] == [size(model), before]
    left = {
        unit.name: [unit.count, whole.count] for unit, whole in zip(cuttable(narrower), units, strict=True)
    }
    assert {**left, **notes["kept"]} == left
    assert toolbox.logits_of(model).isfinite().all()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_nothing_goes(method: Any, toolbox: Any) -> None:
    model = toolbox.build("llama")
    before = toolbox.logits_of(model)
    method.model_copy(update={"ratio": 0.0}).transform(Anatomy.of(model), context())
    assert torch.equal(toolbox.logits_of(model), before)


@pytest.mark.parametrize(("name", "structures"), [("prune.flap", "neurons"), ("prune.hywia", "heads")])
def test_one_kind_alone(name: str, structures: str, toolbox: Any) -> None:
    model = toolbox.build("llama", num_attention_heads=8, num_key_value_heads=8)
    built: Any = build(name, {**SMALL, "structures": structures})
    built.transform(Anatomy.of(model), context())
    whole = {"heads": 8, "neurons": 96}
    for unit in cuttable(Anatomy.of(model)):
        assert unit.kind == structures or unit.count == whole[unit.kind]


class TestFlap:
    def statistics(self, inputs: Tensor) -> Statistics:
        found = Statistics(frozenset({"column_var"}))
        found.update(inputs)
        return found

    def test_the_score(self, toolbox: Any) -> None:
        heads, neurons = cuttable(Anatomy.of(toolbox.build("llama")))[:2]
        for unit, power in ((heads, 2), (neurons, 1)):
            weight = unit.reader.layer.weight.double()
            inputs = torch.randn(99, weight.shape[1]) * torch.rand(weight.shape[1])
            metric = (inputs.double().var(0, correction=0) * (weight**2).sum(0)) ** power
            z = (metric - metric.mean()) / metric.std()
            expected = z.view(unit.count, -1).mean(1)
            torch.testing.assert_close(
                standard_scores(unit, self.statistics(inputs)), expected, rtol=1e-4, atol=1e-5
            )

    def test_equal_scores(self, toolbox: Any) -> None:
        unit = cuttable(Anatomy.of(toolbox.build("llama")))[1]
        with torch.no_grad():
            unit.reader.layer.weight.fill_(1.0)
        assert not standard_scores(unit, self.statistics(torch.ones(4, 96))).any()

    def test_the_mean_of_what_goes_stays(self, toolbox: Any) -> None:
        """Outputs of the reading matrices have the mean that they had, if nothing before them changed."""
        model = toolbox.build("llama", num_hidden_layers=1)
        seen: list[Tensor] = []

        def outputs(bias: bool) -> Tensor:
            copied = copy.deepcopy(model)
            method = FLAP(samples=16, length=12, structures="neurons", ratio=0.5, bias=bias)
            method.transform(Anatomy.of(copied), context())
            seen.clear()
            copied.model.layers[0].mlp.register_forward_hook(lambda m, a, out: seen.append(out))
            copied(data().versions["input_ids"][0])
            return seen[0].flatten(0, 1).mean(0)

        model.model.layers[0].mlp.register_forward_hook(lambda m, a, out: seen.append(out))
        with torch.no_grad():
            model(data().versions["input_ids"][0])
            expected = seen[0].flatten(0, 1).mean(0)
            with_bias, without = outputs(True), outputs(False)
        torch.testing.assert_close(with_bias, expected, rtol=0, atol=1e-5)
        assert (without - expected).norm() > 0.01


class TestHywia:
    def known(self, model: Any) -> Any:
        ids = data().versions["input_ids"][0]
        layers = list(Anatomy.of(model).layers())

        def loss(i: int) -> Tensor:
            return model(ids[i : i + 1], labels=ids[i : i + 1]).loss  # type: ignore[no-any-return]

        return layers, expand_loss(layers, [partial(loss, i) for i in range(4)])

    def test_gradient_and_fisher(self, toolbox: Any) -> None:
        model = toolbox.build("gpt2")
        ids = data().versions["input_ids"][0]
        layers, known = self.known(model)
        per_sample = []
        for i in range(4):
            model.zero_grad()
            model(ids[i : i + 1], labels=ids[i : i + 1]).loss.backward()
            per_sample.append(layers[0].module.weight.grad.t().clone())
        stacked = torch.stack(per_sample)
        torch.testing.assert_close(known[layers[0]].gradient, stacked.mean(0), rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(known[layers[0]].fisher, stacked.square().mean(0), rtol=1e-4, atol=1e-9)

    def test_the_scores(self, toolbox: Any) -> None:
        model = toolbox.build("llama")
        _, known = self.known(model)
        by_name = {layer.name: taylor for layer, taylor in known.items()}
        heads = cuttable(Anatomy.of(model))[0]
        known = {part.layer: by_name[part.layer.name] for part in heads.parts}
        element, vector = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for head in range(2):
            for part, width in zip(heads.parts, (32, 16, 16, 32), strict=True):
                w, g, f = part.layer.weight.detach(), known[part.layer].gradient, known[part.layer].fisher
                lines = slice(head * width, (head + 1) * width)
                own = (slice(None), lines) if part.axis else (lines, slice(None))
                element[head] += (w * g - 0.5 * w**2 * f)[own].abs().sum()
                vector[head] += (w * g)[own].sum().abs()
        torch.testing.assert_close(fine(heads, known), element, rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(coarse(heads, known), vector, rtol=1e-4, atol=1e-7)
        assert torch.equal(HyWIA(alpha=(1, 0), scope="global").score(heads, known), fine(heads, known))
        assert torch.equal(HyWIA(alpha=(0, 1), scope="global").score(heads, known), coarse(heads, known))
        for alpha, plain in (((1, 0), element), ((0, 1), vector)):
            ranked = HyWIA(alpha=alpha).score(heads, known).argsort()
            assert torch.equal(ranked, plain.argsort())

    def test_coarse_is_at_most_fine_of_first_order(self, toolbox: Any) -> None:
        model = toolbox.build("llama")
        _, known = self.known(model)
        by_name = {layer.name: taylor for layer, taylor in known.items()}
        for unit in cuttable(Anatomy.of(model)):
            first = {part.layer: by_name[part.layer.name] for part in unit.parts}
            for taylor in first.values():
                taylor.fisher.zero_()
            assert (coarse(unit, first) <= fine(unit, first) * (1 + 1e-6)).all()

    def test_groups_of_one_weight_have_one_score(self) -> None:
        """Then fine and coarse are the same, and so is any mix of them."""
        score = torch.rand(7, dtype=torch.float64)
        relative = torch.stack((score, score)) / score.sum()
        alpha = attention(relative)
        torch.testing.assert_close(alpha, torch.full_like(alpha, 0.5))
        torch.testing.assert_close((alpha * relative).sum(0), relative[0])

    @settings(deadline=None, max_examples=40)
    @given(st.integers(1, 60), st.integers(0, 999), st.floats(0.1, 8))
    def test_the_mix(self, groups: int, seed: int, spread: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        scores = (torch.randn(2, groups, generator=generator, dtype=torch.float64) * spread).exp()
        alpha = attention(scores / scores.sum(1, keepdim=True))
        torch.testing.assert_close(alpha.sum(0), torch.ones(groups, dtype=torch.float64))
        assert ((alpha > 0) & (alpha < 1)).all()

    def test_it_attends_to_the_score_that_stands_out(self) -> None:
        flat = torch.full((8,), 1 / 8)
        peak = torch.tensor([0.65, *[0.05] * 7])
        alpha = attention(torch.stack((peak, flat)).double())
        assert alpha[0, 0] > 0.5 > alpha[0, 1]

    @pytest.mark.parametrize(
        ("depth", "whole"), [(32, (4, 2)), (6, (1, 1)), (3, (1, 1)), (2, (0, 0)), (80, (10, 5))]
    )
    def test_the_first_and_last_blocks(self, depth: int, whole: tuple[int, int]) -> None:
        assert usual_whole(depth) == whole

    def test_they_stay_whole(self, toolbox: Any) -> None:
        model = toolbox.build("llama", num_hidden_layers=4)
        HyWIA(**SMALL, whole=(1, 2), ratio=0.1).transform(Anatomy.of(model), context())
        widths = [block.mlp.down_proj.in_features for block in model.model.layers]
        assert widths[0] == widths[2] == widths[3] == 96 > widths[1]

    @pytest.mark.parametrize("alpha", [(0.5, 0.6), (-1, 2)])
    def test_no_mean(self, alpha: Any) -> None:
        with pytest.raises(InvalidSetting, match="no weights of a mean"):
            build("prune.hywia", {"alpha": alpha})

    def test_no_block_is_left(self, toolbox: Any) -> None:
        with pytest.raises(InvalidSetting, match="leaves none of 3"):
            HyWIA(**SMALL, whole=(2, 1)).transform(Anatomy.of(toolbox.build("llama")), context())

    def test_half_precision(self, toolbox: Any) -> None:
        with pytest.raises(UnsupportedModel, match="vanish in float16"):
            HyWIA(**SMALL).transform(Anatomy.of(toolbox.build("llama", "float16")), context())


class TestSearch:
    def test_importance_is_the_cost_of_leaving_a_channel_out(self, toolbox: Any) -> None:
        """w^2 / [H^-1]_jj of a channel is twice the error that is left when all others make up for it."""
        unit = cuttable(Anatomy.of(toolbox.build("llama")))[1]
        inputs = torch.randn(400, 96) @ torch.randn(96, 96)
        statistics = Statistics(frozenset({"gram"}))
        statistics.update(inputs)
        h = 2 * (inputs.t() @ inputs).double()
        h += 0.01 * h.diagonal().mean() * torch.eye(96, dtype=torch.float64)
        expected = unit.reader.layer.weight.double().square().sum(0) / torch.linalg.inv(h).diagonal()
        torch.testing.assert_close(
            group_importance(unit, statistics).double(), expected, rtol=1e-3, atol=1e-3
        )

    def test_reformation_is_closer_to_the_dense_model(self, toolbox: Any) -> None:
        dense = toolbox.build("llama")
        ids = data().versions["input_ids"][0]
        with torch.no_grad():
            expected = dense(ids).logits
        found = []
        for reformed in (False, True):
            model = copy.deepcopy(dense)
            units = cuttable(Anatomy.of(model))
            kept = {
                unit: torch.arange(unit.count // 2, unit.count) for unit in units if unit.kind == "neurons"
            }
            if reformed:
                reform_readers(Anatomy.of(model), {}, [{"input_ids": ids}], 0.1)
                assert torch.equal(model(ids).logits, expected)
                reform_readers(Anatomy.of(model), kept, [{"input_ids": ids}], 0.1)
            with torch.no_grad():
                masks = {unit: torch.arange(unit.count) >= unit.count // 2 for unit in kept}
                with masked(masks):
                    before = model(ids).logits
                cut(Anatomy.of(model), kept)
                torch.testing.assert_close(model(ids).logits, before, rtol=0, atol=1e-4)
                found.append(float((model(ids).logits - expected).square().mean()))
        assert found[1] < found[0]

    def test_the_same_seed_leaves_the_same(self, toolbox: Any) -> None:
        first, second = toolbox.build("llama"), toolbox.build("llama")
        for model in (first, second):
            SearchLLM(**SEARCH).transform(Anatomy.of(model), context())
        left, right = first.state_dict(), second.state_dict()
        assert all(torch.equal(left[name], right[name]) for name in left)

    def test_it_goes_on_where_it_was(self, toolbox: Any, tmp_path: Path) -> None:
        told: list[str] = []
        for _ in range(2):
            model, held = toolbox.build("llama"), context(work=tmp_path)
            held.progress = told.append
            SearchLLM(**SEARCH).transform(Anatomy.of(model), held)
        lines = (tmp_path / LOG).read_text().splitlines()
        names = [json.loads(line)["key"] for line in lines[1:]]
        assert len(set(names)) == len(names) >= 12
        assert told[: len(told) // 2] == told[len(told) // 2 :]
        losses = [float(line.rsplit(" ", 1)[1]) for line in told[: len(told) // 2]]
        assert losses == sorted(losses, reverse=True)

    def test_a_killed_search_ends_where_it_would_have_ended(self, toolbox: Any, tmp_path: Path) -> None:
        def searched(work: Path, told: Any = lambda text: None) -> nn.Module:
            model, held = toolbox.build("llama"), context(work=work)
            held.progress = told
            SearchLLM(**SEARCH).transform(Anatomy.of(model), held)
            return model

        def stop(text: str) -> None:
            if "generation 1/" in text:
                raise KeyboardInterrupt

        whole = searched(tmp_path / "whole").state_dict()
        with pytest.raises(KeyboardInterrupt):
            searched(tmp_path / "killed", stop)
        log = tmp_path / "killed" / LOG
        with log.open("a") as stream:
            stream.write('{"key": "0f3')  # what a kill leaves
        resumed = searched(tmp_path / "killed").state_dict()
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)
        assert log.read_bytes() == (tmp_path / "whole" / LOG).read_bytes()


class TestCheckpoints:
    def test_uneven_models_open_with_modicum(self, tiny_llama: Path, tokens: Any, tmp_path: Path) -> None:
        import transformers as tf

        steps = [FLAP(**SMALL, ratio=0.3), build("distill.finetune", {"steps": 1, "batch": 2})]
        manifest = modicum.compress(tiny_llama, steps, out=tmp_path / "small", data=tokens)
        assert isinstance(manifest, modicum.formats.manifest.Manifest)
        assert manifest.shapes["model.layers.0.mlp.down_proj.bias"] == [64]
        assert not manifest.forms()
        model = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
        left, whole = manifest.notes["prune.flap"]["parameters"]
        assert size(model) == left < whole
        ids = tokens[:2, :9]
        options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
        cached = model.generate(ids, **options)
        assert torch.equal(cached, model.generate(ids, use_cache=False, **options))

    @pytest.mark.parametrize("name", ["llama", "gpt2"])
    def test_pruned_and_quantized_in_one_recipe(
        self, name: str, tiny_models: Any, tokens: Any, tmp_path: Path
    ) -> None:
        steps = [
            HyWIA(**SMALL, ratio=0.3, scope="global", whole=(0, 0)),
            build("prune.magnitude", {}),
            build("quantize.rtn", {"bits": 8, "group_size": -1}),
        ]
        manifest: Any = modicum.compress(tiny_models(name), steps, out=tmp_path / "small", data=tokens)
        assert manifest.shapes
        assert len(manifest.forms()) == len(list(Anatomy.of(modicum.load(tmp_path / "small")).layers()))
        dense: Any = modicum.compress(tiny_models(name), steps[0], out=tmp_path / "dense", data=tokens)
        assert dense.shapes == manifest.shapes
        again = modicum.load(tmp_path / "dense")
        modicum.compress(again, steps[1:], data=tokens)
        ids = tokens[:2, :9]
        torch.testing.assert_close(
            modicum.load(tmp_path / "small")(ids).logits, again(ids).logits, rtol=0, atol=1e-3
        )

    def test_even_models_need_modicum_for_nothing(
        self, tiny_models: Any, tokens: Any, tmp_path: Path
    ) -> None:
        source = tiny_models("llama")
        method = HyWIA(**SMALL, ratio=0.25, structures="neurons", whole=(0, 0))
        manifest: Any = modicum.compress(source, method, out=tmp_path / "small", data=tokens)
        config = json.loads((tmp_path / "small" / "config.json").read_text())
        assert config["intermediate_size"] == 72
        assert "quantization_config" not in config
        assert not manifest.shapes
        assert not manifest.attributes

    def test_compressed_tensors_cannot_say_it(self, tiny_llama: Path, tokens: Any, tmp_path: Path) -> None:
        steps = [FLAP(**SMALL, ratio=0.3), build("quantize.rtn", {})]
        with pytest.raises(InvalidSetting, match="different sizes, which compressed-tensors cannot say"):
            modicum.compress(tiny_llama, steps, out=tmp_path / "a", data=tokens, form="compressed-tensors")


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_without_data(method: Any, toolbox: Any) -> None:
    with pytest.raises(UnusableData, match="needs calibration data"):
        method.transform(Anatomy.of(toolbox.build("llama")), Context(torch.Generator()))
