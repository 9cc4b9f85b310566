"""The models' own losses: each against its definition, and what a teacher and its student share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.data.samples import Table, Windows
from modicum.errors import UnsupportedModel, UnusableData
from modicum.models.dit import DiT, DiTConfig
from modicum.models.dit.interpolant import velocity_loss
from modicum.trainer.average import Average, usual_decay
from modicum.trainer.diffusion_objectives import NoisePrediction, VelocityPrediction
from modicum.trainer.objective import check_batch
from modicum.trainer.objectives import Classification, NextToken, objective_of
from modicum.trainer.questions import questions, repeated

SIZES = DiTConfig(input_size=4, patch_size=2, hidden_size=32, depth=2, num_heads=2, num_classes=3)


def seeded(value: int) -> torch.Generator:
    return torch.Generator().manual_seed(value)


def dit(**sizes: Any) -> DiT:
    torch.manual_seed(0)
    model = DiT(SIZES.model_copy(update=sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def pictures(rows: int = 16) -> dict[str, Tensor]:
    return {
        "x0": torch.randn(rows, 4, 4, 4, generator=seeded(1)),
        "y": torch.randint(3, (rows,), generator=seeded(2)),
    }


class TestDiffusion:
    def test_noise_is_drawn_from_the_generator_alone(self) -> None:
        model, batch = dit(), pictures()
        objective = objective_of(model)
        first, second, other = (objective(model, batch, seeded(s)) for s in (3, 3, 4))
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
        assert first.shape == (16,)

    def test_the_loss_of_dit(self) -> None:
        model, batch = dit(), pictures()
        objective = NoisePrediction(model.config)
        question = objective.ask(batch, seeded(3), training=False)
        losses = objective.diffusion(torch.device("cpu")).losses(
            lambda x, t: model(x, t, batch["y"]), batch["x0"], question["t"], question["noise"]
        )
        torch.testing.assert_close(objective.loss(objective.answer(model, question), question), losses.loss)

    def test_without_learned_variance_it_is_the_squared_error(self) -> None:
        model = dit(learn_sigma=False)
        objective = objective_of(model)
        question = objective.ask(pictures(), seeded(3))
        output = objective.answer(model, question)
        expected = (output - question["noise"]).square().flatten(1).mean(1)
        torch.testing.assert_close(objective.loss(output, question), expected)
        assert objective.divergence(output, output.detach(), question).abs().max() == 0

    def test_the_loss_of_sit(self) -> None:
        model, batch = dit(kind="sit"), pictures()
        objective = objective_of(model)
        assert isinstance(objective, VelocityPrediction)
        question = objective.ask(batch, seeded(3), training=False)
        noise = batch["x0"] - question["velocity"]
        expected = velocity_loss(lambda x, t: model(x, t, batch["y"]), batch["x0"], question["t"], noise)
        torch.testing.assert_close(objective.loss(objective.answer(model, question), question), expected)

    @pytest.mark.parametrize("kind", ["dit", "sit"])
    def test_labels_are_dropped_in_training_only(self, kind: Any) -> None:
        objective = objective_of(dit(kind=kind, class_dropout_prob=0.3))
        batch = {"x0": torch.zeros(2000, 1, 2, 2), "y": torch.zeros(2000, dtype=torch.long)}
        trained = objective.ask(batch, seeded(0), training=True)
        asked = objective.ask(batch, seeded(0), training=False)
        assert trained["drop"].float().mean().item() == pytest.approx(0.3, abs=0.04)
        assert not asked["drop"].any()
        assert torch.equal(trained["x"], asked["x"])

    def test_the_teacher_divergence_trains_only_what_it_should(self) -> None:
        model = dit()
        objective = NoisePrediction(model.config)
        question = objective.ask(pictures(), seeded(3))
        output = objective.answer(model, question).detach().requires_grad_()
        teacher = objective.answer(dit(), question).detach() + 0.1
        objective.reverse_divergence(output, teacher, question).sum().backward()
        assert output.grad is not None
        noise, variance = output.grad.chunk(2, dim=1)
        assert noise.abs().max() == 0
        assert variance.abs().max() > 0

    def test_a_model_equals_itself(self) -> None:
        model = dit()
        objective = NoisePrediction(model.config)
        question = objective.ask(pictures(), seeded(3))
        output = objective.answer(model, question).detach()
        later = question["t"] > 0  # at the first step the likelihood of the data takes the place
        assert objective.divergence(output, output, question)[later].abs().max() < 1e-5


class TestTransformers:
    def test_the_next_token(self, toolbox: Any) -> None:
        model = toolbox.build("llama")
        objective = objective_of(model)
        assert isinstance(objective, NextToken)
        ids = torch.randint(3, 2048, (4, 9), generator=seeded(0))
        loss = objective(model, {"input_ids": ids}, seeded(0))
        torch.testing.assert_close(loss.mean(), model(input_ids=ids, labels=ids).loss)
        assert loss.shape == (4,)

    @pytest.mark.parametrize("name", ["vit", "bert"])
    def test_a_class(self, name: str, toolbox: Any) -> None:
        model = toolbox.build(name)
        objective = objective_of(model)
        assert isinstance(objective, Classification)
        batch = {**toolbox.inputs_of(model), "labels": torch.tensor([0, 1])}
        loss = objective(model, batch, seeded(0))
        torch.testing.assert_close(loss.mean(), model(**batch).loss)

    def test_the_divergence_is_kl_from_the_teacher(self) -> None:
        own, aim = torch.randn(2, 3, 5, 7, generator=seeded(0))
        expected = F.kl_div(own.log_softmax(-1), aim.softmax(-1), reduction="none").sum(-1)
        torch.testing.assert_close(NextToken().divergence(own, aim, {}), expected.mean(1))
        assert NextToken().divergence(own, own, {}).abs().max() == 0


class TestQuestions:
    def test_the_same_seed_asks_the_same(self) -> None:
        objective, table = objective_of(dit()), Table(pictures(20))
        first, second = (list(questions(objective, table, 20, 8, 5, torch.device("cpu"))) for _ in range(2))
        assert [len(q["x"]) for q in first] == [8, 8]
        assert all(torch.equal(a["x"], b["x"]) for a, b in zip(first, second, strict=True))

    def test_fewer_samples_than_a_batch_are_asked_together(self) -> None:
        asked = list(questions(objective_of(dit()), Table(pictures(5)), 99, 8, 5, torch.device("cpu")))
        assert [len(q["x"]) for q in asked] == [5]

    def test_repeated_row_by_row(self) -> None:
        assert repeated({"x": torch.tensor([1, 2])}, 3)["x"].tolist() == [1, 1, 1, 2, 2, 2]

    def test_data_of_another_kind(self) -> None:
        batch = Windows(torch.arange(30), 5).batches(2, 0)(0)
        with pytest.raises(UnusableData, match="no 'x0'; it holds input_ids"):
            check_batch(objective_of(dit()), batch)

    def test_models_without_a_known_loss(self) -> None:
        with pytest.raises(UnsupportedModel, match="No training loss is known for Linear"):
            objective_of(torch.nn.Linear(2, 2))


def test_the_usual_decay_is_the_published_one() -> None:
    assert usual_decay(10_009) == pytest.approx(0.999, abs=1e-6)
    assert usual_decay(100_000) == pytest.approx(0.9999)
    assert usual_decay(5) == 0.5


def test_an_average_visits_and_leaves() -> None:
    layer = torch.nn.Linear(3, 2)
    average = Average(layer.named_parameters(), 0.9)
    before = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(1)
    average.update()
    with average.in_place():
        torch.testing.assert_close(layer.weight.detach(), before + 0.1)
    torch.testing.assert_close(layer.weight.detach(), before + 1)
