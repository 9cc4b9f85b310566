"""What is to be said of a checkpoint that is coded without loss: all codes are read, decoded and compared."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from modicum.evaluate import CodedGroupRecord, CodingRecord, Spread
from modicum.formats.coded import CodedShards
from modicum.formats.manifest import Manifest
from modicum.kernels.huffman.code import entropy
from modicum.lossless.bound import byte_counts
from modicum.method import RuntimeMethod, StorageMethod, find
from modicum.pipeline.coded import original_shards
from modicum.pipeline.verifying import verify

PARTS = {
    "encoded_exponent": "exponents",
    "plane0": "exponents",
    "sign_mantissa": "other bits",
    "low": "other bits",
    "plane1": "other bits",
    "plane2": "other bits",
    "plane3": "other bits",
}
"""What the arrays of a group hold, by the last part of their names; the others are tables."""

TIMED = 1 << 20
"""Bytes of weights from which a group says how fast codes are; the time of a smaller one is that of opening it."""


def describe_coding(directory: Path, original: Path) -> CodingRecord | None:
    """How the weights of a checkpoint are coded; None if they are not.

    Args:
        directory: the coded checkpoint.
        original: what it is compared with, unless steps before changed the weights.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    shards = original_shards(directory) if directory.is_dir() else None
    if not isinstance(shards, CodedShards) or not shards.layout.groups:
        return None
    manifest = Manifest.present(directory) or Manifest()
    dtype = _commonest_dtype(shards)
    shards.decoded(next(iter(shards.layout.groups)))  # what is compiled once does not count
    groups, counts, rates = zip(*_groups(shards), strict=True)
    kept = [group.dtype == dtype for group in shards.layout.groups.values()]
    changed = tuple(_changing(manifest))
    found = None if changed else verify(original, directory)
    return CodingRecord(
        method=shards.layout.method,
        dtype=dtype,
        groups=groups,
        raw=manifest.notes.get(shards.layout.method, {}).get("raw", {}),
        parts=_parts(shards),
        counts=tuple(sum(count for count, keep in zip(counts, kept, strict=True) if keep).tolist()),
        tensors=0 if found is None else found.tensors,
        difference=f"{found.difference.tensor}: {found.difference.what}"
        if found and found.difference
        else None,
        changed_by=changed,
        decode=_speed(groups, rates),
        threads=torch.get_num_threads(),
    )


def _commonest_dtype(shards: CodedShards) -> str:
    weights: Counter[str] = Counter()
    for group in shards.layout.groups.values():
        weights[group.dtype] += group.numel
    return weights.most_common(1)[0][0]


def _groups(shards: CodedShards) -> Iterator[tuple[CodedGroupRecord, np.ndarray, float]]:
    """Of every group the record, how often each value of the coded byte occurs, and bytes decoded in a second."""
    for name, group in shards.layout.groups.items():
        started = time.perf_counter()
        weights = shards.decoded(name)
        seconds = time.perf_counter() - started
        counts = byte_counts([weights])
        record = CodedGroupRecord(
            name=name,
            weights=group.numel,
            nbytes=shards.stored.nbytes(shards.layout.keys(name)),
            dense_nbytes=weights.nbytes,
            bound=sum(entropy(row) for row in counts),
            information=entropy(counts[-1]),
        )
        yield record, counts[-1], weights.nbytes / seconds


def _speed(groups: Sequence[CodedGroupRecord], rates: Sequence[float]) -> Spread | None:
    timed = [rate for group, rate in zip(groups, rates, strict=True) if group.dense_nbytes >= TIMED]
    return Spread.of(timed) if timed else None


def _parts(shards: CodedShards) -> dict[str, int]:
    sizes = dict.fromkeys(("exponents", "other bits", "tables"), 0)
    for name in shards.layout.groups:
        for key in shards.layout.keys(name):
            sizes[PARTS.get(key.rpartition(".")[2], "tables")] += shards.stored.tensors[key].nbytes
    return {part: size for part, size in sizes.items() if size}


def _changing(manifest: Manifest) -> Iterator[str]:
    """Names of all steps, of this run and of those before, that change weights."""
    for recipe in (*(past.get("recipe", {}) for past in manifest.history), manifest.recipe):
        for step in recipe.get("steps", []):
            for name in [step] if isinstance(step, str) else step:
                if not issubclass(find(name), StorageMethod | RuntimeMethod):
                    yield name
