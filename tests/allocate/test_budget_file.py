"""Budget files in the published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modicum.allocate import CacheBudget, read_budget, scale_aware, write_budget
from modicum.errors import CheckpointError, InvalidSetting
from modicum.models.next_scale import Schedule

MEGAPIXEL = Schedule.square((1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))
DRAFTERS_2B = {(layer, k) for layer in (0, 23) for k in range(8, 13)} - {(23, 12)}
# "Scale": (drafters, "Max", "Min", "Limit"), the figures of the released file for Infinity-2B at 10 %
RELEASED_2B = {
    9: ((0, 23), 920, 632, 921),
    10: ((0, 23), 1490, 594, 1496),
    11: ((0, 23), 2510, 526, 2514),
    12: ((0, 23), 4100, 420, 4110),
    13: ((0,), 6385, 465, 6404),
}


def released(layers: int = 32) -> dict[str, dict[str, int]]:
    return {
        f"Scale {scale}": {
            **{f"Block {layer}": int(layer in drafters) for layer in range(layers)},
            "High": len(drafters),
            "Max": most,
            "Min": least,
            "Limit": limit,
        }
        for scale, (drafters, most, least, limit) in RELEASED_2B.items()
    }


def test_a_released_file_is_the_rule(tmp_path: Path) -> None:
    file = tmp_path / "2b_10%_budget.json"
    file.write_text(json.dumps(released()))
    drafters, budget = read_budget(file, MEGAPIXEL, 32)
    assert drafters == DRAFTERS_2B
    assert budget == scale_aware(MEGAPIXEL, 32, 650, drafters)


def test_the_rule_writes_the_released_file(tmp_path: Path) -> None:
    file = tmp_path / "budget.json"
    write_budget(file, DRAFTERS_2B, scale_aware(MEGAPIXEL, 32, 650, DRAFTERS_2B))
    assert json.loads(file.read_text()) == released()


def test_three_levels_cannot_be_written(tmp_path: Path) -> None:
    schedule = Schedule.square((2, 2, 2))
    pyramid = CacheBudget(schedule, ((0, 4, 6), (0, 4, 4), (0, 4, 2)))
    with pytest.raises(InvalidSetting, match="no split"):
        write_budget(tmp_path / "budget.json", {(0, 2)}, pyramid)
    assert not (tmp_path / "budget.json").exists()


@pytest.mark.parametrize(
    ("schedule", "layers", "message"),
    [
        (MEGAPIXEL, 40, "for a model of 32 layers, this one has 40"),
        (MEGAPIXEL.prefix(12), 32, "lists scales .* of a schedule of 12 maps"),
        (
            Schedule.square((1, 2, 4, 6, 8, 12, 17, 20, 24, 32, 40, 48, 64)),
            32,
            "before scale 9 .* 921 .* 954",
        ),
        (
            Schedule.square((1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 47, 64)),
            32,
            "before scale 13 .* 6404 .* 6309",
        ),
    ],
)
def test_a_file_for_another_model(tmp_path: Path, schedule: Schedule, layers: int, message: str) -> None:
    file = tmp_path / "budget.json"
    file.write_text(json.dumps(released()))
    with pytest.raises(CheckpointError, match=message):
        read_budget(file, schedule, layers)


def changed(scale: str, key: str, value: Any) -> str:
    entries: dict[str, Any] = released()
    entries[scale] = {**entries.get(scale, {}), key: value}
    return json.dumps(entries)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("[" * 10_000, "cannot be read"),
        ("[]", "holds no object"),
        ('{"Map 9": {}}', "not the budget of a scale"),
        ('{"Scale 0": {}}', "not the budget of a scale"),
        ('{"Scale 9": 650}', "not the budget of a scale"),
        (changed("Scale 8", "High", 1), "other keys"),
        (changed("Scale 9", "Block x", 1), "other keys"),
        (changed("Scale 9", "Max", "920"), "something else than counts"),
        (changed("Scale 9", "Max", -1), "something else than counts"),
        (changed("Scale 9", "Block 1", 1), "names 3 drafters and counts 2"),
        (changed("Scale 9", "Block 1", 2), "names 4 drafters"),
        (changed("Scale 13", "Max", 7000), "more than it holds"),
        (json.dumps({k: v for k, v in released().items() if k != "Scale 11"}), "lists scales"),
    ],
)
def test_damaged_files(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "budget.json"
    file.write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_budget(file, MEGAPIXEL, 32)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_budget(tmp_path / "nothing.json", MEGAPIXEL, 32)
