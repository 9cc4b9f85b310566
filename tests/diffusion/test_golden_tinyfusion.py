"""Parity with the original code, over every recorded case of every directory tinyfusion* below $MODICUM_GOLDEN."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from modicum.diffusion.gates import GatedNetwork, Gates
from modicum.models import Anatomy
from modicum.models.depth import as_groups, keep_blocks, ungate
from modicum.models.dit import DiT, DiTConfig
from modicum.models.dit.files import assemble
from modicum.trainer import lora
from modicum.trainer.diffusion_objectives import NoisePrediction

ROOT = Path(os.environ.get("MODICUM_GOLDEN", Path(__file__).parents[1] / "golden"))
FOLDERS = sorted(ROOT.glob("tinyfusion*"))
CASES = [
    (folder, case) for folder in FOLDERS for case in json.loads((folder / "config.json").read_text())["cases"]
]


def close(got: Tensor, want: Tensor, tolerance: float = 1e-4) -> None:
    bound = tolerance * max(1.0, want.abs().max().item())
    assert got.shape == want.shape
    assert (got.float() - want).abs().max().item() <= bound


def close_gradient(got: Tensor | None, want: Tensor) -> None:
    assert got is not None
    assert (got - want).abs().max().item() <= 1e-3 * want.abs().max().item()


@cache
def recorded(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = json.loads((folder / "config.json").read_text())
    files = [load_file(folder / f"{name}.safetensors") for name in ("io", "gates", "lora")]
    return config, {name: tensor for file in files for name, tensor in file.items()}


def base_model(folder: Path) -> DiT:
    base = folder.parent / recorded(folder)[0]["base"]
    sizes = json.loads((base / "config.json").read_text())
    return assemble(DiTConfig.from_dict(sizes), load_file(base / "weights.safetensors"))


@dataclass
class Replay:
    """A gated network with recorded logits, adapters and noise, after one backward pass."""

    network: GatedNetwork
    gates: Gates
    anatomy: Anatomy
    masks: Tensor
    forward: Tensor
    losses: Any
    gradients: dict[str, Tensor | None]


@pytest.fixture(scope="module", params=CASES, ids=lambda param: f"{param[0].name}-{param[1]}")
def replay(request: pytest.FixtureRequest) -> Any:
    folder, name = request.param
    config, data = recorded(folder)
    case, model = config["cases"][name], base_model(folder)
    anatomy = Anatomy.of(model)
    gates = Gates(as_groups(tuple(map(tuple, case["groups"])), len(anatomy.blocks)))
    for index, logits in enumerate(gates.logits):
        logits.data.copy_(data[f"{name}/gumbel_gates.{index}"])
    gates.tau, gates.scaling = case["tau"], case["scaling"]
    noise = [data[f"in.{name}.gumbel.{index}"] for index in range(len(gates.groups))]
    gates.draw = lambda batch: noise  # type: ignore[method-assign]
    learning = [p for p in model.parameters() if p.requires_grad]
    if not case["lora"]:
        yield folder, name, replayed(anatomy, gates, case["train"], data)
        return
    with lora(model, config["lora_rank"], config["lora_alpha"], seed=0):
        fill_adapters(model, data)
        for parameter in learning:
            parameter.requires_grad_(True)  # the record holds gradients of the base as well
        yield folder, name, replayed(anatomy, gates, case["train"], data)


def fill_adapters(model: nn.Module, data: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, tensor in data.items():
        if ".lora_" in name and not name.startswith(("in.", "out.")):
            layer, factor = name.removesuffix(".weight").rsplit(".", 1)
            parameters[f"{layer}.{factor[:-1]}{factor[-1].upper()}.default.weight"].data.copy_(tensor)


def replayed(anatomy: Anatomy, gates: Gates, train: bool, data: dict[str, Tensor]) -> Replay:
    network = GatedNetwork(anatomy, gates).train(train)
    objective = NoisePrediction(anatomy.model.config)
    drop = (data["in.label_uniform"] < objective.dropout) & torch.tensor(train)
    forward = network(data["in.x"], data["in.t"], data["in.y"], drop).detach()
    question = objective.question(data["in.x0"], data["in.y"], data["in.t"], data["in.noise"], drop)
    losses = objective.diffusion(data["in.x"].device).losses_of(
        objective.answer(network, question), question["x0"], question["x"], question["t"], question["noise"]
    )
    losses.loss.mean().backward()
    ungate(anatomy)
    gradients = {n.replace(".base_layer", ""): p.grad for n, p in anatomy.model.named_parameters()}
    masks = gates.masks(gates.draw(len(drop)))
    return Replay(network, gates, anatomy, masks.detach(), forward, losses, gradients)


def test_golden_candidates_and_choices(replay: tuple[Path, str, Replay]) -> None:
    folder, name, run = replay
    data, start = recorded(folder)[1], 0
    for index, table in enumerate(run.gates.tables):
        assert torch.equal(table, data[f"out.{name}.candidates.{index}"])
        chosen = data[f"out.{name}.chosen.{index}"]
        assert torch.equal(run.masks[:, start : start + table.shape[1]], table[chosen])
        start += table.shape[1]


def test_golden_forward_and_losses(replay: tuple[Path, str, Replay]) -> None:
    folder, name, run = replay
    data = recorded(folder)[1]
    close(run.forward, data[f"out.{name}.forward"])
    for term in ("mse", "vb", "loss"):
        close(getattr(run.losses, term).detach(), data[f"out.{name}.loss.{term}"])


def test_golden_gradients(replay: tuple[Path, str, Replay]) -> None:
    folder, name, run = replay
    data = recorded(folder)[1]
    for index, logits in enumerate(run.gates.logits):
        close_gradient(logits.grad, data[f"out.{name}.grad_gate.{index}"])
    prefix = f"out.{name}.grad."
    compared = {key.removeprefix(prefix): want for key, want in data.items() if key.startswith(prefix)}
    assert compared
    for key, want in compared.items():
        own = key.replace("lora_a.", "lora_A.default.").replace("lora_b.", "lora_B.default.")
        close_gradient(run.gradients[own], want)


def test_golden_decision(replay: tuple[Path, str, Replay]) -> None:
    folder, name, run = replay
    data = recorded(folder)[1]
    kept = run.gates.kept()
    assert kept == data[f"out.{name}.kept"].tolist()
    close(run.gates.confidence(), data[f"out.{name}.confidence"])
    pruned = base_model(folder)
    keep_blocks(Anatomy.of(pruned), kept)
    with torch.no_grad():
        close(pruned(data["in.x"], data["in.t"], data["in.y"]), data[f"out.{name}.pruned_forward"])


def test_golden_files_are_there() -> None:
    assert FOLDERS, f"no tinyfusion* below {ROOT}"
