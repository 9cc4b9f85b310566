"""Choosing one token per position of a map.

The filters are those of the published samplers, ties included: top-k keeps everything that reaches the k-th
logit, top-p drops the classes that together make up the least likely `1 - p`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modicum.errors import InvalidSetting

Seed = int | Sequence[int] | None
PerMap = float | Sequence[float]


def per_map(name: str, value: PerMap, maps: int, *, above: float | None = None) -> list[float]:
    """A setting that is the same for all maps or has one value per map, as one value per map.

    Args:
        name: of the setting, for the message.
        value: one, or as many as maps.
        maps: of the image.
        above: every value must be larger; by default it must not be negative.

    Raises:
        InvalidSetting: another number of values, or one out of range.
    """
    values = [float(value)] * maps if isinstance(value, int | float) else [float(one) for one in value]
    if len(values) != maps:
        raise InvalidSetting(f"{len(values)} values of {name} for {maps} maps.", "Give one, or one per map.")
    if not all(one > above if above is not None else one >= 0 for one in values):
        bound = "at least 0" if above is None else f"above {above:g}"
        raise InvalidSetting(f"{name} is {value}.", f"Give values {bound}.")
    return values


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits `[..., classes]` with everything below the k-th largest at -inf; 0 keeps all."""
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    threshold = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < threshold, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits `[..., classes]` with the tail of probability `1 - p` at -inf; the largest stays, 0 keeps all."""
    if p <= 0:
        return logits
    ascending, order = logits.sort(dim=-1)
    tail = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    tail[..., -1] = False
    return logits.masked_fill(torch.zeros_like(tail).scatter(-1, order, tail), -torch.inf)


def generators(seed: Seed, rows: int, device: torch.device) -> list[torch.Generator] | None:
    """Seeded sources of randomness for a batch.

    Args:
        seed: an int for one stream over the whole batch, as the published samplers have it; one int per row
            makes a row independent of its neighbours; None takes torch's global stream.
        rows: images of the batch.
        device: where the logits are.

    Raises:
        InvalidSetting: as many seeds as rows are needed.
    """
    if seed is None:
        return None
    seeds = [seed] if isinstance(seed, int) else list(seed)
    if not isinstance(seed, int) and len(seeds) != rows:
        raise InvalidSetting(f"{len(seeds)} seeds for {rows} images.", "Give one seed, or one per image.")
    return [torch.Generator(device).manual_seed(one) for one in seeds]


def draw(logits: Tensor, streams: list[torch.Generator] | None) -> Tensor:
    """One class per position, drawn from the softmax: `[rows, tokens, classes] -> int64 [rows, tokens]`.

    Args:
        logits: float, -inf where a class is excluded.
        streams: of `generators`; one, or one per row.
    """
    probabilities = logits.softmax(dim=-1)
    if streams is None or len(streams) == 1:
        flat = probabilities.flatten(0, -2)  # [rows * tokens, classes]
        chosen = torch.multinomial(flat, 1, replacement=True, generator=streams[0] if streams else None)
        return chosen.view(logits.shape[:-1])
    rows = [
        torch.multinomial(row, 1, replacement=True, generator=stream)[:, 0]
        for row, stream in zip(probabilities, streams, strict=True)
    ]
    return torch.stack(rows)


def soft_choice(logits: Tensor, progress: float, streams: list[torch.Generator] | None) -> Tensor:
    """Weights over the classes instead of one class: Gumbel softmax that hardens from map to map.

    Times the codebook this blends neighbouring codes: smoother pictures, not to be used where metrics are taken.

    Args:
        logits: `[rows, tokens, classes]`.
        progress: 0 at the first map, 1 at the last.
        streams: of `generators`.

    Returns:
        Weights `[rows, tokens, classes]` that sum to 1.
    """
    temperature = max(0.27 * (1 - 0.95 * progress), 0.005)
    noise = torch.empty_like(logits)
    if streams is None:
        noise.exponential_()
    else:
        parts = noise.unbind() if len(streams) > 1 else (noise,)
        for part, stream in zip(parts, streams, strict=True):
            part.exponential_(generator=stream)
    return ((logits * (1 + progress) - noise.log()) / temperature).softmax(dim=-1)
