"""Function-preserving scale migration: divide a matrix's outputs by s, multiply its readers' columns by s.

    y = W2 (W1 x) = (W2 diag(s)) (diag(1/s) W1 x)

The same identity holds when the first factor is a norm's weight (s divides it), when a gate multiplies the
channels (up -> down), when attention averages them (values -> output), and, for s > 0, through ReLU.
SmoothQuant (arXiv 2211.10438) and AWQ (arXiv 2306.00978) choose s; where s may go is what a fold says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modicum.errors import InvalidSetting
from modicum.models.families import Family, Fold
from modicum.models.layer import Layer


@dataclass(frozen=True)
class ResolvedFold:
    """A fold of one block, with its modules and layers found.

    Attributes:
        source_name: path of the norm or linear layer whose outputs are divided.
        source: that norm, or that layer.
        targets: the layers that read these outputs.
        followers: (path, module) of skipped matrices that read them too and must be scaled along (a router).
        parent: path of the smallest module through which all targets act.
        norm_offset: whether the source norm multiplies by (1 + weight).
    """

    source_name: str
    source: nn.Module | Layer
    targets: tuple[Layer, ...]
    followers: tuple[tuple[str, nn.Module], ...]
    parent: str
    norm_offset: bool

    @property
    def features(self) -> int:
        """Number of channels, the length of a scale."""
        return self.targets[0].in_features

    @torch.no_grad()
    def apply(self, scale: Tensor) -> None:
        """Move `scale` [features], positive, from the source into its readers, in place; the function stays.

        Raises:
            InvalidSetting: the scale has another length or holds a value that is not positive and finite.
        """
        if scale.shape != (self.features,) or not bool((scale.isfinite() & (scale > 0)).all()):
            raise InvalidSetting(
                f"A scale for {self.source_name} must be {self.features} positive finite numbers."
            )
        scale = scale.detach().float()
        self._divide_source(scale)
        for layer in self.targets:
            layer.set_weight(layer.weight.float() * scale.to(layer.weight.device))
        for _, module in self.followers:
            weight: Tensor = module.weight  # type: ignore[assignment]
            weight.copy_(weight.float() * scale.to(weight.device))

    def _divide_source(self, scale: Tensor) -> None:
        if isinstance(self.source, Layer):
            scale = scale.to(self.source.weight.device)
            bias = self.source.bias
            divided = None if bias is None else bias.float() / scale
            self.source.set_weight(self.source.weight.float() / scale[:, None], divided)
            return
        weight: Tensor = self.source.weight  # type: ignore[assignment]
        offset, scale = float(self.norm_offset), scale.to(weight.device)
        weight.copy_((weight.float() + offset) / scale - offset)
        shift: Tensor | None = getattr(self.source, "bias", None)
        if shift is not None:
            shift.copy_(shift.float() / scale)


def resolve(
    family: Family, block: str, module: nn.Module, layers: Sequence[Layer], config: Any
) -> tuple[ResolvedFold, ...]:
    """The folds of `family` that hold in one block: modules present, config agrees, channel counts match."""
    found = (_resolve(fold, family, block, module, layers) for fold in family.folds if _holds(fold, config))
    return tuple(fold for fold in found if fold is not None)


def _holds(fold: Fold, config: Any) -> bool:
    return all(getattr(config, name, None) == value for name, value in fold.when)


def _resolve(
    fold: Fold, family: Family, block: str, module: nn.Module, layers: Sequence[Layer]
) -> ResolvedFold | None:
    inside = dict(module.named_modules())
    by_path = {layer.name.removeprefix(f"{block}."): layer for layer in layers}
    source = by_path.get(fold.source) or inside.get(fold.source)
    followers = tuple((f"{block}.{p}", inside[p]) for p in fold.targets if p in family.skip and p in inside)
    readers = [_readers(path, by_path) for path in fold.targets if path not in family.skip]
    targets = tuple(layer for found in readers for layer in found)
    if source is None or not all(readers) or not targets or _channels(source) != targets[0].in_features:
        return None
    return ResolvedFold(
        f"{block}.{fold.source}", source, targets, followers, f"{block}.{fold.parent}", family.norm_offset
    )


def _readers(path: str, by_path: dict[str, Layer]) -> list[Layer]:
    """The layer at `path`, or every expert's slice if `path` names a matrix of the experts."""
    if path in by_path:
        return [by_path[path]]
    owner, _, matrix = path.rpartition(".")
    return [
        layer
        for key, layer in by_path.items()
        if layer.expert is not None and key == f"{owner}.{layer.expert}.{matrix}"
    ]


def _channels(source: nn.Module | Layer) -> int:
    """Number of outputs of a norm or layer; 0 for a norm without weight, which can absorb nothing."""
    if isinstance(source, Layer):
        return source.out_features
    weight = getattr(source, "weight", None)
    return 0 if weight is None else int(weight.numel())
