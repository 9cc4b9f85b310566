from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from modicum.apps.pixelgen.generator import Generator, GeneratorConfig, PixelNetwork, train
from modicum.apps.pixelgen.generator.compress import compress
from modicum.apps.pixelgen.generator.compress import main as compress_main
from modicum.apps.pixelgen.generator.files import save
from modicum.apps.pixelgen.generator.objective import Painting
from modicum.apps.pixelgen.generator.train import Training, trainer
from modicum.errors import OutputExists, RecipeConflict
from modicum.models import Anatomy
from modicum.pipeline.recipe import parse

pytest.importorskip("accelerate")
TINY = GeneratorConfig(hidden_size=32, depth=4, num_heads=2)


def _pictures(count: int = 48) -> Tensor:
    """Uint8 pictures in which colour follows from luma: dark is blue, bright is red."""
    generator = torch.Generator().manual_seed(0)
    levels = torch.rand(count, 1, 4, 4, generator=generator)
    y = nn.functional.interpolate(levels, (32, 32), mode="bilinear")
    return (255 * torch.cat((y, 0.5 * torch.ones_like(y), 1 - y), dim=1)).to(torch.uint8)


def _questions(config: GeneratorConfig, seed: int = 0) -> dict[str, Tensor]:
    return dict(Painting(config).ask({"pictures": _pictures()}, torch.Generator().manual_seed(seed)))


def test_the_question_hides_what_has_to_be_painted() -> None:
    asked = _questions(TINY)
    state, known = asked["x"][:, :6], asked["x"][:, 6:]
    assert asked["x"].shape == (48, 18, 16, 16)
    assert (state[asked["unknown"] == 0] == 0).all()
    assert asked["unknown"][:, 4:].all()
    arrived = known[:, 4:8]
    assert torch.equal(1 - arrived, asked["unknown"][:, :4])
    assert asked["t"].sort().values.equal(asked["t"])
    assert (asked["t"].diff() < 2 / 48).all()


def test_a_perfect_network_has_no_loss_and_a_silent_one_that_of_the_velocity() -> None:
    objective, asked = Painting(TINY), _questions(TINY)
    perfect, silent = asked["velocity"], torch.zeros_like(asked["velocity"])
    beyond = torch.where(asked["unknown"] == 0, 5.0, perfect)  # what is known is no matter of the loss
    assert objective.loss(beyond, asked).abs().max() == 0
    expected = [(v[u == 1] ** 2).mean() for v, u in zip(asked["velocity"], asked["unknown"], strict=True)]
    torch.testing.assert_close(objective.loss(silent, asked), torch.stack(expected))
    torch.testing.assert_close(objective.divergence(silent, perfect, asked), torch.stack(expected))


def test_readings_are_dropped_in_training_only() -> None:
    objective, batch = Painting(TINY), {"pictures": _pictures(1).expand(300, -1, -1, -1)}
    asked = objective.ask(batch, torch.Generator().manual_seed(0))
    assert abs(asked["drop"].float().mean() - 0.1) < 0.05
    assert abs((asked["tokens"][:, 0] == 0).float().mean() - 0.1) < 0.05
    asked = objective.ask(batch, torch.Generator().manual_seed(0), training=False)
    assert not asked["drop"].any()
    assert (asked["tokens"][:, :3] > 0).all()


def test_readings_that_were_never_mentioned_have_no_influence() -> None:
    torch.manual_seed(0)
    network = PixelNetwork(TINY).eval()
    x, t, told = torch.randn(2, 18, 16, 16), torch.ones(2), torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.requires_grad and "embedding_table" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
        assert torch.equal(network(x, t, told), network(x, t, 0 * told))
        network.y_embedder.embedding_table.weight.normal_()
        assert not torch.allclose(network(x, t, told), network(x, t, 0 * told))
        dropped = network(x, t, told, torch.tensor([True, True]))
        assert torch.equal(dropped, network(x, t, 0 * told))


def _train(work: Path, steps: int = 6, **settings: Any) -> Any:
    how = Training(config=TINY, steps=steps, batch=8, **settings)
    return trainer(_pictures(), work, how, lambda line: None)


class _Killed(Exception):
    pass


