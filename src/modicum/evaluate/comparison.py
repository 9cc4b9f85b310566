"""Comparison: a model before and after compression, with all that is needed to judge the numbers.

A Comparison is data: it is saved as JSON (with a format version), read back, shown as a table or as a page.
What was not measured is None, and stays visibly None everywhere; nothing is filled in from theory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from modicum.errors import UnusableData
from modicum.evaluate.agreement import Agreement
from modicum.evaluate.protocol import Protocol
from modicum.evaluate.speed import Spread

FORMAT = 1


class _Record(BaseModel):
    # Infinity and NaN are written as strings, which JSON has no numbers for, and are read back.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Measurements(_Record):
    """What was measured of one model; None means not measured.

    Attributes:
        perplexity: exp of the mean loss in nats.
        disk_bytes: bytes of the weight files.
        memory_bytes: bytes of parameters and buffers, shared storages once.
        peak_bytes: `memory_bytes` plus the most that reading a prompt and decoding held on top of it.
        prefill: tokens per second reading a prompt.
        decode: tokens per second generating.
    """

    perplexity: float | None = None
    disk_bytes: int | None = None
    memory_bytes: int | None = None
    peak_bytes: int | None = None
    prefill: Spread | None = None
    decode: Spread | None = None


class LayerRecord(_Record):
    """What became of one layer.

    Attributes:
        name: full name of the layer in the model.
        block: index of its block; None for layers outside of the blocks.
        role: what it does in its block, e.g. "q" or "down"; layers of one role form a row of the pictures.
        sparsity: share of weights that are exactly zero, 0..1.
        bits_per_weight: stored bits over weights of the dense matrix.
        relative_error: |error| / |original| of the layer's output, or of its weights where nothing was
            calibrated; 0 is exact.
        nbytes: stored bytes.
        dense_nbytes: bytes of the original.
    """

    name: str
    block: int | None = None
    role: str
    sparsity: float | None = None
    bits_per_weight: float | None = None
    relative_error: float | None = None
    nbytes: int | None = None
    dense_nbytes: int | None = None


class Sample(_Record):
    """One prompt and how each model continued it, greedily."""

    prompt: str
    before: str
    after: str


class Comparison(_Record):
    """Before and after on the same inputs.

    Attributes:
        format: version of this layout.
        name: what was compressed, for titles.
        before: measurements of the original.
        after: measurements of the compressed model.
        agreement: how far their predictions agree.
        prefill_ratio: after / before, round by round.
        decode_ratio: after / before, round by round.
        layers: one record per compressed layer.
        samples: texts of both models.
        recipe: the steps and settings that made the one from the other.
        command: the exact command that repeats it.
        protocol: settings of the measurement.
        seed: of everything random.
        data: description of the evaluation text.
        tokens: its length.
        environment: the machine and the versions.
    """

    format: Literal[1] = 1
    name: str = "model"
    before: Measurements = Measurements()
    after: Measurements = Measurements()
    agreement: Agreement | None = None
    prefill_ratio: Spread | None = None
    decode_ratio: Spread | None = None
    layers: tuple[LayerRecord, ...] = ()
    samples: tuple[Sample, ...] = ()
    recipe: dict[str, Any] | None = None
    command: str | None = None
    protocol: Protocol | None = None
    seed: int = 0
    data: str = ""
    tokens: int = 0
    environment: dict[str, Any] = {}

    def save(self, path: str | Path) -> Path:
        """Writes the comparison as JSON, to a temporary name first."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Reads a saved comparison.

        Raises:
            UnusableData: the file is missing, is no comparison, or is of a format that this version does not
                know.
        """
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UnusableData(f"Cannot read {str(path)!r}: {error.strerror}.", "Check the path.") from error
        except (ValidationError, UnicodeDecodeError) as error:
            where = (
                f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}"
                if isinstance(error, ValidationError)
                else ""
            )
            raise UnusableData(
                f"{str(path)!r} is not a comparison of format {FORMAT}. {where}".rstrip(),
                "Give the report.json of this or an older version of modicum.",
            ) from error
