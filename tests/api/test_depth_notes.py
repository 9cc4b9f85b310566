"""What modicum.json says of depth and training, as records of a comparison; damaged notes end in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modicum.api.depths import decisions, loss_curves
from modicum.errors import CheckpointError

SEARCH: dict[str, Any] = {
    "step": [5, 10],
    "loss": [0.5, None],
    "kept_probability": [[0.5, 0.5], [0.9, 0.1]],
    "confidence": [[0.5], [0.9]],
}
LEARNED = {"kept_blocks": [0], "of_blocks": 2, "groups": [[1, 2]], "confidence": [0.9], "loss": 0.5}


def noted(directory: Path, **notes: Any) -> Path:
    (directory / "modicum.json").write_text(json.dumps({"format": 1, "notes": notes}))
    return directory


def test_histories_are_read(tmp_path: Path) -> None:
    recovery = {"loss": 0.1, "history": {"step": [1], "loss": [0.2]}}
    made = noted(tmp_path, search={**LEARNED, "history": SEARCH}, recovery=recovery)
    (decision,) = decisions(made)
    assert decision.history is not None
    assert decision.history.kept_probability == ((0.5, 0.5), (0.9, 0.1))
    curves = loss_curves(made)
    assert list(curves) == ["search", "recovery"]
    assert curves["search"].loss == (0.5, None)


def test_notes_of_before_histories_are_read(tmp_path: Path) -> None:
    made = noted(tmp_path, search=LEARNED, shortgpt={"kept_blocks": [1], "of_blocks": 2})
    assert [decision.history for decision in decisions(made)] == [None, None]
    assert loss_curves(made) == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"history": {**SEARCH, "loss": [0.5]}},
        {"history": {**SEARCH, "kept_probability": [[0.5], [0.5]]}},
        {"history": {"step": [1]}},
        {"history": 7},
        {"history": SEARCH, "of_blocks": "two"},
    ],
)
def test_damaged_notes_are_named(wrong: dict[str, Any], tmp_path: Path) -> None:
    made = noted(tmp_path, search={**LEARNED, **wrong})
    with pytest.raises(CheckpointError, match=r"modicum\.json are damaged"):
        decisions(made)


@pytest.mark.parametrize("history", [{**SEARCH, "loss": [0.5]}, {"step": [1]}, 7])
def test_damaged_losses_are_named(history: Any, tmp_path: Path) -> None:
    made = noted(tmp_path, recovery={"loss": 0.1, "history": history})
    with pytest.raises(CheckpointError, match=r"modicum\.json are damaged"):
        loss_curves(made)


def test_a_model_of_elsewhere_says_nothing(tmp_path: Path) -> None:
    assert decisions(tmp_path) == []
    assert loss_curves(tmp_path) == {}
