"""Exceptions that a user reads: what happened, to which input, and what to do about it.

One class per cause. Every message has two halves, `what` (the file, key or flag and what is wrong with it) and
`hint` (the next thing to type). The command line prints both and exits with `exit_code`; a Python caller can catch
`ModicumError` or the single cause.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ModicumError(Exception):
    """Base of everything that modicum raises on purpose.

    Args:
        what: what is wrong, naming the file, key, layer or flag.
        hint: what to do about it; one sentence.
    """

    exit_code = 2

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\n  {self.hint}" if self.hint else self.what


class UnknownName(ModicumError):
    """A method, setting, model or file name that does not exist; carries the nearest one that does."""

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str]) -> UnknownName:
        """An error for `name`, which is not one of the `known` names of that `kind`, with the nearest as hint."""
        known = sorted(known)
        near = get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
        return cls(f"There is no {kind} named {name!r}.", hint)


class InvalidSetting(ModicumError):
    """A setting of a method, recipe or command that has the wrong type or lies out of range."""


class RecipeConflict(ModicumError):
    """Two steps of a recipe that cannot follow each other, or a step whose needs nothing meets."""


class UnsupportedModel(ModicumError):
    """A model whose architecture, or one layer of it, modicum has no description of."""


class CheckpointError(ModicumError):
    """A checkpoint that is missing files, truncated, corrupt, or at odds with its own config."""


class UnsafeCheckpoint(CheckpointError):
    """A checkpoint stored as pickle, which can run code when it is opened."""


class NotFinite(CheckpointError):
    """A weight or an activation that holds NaN or infinity."""


class OutputExists(ModicumError):
    """The output is already there; nothing is overwritten silently."""


class UnusableData(ModicumError):
    """Calibration or evaluation data that is empty, too short or unreadable."""


class DeviceUnavailable(ModicumError):
    """An accelerator, camera, serial line or port that was asked for and cannot be had."""


class MissingExtra(ModicumError):
    """An optional dependency that a feature needs and that is not installed."""

    @classmethod
    def of(cls, package: str, extra: str, feature: str) -> MissingExtra:
        """An error for `feature`, which needs `package` of the optional dependency group `extra`."""
        return cls(f"{feature} needs the package {package!r}.", f"pip install 'modicum[{extra}]'")


class BadPacket(ModicumError):
    """A packet that is not believed: too short, damaged, of another version, or at odds with its frame."""


class BadTag(BadPacket):
    """A packet whose tag was not made with the node's key."""


class PromiseBroken(ModicumError):
    """A property that a step promised to keep and that no longer holds."""

    exit_code = 3


class OutOfSpace(ModicumError):
    """The disk is full, or too full for what is about to be written."""

    exit_code = 3


class WorkerLost(ModicumError):
    """A process of a search that ended before its work was done: killed, or out of memory."""

    exit_code = 3


class Interrupted(ModicumError):
    """The user stopped a run; the same command resumes it."""

    exit_code = 130
