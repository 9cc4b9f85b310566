"""Files that appear whole, and that are not replaced by accident."""

from __future__ import annotations

import os
from pathlib import Path

from modicum.errors import OutputExists


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse a file that is there already, before any work is done.

    Raises:
        OutputExists: it is there, and may not be replaced.
    """
    if path.exists() and not overwrite:
        raise OutputExists(f"{path} exists.", "Name another file, or pass --overwrite.")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole: under a temporary name first, in a directory that is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
