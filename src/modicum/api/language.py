"""Language models: compress, plan, compare."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modicum.api.training import layer_windows, prepare_whole, transform_loaded
from modicum.data.samples import Samples, Table
from modicum.data.text import load_text
from modicum.data.windows import token_stream
from modicum.errors import InvalidSetting, RecipeConflict
from modicum.evaluate import Comparison, LayerRecord, Protocol
from modicum.evaluate import compare as compare_models
from modicum.evaluate.compare import EVERYTHING, StageProgress
from modicum.formats.manifest import Manifest
from modicum.method import Method
from modicum.pipeline import recipe as recipes
from modicum.pipeline.composition import split_steps
from modicum.pipeline.loading import load_model, load_tokenizer, refuse_images
from modicum.pipeline.memory_run import Batches, compress_model
from modicum.pipeline.plan import Format, Plan, make_plan
from modicum.pipeline.recipe import Recipe
from modicum.pipeline.run import Progress, Run, Silent, check_device
from modicum.pipeline.source import Source
from modicum.pipeline.whole_run import WholeRun
from modicum.zoo.locate import locate

RecipeLike = Recipe | Method | str | Path | Mapping[str, Any] | Sequence[Any]


def as_recipe(value: RecipeLike) -> Recipe:
    """A recipe from a recipe, a method, the path of a YAML file, a method's name, or plain values."""
    if isinstance(value, Recipe):
        return value
    if isinstance(value, Method):
        return Recipe.of(value)
    if isinstance(value, Path) or (isinstance(value, str) and value.endswith((".yaml", ".yml"))):
        return recipes.load(Path(value))
    if isinstance(value, str):
        return recipes.parse([value])
    if isinstance(value, Sequence) and value and all(isinstance(step, Method) for step in value):
        return Recipe(steps=tuple(value))
    return recipes.parse(value)


def prepare(
    model: str | Path,
    recipe: RecipeLike,
    out: str | Path,
    *,
    data: Tensor | Samples | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    form: Format = "auto",
    overwrite: bool = False,
    offload: bool = False,
    progress: Progress | None = None,
) -> Run | WholeRun:
    """A run that is planned and checked but not begun: `run.plan` says what it will do, `run.execute()` does it.

    Args:
        model: a directory, a nano model's name, or a hub id.
        recipe: the steps (see `as_recipe`).
        out: the directory to write.
        data: calibration windows, int64 [windows, length], or samples for steps over the whole model; drawn as the
            recipe says by default.
        dtype: compute dtype; that of the checkpoint by default.
        device: where a block is worked on.
        form: storage format: auto, plain, compressed-tensors or modicum.
        overwrite: replace `out` if it exists.
        offload: keep the calibration's hidden states on disk.
        progress: who to tell.
    """
    check_device(device)
    steps, told = as_recipe(recipe), progress or Silent()
    if split_steps(steps.steps)[0]:
        samples = _samples(data)
        return prepare_whole(
            model, steps, out, data=samples, dtype=dtype, device=device, form=form,
            overwrite=overwrite, offload=offload, progress=told,
        )  # fmt: skip
    if isinstance(data, Samples):
        raise InvalidSetting("Layer steps are calibrated with token windows.", "Pass an int64 tensor.")
    source = Source.open(locate(model), dtype, device)
    _planned(source, steps, form)  # what cannot work is refused before any text is read
    tokens = data if data is not None else layer_windows(source, steps)
    return Run(source, steps, Path(out), tokens, form, overwrite, offload, told)


def _samples(data: Tensor | Samples | None) -> Samples | None:
    """Windows of tokens as samples."""
    return Table({"input_ids": data}) if isinstance(data, Tensor) else data


def _context(source: Source) -> int | None:
    return getattr(source.model.config, "max_position_embeddings", None)


def _planned(source: Source, recipe: Recipe, form: Format) -> Plan:
    length = recipe.calibration.length
    return make_plan(
        source, recipe, form, (recipe.calibration.samples, min(length, _context(source) or length))
    )


