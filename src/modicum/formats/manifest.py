"""modicum.json: what was done to a checkpoint, layer by layer, and how to rebuild it.

::

    {"format": 1,
     "recipe": {...},                      the steps that made it
     "source": {...},                      name and hashes of the original
     "history": [{"recipe", "source"}, ..] what earlier runs did to that original, the first one first
     "versions": {...},                    of modicum, torch, transformers
     "layers": {NAME: {"form": {...},      kind, shape and settings of the stored form; absent if stored dense
                       "role", "block", "nbytes", "dense_nbytes", "sparsity", "bits", "weight_error", ...}},
     "shapes": {PARAMETER: [..]},          parameters whose shape differs from what config.json implies
     "attributes": {MODULE.ATTRIBUTE: n},  integers that a module needs to work with such shapes
     "promises": {NAME: [..]},             properties that hold for a layer
     "coded": {...},                       how weights are coded without loss (`modicum.formats.coded`)
     "notes": {METHOD: {...}},             what steps over the whole model found out (kept blocks, confidence)
     "files": {FILE: sha256}}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from modicum.errors import CheckpointError
from modicum.formats.shards import write_json
from modicum.method import readable

FILE = "modicum.json"
FORMAT = 1


class Manifest(BaseModel):
    """The content of modicum.json."""

    model_config = ConfigDict(extra="ignore")

    format: int = FORMAT
    recipe: dict[str, Any] = {}
    source: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    versions: dict[str, str] = {}
    layers: dict[str, dict[str, Any]] = {}
    shapes: dict[str, list[int]] = {}
    attributes: dict[str, int] = {}
    promises: dict[str, list[str]] = {}
    coded: dict[str, Any] = {}
    notes: dict[str, dict[str, Any]] = {}
    files: dict[str, str] = {}

    def past(self) -> list[dict[str, Any]]:
        """The history of what is made out of this checkpoint."""
        return [*self.history, {"recipe": self.recipe, "source": self.source}]

    def forms(self) -> dict[str, dict[str, Any]]:
        """The specification of every layer that is stored in another form than dense."""
        return {name: record["form"] for name, record in self.layers.items() if record.get("form")}

    def write(self, directory: Path) -> None:
        """Write modicum.json into `directory`."""
        write_json(directory / FILE, self.model_dump(mode="json"))

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Read modicum.json from `directory`.

        Raises:
            CheckpointError: it is missing, not valid, or of a newer format.
        """
        file = directory / FILE
        try:
            manifest = cls.model_validate(json.loads(file.read_text()))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{file} is missing.", "Copy the checkpoint again, with all its files."
            ) from error
        except ValidationError as error:
            raise CheckpointError(f"{file} is not valid: {readable(error)}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{file} is not valid JSON.", "Copy it again.") from error
        if manifest.format > FORMAT:
            raise CheckpointError(
                f"{file} has format {manifest.format}; this modicum reads up to {FORMAT}.", "Upgrade modicum."
            )
        return manifest

    @classmethod
    def present(cls, directory: Path) -> Manifest | None:
        """The manifest of `directory`, or None if modicum did not make it."""
        return cls.read(directory) if (directory / FILE).exists() else None
