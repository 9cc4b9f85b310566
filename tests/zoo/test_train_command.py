from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modicum.zoo import train
from modicum.zoo.loop import Budget


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the command asked the recipe for."""
    asked: list[tuple[Any, ...]] = []

    def recipe(out: Path, work: Path, budget: Budget, seed: int, report: Callable[[str], None]) -> None:
        asked.append((out, work, budget, seed))
        if seed == 99:
            raise KeyboardInterrupt
        report("step 1")

    monkeypatch.setitem(train.RECIPES, "nano-lm", recipe)
    return asked


def test_defaults_and_progress(calls: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["nano-lm", "--steps", "2"]) == 0
    assert calls == [(Path("nano-lm"), Path("nano-lm.work"), Budget(steps=2), 0)]
    assert capsys.readouterr().out == "step 1\n"


def test_all_options(calls: list[tuple[Any, ...]]) -> None:
    arguments = ["nano-lm", "--out", "a/b", "--work", "c", "--minutes", "1.5", "--seed", "3"]
    assert train.main(arguments) == 0
    assert calls == [(Path("a/b"), Path("c"), Budget(minutes=1.5), 3)]


def test_unknown_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["nano-llm", "--steps", "2"]) == 2
    assert "Did you mean 'nano-lm'?" in capsys.readouterr().err


def test_negative_budget(calls: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["nano-lm", "--steps", "-2"]) == 2
    assert "above zero" in capsys.readouterr().err
    assert calls == []


def test_interruption_says_how_to_go_on(
    calls: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["nano-lm", "--steps", "2", "--seed", "99"]) == 130
    assert "same command" in capsys.readouterr().err
