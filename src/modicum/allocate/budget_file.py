"""Budgets of ScaleKV in the layout of the released files.

    {"Scale 9": {"Block 0": 1, "Block 1": 0, ..., "High": 1, "Max": 920, "Min": 632, "Limit": 921}, "Scale 10": ...}

"Scale k", counted from 1, is the cache carried into the k-th map; maps that are not listed carry everything.
"Block l", counted from 0, is 1 for a drafter and 0 for a refiner; "High" counts the drafters. A drafter carries "Max"
tokens, a refiner "Min", and "Limit" is what a drafter holds at that point.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from modicum.allocate.cache_tokens import CacheBudget, Drafters
from modicum.errors import CheckpointError, InvalidSetting
from modicum.models.next_scale import Schedule

Entry = dict[str, int]
_SCALE = re.compile(r"Scale [1-9][0-9]{0,3}")
_COUNTS = {"High", "Max", "Min", "Limit"}


def write_budget(file: str | Path, drafters: Drafters, budget: CacheBudget) -> None:
    """Write a budget with two levels per map, as `scale_aware` makes them.

    Args:
        file: to write.
        drafters: the (layer, map) pairs that got more.
        budget: theirs and the refiners'.

    Raises:
        InvalidSetting: the budget has more than two levels at a map, which the layout cannot hold.
    """
    entries: dict[str, Entry] = {}
    for k in budget.pruned:
        entries[f"Scale {k + 1}"] = _entry(budget, k, drafters, _limit(entries, budget.schedule, k))
    if _budget(entries, budget.schedule, budget.layers) != budget:
        raise InvalidSetting(
            "The budget is no split between drafters and refiners, so a budget file cannot hold it.",
            "Write what scale_aware made, with the same drafters.",
        )
    Path(file).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def read_budget(
    file: str | Path, schedule: Schedule, layers: int
) -> tuple[frozenset[tuple[int, int]], CacheBudget]:
    """The drafters (layer, map), counted from 0, and the budget in a file.

    Args:
        file: a released file, or one that `write_budget` wrote.
        schedule: maps of the model.
        layers: self-attention layers of the model.

    Raises:
        CheckpointError: unreadable, of another layout, or made for another depth or schedule.
    """
    entries = _entries(Path(file))
    _check_depth(file, entries, layers)
    _check_schedule(file, entries, schedule)
    drafters = frozenset(
        (layer, _map(name))
        for name, entry in entries.items()
        for layer in range(layers)
        if entry[f"Block {layer}"]
    )
    return drafters, _budget(entries, schedule, layers)


def _entry(budget: CacheBudget, k: int, drafters: Drafters, limit: int) -> Entry:
    """What the file says of map k; layers that hold less than their share follow from the earlier maps."""
    members = [(layer, k) in drafters for layer in range(budget.layers)]
    refined = [row[k] for row, member in zip(budget.tokens, members, strict=True) if not member]
    most = max(row[k] for row in budget.tokens)
    blocks = {f"Block {layer}": int(member) for layer, member in enumerate(members)}
    return {**blocks, "High": sum(members), "Max": most, "Min": max(refined, default=most), "Limit": limit}


def _budget(entries: dict[str, Entry], schedule: Schedule, layers: int) -> CacheBudget:
    wishes = [list(schedule.offsets[:-1]) for _ in range(layers)]
    for name, entry in entries.items():
        for layer, row in enumerate(wishes):
            row[_map(name)] = entry["Max" if entry[f"Block {layer}"] else "Min"]
    return CacheBudget.wanted(schedule, wishes)


def _entries(file: Path) -> dict[str, Entry]:
    """The file's entries: names and numbers are what they should be."""
    hint = "Give a budget file of ScaleKV."
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}", hint) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{file} holds no object.", hint)
    for name, entry in data.items():
        fault = _fault(name, entry)
        if fault:
            raise CheckpointError(f"{file}: {name!r} {fault}.", hint)
    return data


def _fault(name: str, entry: Any) -> str:
    """What is wrong with an entry; empty if nothing is."""
    if not _SCALE.fullmatch(name) or not isinstance(entry, dict):
        return "is not the budget of a scale"
    wanted = _COUNTS | {f"Block {layer}" for layer in range(len(entry) - len(_COUNTS))}
    if entry.keys() != wanted:
        return f"has other keys than it should: {', '.join(sorted(entry.keys() ^ wanted)[:4])}"
    if any(type(value) is not int or value < 0 for value in entry.values()):
        return "holds something else than counts"
    blocks = [entry[key] for key in entry.keys() - _COUNTS]
    if not set(blocks) <= {0, 1} or sum(blocks) != entry["High"]:
        return f"names {sum(blocks)} drafters and counts {entry['High']}"
    return "lets a drafter carry more than it holds" if entry["Max"] > entry["Limit"] else ""


def _check_depth(file: str | Path, entries: dict[str, Entry], layers: int) -> None:
    for name, entry in entries.items():
        found = len(entry) - len(_COUNTS)
        if found != layers:
            raise CheckpointError(
                f"{file}: {name} is for a model of {found} layers, this one has {layers}.",
                "Give the budget file of this model, or measure its selectivity.",
            )


def _check_schedule(file: str | Path, entries: dict[str, Entry], schedule: Schedule) -> None:
    """Listed are the last maps without a gap, and the limits say how many tokens the maps have."""
    hint = "Give a budget file for the same maps."
    maps = sorted(_map(name) for name in entries)
    last = len(schedule)
    if maps and maps != list(range(maps[0], last)):
        raise CheckpointError(
            f"{file}: it lists scales {[k + 1 for k in maps]} of a schedule of {last} maps.", hint
        )
    for k in maps:
        found, limit = entries[f"Scale {k + 1}"]["Limit"], _limit(entries, schedule, k)
        if found != limit:
            raise CheckpointError(
                f"{file}: before scale {k + 1} a drafter holds {found} tokens, in this schedule {limit}.",
                hint,
            )


def _limit(entries: dict[str, Entry], schedule: Schedule, k: int) -> int:
    """What a drafter holds before map k: its tokens of the map before and that map, or the whole prefix."""
    before = entries.get(f"Scale {k}")
    return before["Max"] + schedule.tokens[k - 1] if before else schedule.offsets[k]


def _map(name: str) -> int:
    return int(name.removeprefix("Scale ")) - 1
