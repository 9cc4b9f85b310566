"""How sparse each layer becomes when the model as a whole is to have a given sparsity.

    uniform              every layer the same
    owl, owl:M:LAMBDA    less where weights stand out (below)
    FILE                 {"model.layers.0": 0.47, "*.down_proj": 0.6}: names or shell patterns of blocks or layers, as
                         JSON or YAML. The name of a layer counts before that of its block, this before a pattern, a
                         longer pattern before a shorter one; a layer that none names has the sparsity of the step

OWL (outlier weighed layerwise sparsity): a few channels of a language model are far larger than the others, and blocks
differ in how much of their weights reads them. With A_ij = |W_ij| ||X_j||_2 over all layers of block b,

    d_b = share of the A_ij above M mean(A)        d'_b = (d_b - min d) 2 lambda / (max d - min d)
    s_b = s - (d'_b - mean d')

so that blocks with more outliers lose less, the sparsities span 2 lambda, and their mean is s. Blocks that are alike
get s. Yin et al., Outlier Weighed Layerwise Sparsity (OWL), ICML 2024, arXiv 2310.05175.

Departures: ||X_j|| is taken per token that reaches a layer, so that rarely asked experts compare with the others; means
over blocks weigh each block by its weights, so that the total comes out where blocks differ in size; where s_b would
leave [0, 1), it stops there and the other blocks make up for it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import filter as matching
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema
from torch import Tensor

from modicum.errors import UnknownName
from modicum.kernels.chunks import row_chunks

MOST = 0.999
"""A sparsity that no block exceeds, unless all of them do."""


@dataclass(frozen=True)
class Owl:
    """Sparsity by outliers.

    Attributes:
        multiple: M, how many means an outlier exceeds.
        strength: lambda, half the span of the sparsities.
    """

    multiple: float = 5.0
    strength: float = 0.08

    def __str__(self) -> str:
        return "owl" if self == Owl() else f"owl:{self.multiple:g}:{self.strength:g}"

    def outliers(self, matrices: Iterable[tuple[Tensor, Tensor]]) -> float:
        """The share of outliers among all weights of a block.

        Args:
            matrices: for each layer its weight [out, in] and the norms of its inputs [in].
        """
        held = list(matrices)
        size = sum(weight.numel() for weight, _ in held)
        total = sum(float(part.sum()) for part in _parts(held))
        limit = self.multiple * total / size
        return sum(int((part > limit).count_nonzero()) for part in _parts(held)) / size

    def sparsities(self, outliers: Sequence[float], sizes: Sequence[int], sparsity: float) -> list[float]:
        """The sparsity of each block.

        Args:
            outliers: d, the share of each block.
            sizes: weights of each block.
            sparsity: their mean over all weights.
        """
        low, span = min(outliers), max(outliers) - min(outliers)
        if not span:
            return [sparsity] * len(outliers)
        moved = [(d - low) * 2 * self.strength / span for d in outliers]  # d'
        middle = _mean(moved, sizes)
        return _within([sparsity - (d - middle) for d in moved], sizes, sparsity)


@dataclass(frozen=True)
class Table:
    """Sparsities that are given, by name or pattern of layers or blocks."""

    entries: tuple[tuple[str, float], ...]

    def to_dict(self) -> dict[str, float]:
        """As a table file says it."""
        return dict(self.entries)

    def shares(self, blocks: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """The sparsity of every layer that some key names.

        Args:
            blocks: names of the layers of each block.

        Raises:
            UnknownName: a key names no block and no layer; names the nearest.
        """
        named = {layer: (layer,) for layers in blocks.values() for layer in layers}
        known: dict[str, Sequence[str]] = {**named, **blocks}
        found: dict[str, float] = {}

        def rank(entry: tuple[str, float]) -> tuple[int, int, str]:
            key = entry[0]
            return (2 if key in named else 1 if key in blocks else 0), len(key), key

        for key, share in sorted(self.entries, key=rank):  # what counts most comes last
            hits = [key] if key in known else matching(known, key)
            if not hits:
                near = get_close_matches(key, known, n=3, cutoff=0.5) or list(blocks)[:3]
                raise UnknownName(
                    f"The allocation names {key!r}, which is no block or layer of this model.",
                    f"The nearest are {', '.join(near)}.",
                )
            found.update((layer, share) for hit in hits for layer in known[hit])
        return found


def brief(shares: Mapping[str, float], blocks: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The table that says the same in fewer words: one entry for a block whose layers have one sparsity."""
    table: dict[str, float] = {}
    for block, layers in blocks.items():
        own = {layer: shares[layer] for layer in layers if layer in shares}
        alike = len(own) == len(layers) and len({*own.values()}) == 1
        table |= {block: own[layers[0]]} if alike else own
    return table


