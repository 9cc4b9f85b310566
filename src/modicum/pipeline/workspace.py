"""The unfinished output: a directory beside the final one that holds finished blocks and can be taken up again.

`OUT.partial/` contains run.json (a fingerprint of everything that shapes the result), and for every finished block
its tensors and its records. The records are written last: a block counts as finished when they are there. When all
is done the directory is renamed to OUT, so that nothing half-written ever bears the final name.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from modicum.errors import CheckpointError, OutputExists
from modicum.formats.manifest import FILE
from modicum.formats.shards import Shards, no_space, write_json, write_tensors

RUN = "run.json"
HIDDEN = "hidden.bin"
REPLACED = "replaced"


class Workspace:
    """The partial output of one run.

    Args:
        out: the final directory.
        fingerprint: what the run is: recipe, source, data, format. A run with another one does not resume this.
        overwrite: replace `out` if it exists; only what modicum wrote (or an empty directory) is ever replaced.

    Raises:
        OutputExists: `out` exists, or an unfinished run of something else is in its place.
    """

    def __init__(self, out: Path, fingerprint: dict[str, Any], *, overwrite: bool = False) -> None:
        self.out, self.overwrite = out.resolve(), overwrite
        if not self.out.name:
            raise OutputExists(f"{out} is the root of the file system.", "Choose another --out.")
        self.root = self.out.with_name(self.out.name + ".partial")
        self.blocks = self.root / "blocks"
        if not self._same_run(self.out / RUN, fingerprint):  # else `publish` was cut short
            self._refuse_existing()
            self._begin(fingerprint)

    def _refuse_existing(self) -> None:
        if not self.out.exists():
            return
        if not self.overwrite:
            raise OutputExists(
                f"{self.out} exists.", "Choose another --out, or pass --overwrite to replace it."
            )
        ours = (self.out / FILE).is_file() or (self.out.is_dir() and not any(self.out.iterdir()))
        if not ours:
            raise OutputExists(
                f"{self.out} exists and was not written by modicum.",
                "--overwrite replaces only what modicum wrote; choose another --out.",
            )

    def _begin(self, fingerprint: dict[str, Any]) -> None:
        run = self.root / RUN
        if run.exists() and not self._same_run(run, fingerprint):
            raise OutputExists(
                f"{self.root} holds an unfinished run with another model, recipe or data.",
                f"Repeat the command that began it to finish it, or delete it: rm -r {self.root}",
            )
        try:
            self.blocks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise no_space(self.blocks, error) from error
        if not run.exists():
            write_json(run, fingerprint)

    @staticmethod
    def _same_run(run: Path, fingerprint: dict[str, Any]) -> bool:
        try:
            return bool(json.loads(run.read_text()) == json.loads(json.dumps(fingerprint)))
        except (OSError, ValueError):
            return False

    def nbytes(self) -> int:
        """Bytes that an earlier run has left here."""
        return sum(file.stat().st_size for file in self.root.rglob("*") if file.is_file())

    def finished(self) -> int:
        """How many blocks are finished, from the first on."""
        count = 0
        while self._records(count).exists():
            count += 1
        return count

    def write_block(self, index: int, tensors: dict[str, Tensor], records: dict[str, Any]) -> None:
        """Store a finished block."""
        write_tensors(self._tensors(index), tensors)
        write_json(self._records(index), records)

    def write_rest(self, tensors: dict[str, Tensor], part: int) -> None:
        """Store tensors that belong to no block."""
        write_tensors(self.blocks / f"{part:05d}-outside.safetensors", tensors)

    def read_block(self, index: int) -> tuple[Shards, dict[str, Any]]:
        """The tensors and records of a finished block."""
        return Shards(self._tensors(index)), self.records(index)

    def records(self, index: int) -> dict[str, Any]:
        """The records of a finished block."""
        try:
            loaded: dict[str, Any] = json.loads(self._records(index).read_text())
        except ValueError as error:
            raise CheckpointError(
                f"{self._records(index)} is damaged.", f"Delete {self.root} and start again."
            ) from error
        return loaded

    def adopt(self, folder: Path) -> None:
        """Move the files of a finished model here; modicum.json last, as the sign that all are there."""
        for file in sorted(folder.iterdir(), key=lambda file: file.name == FILE):
            os.replace(file, self.root / file.name)

    def complete(self) -> bool:
        """Whether an earlier run wrote everything and was stopped before or within `publish`."""
        return (self.root / FILE).exists() or not self.root.exists()

    def publish(self) -> None:
        """Give the finished directory its final name; may be interrupted and called again."""
        if self.root.exists():
            shutil.rmtree(self.blocks, ignore_errors=True)
            (self.root / HIDDEN).unlink(missing_ok=True)
            if self.out.exists():
                self._refuse_existing()
                shutil.rmtree(self.root / REPLACED, ignore_errors=True)
                os.replace(self.out, self.root / REPLACED)
            os.replace(self.root, self.out)
        shutil.rmtree(self.out / REPLACED, ignore_errors=True)
        # Last: while run.json is there, the same command knows that it has only this left to do.
        (self.out / RUN).unlink(missing_ok=True)

    def _tensors(self, index: int) -> Path:
        return self.blocks / f"{index:05d}.safetensors"

    def _records(self, index: int) -> Path:
        return self.blocks / f"{index:05d}.json"
