"""The images of `modicum generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modicum.cli import attaching, image_options, options
from modicum.errors import InvalidSetting

if TYPE_CHECKING:
    from modicum.cache import CachePolicy
    from modicum.evaluate.drawing import Drawing, Request
    from modicum.formats.policies import Policies
    from modicum.method import Policy
    from modicum.models.next_scale import NextScaleModel


def draw(given: dict[str, Any]) -> None:
    """Draw what the options ask for, under the policy that they name.

    Args:
        given: options of `modicum generate` that were given, by name.
    """
    from modicum.api.images import load_drawer
    from modicum.api.inputs import request
    from modicum.cli.console import Steps, console
    from modicum.evaluate.drawing import draw_request
    from modicum.evaluate.inference import evaluating
    from modicum.formats.policies import Policies

    _check_files(given)
    screen = console(given.get("quiet", False), given.get("as_json", False))
    if "text" in given:
        given = {**given, "prompt": [given["text"], *given.get("prompt", [])]}
    model = load_drawer(
        given["model"],
        text_encoder=given.get("text_encoder"),
        dtype=options.torch_dtype(given["dtype"]),
        device=given["device"],
    )
    wanted = request(model, **image_options.wanted(given))
    found = attaching.saved(given)
    attaching.tell(screen, given, found)
    policies = found or Policies((_policy(model, wanted, given),), model.shape.layers)
    if "save_policy" in given:
        _save(policies.policies[0], given["save_policy"])
        screen.print(f"[green]✓[/] {given['save_policy']}  {policies.policies[0].method.name}")
    drawing = None
    if "out" in given:
        batches = wanted.batches()
        with (
            evaluating(model),
            policies.attach(model),
            Steps(screen, "map", runs=len(batches)) as bar,
        ):
            drawing = draw_request(model, batches, bar)
    _finish(given, wanted, policies, drawing, attaching.facts(policies, found))


def _check_files(given: dict[str, Any]) -> None:
    """Refuse what cannot be written before anything is loaded."""
    from modicum.report.files import check_free

    if "out" not in given and "save_policy" not in given:
        raise InvalidSetting("Nothing says where the images go.", "For example --out images.png")
    if "out" in given:
        image_options.check_picture(given["out"], given.get("overwrite", False))
    if "save_policy" in given:
        check_free(given["save_policy"], given.get("overwrite", False))


def _policy(model: NextScaleModel, wanted: Request, given: dict[str, Any]) -> CachePolicy:
    """The policy of --policy or --kv; the full cache if there is neither."""
    from modicum.api.policies import FAMILY, cache_method, fit_policy, read_policy, split_settings

    chosen = [name for name in ("kv", "budget", "set_") if name in given]
    if "policy" in given:
        if chosen:
            raise InvalidSetting(
                "--policy holds its policy, budget and settings.", "Leave --kv and --budget out."
            )
        return read_policy(given["policy"], model)
    if chosen and "kv" not in given:
        raise InvalidSetting(
            "--budget and --set belong to a cache policy.", "Name it, for example --kv scalekv"
        )
    name = given.get("kv", "full").removeprefix(FAMILY)
    settings = split_settings([name], image_options.settings(given.get("set_")))[name]
    return fit_policy(model, cache_method(name, given.get("budget"), settings), wanted)


def _save(policy: Policy, file: Path) -> None:
    from modicum.report.files import write_whole

    write_whole(file, (json.dumps(policy.to_json(), indent=1) + "\n").encode())


def _finish(
    given: dict[str, Any],
    wanted: Request,
    policies: Policies,
    drawing: Drawing | None,
    facts: dict[str, Any],
) -> None:
    """Write the picture and say what it took."""
    from modicum.cli.console import console, duration, print_json, size
    from modicum.report.files import write_whole
    from modicum.report.pictures import grid, to_png

    method = policies.policies[0].method
    told: dict[str, Any] = {"policy": method.name, "settings": method.settings(), **facts}
    if "save_policy" in given:
        told["policy_file"] = str(given["save_policy"])
    if drawing is not None:
        write_whole(given["out"], to_png(grid(drawing.images)))
        height, width = drawing.images.shape[-2:]
        told |= {
            "out": str(given["out"]),
            "pixels": [height, width],
            "captions": wanted.captions,
            "seeds": wanted.seeds,
            "at_once": min(wanted.at_once, len(wanted.seeds)),
            "seconds": drawing.seconds,
            "carried_bytes": drawing.carried_bytes,
            "carried": drawing.carried,
            "peak_bytes": drawing.peak_bytes,
        }
        console(given.get("quiet", False), given.get("as_json", False)).print(
            f"[green]✓[/] {given['out']}  {len(wanted.seeds)} of {height}×{width} pixels in "
            f"{duration(sum(drawing.seconds))}; cache of {told['at_once']} at once: "
            f"{size(drawing.carried_bytes)} between maps, {size(drawing.peak_bytes)} at its peak",
            soft_wrap=True,
        )
    if given.get("as_json"):
        print_json(told)