def test_a_killed_training_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    def kill(record: Any) -> None:
        if record.step == 4:
            raise _Killed

    killed = _train(tmp_path / "a")
    killed.settings = killed.settings.model_copy(update={"save_every": 3})
    killed.callbacks = (kill,)
    with pytest.raises(_Killed):
        killed.run()
    resumed, straight = _train(tmp_path / "a"), _train(tmp_path / "b")
    assert resumed.step == 3
    resumed.run()
    straight.run()
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_training_learns_which_colour_belongs_to_which_luma(tmp_path: Path) -> None:
    asked = _questions(TINY, seed=9)
    losses = []
    for steps in (1, 60):
        training = _train(tmp_path / str(steps), steps, average=0.9, lr=3e-3)
        training.run()
        network = PixelNetwork(TINY).eval()
        network.load_state_dict(training.state_dict())
        with torch.no_grad():
            losses.append(Painting(TINY).loss(Painting(TINY).answer(network, asked), asked).mean())
    assert losses[1] < 0.8 * losses[0]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    np.savez(tmp_path / "images.npz", images=_pictures().permute(0, 2, 3, 1).numpy())
    return tmp_path / "images.npz"


def test_the_command_writes_a_generator_and_can_finish_early(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "GeneratorConfig", lambda: TINY)
    monkeypatch.setattr(train.Training, "config", TINY, raising=False)
    line = ["--images", str(archive), "--out", str(tmp_path / "out"), "--steps", "3", "--batch", "8"]
    assert train.main([*line, "--finish"]) == 0  # nothing is trained yet: the first weights are written
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["steps"] == 0
    line[3] = str(tmp_path / "trained")
    assert train.main([*line, "--source", "stripes"]) == 0
    metrics = json.loads((tmp_path / "trained" / "metrics.json").read_text())
    assert (metrics["steps"], metrics["trained_on"], metrics["pictures"]) == (3, 43, 5)
    assert "stripes" in (tmp_path / "trained" / "README.md").read_text()
    Generator.load(tmp_path / "trained")
    assert train.main(line) == OutputExists.exit_code


RECIPE = [
    {"diffusion.tinyfusion": {"groups": "1:2", "steps": 2, "batch": 8}},
    {"distill.masked_kd": {"steps": 2, "batch": 8, "lr": 1e-4, "final_lr": 1e-5, "average": 0.9}},
    {"quantize.gptq": {"bits": 8, "group_size": 32}},
]


def test_compression_halves_the_blocks_and_packs_what_is_left(small: Generator, tmp_path: Path) -> None:
    before = Anatomy.of(small.network).describe()
    notes = compress(small, parse({"steps": RECIPE}), _pictures(), work=tmp_path / "work")
    assert small.network.config.depth == before["blocks"] // 2
    assert len(notes["diffusion.tinyfusion"]["kept_blocks"]) == before["blocks"] // 2
    assert all(layer.form is not None for layer in Anatomy.of(small.network).layers())
    frames, mask = torch.rand(1, 1, 32, 32), torch.ones(1, 1, 32, 32, dtype=torch.bool)
    told = torch.zeros(1, 5, dtype=torch.int64)
    opened = Generator.load(save(small, tmp_path / "out", half=False))
    torch.testing.assert_close(opened.generate(frames, mask, told), small.generate(frames, mask, told))
    assert (opened.network.config.depth, opened.steps) == (small.network.config.depth, small.steps)


def test_eight_bits_change_little_and_two_bits_much(small: Generator) -> None:
    asked = _questions(TINY)
    with torch.no_grad():
        dense, errors = Painting(TINY).answer(small.network, asked), []
        for bits in (8, 2):
            changed = copy.deepcopy(small)
            compress(changed, parse([{"quantize.rtn": {"bits": bits, "group_size": 32}}]), _pictures())
            errors.append((Painting(TINY).answer(changed.network, asked) - dense).norm() / dense.norm())
    assert errors[0] < 0.02
    assert errors[1] > 10 * errors[0]


def test_layers_are_not_changed_before_the_structure(small: Generator) -> None:
    with pytest.raises(RecipeConflict, match="would break"):
        compress(small, parse(list(reversed(RECIPE))), _pictures())


def test_a_generator_keeps_no_policy(small: Generator) -> None:
    with pytest.raises(RecipeConflict, match=r"diffusion\.fora is attached"):
        compress(small, parse([{"diffusion.fora": {"interval": 2}}]), _pictures())


def test_the_compress_command(small: Generator, archive: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps: [{quantize.rtn: {bits: 3, group_size: 32}}]\n")
    save(small, tmp_path / "model")
    line = ["--model", str(tmp_path / "model"), "--recipe", str(recipe), "--images", str(archive)]
    line += ["--held-out", str(archive), "--out", str(tmp_path / "out"), "--painting-steps", "1"]
    assert compress_main(line) == 0
    assert Generator.load(tmp_path / "out").steps == 1
    assert (tmp_path / "out" / "recipe.yaml").read_text() == recipe.read_text()
    assert "bits: 3" in (tmp_path / "out" / "README.md").read_text()
    assert compress_main(line) == OutputExists.exit_code
    packed, plain = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("out", "model"))
    assert packed < 0.8 * plain
