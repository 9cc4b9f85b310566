"""`modicum compress` and `modicum plan`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modicum.cli import options
from modicum.cli.settings import parse_setting
from modicum.errors import InvalidSetting, UnknownName

if TYPE_CHECKING:
    from modicum.pipeline.recipe import Recipe

RecipeFile = Annotated[Path | None, typer.Option("--recipe", "-r", help="A recipe file (YAML).")]
Methods = Annotated[
    list[str] | None, typer.Option("--method", "-m", help="A method's name; may be repeated, in order.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="KEY=VALUE for the methods that have KEY, or METHOD.KEY=VALUE for one."),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        "--calibration", help="stdlib, a text file or folder, hf:DATASET, or token windows (.safetensors)."
    ),
]
Samples = Annotated[int | None, typer.Option("--samples", min=1, help="Calibration windows (128).")]
Length = Annotated[
    int | None, typer.Option("--length", min=2, help="Tokens per window (2048, or the context).")
]
PropagateError = Annotated[
    bool | None,
    typer.Option(
        "--propagate-error/--dense-inputs",
        help="Calibrate a block on the outputs of the compressed blocks before it, or (in half the time) of the "
        "dense ones.",
        show_default="propagate-error",
    ),
]
Storage = Annotated[
    str, typer.Option("--format", help="auto, plain, compressed-tensors or modicum (the smallest).")
]
Offload = Annotated[bool, typer.Option("--offload", help="Keep the calibration's activations on disk.")]
FORMATS = ("auto", "plain", "compressed-tensors", "modicum")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command(
        "compress", epilog="modicum compress nano-lm --method prune.wanda --set sparsity=0.5 --out small"
    )(compress)
    app.command("plan", epilog="modicum plan nano-lm --method quantize.gptq --set group_size=64")(plan)


def compress(
    model: options.Model,
    out: options.Out,
    recipe: RecipeFile = None,
    method: Methods = None,
    set_: Settings = None,
    calibration: Calibration = None,
    samples: Samples = None,
    length: Length = None,
    propagate_error: PropagateError = None,
    format_: Storage = "auto",
    overwrite: options.Overwrite = False,
    offload: Offload = False,
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Compress a model with a recipe or with single methods; a killed run goes on with the same command."""
    from modicum import api
    from modicum.cli.console import RunProgress, console, duration, print_json, size
    from modicum.formats.policies import Policies
    from modicum.pipeline.run import Run

    screen = console(quiet, as_json)
    started = time.monotonic()
    progress = RunProgress(screen)
    steps = _recipe(recipe, method, set_, calibration, samples, length, seed, propagate_error)
    run = api.prepare(
        model,
        steps,
        out,
        **_place(format_, dtype, device),
        overwrite=overwrite,
        offload=offload,
        progress=progress,
    )
    try:
        manifest = run.execute()
    finally:
        progress.close()
    seconds = time.monotonic() - started
    written = sum(file.stat().st_size for file in out.glob("model*.safetensors"))
    if as_json:
        planned = {"plan": run.plan.to_dict()} if isinstance(run, Run) else {}
        print_json({"out": str(out), "seconds": seconds, "weights_bytes": written, **planned,
                    "layers": manifest.layers, "notes": manifest.notes,
                    "policies": list(Policies.read(out).described())})  # fmt: skip
    screen.print(
        f"[green]✓[/] {out}  {size(run.weights_before)} → {size(written)} "
        f"({written / run.weights_before:.1%}) in {duration(seconds)}"
    )
    for name, found in manifest.notes.items():
        if "kept_blocks" in found:
            screen.print(
                f"[dim]{name} kept blocks {found['kept_blocks']} of {found['of_blocks']}[/]", highlight=False
            )
        if "parameters" in found and "kept" in found:
            left, of = found["parameters"]
            screen.print(f"[dim]{name} kept {left:,} of {of:,} parameters[/]", highlight=False)
        if "bound" in found:
            screen.print(f"[dim]{name}: {_coded_in_words(found)}[/]", highlight=False, soft_wrap=True)
    for words in Policies.read(out).described():
        screen.print(
            f"[dim]{words} is saved beside the weights; modicum generate uses it[/]",
            highlight=False,
            soft_wrap=True,
        )
    for line in _next(model, out):
        screen.print(f"[dim]{line}[/]", highlight=False)


