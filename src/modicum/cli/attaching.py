"""The policies under which `modicum generate` draws: those beside the weights, unless the options name others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from modicum.formats.policies import Policies

OTHERS = ("kv", "budget", "set_", "policy", "step_cache", "no_policy")


def saved(given: dict[str, Any]) -> Policies | None:
    """The policies beside the weights; None if there are none, or if the options say something else.

    Args:
        given: options of `modicum generate` that were given, by name.

    Raises:
        CheckpointError: policies.json is damaged, something else, or of another version.
    """
    from modicum.api.policies import saved_policies

    if any(name in given for name in OTHERS):
        return None
    found = saved_policies(given["model"])
    return found if found.policies else None


def tell(screen: Console, given: dict[str, Any], found: Policies | None) -> None:
    """Say that policies beside the weights are used."""
    from modicum.formats.policies import FILE

    if found is not None:
        words = ", ".join(found.described())
        file = Path(given["model"]) / FILE
        screen.print(f"[dim]under {words}, saved in {file}[/]", soft_wrap=True, highlight=False)


def facts(policies: Policies, found: Policies | None) -> dict[str, Any]:
    """The same for --json: the policies that were used, and whether they lay beside the weights."""
    return {"policies": list(policies.described()), "policies_saved": found is not None}
