"""Fine-tuning and distillation: the losses, the pairs of blocks, what training leaves behind."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modicum.data.samples import Table, Windows
from modicum.distill.finetune import Finetune
from modicum.distill.logits_kd import LogitsKD
from modicum.distill.masked_kd import MaskedKD, ordinary
from modicum.distill.recovery import Recovery
from modicum.distill.rep_kd import RepKD
from modicum.distill.states import pairs_of
from modicum.errors import CheckpointError, InvalidSetting, UnsupportedModel, UnusableData
from modicum.method import Context, build
from modicum.models import Anatomy
from modicum.models.depth import keep_blocks
from modicum.models.dit import DiT, DiTConfig
from modicum.trainer import objective_of

SIZES = DiTConfig(input_size=4, patch_size=2, hidden_size=32, depth=4, num_heads=2, num_classes=3)
QUICK: dict[str, Any] = {"steps": 30, "batch": 16, "lr": 2e-3, "final_lr": 1e-3}
METHODS = [Finetune, LogitsKD, RepKD, MaskedKD]


def dit(**sizes: Any) -> DiT:
    torch.manual_seed(0)
    model = DiT(SIZES.model_copy(update=sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def data(rows: int = 64) -> Table:
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(rows, 4, 4, 4, generator=generator)
    return Table({"x0": x0, "y": torch.randint(3, (rows,), generator=generator)})


def context(teacher: nn.Module | None = None, **options: Any) -> Context:
    source = options.pop("data", None) or data()
    return Context(torch.Generator().manual_seed(0), data=source, teacher=teacher, **options)


@torch.no_grad()
def gap(student: DiT, teacher: DiT) -> float:
    """Divergence from the teacher on questions that were not trained on."""
    objective = objective_of(teacher)
    batch = data().batches(64, 5)(0)
    question = objective.ask(batch, torch.Generator().manual_seed(9), training=False)
    return (
        objective.divergence(
            objective.answer(student, question), objective.answer(teacher, question), question
        )
        .mean()
        .item()
    )


class TestDistance:
    def states(self, planted: float = 0.0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        student, teacher = torch.randn(2, 8, 64, 64, generator=generator)
        if planted:
            teacher[:, 3, 5] = planted
        return student, teacher

    def test_without_a_bound_it_is_plain(self) -> None:
        student, teacher = self.states(500.0)
        torch.testing.assert_close(
            MaskedKD(k=math.inf).distance(student, teacher), RepKD().distance(student, teacher)
        )

    def test_one_massive_activation_does_not_drown_the_rest(self) -> None:
        plain, masked = RepKD(), MaskedKD()
        assert plain.distance(*self.states()).mean().item() == pytest.approx(2.0, abs=0.05)
        assert plain.distance(*self.states(500.0)).mean().item() == pytest.approx(63, abs=1)
        assert masked.distance(*self.states()).mean().item() == pytest.approx(1.46, abs=0.05)
        assert masked.distance(*self.states(500.0)).mean().item() == pytest.approx(1.73, abs=0.05)

    @settings(deadline=None, max_examples=25)
    @given(st.integers(0, 999), st.floats(0.5, 4), st.floats(0.1, 50))
    def test_what_is_massive_follows_the_scale(self, seed: int, k: float, scale: float) -> None:
        states = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(seed))
        kept = ordinary(states, k) != 0
        assert torch.equal(kept, ordinary(states * scale, k) != 0)
        expected = (states - states.mean((1, 2), keepdim=True)).abs() < k * states.std((1, 2), keepdim=True)
        assert torch.equal(kept, expected)

    def test_a_massive_state_gets_no_gradient(self) -> None:
        student, teacher = self.states()
        student[0, 1, 1] = 300.0
        student.requires_grad_()
        MaskedKD().distance(student, teacher).sum().backward()
        assert student.grad is not None
        assert student.grad[0, 1, 1] == 0
        assert student.grad.count_nonzero() > 1000


class TestSchedule:
    @given(st.integers(2, 30), st.integers(1, 5))
    def test_beta_falls_to_zero_in_the_last_epoch(self, epochs: int, per_epoch: int) -> None:
        method, steps = MaskedKD(epochs=epochs), epochs * per_epoch
        betas = [method.share_at(step, steps) for step in range(steps)]
        assert betas == sorted(betas, reverse=True)
        assert betas[0] == 1
        assert betas[-per_epoch:] == pytest.approx([0.0] * per_epoch, abs=1e-15)
        assert len(set(betas)) == epochs

    def test_one_epoch_keeps_it(self) -> None:
        assert MaskedKD(epochs=1).share_at(9, 10) == 1


class TestPairs:
    def test_of_a_pruning_in_groups(self) -> None:
        notes = {
            "diffusion.tinyfusion": {"kept_blocks": [1, 2, 3], "of_blocks": 6, "groups": [[2, 3], [1, 3]]}
        }
        assert list(pairs_of([3], [6], notes)) == [(1, 2), (2, 5)]

    def test_of_a_pruning_without_groups(self) -> None:
        assert list(pairs_of([3], [6], {"prune.shortgpt": {"kept_blocks": [0, 1, 4], "of_blocks": 6}})) == [
            (0, 0), (1, 3), (2, 5),
        ]  # fmt: skip

    def test_of_stacks_of_which_nothing_is_known(self) -> None:
        assert list(pairs_of([14], [28], {})) == [(i, 2 * i + 1) for i in range(14)]
        assert list(pairs_of([7], [14], {"m": {"kept_blocks": [0], "of_blocks": 14}})) == [
            (i, 2 * i + 1) for i in range(7)
        ]


class TestTraining:
    @pytest.mark.parametrize("method", METHODS)
    def test_what_training_leaves_behind(self, method: Any) -> None:
        teacher, student = dit(), dit()
        keep_blocks(Anatomy.of(student), [0, 2])
        before, told = copy.deepcopy(student), {n: v.clone() for n, v in teacher.state_dict().items()}
        held = context(teacher)
        anatomy = method(**QUICK).transform(Anatomy.of(student), held)
        assert anatomy.model is student
        assert not student.training
        assert not any(module._forward_hooks for net in (student, teacher) for module in net.modules())
        assert all(torch.equal(value, told[name]) for name, value in teacher.state_dict().items())
        assert not torch.equal(student.final_layer.linear.weight, before.final_layer.linear.weight)
        assert torch.equal(student.pos_embed, before.pos_embed)
        notes = held.notes[method(**QUICK).name]
        assert notes["steps"] == 30
        assert notes["history"]["step"] == list(range(1, 31))
        assert all(0 < loss < 100 for loss in notes["history"]["loss"])

    def test_a_teacher_is_approached(self) -> None:
        teacher, student = dit(), dit()
        keep_blocks(Anatomy.of(student), [0, 2])
        before = gap(student, teacher)
        MaskedKD(**{**QUICK, "steps": 80}).transform(Anatomy.of(student), context(teacher))
        assert gap(student, teacher) < 0.8 * before

    def test_the_teacher_is_asked_with_the_same_dropped_labels(self) -> None:
        teacher, student = dit(class_dropout_prob=0.5), dit(class_dropout_prob=0.5)
        seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}
        for name, net in (("teacher", teacher), ("student", student)):
            embedder = net.y_embedder
            embedder.register_forward_hook(lambda m, args, out, name=name: seen[name].append(args[0].clone()))
        LogitsKD(**{**QUICK, "steps": 3}).transform(Anatomy.of(student), context(teacher))
        assert all(torch.equal(a, b) for a, b in zip(seen["teacher"], seen["student"], strict=True))
        assert any(bool((labels == 3).any()) for labels in seen["student"])

    def test_alpha_chooses_between_teacher_and_data(self) -> None:
        ends = []
        for how in (LogitsKD(**QUICK, alpha=0.0), Finetune(**QUICK)):
            student = dit()
            how.transform(Anatomy.of(student), context(dit()))
            ends.append(student.state_dict())
        torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-6)

    def test_recomputing_changes_nothing(self) -> None:
        ends = []
        for recompute in (False, True):
            student, teacher = dit(), dit()
            keep_blocks(Anatomy.of(student), [1, 3])
            how = MaskedKD(**{**QUICK, "steps": 3}, recompute=recompute)
            how.transform(Anatomy.of(student), context(teacher))
            ends.append(student.state_dict())
        torch.testing.assert_close(ends[0], ends[1], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("method", METHODS)
    def test_a_language_model(self, method: Any, toolbox: Any) -> None:
        teacher, student = toolbox.build("llama"), toolbox.build("llama")
        keep_blocks(Anatomy.of(student), [0, 2])
        stream = torch.randint(3, 2048, (600,), generator=torch.Generator().manual_seed(0))
        before = toolbox.logits_of(student)
        held = context(teacher, data=Windows(stream, 12))
        method(steps=2, batch=4, accumulate=2).transform(Anatomy.of(student), held)
        assert not torch.equal(toolbox.logits_of(student), before)

    def test_a_killed_recovery_ends_with_the_same_bytes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usual = Recovery._schedule
        often = {"save_every": 5}
        monkeypatch.setattr(Recovery, "_schedule", lambda m, seed: usual(m, seed).model_copy(update=often))

        histories = []

        def recovered(work: Path, kill: bool = False) -> dict[str, Tensor]:
            teacher, student = dit(), dit()
            keep_blocks(Anatomy.of(student), [0, 2])
            held = context(teacher, work_directory=work)

            def progress(line: str) -> None:
                if kill and line.startswith("step 12/"):  # before the last checkpoint
                    raise KeyboardInterrupt

            held.progress = progress
            MaskedKD(steps=12, batch=4).transform(Anatomy.of(student), held)
            histories.append(held.notes["distill.masked_kd"]["history"])
            return student.state_dict()

        whole = recovered(tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            recovered(tmp_path / "killed", kill=True)
        assert [path.name for path in (tmp_path / "killed").iterdir()] == ["step-00000010"]
        again = recovered(tmp_path / "killed")
        assert all(torch.equal(again[name], value) for name, value in whole.items())
        assert histories[0] == histories[1]


class TestRefusals:
    @pytest.mark.parametrize("method", METHODS[1:])
    def test_no_teacher(self, method: Any) -> None:
        with pytest.raises(InvalidSetting, match="needs a teacher"):
            method(**QUICK).transform(Anatomy.of(dit()), context())

    @pytest.mark.parametrize("method", METHODS[1:])
    def test_a_teacher_of_another_width(self, method: Any) -> None:
        with pytest.raises(UnsupportedModel, match="hidden_size 64, the student 32"):
            method(**QUICK).transform(Anatomy.of(dit()), context(dit(hidden_size=64)))

    def test_pairs_that_do_not_exist(self) -> None:
        with pytest.raises(InvalidSetting, match=r"The pair \(0, 9\) does not exist"):
            MaskedKD(**QUICK, pairs=((0, 9),)).transform(Anatomy.of(dit()), context(dit()))

    def test_no_data(self) -> None:
        with pytest.raises(UnusableData, match="needs data"):
            Finetune(**QUICK).transform(Anatomy.of(dit()), Context(torch.Generator()))

    @pytest.mark.parametrize(
        ("name", "wrong", "match"),
        [
            ("distill.finetune", {"batch": 16, "accumulate": 3}, "not a multiple of accumulate 3"),
            ("diffusion.tinyfusion", {"batch": 16, "accumulate": 3}, "not a multiple of accumulate 3"),
            ("distill.masked_kd", {"lr": 1e-5}, "final_lr 0.0001 is above lr 1e-05"),
        ],
    )
    def test_settings_that_do_not_go_together(self, name: str, wrong: dict[str, Any], match: str) -> None:
        with pytest.raises(InvalidSetting, match=match):
            build(name, wrong)

    def test_the_checkpoint_of_another_recipe(self, tmp_path: Path) -> None:
        Finetune(**QUICK).transform(Anatomy.of(dit()), context(work_directory=tmp_path))
        with pytest.raises(CheckpointError, match=r"another training .*lr"):
            Finetune(**{**QUICK, "lr": 5e-3}).transform(Anatomy.of(dit()), context(work_directory=tmp_path))
