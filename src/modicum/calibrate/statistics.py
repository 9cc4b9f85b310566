"""What calibration knows of one layer: running sums over its inputs, collected only if a method asks.

Shapes: x [tokens, in_features]. Everything is accumulated in float32, whatever the dtype of the model.

    column_norm  [in]      sqrt(sum_t x_tj^2)
    mean_abs     [in]      mean_t |x_tj|
    gram         [in, in]  sum_t x_t x_t^T
    sample       [n, in]   the first n <= SAMPLE inputs themselves

Layers that are fed by the same tensor (q, k, v; gate, up) share one accumulator.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from modicum.kernels.products import mixed_products

KINDS = frozenset({"column_norm", "mean_abs", "gram", "sample"})
SAMPLE = 512
ROWS = 1024  # inputs widened at a time; they stay in the cache
TILE = 256  # fastest on CPU between 128 and 1024 columns


@dataclass
class Statistics:
    """Running sums over the inputs of one layer, or of several that share their input.

    Attributes:
        wanted: which of `KINDS` are collected.
        tokens: number of input vectors seen so far; 0 for an expert that no token reached.
    """

    wanted: frozenset[str] = frozenset()
    tokens: int = 0
    _square_sum: Tensor | None = field(default=None, repr=False)
    _abs_sum: Tensor | None = field(default=None, repr=False)
    _gram: Tensor | None = field(default=None, repr=False)
    _sample: Tensor | None = field(default=None, repr=False)

    def update(self, inputs: Tensor) -> None:
        """Add a batch of inputs [..., in_features]."""
        vectors = inputs.reshape(-1, inputs.shape[-1])  # [tokens, in]
        self.tokens += vectors.shape[0]
        for part in vectors.split(ROWS):
            self._add_part(part.float(), inputs.dtype)

    def _add_part(self, x: Tensor, dtype: torch.dtype) -> None:
        """Add a few inputs [n, in_features], widened from `dtype`."""
        if "gram" in self.wanted:
            with mixed_products(dtype, x.device):
                self._gram = _add_gram(self._gram, x)
        elif "column_norm" in self.wanted:
            self._square_sum = _add(self._square_sum, x.square().sum(0))
        if "mean_abs" in self.wanted:
            self._abs_sum = _add(self._abs_sum, x.abs().sum(0))
        if "sample" in self.wanted:
            self._sample = _extend(self._sample, x)

    @property
    def column_norm(self) -> Tensor:
        """Euclidean norm of each input channel, [in_features] float32."""
        return self.square_sum.sqrt()

    @property
    def square_sum(self) -> Tensor:
        """Sum of squares of each input channel, [in_features] float32."""
        total = self._gram.diagonal() if self._gram is not None else self._square_sum
        return _present(total, "column_norm")

    @property
    def mean_abs(self) -> Tensor:
        """Mean magnitude of each input channel, [in_features] float32."""
        return _present(self._abs_sum, "mean_abs") / max(self.tokens, 1)

    @property
    def gram(self) -> Tensor:
        """Gram matrix of the inputs, a new [in_features, in_features] float32 tensor (lower half mirrored)."""
        full = _present(self._gram, "gram").clone()
        for start in range(0, full.shape[0], TILE):
            stop = start + TILE
            full[stop:, start:stop] = full[start:stop, stop:].T
        return full

    @property
    def sample(self) -> Tensor:
        """The first inputs seen, [n, in_features] float32."""
        return _present(self._sample, "sample")

    def divide_inputs(self, scale: Tensor) -> None:
        """Turn the sums over x into the sums over x / scale; `scale` is [in_features], positive."""
        scale = scale.float()
        if self._square_sum is not None:
            self._square_sum.div_(scale.square())
        if self._abs_sum is not None:
            self._abs_sum.div_(scale)
        if self._gram is not None:
            self._gram.div_(scale).div_(scale[:, None])
        if self._sample is not None:
            self._sample = self._sample / scale

    @classmethod
    def of_white_noise(cls, wanted: frozenset[str], in_features: int, device: torch.device) -> Statistics:
        """Statistics that prefer no input to any other: what a method falls back to where there is no data."""
        ones = torch.ones(in_features, device=device)
        gram = torch.eye(in_features, device=device) if "gram" in wanted else None
        sample = _unit_vectors(in_features, device) if "sample" in wanted else None
        return cls(wanted, 0, ones, ones.clone(), gram, sample)


def _unit_vectors(in_features: int, device: torch.device) -> Tensor:
    """Inputs whose Gram matrix is the identity within any `SAMPLE` neighbouring channels, [n, in_features]."""
    size = min(SAMPLE, in_features)
    return torch.eye(size, device=device).repeat(1, -(-in_features // size))[:, :in_features].contiguous()


def statistics_bytes(wanted: frozenset[str], in_features: int) -> int:
    """Bytes of the running sums of one input with `in_features` channels."""
    vectors = ("mean_abs" in wanted) + ("column_norm" in wanted and "gram" not in wanted)
    rows = (in_features if "gram" in wanted else 0) + (SAMPLE if "sample" in wanted else 0)
    return 4 * in_features * (vectors + rows)


def _present(value: Tensor | None, name: str) -> Tensor:
    if value is None:
        raise LookupError(f"the statistic {name!r} was not asked for, or no token reached this layer")
    return value


def _add(total: Tensor | None, value: Tensor) -> Tensor:
    return value if total is None else total.add_(value)


def _extend(sample: Tensor | None, x: Tensor) -> Tensor:
    if sample is None:
        return x[:SAMPLE].clone()
    missing = SAMPLE - sample.shape[0]
    return torch.cat([sample, x[:missing]]) if missing > 0 else sample


def _add_gram(gram: Tensor | None, x: Tensor) -> Tensor:
    """Add x^T x to the upper triangle, tile row by tile row: half the work of the full product."""
    size = x.shape[1]
    if gram is None:
        gram = torch.zeros(size, size, dtype=torch.float32, device=x.device)
    for start in range(0, size, TILE):
        stop = min(start + TILE, size)
        gram[start:stop, start:].addmm_(x[:, start:stop].T, x[:, start:])
    return gram
