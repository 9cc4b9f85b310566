"""The nano models: small enough to travel inside the package, each with its card and its recipe."""

from __future__ import annotations

from pathlib import Path

from modicum.errors import UnknownName

_WEIGHTS = Path(__file__).parent / "weights"


def names() -> list[str]:
    """Names of the nano models that are shipped with this package."""
    return sorted(entry.name for entry in _WEIGHTS.glob("[!._]*") if (entry / "metrics.json").is_file())


def path(name: str) -> Path:
    """Directory of a nano model, to be opened with `from_pretrained`.

    Raises:
        UnknownName: there is no such model.
    """
    if name not in names():
        raise UnknownName.among("nano model", name, names())
    return _WEIGHTS / name
