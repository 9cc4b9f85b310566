"""AWQ: protect the weights that large activations multiply by scaling their channels up before rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from modicum.calibrate.block import CalibratedBlock
from modicum.calibrate.statistics import SAMPLE, Statistics
from modicum.kernels.chunks import by_rows, chunked_bytes, row_chunks
from modicum.kernels.grids import IntegerScheme, fit_grid, nearest, quantize
from modicum.method import Paper, Target
from modicum.models.anatomy import Layer, ResolvedFold
from modicum.quantize.grid import IntegerMethod
from modicum.weights.base import WeightForm
from modicum.weights.packed import PackedWeight


class AWQ(IntegerMethod):
    """Search a scale per input channel that protects salient weights, fold it away, clip, round.

    For layers that share an input, s = mean|x|^r normalised by sqrt(max s min s), r = 0, 1/n ... (n-1)/n; the r with
    the least error of the parent module (attention, feed-forward) wins, W' = Q(W s) / s. The scale is then divided out
    of the norm or layer in front, so that the function is unchanged and nothing is left to do at run time. The range of
    every group is finally shrunk by up to one half where that lowers the output error (not for queries and keys).
    `duo_scaling` divides by the weights' own scale as well: s = mean|x|^r / mean(|w| / groupmax)^(1-r).
    """

    paper: ClassVar[Paper] = Paper(
        "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
        "MLSys 2024",
        "2306.00978",
    )

    symmetric: bool = Field(False, description="grid without zero point (loads everywhere)")
    ratios: int = Field(20, ge=1, description="exponents r that are tried")
    duo_scaling: bool = Field(False, description="let the weights' own scale share in the choice")
    clip: bool = Field(True, description="shrink the range of each group where that lowers the output error")

    def statistics(self) -> frozenset[str]:
        return frozenset({"mean_abs", "sample"}) if self.clip else frozenset({"mean_abs"})

    def inputs(self) -> bool:
        return True

    def prepare(self, block: CalibratedBlock) -> None:
        for fold in block.block.folds:
            if self._owns(fold) and fold.parent in block.calls:
                block.migrate(fold, self._best_scale(block, fold))

    def workspace(self, weight: Tensor) -> int:
        span, size = self.scheme().span(weight.shape[1]), weight.numel()
        gram = 4 * weight.shape[1] * span
        sample = 2 * 4 * SAMPLE * weight.shape[1]
        search = gram + max(sample, chunked_bytes(size)) if self.clip else chunked_bytes(size)
        return 4 * size + max(search, 2 * size)  # then codes, and once more unsigned

    def compress(self, target: Target, statistics: Statistics) -> WeightForm:
        weight, scheme = target.weight.to(torch.float32, copy=True), self.scheme()
        if self.clip and target.role not in ("q", "k"):
            _clip(weight, statistics.sample, scheme, target.weight.dtype)
        scale, zero_point = fit_grid(weight, scheme, target.weight.dtype)
        codes = quantize(weight, scale, zero_point, scheme)
        return PackedWeight.from_codes(codes, scale, zero_point, scheme, target.bias, target.weight.dtype)

    def _owns(self, fold: ResolvedFold) -> bool:
        """A fold rewrites its layers, so all of them must be compressed by this step afterwards."""
        layers = [*fold.targets, *([fold.source] if isinstance(fold.source, Layer) else [])]
        return all(self.touches(layer.name, layer.role) for layer in layers)

    def _best_scale(self, block: CalibratedBlock, fold: ResolvedFold) -> Tensor:
        """The scale [in] whose rounding error changes the output of the fold's parent least."""
        originals = [layer.weight.detach().clone() for layer in fold.targets]
        wanted = block.replay(fold.parent)
        salience = _salience(block, fold.targets)
        best, least = torch.ones_like(salience), torch.inf
        for step in range(self.ratios):
            scale = self._scale(salience, originals, step / self.ratios)
            for layer, weight in zip(fold.targets, originals, strict=True):
                layer.set_weight(self._rounded(weight, scale))
            error = _squared_error(block.replay(fold.parent), wanted)
            if error < least:
                best, least = scale, error
        for layer, weight in zip(fold.targets, originals, strict=True):
            layer.set_weight(weight)
        return best

    def _scale(self, salience: Tensor, weights: Sequence[Tensor], ratio: float) -> Tensor:
        scale = salience.pow(ratio)
        if self.duo_scaling:
            scale = scale / (_relative_weight(weights, self.scheme()).pow(1 - ratio) + 1e-4)
        scale = scale.clamp(min=1e-4)
        return scale / (scale.max() * scale.min()).sqrt()

    def _rounded(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Q(W s) / s in the dtype of the weight, [out, in]."""

        def some_rows(some: Tensor) -> Tensor:
            return (nearest(some.float() * scale, self.scheme(), weight.dtype) / scale).to(weight.dtype)

        return by_rows(some_rows, weight, row_bytes=4 * len(scale))


def _salience(block: CalibratedBlock, layers: Sequence[Layer]) -> Tensor:
    """Mean magnitude of each input channel over all the vectors that reach any of the layers, [in]."""
    found = [block.layer_statistics(layer) for layer in layers]
    tokens = sum(statistics.tokens for statistics in found)
    if not tokens:
        return found[0].mean_abs
    return torch.stack([statistics.mean_abs * (statistics.tokens / tokens) for statistics in found]).sum(0)


def _squared_error(outputs: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    pairs = zip(outputs, wanted, strict=True)
    return float(torch.stack([(a.float() - b.float()).square().sum() for a, b in pairs]).sum())


def _relative_weight(weights: Sequence[Tensor], scheme: IntegerScheme) -> Tensor:
    """Mean over all rows of |w| relative to the largest of its group, [in]."""
    stacked = torch.cat([weight.float().abs() for weight in weights])  # [rows, in]
    grouped = _grouped(stacked, scheme)
    relative = (grouped / grouped.amax(-1, keepdim=True).clamp(min=1e-6)).flatten(1).mean(0)
    return relative[: stacked.shape[1]]


def _grouped(matrix: Tensor, scheme: IntegerScheme) -> Tensor:
    """[rows, in] as [rows, groups, span]; a short last group is filled up with zeros."""
    span = scheme.span(matrix.shape[1])
    return F.pad(matrix, (0, -matrix.shape[1] % span)).unflatten(1, (-1, span))


def _clip(weight: Tensor, sample: Tensor, scheme: IntegerScheme, dtype: torch.dtype) -> None:
    """Clamp every group of `weight`, in place, to the share of its range that rounds with least output error.

    Args:
        weight: float32 [out, in].
        sample: inputs of the layer, [tokens, in]; the error of a group is |X_g (Q(W_g) - W_g)^T|^2.
        scheme: the integer grid.
        dtype: dtype of the scales.
    """
    inputs = _grouped(sample.float(), scheme)  # [tokens, groups, span]
    gram = torch.einsum("tgi,tgj->gij", inputs, inputs)  # [groups, span, span]
    for rows in row_chunks(weight.shape[0], 16 * weight.shape[1]):  # the search holds a dozen temporaries
        grouped = _grouped(weight[rows], scheme)  # [rows, groups, span]
        limit = _best_limit(grouped, gram, scheme, dtype)
        weight[rows] = grouped.clamp(-limit, limit).flatten(1)[:, : weight.shape[1]]


def _best_limit(grouped: Tensor, gram: Tensor, scheme: IntegerScheme, dtype: torch.dtype) -> Tensor:
    """The limit [rows, groups, 1] at which the groups [rows, groups, span] lose least."""
    reach = grouped.abs().amax(-1, keepdim=True)  # [rows, groups, 1]
    best, least = reach, torch.full_like(reach, torch.inf)
    for step in range(10):
        limit = reach * (1 - step / 20)
        rounded = nearest(grouped.clamp(-limit, limit).flatten(1), scheme, dtype)
        lost = rounded.unflatten(1, grouped.shape[1:]) - grouped
        error = (torch.einsum("ogi,gij->ogj", lost, gram) * lost).sum(-1, keepdim=True)
        best = torch.where(error < least, limit, best)
        least = torch.minimum(error, least)
    return best