def parse_allocation(value: Any) -> Literal["uniform"] | Owl | Table:
    """Read an allocation: as written above, the content of a table, or the name of its file.

    Raises:
        ValueError: it is nothing of that, or a sparsity is out of range.
    """
    if value == "uniform" or isinstance(value, Owl | Table):
        return value
    if isinstance(value, Mapping):
        return _table(value)
    text = str(value)
    if text.split(":")[0] == "owl":
        return _owl(text)
    return _table(_content(Path(text)))


def _owl(text: str) -> Owl:
    number = r"(\d{1,6}(?:\.\d{1,9})?|\.\d{1,9})"
    found = re.fullmatch(rf"owl(?::{number}:{number})?", text)
    if not found or (found[1] and not (float(found[1]) > 0 and 0 < float(found[2]) < 0.5)):
        raise ValueError(
            "must be owl, or owl:M:LAMBDA such as owl:5:0.08 (M above 0, LAMBDA within 0 to 0.5)"
        )
    return Owl(float(found[1]), float(found[2])) if found[1] else Owl()


def _content(file: Path) -> Any:
    try:
        text = file.read_text()
        return json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ValueError(
            f"must be uniform, owl, owl:M:LAMBDA or a file of sparsities; there is no file {str(file)!r}"
        ) from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"the file {str(file)!r} is not valid JSON or YAML") from error


def _table(value: Any) -> Table:
    if not isinstance(value, Mapping) or not value:
        raise ValueError("a table of sparsities must look like {model.layers.0: 0.47}")
    for key, share in value.items():
        number = isinstance(share, int | float) and not isinstance(share, bool)
        if not isinstance(key, str) or not number or not 0 <= share < 1:
            raise ValueError(f"the sparsity of {key!r} must be a number from 0 to below 1, not {share!r}")
    return Table(tuple(sorted((key, float(share)) for key, share in value.items())))


def _plain(value: Literal["uniform"] | Owl | Table) -> str | dict[str, float]:
    return value.to_dict() if isinstance(value, Table) else str(value)


Allocation = Annotated[
    Literal["uniform"] | Owl | Table,
    BeforeValidator(parse_allocation),
    PlainSerializer(_plain, return_type=str | dict[str, float]),
    WithJsonSchema({"type": ["string", "object"], "examples": ["uniform", "owl", "FILE"]}),
]
"""A setting of pruning methods; in YAML a table may stand in the recipe itself."""


def _parts(matrices: Sequence[tuple[Tensor, Tensor]]) -> Iterable[Tensor]:
    """A = |W| ||X||, some rows at a time."""
    for weight, norm in matrices:
        for rows in row_chunks(weight.shape[0], 4 * weight.shape[1]):
            yield weight[rows].float().abs() * norm


def _mean(values: Sequence[float], sizes: Sequence[int]) -> float:
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


def _within(wanted: Sequence[float], sizes: Sequence[int], mean: float) -> list[float]:
    """The values moved by one constant and cut to [0, MOST] such that their mean stays; bisection finds it."""
    most = max(MOST, mean)
    if min(wanted) >= 0 and max(wanted) <= most:
        return list(wanted)

    def moved(shift: float) -> list[float]:
        return [min(max(value + shift, 0.0), most) for value in wanted]

    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _mean(moved(middle), sizes) < mean else (low, middle)
    return moved(high)
