"""From what a user calls a model to the directory that holds it."""

from __future__ import annotations

import re
from pathlib import Path

from modicum.errors import CheckpointError, UnknownName
from modicum.zoo import names, path

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def locate(model: str | Path) -> Path:
    """The directory of a model.

    Args:
        model: a directory, the name of a nano model, or a hub id ("owner/name", fetched if it is not cached).

    Raises:
        CheckpointError: a path that does not exist, or a hub id that cannot be fetched.
        UnknownName: neither a directory nor a nano model.
    """
    directory = Path(model).expanduser()
    if directory.is_dir():
        return directory
    text = str(model)
    if text in names():
        return path(text)
    if isinstance(model, str) and HUB_ID.fullmatch(text) and not directory.parent.is_dir():
        return _fetch(text)
    if "/" in text or directory.is_file():
        raise CheckpointError(
            f"{text} is not a model directory.", "Give a directory, a nano model's name or a hub id."
        )
    raise UnknownName.among("model directory or nano model", text, names())


def _fetch(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except Exception as error:  # the hub client raises many unrelated classes: network, access, naming
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{hub_id} is neither a directory nor can it be fetched from the hub: {reason}",
            "Check the spelling and the network, or give a local directory.",
        ) from error
