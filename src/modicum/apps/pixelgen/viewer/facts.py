"""What is known beside the pictures, as plain JSON values: readings, what was lost, what it cost, where colour is from.

Energies are a model and say so (`basis`); the same radio carrying the picture of a colour camera is set beside them.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from modicum.apps.pixelgen.energy import RGB_CAMERAS, EnergyModel, FrameEnergy
from modicum.apps.pixelgen.overlay import gauges
from modicum.apps.pixelgen.prompt import sentence
from modicum.apps.pixelgen.viewer.painting import Painted


def facts(painted: Painted, name: str, energy: EnergyModel) -> dict[str, Any]:
    """Everything that is shown about a frame.

    Args:
        painted: the frame and its pictures.
        name: of the generator.
        energy: model of the colour cameras.
    """
    frame = painted.frame
    return {
        "node": frame.node,
        "number": frame.number,
        "size": [frame.frame.shape[1], frame.frame.shape[0]],
        "sentence": sentence(frame.readings),
        "gauges": gauges(frame.readings),
        "direction": painted.direction,
        "lost": {"pixels": int((~frame.mask).sum()), "share": 1 - float(frame.mask.mean())},
        "statistics": asdict(frame.statistics),
        "cost": _cost(frame.nbytes, frame.energy, energy),
        "painting": {"seconds": painted.seconds, "generator": name},
        "provenance": provenance(name, painted.direction is not None),
    }


def provenance(name: str, directed: bool) -> dict[str, str]:
    """Where each of the three pictures comes from, in a few sentences each."""
    place = "four simulated microphones beside this viewer" if directed else "nobody: the place is fixed"
    return {
        "raw": "Measured. Teal where packets were lost.",
        "generated": f"Generated colour, by {name}: plausible, not measured. Brightness is measured, developed to "
        "the eye's curve, and generated only where packets were lost.",
        "overlay": "Generated colour, tinted by the readings. Level and tone of the sound are measured by the "
        f"node; where it comes from is told by {place}.",
    }


def _cost(nbytes: int, spent: FrameEnergy | None, model: EnergyModel) -> dict[str, Any]:
    """Bytes and modelled energy of this frame and of colour cameras in its place; None where it came by wire."""
    period = spent.period if spent else None
    cameras = [(camera, model.rgb_frame(camera, *([period] if period else []))) for camera in RGB_CAMERAS]
    return {
        "basis": "model",
        "nbytes": nbytes,
        "energy": spent.model_dump(mode="json") if spent else None,
        "cell_days": model.cell_days(spent) if spent else None,
        "cameras": [
            {"name": camera.name, "nbytes": camera.nbytes, "total": cost.total} for camera, cost in cameras
        ],
    }
