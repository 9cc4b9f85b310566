"""Draw the same images under several cache policies, in turns.

A cache policy may change every image, and the only fair question is by how much: same inputs, same seeds, same
batches, and the images of the full cache as the reference. The policies take turns within every batch, so that the
drift of the machine's speed cancels in the ratios (see `speed`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from modicum.errors import InvalidSetting, MissingExtra, UnusableData
from modicum.evaluate.cache_comparison import CacheEntry
from modicum.evaluate.drawing import Drawing, Request, draw_request
from modicum.evaluate.images import WINDOW, frechet, lpips, moments, psnr, ssim
from modicum.evaluate.inference import evaluating
from modicum.evaluate.speed import Spread
from modicum.models.next_scale import NextScaleModel

Features = Callable[[Tensor], Tensor]
"""Images `[B, C, H, W]` in [0, 1] to features `[B, d]`."""


class Attachable(Protocol):
    """A fitted policy."""

    def attach(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """A context in which `model` runs under this policy."""
        ...


Fitted = TypeVar("Fitted", bound=Attachable, covariant=True)


@dataclass(frozen=True)
class Candidate(Generic[Fitted]):
    """A policy to be compared.

    Attributes:
        policy: fitted to the model.
        facts: fields of its `CacheEntry` that describe it: policy, budget, settings, tokens, drafters.
    """

    policy: Fitted
    facts: Mapping[str, Any]


@dataclass
class _Runs:
    """What was drawn under one policy, batch after batch, round after round."""

    images: list[Tensor] = field(default_factory=list)  # of the first round
    seconds: list[float] = field(default_factory=list)
    carried: tuple[int, ...] = ()  # of the batch that carried most
    peak_bytes: int = 0

    def add(self, drawing: Drawing, keep: bool) -> None:
        """Take in one batch."""
        self.images += [drawing.images] if keep else []
        self.seconds += drawing.seconds
        self.carried = max(self.carried, drawing.carried, key=lambda row: max(row, default=0))
        self.peak_bytes = max(self.peak_bytes, drawing.peak_bytes)


def compare_caches(
    model: NextScaleModel,
    candidates: Sequence[Candidate[Attachable]],
    request: Request,
    *,
    features: Features | None = None,
    rounds: int = 3,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[list[CacheEntry], list[Tensor]]:
    """Measure every policy against the first, which is to be the full cache.

    Args:
        model: VAR, Infinity.
        candidates: fitted policies; the first is the reference.
        request: what to draw.
        features: feature space of the Frechet distance; without it none is taken.
        rounds: how often every batch is drawn; only the first round's images are looked at, all are timed.
        progress: told how many batches are done, and of how many.

    Returns:
        One entry and the images `[B, C, H, W]` per candidate.

    Raises:
        InvalidSetting: no candidate, or no round.
    """
    if not candidates or rounds < 1:
        raise InvalidSetting(
            f"{len(candidates)} policies, {rounds} rounds: nothing to compare.", "Give 1 or more of each."
        )
    batches, runs = request.batches(), [_Runs() for _ in candidates]
    turns = [(turn, batch) for turn in range(rounds) for batch in batches]
    with evaluating(model):
        model.generate(**batches[0])  # warms up
        for done, (turn, batch) in enumerate(turns):
            for place, (candidate, run) in enumerate(zip(candidates, runs, strict=True), start=1):
                with candidate.policy.attach(model):
                    run.add(draw_request(model, [batch]), keep=turn == 0)
                progress(done * len(runs) + place, len(turns) * len(runs))
    pictures = [torch.cat(run.images) for run in runs]
    entries = [
        _entry(candidate, run, runs[0], {} if run is runs[0] else _quality(images, pictures[0], features))
        for candidate, run, images in zip(candidates, runs, pictures, strict=True)
    ]
    return entries, pictures


def _entry(
    candidate: Candidate[Attachable], run: _Runs, full: _Runs, quality: Mapping[str, Any]
) -> CacheEntry:
    ratios = [own / base for own, base in zip(run.seconds, full.seconds, strict=True)]
    return CacheEntry(
        **candidate.facts,
        **quality,
        carried=run.carried,
        peak_bytes=run.peak_bytes,
        seconds=Spread.of(run.seconds),
        seconds_ratio=Spread.of(ratios),
    )


def _quality(images: Tensor, reference: Tensor, features: Features | None) -> dict[str, Any]:
    """How far images are from the reference, in every way that can be measured here."""
    found: dict[str, Any] = {
        "psnr": psnr(images, reference),
        "identical": int((images == reference).flatten(1).all(1).sum()),
    }
    if min(images.shape[-2:]) >= WINDOW:
        found["ssim"] = ssim(images, reference).mean().item()
    if features is not None and len(images) > 1:
        one, other = moments(features(images)), moments(features(reference))
        found["frechet"] = frechet(*one, *other)
    with suppress(MissingExtra, UnusableData):  # optional: the table says "not measured"
        found["lpips"] = lpips(images, reference).mean().item()
    return found
