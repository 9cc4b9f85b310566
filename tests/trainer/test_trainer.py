"""The training loop: what a step does, what a checkpoint holds, what is refused."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from modicum.errors import CheckpointError, InvalidSetting, NotFinite
from modicum.trainer import Batch, Group, Moment, Record, Settings, Trainer

pytest.importorskip("accelerate")


def model(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.2), nn.GELU(), nn.Linear(16, 3)).train()


def batches(index: int) -> Batch:
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(index))
    return {"x": x, "y": x[:, :3].roll(1, 1)}


def noisy_loss(net: nn.Module, batch: Batch, at: Moment) -> Tensor:
    noise = 0.1 * torch.randn(batch["x"].shape, generator=at.generator)
    return (net(batch["x"] + noise) - batch["y"]).square().mean()


class Killed(Exception):
    """Stands for the end of the process."""


def kill_after(step: int) -> Callable[[Record], None]:
    def callback(record: Record) -> None:
        if record.step == step:
            raise Killed

    return callback


def trainer(net: nn.Module, work: Path | None = None, steps: int = 12, **changes: Any) -> Trainer:
    options = {key: changes.pop(key) for key in ("loss", "callbacks", "groups", "identity") if key in changes}
    settings = Settings(
        **{"steps": steps, "save_every": 5, "average": 0.9, "warmup": 2, "schedule": "cosine"} | changes
    )
    groups: Sequence[Group] = options.pop("groups", [Group(list(net.parameters()), 1e-2)])
    return Trainer(net, groups, options.pop("loss", noisy_loss), batches, settings, work, **options)


def content(state: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


class TestResume:
    @pytest.mark.parametrize("killed", [3, 5, 7, 11])
    def test_a_killed_training_ends_with_the_same_bytes(self, killed: int, tmp_path: Path) -> None:
        whole = trainer(model())
        whole.run()
        with pytest.raises(Killed):
            trainer(model(), tmp_path, callbacks=[kill_after(killed)]).run()
        # Where there is a checkpoint, the weights come from it.
        resumed = trainer(model(seed=99 if killed > 5 else 0), tmp_path)
        assert resumed.step == (killed - 1) // 5 * 5  # saved after steps 5 and 10
        resumed.run()
        assert content(resumed.state_dict()) == content(whole.state_dict())
        assert content(resumed.model.state_dict()) == content(whole.model.state_dict())

    def test_a_finished_training_is_not_repeated(self, tmp_path: Path) -> None:
        first = trainer(model(), tmp_path)
        done = first.run()
        again = trainer(model(seed=5), tmp_path, callbacks=[kill_after(1)])
        assert again.run().loss == pytest.approx(done.loss)
        assert content(again.state_dict()) == content(first.state_dict())

    def test_what_is_frozen_is_not_stored(self, tmp_path: Path) -> None:
        def half_frozen() -> nn.Sequential:
            net = model()
            net[0].requires_grad_(False)
            return net

        whole = trainer(half_frozen())
        whole.run()
        with pytest.raises(Killed):
            trainer(half_frozen(), tmp_path, callbacks=[kill_after(7)]).run()
        stored = load_file(tmp_path / "step-00000005" / "model.safetensors")
        assert stored.keys() == {"3.weight", "3.bias"}
        resumed = trainer(half_frozen(), tmp_path)
        resumed.run()
        assert content(resumed.state_dict()) == content(whole.state_dict())

    def test_one_checkpoint_is_kept(self, tmp_path: Path) -> None:
        trainer(model(), tmp_path).run()
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000012"]

    def test_another_recipe_is_refused_by_name(self, tmp_path: Path) -> None:
        trainer(model(), tmp_path, identity={"method": "a"}).run()
        with pytest.raises(CheckpointError, match=r"another training \(method 'a' there, 'b' here"):
            trainer(model(), tmp_path, identity={"method": "b"})
        with pytest.raises(CheckpointError, match="steps 12 there, 13 here"):
            trainer(model(), tmp_path, steps=13, identity={"method": "a"})

    @pytest.mark.parametrize(
        "file", ["training.json", "model.safetensors", "optimizer.bin", "average-0.safetensors"]
    )
    def test_a_damaged_checkpoint_is_named(self, file: str, tmp_path: Path) -> None:
        trainer(model(), tmp_path).run()
        damaged = tmp_path / "step-00000012" / file
        damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
        with pytest.raises(CheckpointError, match="step-00000012"):
            trainer(model(), tmp_path)

    def test_an_unfinished_checkpoint_is_passed_over(self, tmp_path: Path) -> None:
        with pytest.raises(Killed):
            trainer(model(), tmp_path, callbacks=[kill_after(7)]).run()
        (tmp_path / "step-00000010").mkdir()
        assert trainer(model(), tmp_path).step == 5


class TestStep:
    def test_it_is_adamw(self) -> None:
        net, twin = model().eval(), model().eval()
        trainer(net, steps=4, warmup=0, average=None, schedule="constant", loss=plain_loss).run()
        optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.0)
        for index in range(4):
            optimizer.zero_grad()
            plain_loss(twin, batches(index)).backward()
            nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
            optimizer.step()
        torch.testing.assert_close(net.state_dict(), twin.state_dict(), rtol=0, atol=0)

    def test_accumulated_batches_equal_one_large_batch(self) -> None:
        net, twin = model().eval(), model().eval()
        options: dict[str, Any] = {"average": None, "schedule": "constant", "warmup": 0}
        trainer(net, steps=3, accumulate=4, loss=plain_loss, **options).run()

        def large(index: int) -> Batch:
            parts = [batches(4 * index + part) for part in range(4)]
            return {key: torch.cat([part[key] for part in parts]) for key in ("x", "y")}

        Trainer(twin, [Group(list(twin.parameters()), 1e-2)], plain_loss, large, Settings(steps=3)).run()
        torch.testing.assert_close(net.state_dict(), twin.state_dict(), rtol=1e-5, atol=1e-6)

    def test_groups_have_their_own_learning_rates(self) -> None:
        net, before = model().eval(), model().eval().state_dict()
        groups = [Group(list(net[0].parameters()), 1e-3), Group(list(net[3].parameters()), 1e-1)]
        trainer(net, steps=1, groups=groups, warmup=0, schedule="constant", loss=plain_loss).run()
        moved = {name: (value - before[name]).abs().max().item() for name, value in net.state_dict().items()}
        # Adam's first step is the learning rate itself.
        assert moved["0.weight"] == pytest.approx(1e-3, rel=1e-3)
        assert moved["3.weight"] == pytest.approx(1e-1, rel=1e-3)

    def test_frozen_parameters_stay(self) -> None:
        net = model()
        net[0].requires_grad_(False)
        before = net[0].weight.clone()
        trainer(net).run()
        assert torch.equal(net[0].weight, before)

    def test_the_average_follows_its_formula(self) -> None:
        net, seen = model().eval(), []
        run = trainer(net, steps=5, loss=plain_loss, callbacks=[lambda _: seen.append(net[3].bias.clone())])
        expected = net[3].bias.detach().clone()
        run.run()
        for value in seen:
            expected = 0.9 * expected + 0.1 * value
        torch.testing.assert_close(run.state_dict()["3.bias"], expected.detach())

    def test_gradients_are_clipped_together(self) -> None:
        norms: list[float] = []
        net = model().eval()
        run = trainer(
            net, steps=1, clip=0.01, loss=plain_loss, callbacks=[lambda r: norms.append(r.gradient)]
        )
        run.run()
        assert norms[0] > 0.01

    def test_autocast_computes_in_bfloat16(self) -> None:
        kinds = []

        def loss(net: nn.Module, batch: Batch, at: Moment) -> Tensor:
            kinds.append(net(batch["x"]).dtype)
            return noisy_loss(net, batch, at)

        trainer(model(), steps=1, bf16=True, loss=loss).run()
        assert kinds == [torch.bfloat16]

    def test_the_users_random_numbers_are_left_alone(self) -> None:
        net = model()
        state = torch.random.get_rng_state()
        trainer(net, steps=2).run()
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_progress_names_step_loss_and_time(self) -> None:
        lines: list[str] = []
        run = trainer(model())
        run.report = lines.append
        run.run()
        assert lines[-1].startswith("step 12/12  loss ")
        assert lines[-1].endswith(" left")


class TestNotFinite:
    def test_a_bad_step_is_left_out_and_counted(self) -> None:
        def loss(net: nn.Module, batch: Batch, at: Moment) -> Tensor:
            return noisy_loss(net, batch, at) * (math.nan if at.step in (2, 3, 7) else 1.0)

        run = trainer(model(), loss=loss)
        done = run.run()
        assert (done.steps, done.skipped) == (12, 3)
        assert math.isfinite(done.loss)
        assert all(bool(torch.isfinite(value).all()) for value in run.state_dict().values())

    def test_ten_in_a_row_end_the_training(self) -> None:
        run = trainer(model(), steps=100, loss=lambda net, batch, at: noisy_loss(net, batch, at) * math.inf)
        with pytest.raises(NotFinite, match="10 steps in a row, up to 10"):
            run.run()

    def test_nothing_to_train_is_refused(self) -> None:
        with pytest.raises(InvalidSetting, match="No parameter"):
            trainer(model().requires_grad_(False))


def plain_loss(net: nn.Module, batch: Batch, at: Moment | None = None) -> Tensor:
    return (net(batch["x"]) - batch["y"]).square().mean()


class TestSchedule:
    @given(steps=st.integers(1, 500), warmup=st.integers(0, 50), final=st.floats(0, 1))
    def test_it_rises_then_falls_to_its_end(self, steps: int, warmup: int, final: float) -> None:
        settings = Settings(steps=steps, warmup=warmup, final=final, schedule="cosine")
        factors = [settings.factor(step) for step in range(steps)]
        assert all(0 < f <= 1 + 1e-12 for f in factors[:warmup])
        assert factors[:warmup] == sorted(factors[:warmup])
        assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
        if steps > warmup + 1:
            assert factors[-1] == pytest.approx(final, abs=1e-12)

    def test_constant_is_constant(self) -> None:
        assert {Settings(steps=9).factor(step) for step in range(9)} == {1.0}


WORKER = """
import sys, torch
sys.path.insert(0, {folder!r})
import test_trainer as t
net = t.model().eval()
run = t.trainer(net, steps=4, accumulate={accumulate}, loss=t.plain_loss, average=None, schedule="constant", warmup=0)
run.run()
if run._accelerator.is_main_process:
    torch.save(run.state_dict(), sys.argv[1])
"""


def test_two_processes_train_as_one_with_twice_the_batches(tmp_path: Path) -> None:
    """DDP over two processes with one batch each is one process that accumulates the same two batches."""
    script, out = tmp_path / "worker.py", tmp_path / "state.pt"
    script.write_text(WORKER.format(folder=str(Path(__file__).parent), accumulate=1))
    line = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--master_port=0",
        "--standalone",
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*line, str(script), str(out)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    net = model().eval()
    trainer(net, steps=4, accumulate=2, loss=plain_loss, average=None, schedule="constant", warmup=0).run()
    torch.testing.assert_close(
        torch.load(out, weights_only=True), dict(net.state_dict()), rtol=1e-5, atol=1e-6
    )