def compress(
    model: nn.Module | str | Path,
    recipe: RecipeLike,
    *,
    out: str | Path | None = None,
    data: Batches | Samples | None = None,
    **options: Any,
) -> nn.Module | Manifest:
    """Compress a model.

    Args:
        model: a loaded model (compressed in place and returned), or a directory, nano model or hub id (read block
            by block, written to `out`).
        recipe: a Recipe, a method, a YAML file, a method's name, or a list of steps.
        out: the directory to write; for a model on disk.
        data: token windows [windows, length]; for a loaded model batches of its inputs; for steps over the whole model
            samples.
        **options: of `prepare`.

    Returns:
        The model, or the content of modicum.json of the written directory.
    """
    if isinstance(model, nn.Module):
        _compress_loaded(model, as_recipe(recipe), data, options)
        return model
    if out is None:
        raise InvalidSetting("A model on disk is compressed into a directory.", "Pass out='DIRECTORY'.")
    if data is not None and not isinstance(data, Tensor | Samples):
        raise InvalidSetting("A model on disk is calibrated with token windows.", "Pass an int64 tensor.")
    return prepare(model, recipe, out, data=data, **options).execute()


def _compress_loaded(
    model: nn.Module, recipe: Recipe, data: Batches | Samples | None, options: dict[str, Any]
) -> None:
    whole, layers = split_steps(recipe.steps)
    if whole and layers:
        raise RecipeConflict(
            f"{whole[0].name} and {layers[0].name} read different data of a loaded model.",
            "Compress it twice, or compress a model on disk.",
        )
    if whole:
        samples = data if data is None or isinstance(data, Samples) else _samples(torch.as_tensor(data))
        transform_loaded(model, recipe, samples, **options)
    elif isinstance(data, Samples):
        raise InvalidSetting("Layer steps are calibrated with batches.", "Pass token windows or batches.")
    else:
        compress_model(model, recipe, data, options.get("progress"))


def plan(
    model: str | Path,
    recipe: RecipeLike,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    form: Format = "auto",
) -> Plan:
    """What a run would do and need, from config and headers alone; arguments as for `prepare`."""
    check_device(device)
    return _planned(Source.open(locate(model), dtype, device), as_recipe(recipe), form)


def compare(
    before: str | Path,
    after: str | Path,
    *,
    text: str = "stdlib",
    tokens: int = 16384,
    what: Collection[str] = EVERYTHING,
    window: int | None = None,
    prompts: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    seed: int = 0,
    command: str | None = None,
    progress: StageProgress | None = None,
) -> Comparison:
    """Measure two checkpoints side by side on the same held-out text.

    Args:
        before: the original: a directory, nano model or hub id.
        after: the compressed one.
        text: evaluation text (its held-out part): stdlib, a file or folder, hf:DATASET.
        tokens: how many of its tokens.
        what: any of quality, size, memory, speed, samples.
        window: tokens per window of the perplexity; the context of the model (2048 at most) by default.
        prompts: texts to continue; places of the evaluation text by default.
        dtype: compute dtype of both.
        device: where both run.
        seed: carried into the result.
        command: the command line that repeats this, for the report.
        progress: told what is measured.
    """
    check_device(device)
    first, second = locate(before), locate(after)
    for directory in (first, second):
        refuse_images(directory, "Comparing texts", "Compare its cache policies: `modicum compare-kv`.")
    tokenizer = load_tokenizer(first)
    stream = token_stream(load_text(text, "heldout"), tokenizer, tokens)
    models = [load_model(path, dtype, device) for path in (first, second)]
    manifest = Manifest.present(second)
    protocol = Protocol.fitting(models[0], len(stream))
    if window is not None:
        protocol = protocol.model_copy(update={"window": min(window, protocol.window)})
    return compare_models(
        models[0],
        models[1],
        tokenizer,
        stream,
        what=what,
        before_dir=first,
        after_dir=second,
        protocol=protocol,
        prompts=prompts,
        layers=layer_records(manifest),
        recipe=manifest.recipe if manifest else None,
        command=command,
        name=first.name,
        data=f"{text}, held-out part",
        seed=seed,
        progress=progress,
    )


def layer_records(manifest: Manifest | None) -> list[LayerRecord]:
    """What became of each layer, as the report shows it."""
    if manifest is None:
        return []
    return [
        LayerRecord(
            name=name,
            relative_error=record.get("output_error", record.get("weight_error")),
            **{
                key: record.get(key)
                for key in ("block", "sparsity", "bits_per_weight", "nbytes", "dense_nbytes")
            },
            role=record["role"],
        )
        for name, record in manifest.layers.items()
        if "role" in record
    ]
