"""Comparison: a model before and after compression, with all that is needed to judge the numbers.

A Comparison is data: it is saved as JSON (with a format version), read back, shown as a table or as a page.
What was not measured is None, and stays visibly None everywhere; nothing is filled in from theory.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from modicum.evaluate.agreement import Agreement
from modicum.evaluate.coding import CodingRecord
from modicum.evaluate.protocol import Protocol
from modicum.evaluate.saved import Record, SavedRecord
from modicum.evaluate.speed import Spread


class Measurements(Record):
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


class LayerRecord(Record):
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


class Sample(Record):
    """One prompt and how each model continued it, greedily."""

    prompt: str
    before: str
    after: str


class Comparison(SavedRecord):
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
        coding: how the weights are coded without loss; None if they are not.
        samples: texts of both models.
        recipe: the steps and settings that made the one from the other.
        command: the exact command that repeats it.
        protocol: settings of the measurement.
        seed: of everything random.
        data: description of the evaluation text.
        tokens: its length.
        environment: the machine and the versions.
    """

    kind: ClassVar[str] = "a comparison"

    format: Literal[1] = 1
    name: str = "model"
    before: Measurements = Measurements()
    after: Measurements = Measurements()
    agreement: Agreement | None = None
    prefill_ratio: Spread | None = None
    decode_ratio: Spread | None = None
    layers: tuple[LayerRecord, ...] = ()
    coding: CodingRecord | None = None
    samples: tuple[Sample, ...] = ()
    recipe: dict[str, Any] | None = None
    command: str | None = None
    protocol: Protocol | None = None
    seed: int = 0
    data: str = ""
    tokens: int = 0
    environment: dict[str, Any] = Field(default={})
