"""Methods that choose blocks without training: each against a plain computation, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from modicum.data.samples import Table, Windows
from modicum.errors import InvalidSetting, UnsupportedModel, UnusableData
from modicum.method import Context, ModelMethod, build
from modicum.models import Anatomy
from modicum.models.depth import keep_blocks
from modicum.models.dit import DiT, DiTConfig
from modicum.prune.blocks import Blocks
from modicum.prune.depth import highest
from modicum.prune.flux_lite import FluxLite
from modicum.prune.oracle import Oracle
from modicum.prune.random_masks import RandomMasks
from modicum.prune.sensitivity import Sensitivity
from modicum.prune.shortgpt import ShortGPT
from modicum.trainer import objective_of
from modicum.trainer.questions import questions

SIZES = DiTConfig(input_size=4, patch_size=2, hidden_size=32, depth=4, num_heads=2, num_classes=3)
SEED = 7


def dit() -> DiT:
    torch.manual_seed(0)
    model = DiT(SIZES).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.blocks[2].adaLN_modulation[1].weight.mul_(0.01)  # type: ignore[index,union-attr]
        model.blocks[2].adaLN_modulation[1].bias.mul_(0.01)  # type: ignore[index,union-attr]
    return model


def data() -> Table:
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(48, 4, 4, 4, generator=generator)
    return Table({"x0": x0, "y": torch.randint(3, (48,), generator=generator)})


def context(source: Any = None) -> Context:
    return Context(torch.Generator().manual_seed(SEED), data=source or data())


def kept(method: ModelMethod, model: Any, source: Any = None) -> list[int]:
    held = context(source)
    method.transform(Anatomy.of(model), held)
    found: list[int] = held.notes[method.name]["kept_blocks"]
    assert len(Anatomy.of(model).blocks) == len(found)
    return found


def asked(method: Any, model: Any) -> list[Any]:
    """The questions that a method will ask, drawn as it draws them."""
    seed = int(torch.randint(2**31, (1,), generator=torch.Generator().manual_seed(SEED)))
    source = questions(objective_of(model), data(), method.samples, method.batch, seed, torch.device("cpu"))
    return list(source)


@torch.no_grad()
def states(model: DiT, question: Any) -> list[torch.Tensor]:
    """Hidden states before every block and after the last."""
    c = model.condition(question["t"], question["y"], question["drop"])
    found = [model.embed(question["x"])]
    for block in model.blocks:
        found.append(block(found[-1], c))
    return found


class TestInfluence:
    def test_shortgpt_is_one_minus_the_mean_cosine(self) -> None:
        model, method = dit(), ShortGPT(keep=2, samples=32, batch=8)
        per_block = torch.zeros(4)
        for question in asked(method, model):
            seen = states(model, question)
            for i in range(4):
                per_block[i] += (1 - F.cosine_similarity(seen[i], seen[i + 1], dim=-1)).mean() / 4
        held = context()
        method.transform(Anatomy.of(model), held)
        notes = held.notes["prune.shortgpt"]
        torch.testing.assert_close(torch.tensor(notes["influence"]), per_block, rtol=1e-4, atol=1e-6)
        assert notes["kept_blocks"] == sorted(per_block.argsort()[2:].tolist())
        assert 2 not in notes["kept_blocks"]

    def test_flux_lite_is_the_mean_squared_difference(self) -> None:
        model, method = dit(), FluxLite(keep=3, samples=16, batch=16)
        (question,) = asked(method, model)
        seen = states(model, question)
        expected = torch.stack([(seen[i + 1] - seen[i]).square().mean() for i in range(4)])
        held = context()
        method.transform(Anatomy.of(model), held)
        torch.testing.assert_close(torch.tensor(held.notes["prune.flux_lite"]["distance"]), expected)
        assert held.notes["prune.flux_lite"]["kept_blocks"] == sorted(expected.argsort()[1:].tolist())

    def test_the_script_that_was_compared_with_keeps_the_last_block(self) -> None:
        model = dit()
        with torch.no_grad():
            model.blocks[3].adaLN_modulation[1].weight.zero_()  # type: ignore[index,union-attr]
            model.blocks[3].adaLN_modulation[1].bias.zero_()  # type: ignore[index,union-attr]
        assert 3 not in kept(ShortGPT(keep=3, samples=16), model)
        assert 3 in kept(ShortGPT(keep=1, samples=16, as_compared=True), dit())

    @pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
    def test_it_works_on_any_stack(self, name: str, toolbox: Any) -> None:
        model = toolbox.build(name)
        if name == "llama":
            source: Any = Windows(torch.randint(3, 2048, (400,)), 8)
        elif name == "gpt2":
            source = Table({"input_ids": torch.randint(3, 2048, (8, 8))})
        else:
            shown = toolbox.inputs_of(model)
            source = Table({**shown, "labels": torch.tensor([0, 1])})
        assert len(kept(ShortGPT(keep=2, samples=8, batch=4), model, source)) == 2

    @given(st.lists(st.floats(-5, 5), min_size=1, max_size=9), st.data())
    def test_the_highest_stay(self, scores: list[float], draw: st.DataObject) -> None:
        count = draw.draw(st.integers(1, len(scores)))
        chosen = highest(torch.tensor(scores, dtype=torch.float64), count)
        assert chosen == sorted(set(chosen))
        assert len(chosen) == count
        gone = [s for i, s in enumerate(scores) if i not in chosen]
        assert not gone or max(gone) <= min(scores[i] for i in chosen)


class TestLosses:
    @torch.no_grad()
    def loss_of(self, blocks: list[int], questions_: list[Any]) -> float:
        model = dit()
        keep_blocks(Anatomy.of(model), blocks)
        objective = objective_of(model)
        return torch.cat([objective.loss(objective.answer(model, q), q) for q in questions_]).mean().item()

    def test_sensitivity_is_the_rise_of_the_loss(self) -> None:
        model, method = dit(), Sensitivity(keep=2, samples=24, batch=8)
        shown = asked(method, model)
        whole = self.loss_of([0, 1, 2, 3], shown)
        rise = [self.loss_of([j for j in range(4) if j != i], shown) - whole for i in range(4)]
        held = context()
        method.transform(Anatomy.of(model), held)
        assert held.notes["prune.sensitivity"]["rise"] == pytest.approx(rise, rel=1e-3, abs=1e-5)
        assert held.notes["prune.sensitivity"]["loss"] == pytest.approx(whole, rel=1e-5)

    @pytest.mark.parametrize("take", ["best", "median"])
    def test_random_masks_rank_all_choices(self, take: Any) -> None:
        model, method = dit(), RandomMasks(keep=2, samples=16, batch=8, masks=400, take=take)
        shown = asked(method, model)
        pairs = [[i, j] for i in range(4) for j in range(i + 1, 4)]
        ranked = sorted(pairs, key=lambda pair: self.loss_of(pair, shown))
        assert kept(method, model) == ranked[0 if take == "best" else 2]  # 400 draws visit all six

    def test_the_same_seed_chooses_the_same(self) -> None:
        method = RandomMasks(samples=8, masks=5)
        assert kept(method, dit()) == kept(method, dit())


class TestRules:
    @pytest.mark.parametrize(
        ("depth", "expected"),
        [
            (28, [0, 2, 4, 6, 8, 10, 12, 15, 17, 19, 21, 23, 25, 27]),
            (12, [0, 2, 4, 7, 9, 11]),
            (6, [0, 2, 5]),
            (2, [0]),
        ],
    )
    def test_oracle(self, depth: int, expected: list[int]) -> None:
        with torch.device("meta"):
            model = DiT(SIZES.model_copy(update={"depth": depth}))
        assert kept(Oracle(), model) == expected

    def test_oracle_needs_pairs(self) -> None:
        with torch.device("meta"):
            model = DiT(SIZES.model_copy(update={"depth": 5}))
        with pytest.raises(InvalidSetting, match="the model has 5 blocks"):
            Oracle().transform(Anatomy.of(model), context())

    def test_blocks_by_name(self) -> None:
        assert kept(build("prune.blocks", {"keep": [1, 3]}), dit()) == [1, 3]  # type: ignore[arg-type]

    @pytest.mark.parametrize("keep", [(3, 1), (4,), (1, 1)])
    def test_what_is_no_choice(self, keep: tuple[int, ...]) -> None:
        with pytest.raises(InvalidSetting, match="no choice of blocks"):
            Blocks(keep=keep).transform(Anatomy.of(dit()), context())


class TestRefusals:
    def test_more_blocks_than_there_are(self) -> None:
        with pytest.raises(InvalidSetting, match="keep 9 blocks of a model that has 4"):
            ShortGPT(keep=9).transform(Anatomy.of(dit()), context())

    def test_no_data(self) -> None:
        with pytest.raises(UnusableData, match="needs calibration data"):
            Sensitivity().transform(Anatomy.of(dit()), Context(torch.Generator()))

    def test_data_of_another_kind(self) -> None:
        with pytest.raises(UnusableData, match="no 'x0'; it holds input_ids"):
            ShortGPT().transform(Anatomy.of(dit()), context(Windows(torch.arange(99), 4)))

    def test_a_model_without_a_known_loss(self, toolbox: Any) -> None:
        import transformers

        config = toolbox.build("bert").config
        with pytest.raises(UnsupportedModel, match="No training loss is known for BertModel"):
            ShortGPT().transform(Anatomy.of(transformers.BertModel(config)), context())


def test_half_of_the_blocks_stay_by_default() -> None:
    assert len(kept(ShortGPT(samples=8), dit())) == 2