def _coded_in_words(found: dict[str, Any]) -> str:
    """What a storage step reached, beside what no code for single bytes can beat."""
    if not found["coded_weights"]:
        return f"nothing became smaller ({next(iter(found['raw'].values()), 'there is nothing to code')})"
    bits = found["bits"]
    reached, bound = found["bits_per_weight"], found["bound"]
    raw = f"; {len(found['raw'])} groups stay as they are" if found["raw"] else ""
    return (
        f"{reached:.2f} of {bits:g} bits per coded weight ({reached / bits:.1%}), "
        f"bound {bound:.2f} ({bound / bits:.1%}){raw}"
    )


def _next(model: str, out: Path) -> list[str]:
    """What to do with what was written: look at what it draws, measure what it cost."""
    from modicum.models.cifar_resnet import CifarResNetConfig
    from modicum.models.class_models import class_kind
    from modicum.models.image_models import image_kind
    from modicum.pipeline.whole import model_type

    look = f"What does it draw?  modicum generate {out} --out images.png"
    cost = f"What did it cost?  modicum report {out} --against {model}"
    if model_type(out) == CifarResNetConfig.model_type:
        return []  # report reads text or draws
    if image_kind(out) is not None:
        return [look]
    return [look, cost] if class_kind(out) else [cost]


def plan(
    model: options.Model,
    recipe: RecipeFile = None,
    method: Methods = None,
    set_: Settings = None,
    calibration: Calibration = None,
    samples: Samples = None,
    length: Length = None,
    propagate_error: PropagateError = None,
    format_: Storage = "auto",
    seed: options.Seed = 0,
    device: options.Device = "cpu",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Say what a run would do and need, from config and headers (and, to code without loss, a sample of the weights).

    Nothing is written.
    """
    from modicum import api
    from modicum.cli.console import console, plan_table, print_json
    from modicum.cli.storage_plan import storage_plan_table
    from modicum.cli.whole_plan import whole_plan_table
    from modicum.pipeline.plan import Plan
    from modicum.pipeline.storage_plan import StoragePlan

    steps = _recipe(recipe, method, set_, calibration, samples, length, seed, propagate_error)
    made = api.plan(model, steps, **_place(format_, dtype, device))
    if as_json:
        print_json(made.to_dict())
    screen = console(quiet, as_json)
    if isinstance(made, StoragePlan):
        screen.print(storage_plan_table(made))
    else:
        screen.print(plan_table(made) if isinstance(made, Plan) else whole_plan_table(made))


def _place(form: str, dtype: str, device: str) -> dict[str, Any]:
    """Options of `api.prepare` and `api.plan`: how to store and where to work."""
    if form not in FORMATS:
        raise InvalidSetting(
            f"--format {form!r} is not a storage format.", f"Choose one of {', '.join(FORMATS)}."
        )
    return {"form": form, "dtype": options.torch_dtype(dtype), "device": device}


def _recipe(
    file: Path | None,
    methods: list[str] | None,
    settings: list[str] | None,
    calibration: str | None,
    samples: int | None,
    length: int | None,
    seed: int,
    propagate_error: bool | None,
) -> Recipe:
    """The recipe that the options describe; options on the command line win over the file."""
    from modicum.pipeline import recipe as recipes

    if (file is None) == (not methods):
        raise InvalidSetting("Say what to do with either --recipe or --method.", "See `modicum methods`.")
    if file is not None and settings:
        raise InvalidSetting(
            "--set belongs to --method; a recipe file holds its own settings.", f"Edit {file}."
        )
    base = recipes.load(file) if file is not None else recipes.parse(steps_of(methods or [], settings or []))
    given = {
        "source": calibration, "samples": samples, "length": length, "propagate_error": propagate_error
    }  # fmt: skip
    changed = base.calibration.model_copy(update={k: v for k, v in given.items() if v is not None})
    return base.model_copy(
        update={"calibration": changed, **({"seed": seed} if seed or file is None else {})}
    )


def steps_of(methods: list[str], settings: list[str]) -> list[dict[str, dict[str, Any]]]:
    """The steps of a recipe out of methods and KEY=VALUE settings.

    Raises:
        UnknownName: a setting that no method has.
    """
    from modicum.method import find

    steps: list[dict[str, dict[str, Any]]] = [{name: {}} for name in methods]
    fields = {name: find(name).model_fields for name in methods}
    for setting in settings:
        path, value = parse_setting(setting, "sparsity=0.5")
        owner, _, key = path.rpartition(".")
        takers = [step for step in steps for name in step if owner in ("", name) and key in fields[name]]
        if not takers:
            known = {key for name in methods if owner in ("", name) for key in fields[name]}
            raise UnknownName.among(f"setting of {owner or ' or '.join(methods)}", key, known)
        for step in takers:
            for chosen in step.values():
                chosen[key] = value
    return steps
