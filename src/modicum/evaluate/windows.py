"""Cutting a long text into windows so that every token after the first is predicted exactly once.

A text of n tokens holds n - 1 predictions: the token at position i predicts the one at i + 1. A window feeds
up to `window` positions; the next one starts `stride` later and scores only what no earlier window has
scored:

    position   0 1 2 3 4 5 6 7 8      window 4, stride 2        x = read as context, S = scored
    first      S S S S
    second         x x S S
    third              x x S S        with stride == window there is no x, and the windows lie side by side
    tail                   x x S
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, stack

from modicum.errors import InvalidSetting, UnusableData

FLOATS_AT_ONCE = 2**24  # 64 MB of float32: what a chunk of logits may take once it is widened


class Window(NamedTuple):
    """Positions [start, end) are fed; those from `scored` on are scored, each against the token after it."""

    start: int
    end: int
    scored: int


class Batch(NamedTuple):
    """Windows of equal shape: `inputs` [windows, positions], `targets` [windows, scored] (the last ones)."""

    inputs: Tensor
    targets: Tensor


def windows(tokens: int, window: int, stride: int | None = None) -> list[Window]:
    """The windows over a text of `tokens` tokens, the shorter tail last.

    Raises:
        UnusableData: fewer than two tokens, so there is nothing to predict.
        InvalidSetting: not 1 <= stride <= window.
    """
    stride = window if stride is None else stride
    if tokens < 2:
        raise UnusableData(
            f"The text has {tokens} token(s); there is nothing to predict.", "Give at least two."
        )
    if not 1 <= stride <= window:
        raise InvalidSetting(
            f"window={window} and stride={stride} leave tokens out.", "Choose 1 <= stride <= window."
        )
    cut: list[Window] = []
    while not cut or cut[-1].end < tokens - 1:
        start = len(cut) * stride
        cut.append(Window(start, min(start + window, tokens - 1), cut[-1].end if cut else 0))
    return cut


def batches(tokens: Tensor, window: int, stride: int | None, batch: int) -> Iterator[Batch]:
    """Yields the windows of `tokens` (LongTensor [n]) in order, up to `batch` equally shaped at a time."""
    if batch < 1:
        raise InvalidSetting(f"batch={batch} is not a number of windows.", "Use 1 or more.")
    group: list[Window] = []
    for each in windows(len(tokens), window, stride):
        if group and (len(group) == batch or _shape(each) != _shape(group[0])):
            yield _stacked(tokens, group)
            group = []
        group.append(each)
    yield _stacked(tokens, group)


def token_chunks(positions: int, vocabulary: int) -> Iterator[slice]:
    """Slices over `positions` rows of logits that are small enough to be widened to float32."""
    step = max(1, FLOATS_AT_ONCE // vocabulary)
    return (slice(start, start + step) for start in range(0, positions, step))


def _shape(window: Window) -> tuple[int, int]:
    return window.end - window.start, window.end - window.scored


def _stacked(tokens: Tensor, group: list[Window]) -> Batch:
    inputs = stack([tokens[w.start : w.end] for w in group])  # [windows, positions]
    targets = stack([tokens[w.scored + 1 : w.end + 1] for w in group])  # [windows, scored]
    return Batch(inputs, targets)
