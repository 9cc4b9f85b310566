"""The pictures of `modicum generate` with a diffusion transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modicum.cli import attaching, image_options, options
from modicum.errors import InvalidSetting

if TYPE_CHECKING:
    from modicum.evaluate.denoising import ClassRequest, Drawn
    from modicum.formats.policies import Policies
    from modicum.models.class_models import ClassModel

SHOWN_SIDE = 64  # least pixels of a picture in the grid; smaller ones are enlarged


def draw(given: dict[str, Any]) -> None:
    """Draw the classes that the options ask for.

    Args:
        given: options of `modicum generate` that were given, by name.
    """
    from modicum.api.classes import load_denoiser, request
    from modicum.cli.console import Steps, console
    from modicum.evaluate.denoising import draw_classes

    _check(given)
    screen = console(given.get("quiet", False), given.get("as_json", False))
    model, vae = load_denoiser(
        given["model"],
        vae=given.get("vae"),
        dtype=options.torch_dtype(given["dtype"]),
        device=given["device"],
    )
    names = ("count", "at_once", "cfg", "steps", "sampler", "iterations", "seed")
    wanted = request(
        model,
        labels=image_options.numbers(given.get("label", ())),
        **{name: given[name] for name in names if name in given},
    )
    found = attaching.saved(given)
    attaching.tell(screen, given, found)
    policies = found or _named(model, given)
    with policies.attach(model), Steps(screen, "step", runs=len(wanted.batches())) as bar:
        drawn = draw_classes(model, wanted, vae, bar)
    _finish(given, wanted, drawn, attaching.facts(policies, found))


def _named(model: ClassModel, given: dict[str, Any]) -> Policies:
    """The policy of --step-cache; none without it."""
    from modicum.api.policies import fit_policy, step_method
    from modicum.formats.policies import Policies

    if "step_cache" not in given:
        return Policies()
    method = step_method(given["step_cache"], image_options.settings(given.get("set_")))
    return Policies((fit_policy(model, method),), model.config.depth)


def _check(given: dict[str, Any]) -> None:
    """Refuse what cannot be drawn or written before anything is loaded."""
    if "text" in given:
        raise InvalidSetting(
            f"{given['model']} draws classes and reads no prompts.", "Say what to draw with --label."
        )
    if "out" not in given:
        raise InvalidSetting("Nothing says where the images go.", "For example --out images.png")
    if "set_" in given and "step_cache" not in given:
        raise InvalidSetting("--set belongs to a step cache.", "Name it, for example --step-cache fora")
    image_options.check_picture(given["out"], given.get("overwrite", False))


def _finish(given: dict[str, Any], wanted: ClassRequest, drawn: Drawn, facts: dict[str, Any]) -> None:
    """Write the picture and say what it took."""
    from modicum.cli.console import console, duration, print_json
    from modicum.report.files import write_whole
    from modicum.report.pictures import enlarged, grid, to_png

    large = enlarged(drawn.images, SHOWN_SIDE)
    write_whole(given["out"], to_png(grid(large)))
    height, width = drawn.images.shape[-2:]
    factor = large.shape[-1] // width
    at_once = min(wanted.at_once, len(wanted.seeds))
    console(given.get("quiet", False), given.get("as_json", False)).print(
        f"[green]✓[/] {given['out']}  {len(wanted.seeds)} of {height}×{width} pixels in "
        f"{duration(sum(drawn.seconds))}, {at_once} at once"
        + (f"; shown {factor} times as large" if factor > 1 else ""),
        soft_wrap=True,
    )
    if given.get("as_json"):
        print_json(
            {
                "out": str(given["out"]),
                "pixels": [height, width],
                "enlarged": factor,
                "labels": wanted.labels,
                "seeds": wanted.seeds,
                "settings": wanted.settings,
                **facts,
                "at_once": at_once,
                "seconds": drawn.seconds,
                "seconds_per_image": sum(drawn.seconds) / len(wanted.seeds),
            }
        )
