"""A cache budget as a person writes it, and what it comes to in tokens and in bytes.

    "10%"      a share of the tokens that precede the last map (the last map is never stored)
    "650"      tokens per layer, row and head
    "8GB"      bytes of all keys and values together, over all layers and rows (kB MB GB: powers of 1000,
               KiB MiB GiB: powers of 1024)

Bytes of the keys and values of t tokens: t C (key itemsize + value itemsize) L R, with C channels, L layers and R
rows; guidance doubles R. Published figures count float32 keys beside bfloat16 values (6 bytes per channel).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch

from modicum.errors import InvalidSetting
from modicum.models.next_scale import AttentionShape, Schedule

Unit = Literal["share", "tokens", "bytes"]
BYTES = {"B": 1} | {
    f"{prefix}{suffix}": base ** (power + 1)
    for suffix, base, prefixes in (("B", 1000, "kMGT"), ("iB", 1024, "KMGT"))
    for power, prefix in enumerate(prefixes)
}
_WRITTEN = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*(%|[kKMGT]?i?B)?")


@dataclass(frozen=True)
class Budget:
    """A cache budget before it is known for which model; see `parse_budget`.

    Attributes:
        text: as it was written.
        unit: what `amount` counts.
        amount: exact; a share lies between 0 and 1.
    """

    text: str
    unit: Unit
    amount: Fraction

    def tokens(
        self,
        schedule: Schedule,
        shape: AttentionShape,
        rows: int,
        key: torch.dtype,
        value: torch.dtype,
        *,
        window: int = 1,
    ) -> int:
        """Tokens per layer, row and head: the largest number that the budget pays for.

        Args:
            schedule: maps of the image.
            shape: sizes of the model's attention.
            rows: images, times two with guidance.
            key: dtype in which keys are cached.
            value: dtype in which values are cached.
            window: tokens that the policy keeps in any case.

        Raises:
            InvalidSetting: that is less than the window, or more than precede the last map.
        """
        prefix = schedule.offsets[-2]
        if self.unit == "bytes":
            tokens = int(self.amount / kv_nbytes(1, shape, rows, key, value))
        else:
            tokens = int(self.amount * prefix if self.unit == "share" else self.amount)
        name = self.text if self.unit == "tokens" else f"{self.text} ({tokens} tokens per layer)"
        _check_tokens(tokens, prefix, window, f"A cache budget of {name}")
        return tokens


def parse_budget(text: str) -> Budget:
    """Read "10%", "650", "8GB" or "512MiB".

    Raises:
        InvalidSetting: anything else, nothing at all, or more than 100 %.
    """
    found = _WRITTEN.fullmatch(text.strip())
    unit = (found[2] or "") if found else ""
    if found is None or unit not in ("", "%", *BYTES) or (not unit and "." in found[1]):
        raise InvalidSetting(
            f"{text!r} is not a cache budget.", "Write a share (10%), tokens (650) or bytes (8GB, 512MiB)."
        )
    amount = Fraction(found[1])
    if amount == 0 or (unit == "%" and amount > 100):
        raise InvalidSetting(
            f"A cache budget of {text} is not possible.", "Give more than nothing, and at most 100%."
        )
    if unit == "%":
        return Budget(text, "share", amount / 100)
    return Budget(text, "bytes", amount * BYTES[unit]) if unit else Budget(text, "tokens", amount)


def kv_nbytes(tokens: int, shape: AttentionShape, rows: int, key: torch.dtype, value: torch.dtype) -> int:
    """Bytes of the cached keys and values of all layers.

    Args:
        tokens: that every layer holds, per row and head.
        shape: sizes of the model's attention.
        rows: images, times two with guidance.
        key: dtype in which keys are cached.
        value: dtype in which values are cached.
    """
    return tokens * shape.channels * (key.itemsize + value.itemsize) * shape.layers * rows


def _check_tokens(tokens: int, prefix: int, window: int, name: str) -> None:
    if tokens < window:
        raise InvalidSetting(
            f"{name} is below the window of {window} tokens that is always kept.",
            "Give a larger budget, or a smaller window.",
        )
    if tokens > prefix:
        raise InvalidSetting(
            f"{name} is more than the {prefix} tokens that precede the last map.",
            "There is nothing to save; give a smaller budget, or use the full cache.",
        )
