"""What calibration knows of one layer: running sums over its inputs, collected only if a method asks.

Shapes: x [tokens, in_features]. Everything is accumulated in float32, whatever the dtype of the model.

    column_norm  [in]       sqrt(sum_t x_tj^2)
    column_var   [in]       mean_t (x_tj - mean_t x_tj)^2; column_mean comes with it
    mean_abs     [in]       mean_t |x_tj|
    gram         [in, in]   sum_t x_t x_t^T
    sample       [n, in]    the first n <= SAMPLE inputs themselves
    gradient     [out, in]  sqrt(sum over windows (100 dL/dW_ij)^2), see `modicum.calibrate.gradients`
    alignment    [out, in]  what each weight has to do with the direction of the output,
    turning      [out, in]  see `modicum.calibrate.directions`

Layers that are fed by the same tensor (q, k, v; gate, up) share one accumulator. The last three depend on the layer's
weights too: every layer has its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from modicum.kernels.products import mixed_products

KINDS = frozenset({"column_norm", "column_var", "mean_abs", "gram", "sample"})
"""What is known of inputs."""
DIRECTIONS = frozenset({"alignment", "turning"})
"""What is known of inputs together with the outputs that they cause."""
MATRICES = DIRECTIONS | {"gradient"}
"""What is as large as the weights."""
SAMPLE = 512
ROWS = 1024  # inputs widened at a time; they stay in the cache
TILE = 256  # fastest on CPU between 128 and 1024 columns


@dataclass
class Statistics:
    """Running sums over the inputs of one layer, or of several that share their input.

    Attributes:
        wanted: which of `KINDS` and `MATRICES` are collected.
        tokens: number of input vectors seen so far; 0 for an expert that no token reached.
        sequences: number of sequences that they came from.
        matrices: those of `MATRICES` that are known, by name.
    """

    wanted: frozenset[str] = frozenset()
    tokens: int = 0
    sequences: int = 1
    matrices: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    _square_sum: Tensor | None = field(default=None, repr=False)
    _abs_sum: Tensor | None = field(default=None, repr=False)
    _gram: Tensor | None = field(default=None, repr=False)
    _sample: Tensor | None = field(default=None, repr=False)
    _mean: Tensor | None = field(default=None, repr=False)
    _deviation: Tensor | None = field(default=None, repr=False)
    _counted: int = field(default=0, repr=False)

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
        if "column_var" in self.wanted:
            self._add_spread(x)

    def _add_spread(self, x: Tensor) -> None:
        """Join mean and summed squared deviation of x [n, in] with those so far (Chan, Golub and LeVeque)."""
        n, mean = x.shape[0], x.mean(0)
        deviation = (x - mean).square().sum(0)
        if self._mean is None or self._deviation is None:
            self._mean, self._deviation, self._counted = mean, deviation, n
            return
        step, total = mean - self._mean, self._counted + n
        self._deviation += deviation + step.square() * (self._counted * n / total)
        self._mean += step * (n / total)
        self._counted = total

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
    def column_var(self) -> Tensor:
        """Variance of each input channel over the tokens, [in_features] float32."""
        return _present(self._deviation, "column_var") / max(self._counted, 1)

    @property
    def column_mean(self) -> Tensor:
        """Mean of each input channel over the tokens, [in_features] float32; collected with column_var."""
        return _present(self._mean, "column_var")

    @property
    def gradient(self) -> Tensor:
        """Size of the gradient at each weight, [out_features, in_features] float32."""
        return _present(self.matrices.get("gradient"), "gradient")

    @property
    def alignment(self) -> Tensor:
        """First-order weight of the direction, [out_features, in_features] float32."""
        return _present(self.matrices.get("alignment"), "alignment")

    @property
    def turning(self) -> Tensor:
        """How far the output turns per unit of weight, [out_features, in_features] float32."""
        return _present(self.matrices.get("turning"), "turning")

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
        if self._mean is not None and self._deviation is not None:
            self._mean.div_(scale)
            self._deviation.div_(scale.square())

    @classmethod
    def of_white_noise(cls, wanted: frozenset[str], in_features: int, device: torch.device) -> Statistics:
        """Statistics that prefer no input to any other: what a method falls back to where there is no data."""
        ones = torch.ones(in_features, device=device)
        gram = torch.eye(in_features, device=device) if "gram" in wanted else None
        sample = _unit_vectors(in_features, device) if "sample" in wanted else None
        matrices = {kind: torch.ones(1, in_features, device=device) for kind in wanted & MATRICES}
        noise = cls(
            wanted, matrices=matrices, _square_sum=ones, _abs_sum=ones.clone(), _gram=gram, _sample=sample
        )
        noise._mean, noise._deviation = torch.zeros_like(ones), ones.clone()
        return noise


def _unit_vectors(in_features: int, device: torch.device) -> Tensor:
    """Inputs whose Gram matrix is the identity within any `SAMPLE` neighbouring channels, [n, in_features]."""
    size = min(SAMPLE, in_features)
    return torch.eye(size, device=device).repeat(1, -(-in_features // size))[:, :in_features].contiguous()


def statistics_bytes(wanted: frozenset[str], in_features: int) -> int:
    """Bytes of the running sums of one input with `in_features` channels."""
    vectors = ("mean_abs" in wanted) + ("column_norm" in wanted and "gram" not in wanted)
    vectors += 2 * ("column_var" in wanted)
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
