"""The screen of `modicum pixelgen energy`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from modicum.apps.pixelgen.energy import EnergyModel, FrameEnergy

PARTS = ("camera", "processor", "sensors", "transmit", "acknowledge", "sleep", "total")


def energy_table(model: EnergyModel, frames: Mapping[str, FrameEnergy]) -> Group:
    """Energy by part and camera, then the constants with their sources.

    Args:
        model: the constants.
        frames: by the name of the camera; the first is the one that the others are compared with.
    """
    first = next(iter(frames.values()))
    table = Table(
        box=None, padding=(0, 2, 0, 0), title="Energy per frame: model, not measured", title_justify="left"
    )
    table.add_column("mJ")
    for name in frames:
        table.add_column(name, justify="right")
    for part in PARTS:
        table.add_row(part, *(f"{1000 * getattr(frame, part):.3f}" for frame in frames.values()))
    table.add_row("times as much", *(f"{frame.total / first.total:.1f}" for frame in frames.values()))
    table.add_row("packets", *(f"{frame.packets}" for frame in frames.values()))
    table.add_row("seconds on the air", *(f"{frame.air_seconds:.3f}" for frame in frames.values()))
    table.add_row("days on a coin cell", *(f"{model.cell_days(frame):.1f}" for frame in frames.values()))
    constants = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("constant", "value", "unit", "source"):
        constants.add_column(heading, no_wrap=heading != "source")
    for name, value, unit, source in model.constants():
        constants.add_row(name, f"{value:g}", unit, Text(source, style="dim"))
    return Group(table, Text(), constants)
