"""The history of a training: its points, and that an interruption leaves no trace in it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modicum.trainer import Batch, Group, History, Moment, Record, Settings, Trainer
from modicum.trainer.history import MOST_POINTS

pytest.importorskip("accelerate")


def record(step: int, loss: float = 1.0, skipped: bool = False) -> Record:
    return Record(step, loss, 1.0, 1.0, skipped)


def filled(steps: int, losses: list[float] | None = None) -> History:
    history = History(steps, lambda: {"double": torch.tensor([2.0 * len(history.step)])})
    for step in range(1, steps + 1):
        history.add(record(step, 1.0 if losses is None else losses[step - 1]))
    return history


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3000))
def test_there_are_few_points_evenly_spread_and_the_end_is_one(steps: int) -> None:
    history = History(steps)
    for step in range(1, steps + 1):
        history.add(record(step))
    assert min(steps, MOST_POINTS // 2) <= len(history.step) <= MOST_POINTS
    assert history.step[-1] == steps
    gaps = [after - before for before, after in zip([0, *history.step], history.step, strict=False)]
    assert set(gaps[:-1]) <= {history.every}
    assert 1 <= gaps[-1] <= history.every


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-10, 10), min_size=1, max_size=700))
def test_the_points_together_hold_every_loss(losses: list[float]) -> None:
    history = filled(len(losses), losses)
    counts = [after - before for before, after in zip([0, *history.step], history.step, strict=False)]
    total = sum(count * loss for count, loss in zip(counts, history.loss, strict=True) if loss is not None)
    assert total == pytest.approx(sum(losses), abs=1e-9 * len(losses))


def test_steps_that_were_left_out_count_for_nothing() -> None:
    history = History(600)
    for step in range(1, 7):
        history.add(record(step, math.nan if step != 2 else 5.0, skipped=step != 2))
    assert history.loss == [5.0, None]
    assert history.notes()["loss"] == [5.0, None]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 900), st.data())
def test_a_state_through_json_goes_on_as_if_nothing_had_been(steps: int, data: Any) -> None:
    cut = data.draw(st.integers(0, steps))

    def value(step: int) -> float:
        return math.sin(step) / 3

    def advance(history: History, first: int, last: int) -> None:
        for step in range(first, last + 1):
            history.watch = lambda step=step: {"seen": torch.tensor([value(step), -value(step)])}
            history.add(record(step, value(step)))

    whole, begun, resumed = History(steps), History(steps), History(steps)
    advance(whole, 1, steps)
    advance(begun, 1, cut)
    resumed.restore(json.loads(json.dumps(begun.state())))
    advance(resumed, cut + 1, steps)
    assert json.dumps(resumed.state()) == json.dumps(whole.state())


def test_notes_are_short() -> None:
    history = History(1, lambda: {"p": torch.tensor([1 / 3, 1.0])})
    history.add(record(1, 0.123456789))
    assert history.notes() == {"step": [1], "loss": [0.12346], "p": [[0.3333, 1.0]]}


class Killed(Exception):
    """Stands for the end of the process."""


def loss(net: nn.Module, batch: Batch, at: Moment) -> Tensor:
    factor = math.nan if at.step == 3 else 1.0
    return (net(batch["x"]) - batch["x"]).square().mean() * factor


def training(work: Path | None, average: float | None, kill: int | None = None) -> Trainer:
    torch.manual_seed(0)
    net = nn.Linear(4, 4)

    def killing(seen: Record) -> None:
        if seen.step == kill:
            raise Killed

    return Trainer(
        net,
        [Group(list(net.parameters()), 1e-2)],
        loss,
        lambda index: {"x": torch.randn(8, 4, generator=torch.Generator().manual_seed(index))},
        Settings(steps=250, save_every=100, average=average),
        work,
        callbacks=[killing],
        watch=lambda: {"bias": net.bias},
    )


class TestInTheLoop:
    @pytest.mark.parametrize("killed", [50, 101, 249])
    def test_a_killed_training_has_the_same_history(self, killed: int, tmp_path: Path) -> None:
        whole = training(None, 0.9)
        whole.run()
        with pytest.raises(Killed):
            training(tmp_path, 0.9, killed).run()
        resumed = training(tmp_path, 0.9)
        resumed.run()
        assert json.dumps(resumed.history.state()) == json.dumps(whole.history.state())
        assert len(whole.history.step) == 125
        finished = training(tmp_path, 0.9)
        finished.run()
        assert finished.history.notes() == whole.history.notes()

    def test_what_is_watched_is_the_average(self) -> None:
        run = training(None, 0.9)
        run.run()
        assert run.average is not None
        last = run.history.series["bias"][-1]
        assert torch.equal(last, run.average.values["bias"])
        assert not torch.equal(last, run.model.bias.detach())

    def test_without_an_average_it_is_the_weights(self) -> None:
        run = training(None, None)
        run.run()
        assert torch.equal(run.history.series["bias"][-1], run.model.bias.detach())

    def test_a_checkpoint_of_before_histories_is_taken_up(self, tmp_path: Path) -> None:
        with pytest.raises(Killed):
            training(tmp_path, 0.9, 230).run()
        file = tmp_path / "step-00000200" / "training.json"
        state = json.loads(file.read_text())
        del state["history"]
        file.write_text(json.dumps(state))
        resumed = training(tmp_path, 0.9)
        resumed.run()
        assert resumed.history.step == list(range(202, 251, 2))
