"""Training data by index: batch k of a seed is always the same batch, so a training can be taken up anywhere.

Every epoch visits every sample once, in an order that follows from the seed and the epoch; what is left of an epoch
and does not fill a batch is left out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from modicum.errors import UnusableData

_STRIDE = 1_000_003


class Samples(ABC):
    """A source of batches.

    Attributes:
        count: samples per epoch.
    """

    count: int

    def batches(self, size: int, seed: int) -> Callable[[int], dict[str, Tensor]]:
        """A function from the index of a batch to the batch.

        Args:
            size: samples per batch; if there are fewer, a batch holds them all.
            seed: of the order.
        """
        size = min(size, self.count)
        per_epoch = self.count // size

        def batch(index: int) -> dict[str, Tensor]:
            epoch, place = divmod(index, per_epoch)
            generator = torch.Generator().manual_seed((seed * _STRIDE + epoch) % 2**63)
            order = torch.randperm(self.count, generator=generator)
            rows = order[place * size : (place + 1) * size]
            # Of its own for every batch, so that no batch depends on those before it.
            return self.rows(rows, generator.manual_seed((seed * _STRIDE + index) % 2**63), epoch)

        return batch

    @abstractmethod
    def rows(self, rows: Tensor, generator: torch.Generator, epoch: int) -> dict[str, Tensor]:
        """The samples `rows` (int64 `[size]`) as keyword tensors.

        Args:
            rows: which.
            generator: for random augmentation.
            epoch: counts the visits.
        """


class Table(Samples):
    """Tensors with one row per sample: latents and labels, pixels and labels, token windows.

    Args:
        tensors: by name, first axis the sample.
        versions: other versions of some of them (latents of the flipped picture), one of which is drawn per sample.

    Raises:
        UnusableData: no rows, or tensors of different lengths.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], versions: Mapping[str, tuple[Tensor, ...]] | None = None
    ) -> None:
        self.versions: dict[str, tuple[Tensor, ...]] = {name: (value,) for name, value in tensors.items()}
        for name, others in (versions or {}).items():
            self.versions[name] += others
        lengths = {len(value) for values in self.versions.values() for value in values}
        if len(lengths) != 1 or 0 in lengths:
            raise UnusableData(
                f"The training tensors have {sorted(lengths)} rows.", "Give tensors with one row per sample."
            )
        self.count = lengths.pop()

    def rows(self, rows: Tensor, generator: torch.Generator, epoch: int) -> dict[str, Tensor]:
        """Rows of every tensor."""
        return {name: _drawn(values, rows, generator) for name, values in self.versions.items()}


class Windows(Samples):
    """Windows of a token stream; every epoch shifts the grid of windows.

    Args:
        stream: ids `[n]`.
        length: tokens per window.

    Raises:
        UnusableData: the stream is shorter than two windows.
    """

    def __init__(self, stream: Tensor, length: int) -> None:
        self.stream, self.length = stream, length
        self.count = len(stream) // length - 1
        if self.count < 1:
            raise UnusableData(
                f"The text has {len(stream)} tokens, fewer than two windows of {length}.",
                "Name a data source with more text, or shorten the windows.",
            )

    def rows(self, rows: Tensor, generator: torch.Generator, epoch: int) -> dict[str, Tensor]:
        """int64 `input_ids` `[size, length]`."""
        shift = epoch * 7919 % self.length  # a prime, so that the grids of many epochs differ
        starts = rows * self.length + shift
        return {"input_ids": self.stream[starts[:, None] + torch.arange(self.length)].long()}


def _drawn(versions: tuple[Tensor, ...], rows: Tensor, generator: torch.Generator) -> Tensor:
    if len(versions) == 1:
        return versions[0][rows]
    which = torch.randint(len(versions), (len(rows),), generator=generator)
    return torch.stack([version[rows] for version in versions])[which, torch.arange(len(rows))]
