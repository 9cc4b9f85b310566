from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from modicum.errors import CheckpointError, InvalidSetting, NotFinite
from modicum.zoo.loop import CHECKPOINT, Budget, Loop


class Stop(Exception):
    """Stands in for the kill of the process."""


def regression(
    work: Path, steps: int = 12, stop_at: int | None = None, identity: str = "r", scale: float = 1
) -> Loop:
    """A loop that fits a line; saves after every step; dies at the start of step `stop_at`."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)

    def loss_at(step: int, progress: float) -> Tensor:
        if step == stop_at:
            raise Stop
        inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return scale * (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()

    quiet: Callable[[str], None] = lambda line: None  # noqa: E731
    return Loop(
        model, loss_at, Budget(steps=steps), identity, work, lr=0.1, warmup=2, save_seconds=-1, report=quiet
    )


def test_training_learns(tmp_path: Path) -> None:
    loop = regression(tmp_path, steps=100)
    before = loop.loss_at(0, 0.0).item()
    loop.run()
    assert loop.step == 100
    assert loop.loss_at(0, 1.0).item() < 0.1 * before


@pytest.mark.parametrize("stop_at", [1, 5, 11])
def test_resumed_training_ends_in_the_same_bytes(tmp_path: Path, stop_at: int) -> None:
    regression(tmp_path / "whole").run()
    with pytest.raises(Stop):
        regression(tmp_path / "parts", stop_at=stop_at).run()
    resumed = regression(tmp_path / "parts")
    resumed.run()
    whole = regression(tmp_path / "whole")
    whole.resume()
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(whole.optimizer.state[a]["exp_avg_sq"], resumed.optimizer.state[b]["exp_avg_sq"])


def test_finished_training_is_not_continued(tmp_path: Path) -> None:
    regression(tmp_path).run()
    regression(tmp_path, stop_at=12).run()


def test_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    regression(tmp_path).run()
    with pytest.raises(CheckpointError, match="another training"):
        regression(tmp_path, identity="other").run()


def test_checkpoint_leaves_no_partial_file(tmp_path: Path) -> None:
    regression(tmp_path).run()
    assert [file.name for file in tmp_path.iterdir()] == [CHECKPOINT]


def test_diverged_training_stops(tmp_path: Path) -> None:
    with pytest.raises(NotFinite, match="step 1"):
        regression(tmp_path, scale=float("nan")).run()


def test_learning_rate_rises_and_falls(tmp_path: Path) -> None:
    loop = regression(tmp_path, steps=12)
    rates = []
    for step in range(12):
        loop._train_step(loop.budget.progress(step, 0))
        rates.append(loop.optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[1]
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert rates[-1] < 0.003


@pytest.mark.parametrize(("steps", "minutes"), [(None, None), (0, None), (None, -1.0), (3, 2.0)])
def test_budget_needs_one_positive_length(steps: int | None, minutes: float | None) -> None:
    with pytest.raises(InvalidSetting):
        Budget(steps=steps, minutes=minutes)


def test_budget_measures_progress() -> None:
    assert Budget(steps=10).progress(5, 1e9) == 0.5
    assert Budget(minutes=2).progress(10**9, 30) == 0.25
    assert Budget(minutes=2).progress(0, 500) == 1.0
