"""What a storage step will make of a checkpoint, said before it starts.

How far weights shrink depends on their values and not on their shapes, so a sample of every group is coded: pieces
that lie evenly over its tensors, some 2 MB of a group. A group that is no larger than its sample is coded whole, and
its size is exact. Other sizes are estimates, as are time (that of the samples) and memory.

What steps before the storage step leave is not there yet. The plan then codes the weights as they are now: zeros and
coarse grids, which those steps bring, mostly shrink further.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from modicum.formats.coded_layout import CodedGroup
from modicum.formats.merge import SHARD_BYTES
from modicum.formats.shards import Shards
from modicum.kernels.allocator import resident, return_freed_memory
from modicum.method import StorageMethod
from modicum.pipeline.coded import REST_BYTES
from modicum.pipeline.dense import coded_groups, copies_of
from modicum.pipeline.footprint import LIBRARIES
from modicum.pipeline.plan import Plan
from modicum.pipeline.source import Source
from modicum.pipeline.whole_plan import WholePlan

SAMPLE = 1 << 20
"""Weights of a group that are coded for its plan."""

PIECES = 8
"""Places of a tensor from which a sample is taken."""

BYTES_PER_SECOND = 500e6
"""Reading and writing, as `modicum.pipeline.plan` counts it."""


@dataclass(frozen=True)
class GroupPlan:
    """What becomes of the weights that are coded together.

    Attributes:
        name: of the group.
        weights: how many there are.
        sampled: how many of them were coded for this plan.
        dense_nbytes: bytes now.
        nbytes: bytes then; exact if all weights were sampled.
        bound: bits per weight below which no code for single bytes gets.
        raw: why they will stay as they are; empty if they will not.
        seconds: that coding them takes.
    """

    name: str
    weights: int
    sampled: int
    dense_nbytes: int
    nbytes: int
    bound: float
    raw: str
    seconds: float


@dataclass(frozen=True)
class StoragePlan:
    """What a run that ends with a storage step will do and need. All sizes in bytes.

    Attributes:
        step: name of the storage step.
        groups: what is coded together.
        rest: tensors that belong to no group and stay as they are.
        estimated: whether sizes are estimates; they are not if every weight was coded for this plan.
        weights_before: weight bytes of the original on disk.
        weights_after: weight bytes of the result on disk; None if nobody knows what the steps before leave.
        bound: weight bytes that no code for single bytes gets below, as good as the samples.
        scratch: disk space that the storage step needs while it goes on, its input and the result included.
        peak_memory: resident memory of the process at the fullest moment of the storage step.
        seconds: a rough estimate of the storage step's running time.
        before: the plan of the steps before; None if there are none.
        unknown: what is not known, in sentences.
    """

    model: str
    family: str
    dtype: str
    step: str
    groups: tuple[GroupPlan, ...]
    rest: int
    estimated: bool
    weights_before: int
    weights_after: int | None
    bound: int | None
    scratch: int
    peak_memory: int
    seconds: float
    before: Plan | WholePlan | None
    unknown: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        before = None if self.before is None else self.before.to_dict()
        return {**vars(self), "groups": [asdict(group) for group in self.groups], "before": before}


def make_storage_plan(source: Source, step: StorageMethod, before: Plan | WholePlan | None) -> StoragePlan:
    """Plan a storage step.

    Args:
        source: the original.
        step: the storage step.
        before: the plan of the steps before it.

    Raises:
        CheckpointError: the file of a sample cannot be read.
        MissingExtra: a package that the step needs is not installed.
    """
    coded = coded_groups(source, step)
    groups = tuple(_group_plan(source.shards, step, name, group) for name, group in coded.items())
    dense = source.shards.nbytes()
    left = dense if before is None else before.weights_after
    grouped = sum(group.dense_nbytes for group in groups)
    needed = {tensor for group in coded.values() for tensor, _ in group.tensors()}
    shrinking = [t for plan in groups if not plan.raw for t, _ in coded[plan.name].tensors()]
    copies = copies_of(shrinking, source)  # which take no bytes of their own
    after = dense - source.shards.nbytes(copies) - sum(group.dense_nbytes - group.nbytes for group in groups)
    least = (
        dense
        - source.shards.nbytes(copies)
        - grouped
        + sum(round(group.bound * group.weights / 8) for group in groups)
    )
    share = 1.0 if left is None else left / dense
    result = round(after * share)
    return StoragePlan(
        model=str(source.directory),
        family=source.anatomy.family.name,
        dtype=str(source.dtype).removeprefix("torch."),
        step=step.name,
        groups=groups,
        rest=len(source.shards.tensors) - len(needed | set(copies)),
        estimated=before is not None or any(group.sampled < group.weights for group in groups),
        weights_before=dense,
        weights_after=None if left is None else result,
        bound=None if left is None else round(least * share),
        scratch=result + min(result, SHARD_BYTES) + (0 if before is None else left or dense),
        peak_memory=_peak_memory(groups, dense - grouped),
        seconds=share * (sum(group.seconds for group in groups) + (dense + 2 * after) / BYTES_PER_SECOND),
        before=before,
        unknown=tuple(_unknown(groups, before)),
    )


def _group_plan(shards: Shards, step: StorageMethod, name: str, group: CodedGroup) -> GroupPlan:
    tensors = list(_samples(shards, group))
    sampled = sum(tensor.numel() for tensor in tensors)
    started = time.perf_counter()
    coding = step.encode(tensors)
    share = group.numel / sampled
    dense = shards.nbytes(tensor for tensor, _ in group.tensors())
    nbytes = dense if coding.raw else sum(array.nbytes for array in coding.tensors.values())
    return GroupPlan(
        name=name,
        weights=group.numel,
        sampled=sampled,
        dense_nbytes=dense,
        nbytes=nbytes if coding.raw else round(nbytes * share),
        bound=coding.bound,
        raw=coding.raw,
        seconds=share * (time.perf_counter() - started),
    )


def _samples(shards: Shards, group: CodedGroup) -> Iterator[Tensor]:
    """Some weights of every tensor of a group, as many as its part of the group; all of a small group's."""
    share = SAMPLE / group.numel
    for name, shape in group.tensors():
        if share >= 1:
            yield shards.read(name)
            continue
        size, count = prod(shape), max(1, round(prod(shape) * share / PIECES))
        starts = [piece * max(0, size - count) // (PIECES - 1) for piece in range(PIECES)]
        yield torch.cat([shards.read_part(name, start, count) for start in starts])


def _peak_memory(groups: tuple[GroupPlan, ...], rest: int) -> int:
    """Resident bytes: the process as it is, and the largest group with its codes, of each a copy."""
    largest = max((group.dense_nbytes + group.nbytes for group in groups), default=0)
    return_freed_memory()
    return resident() + LIBRARIES + max(2 * largest, min(rest, REST_BYTES))


def _unknown(groups: tuple[GroupPlan, ...], before: Plan | WholePlan | None) -> Iterator[str]:
    if before is not None:
        yield "How far the weights shrink that the steps before leave: estimated from those of the original."
    elif any(group.sampled < group.weights for group in groups):
        yield "Exact sizes: estimated from a sample of every group."
