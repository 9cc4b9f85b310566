"""CacheComparison: the same images drawn under several cache policies, and what each policy cost and brought.

Like a Comparison it is data: saved as JSON, read back, shown as a table or as a page. What was not measured is None.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from modicum.evaluate.saved import Record, SavedRecord
from modicum.evaluate.speed import Spread


class CacheEntry(Record):
    """One policy at one budget.

    Attributes:
        policy: its name, such as "scalekv".
        budget: as it was asked for, such as "10%"; None for a policy without one.
        settings: of the method.
        tokens: `[layer][map]`, tokens per row and head that a layer may carry into a map; None: all of them.
        drafters: (layer, map) pairs that ScaleKV let keep more.
        psnr: of the mean squared error to the images of the full cache, in decibel; infinite if none differs.
        ssim: mean over the images; None where they are smaller than its window.
        lpips: mean over the images; None where the package is missing.
        frechet: distance between the two sets of images, in the feature space of the comparison.
        identical: images that do not differ from those of the full cache in any bit.
        carried: bytes of keys and values carried into map 1, 2, ... by one batch.
        peak_bytes: most bytes that the cache of a batch held at once.
        seconds: to draw a batch.
        seconds_ratio: over those of the full cache, round by round.
    """

    policy: str
    budget: str | None = None
    settings: dict[str, Any] = Field(default={})
    tokens: tuple[tuple[int, ...], ...] | None = None
    drafters: tuple[tuple[int, int], ...] = ()
    psnr: float | None = None
    ssim: float | None = None
    lpips: float | None = None
    frechet: float | None = None
    identical: int = 0
    carried: tuple[int, ...]
    peak_bytes: int
    seconds: Spread
    seconds_ratio: Spread

    @property
    def label(self) -> str:
        """Policy and budget in a few letters."""
        return f"{self.policy} {self.budget}" if self.budget else self.policy

    @property
    def carried_bytes(self) -> int:
        """Most bytes of keys and values that are carried from one map to the next."""
        return max(self.carried, default=0)


class CacheComparison(SavedRecord):
    """The same images under several policies.

    Attributes:
        format: version of this layout.
        name: of the model.
        sizes: (height, width) of every map.
        entries: the full cache first.
        images: how many were drawn under each policy.
        at_once: images per batch, to which bytes and seconds belong.
        seeds: one per image.
        captions: what each image shows: its label or its prompt.
        sampling: guidance, filters and the like.
        rounds: how often every batch was timed.
        feature_space: where the Frechet distance lives; None if it was not taken.
        selectivity: attention selectivity index, `[layer][map]`, if ScaleKV measured it.
        command: the exact command that repeats it.
        environment: the machine and the versions.
    """

    kind: ClassVar[str] = "a comparison of cache policies"
    file: ClassVar[str] = "comparison.json"

    format: Literal[1] = 1
    name: str
    sizes: tuple[tuple[int, int], ...]
    entries: tuple[CacheEntry, ...]
    images: int
    at_once: int
    seeds: tuple[int, ...]
    captions: tuple[str, ...] = ()
    sampling: dict[str, Any] = Field(default={})
    rounds: int
    feature_space: str | None = None
    selectivity: tuple[tuple[float, ...], ...] | None = None
    command: str | None = None
    environment: dict[str, Any] = Field(default={})
