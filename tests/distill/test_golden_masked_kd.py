"""Parity of masked distillation with the original code, over every directory tinyfusion* below $MODICUM_GOLDEN."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modicum.distill.masked_kd import MaskedKD
from modicum.distill.recovery import teach
from modicum.distill.states import watched
from modicum.models import Anatomy
from modicum.models.depth import keep_blocks
from modicum.models.dit import DiT, DiTConfig
from modicum.models.dit.files import assemble
from modicum.trainer.diffusion_objectives import NoisePrediction
from modicum.trainer.objective import Question

ROOT = Path(os.environ.get("MODICUM_GOLDEN", Path(__file__).parents[1] / "golden"))
FOLDERS = sorted(ROOT.glob("tinyfusion*"))


def close(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert (got.detach() - want).abs().max().item() <= 1e-4 * max(1.0, want.abs().max().item())


def close_gradient(got: Tensor | None, want: Tensor) -> None:
    assert got is not None
    assert (got - want).abs().max().item() <= 1e-3 * want.abs().max().item()


@cache
def recorded(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], DiTConfig, dict[str, Tensor]]:
    config = json.loads((folder / "config.json").read_text())
    base = folder.parent / config["base"]
    sizes = DiTConfig.from_dict(json.loads((base / "config.json").read_text()))
    return config, load_file(folder / "io.safetensors"), sizes, load_file(base / "weights.safetensors")


def model(folder: Path) -> DiT:
    _, _, sizes, weights = recorded(folder)
    return assemble(sizes, {name: tensor.clone() for name, tensor in weights.items()})


def method(folder: Path) -> MaskedKD:
    settings = recorded(folder)[0]["kd"]
    return MaskedKD(pairs=settings["pairs"], beta=settings["beta"])


def check_terms(
    data: dict[str, Tensor], prefix: str, how: MaskedKD, objective: NoisePrediction, question: Question,
    output: Tensor, told: Tensor, states: list[Tensor],
) -> Tensor:  # fmt: skip
    """Compare every recorded term; returns the total per sample."""
    half = len(states) // 2
    apart = how.representation(states[:half], states[half:])
    taught, own = objective.divergence(output, told, question), objective.loss(output, question)
    assert how.beta is not None
    total = how.total(taught, own, apart, how.beta)
    losses = objective.diffusion(output.device).losses_of(
        output, question["x0"], question["x"], question["t"], question["noise"]
    )
    terms = {
        "mse": losses.mse,
        "vb": losses.vb,
        "vb_kd": objective.reverse_divergence(output, told, question),
    }
    terms |= {"feat_loss": apart, "kd_loss": taught, "gt": own, "loss": total}
    for name, got in terms.items():
        assert got is not None
        close(got, data[f"{prefix}.{name}"])
    return total


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_golden_distillation_of_a_pruned_model(folder: Path) -> None:
    config, data, sizes, _ = recorded(folder)
    student, teacher, how = model(folder), model(folder), method(folder)
    kept = data[f"out.{config['kd']['case']}.kept"].tolist()
    blocks = keep_blocks(Anatomy.of(student), kept).blocks
    objective, drop = NoisePrediction(sizes), data["in.label_uniform"] < sizes.class_dropout_prob
    question = objective.question(data["in.x0"], data["in.y"], data["in.t"], data["in.noise"], drop)
    pairs = how.pairs
    assert pairs is not None
    watching = [blocks[own].module for own, _ in pairs] + [teacher.blocks[other] for _, other in pairs]
    with watched(watching) as states:
        output = objective.answer(student.train(), question)
        told = teach(objective, teacher, question)
    for index, (own, other) in enumerate(pairs):
        close(states[index], data[f"out.kd.student_h.{own}"])
        close(states[len(pairs) + index], data[f"out.kd.teacher_h.{other}"])
    check_terms(data, "out.kd", how, objective, question, output, told, states).mean().backward()
    parameters = dict(student.named_parameters())
    compared = [key for key in data if key.startswith("out.kd.grad.")]
    assert compared
    for key in compared:
        close_gradient(parameters[key.removeprefix("out.kd.grad.")].grad, data[key])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)
def test_golden_loss_of_recorded_tensors(folder: Path) -> None:
    _, data, sizes, _ = recorded(folder)
    how, objective = method(folder), NoisePrediction(sizes)
    question = objective.question(
        data["in.x0"], data["in.y"], data["in.t"], data["in.noise"], torch.zeros(len(data["in.y"]))
    )
    output = data["in.pure.student_out"].clone().requires_grad_()
    names = sorted(key for key in data if key.startswith("in.pure.student_h."))
    states = [data[n] for n in names] + [data[n.replace("student", "teacher")] for n in names]
    check_terms(
        data, "out.pure", how, objective, question, output, data["in.pure.teacher_out"], states
    ).mean().backward()
    close_gradient(output.grad, data["out.pure.grad_student_out"])


def test_golden_files_are_there() -> None:
    assert FOLDERS, f"no tinyfusion* below {ROOT}"
