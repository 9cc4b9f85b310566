"""Compare a diffusion transformer with what depth pruning and recovery made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from modicum.api.classes import load_denoiser, request
from modicum.errors import CheckpointError, UnsupportedModel
from modicum.evaluate import Spread, environment
from modicum.evaluate.denoising import ClassRequest, draw_batch
from modicum.evaluate.depth_comparison import Decision, DepthComparison, DepthEntry, LossCurve
from modicum.evaluate.inference import evaluating
from modicum.evaluate.size import parameter_count
from modicum.formats.manifest import FILE, Manifest
from modicum.formats.policies import Policies
from modicum.formats.shards import Shards
from modicum.models.class_models import ClassModel, network_of
from modicum.pipeline.coding import describe_coding
from modicum.zoo.digits import Judge, load_judge
from modicum.zoo.dit_card import for_judge
from modicum.zoo.locate import locate

WARM_UP = 2  # steps


def compare_depths(
    original: str | Path,
    others: Sequence[str | Path],
    *,
    count: int = 100,
    seed: int = 0,
    at_once: int = 25,
    vae: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    command: str | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
    **sampling: Any,
) -> tuple[DepthComparison, list[Tensor]]:
    """Draw the same classes from equal noise with all models, in turns, and measure what each costs and brings.

    Each model draws under the policies that are saved beside its weights.

    Args:
        original: a directory or a nano model's name; if a judge lies beside it, that judges the pictures.
        others: pruned and recovered models, for whom the same holds.
        count: pictures of each model, spread over the classes.
        seed: of the first picture.
        at_once: pictures per batch; every batch is a round of the paired timing.
        vae: directory of the AutoencoderKL, for models of latents.
        dtype: compute dtype.
        device: where to work.
        command: the command line that repeats this, for the report.
        progress: told how many batches are done, and of how many.
        **sampling: cfg, steps and sampler of `DiT.generate`.

    Returns:
        The comparison, and the images float32 `[B, C, H, W]` of each of its entries.

    Raises:
        UnsupportedModel: a model draws something else than the original.
        InvalidSetting: a setting out of range, or a missing autoencoder.
    """
    directories = [locate(original), *map(locate, others)]
    opened = [load_denoiser(path, vae=vae, dtype=dtype, device=device) for path in directories]
    models, decoder = [model for model, _ in opened], opened[0][1]
    _check_alike(models, directories)
    classes = models[0].config.num_classes
    few = min(count, classes)
    labels = [index * classes // few for index in range(few)] if few > 0 else []
    wanted = request(models[0], labels=labels, count=count, seed=seed, at_once=at_once, **sampling)
    policies = [Policies.read(path) for path in directories]
    images, seconds = _draw(models, policies, wanted, decoder, progress)
    judge = load_judge(directories[0])
    entries = [
        _entry(*each, seconds[0], judge, wanted)
        for each in zip(directories, models, policies, images, seconds, strict=True)
    ]
    comparison = DepthComparison(
        entries=tuple(entries),
        decisions=tuple(dict.fromkeys(each for path in directories for each in decisions(path))),
        coding=describe_coding(network_of(directories[-1]), network_of(directories[0])),
        labels=wanted.labels,
        seeds=wanted.seeds,
        at_once=min(at_once, count),
        sampling=dict(wanted.settings),
        command=command,
        environment=environment(device),
    )
    return comparison, images


def decisions(directory: Path) -> list[Decision]:
    """What the steps that made a model left of its blocks, as modicum.json says.

    Raises:
        CheckpointError: it says nothing that makes sense.
    """
    with _sensible(directory):
        return [
            Decision(
                method=name,
                kept=found["kept_blocks"],
                of=found["of_blocks"],
                groups=found.get("groups", ()),
                confidence=found.get("confidence", ()),
                history=found.get("history"),
            )
            for name, found in _notes(directory).items()
            if "kept_blocks" in found
        ]


def loss_curves(directory: Path) -> dict[str, LossCurve]:
    """How the trainings went that made a model, by method, as modicum.json says.

    Raises:
        CheckpointError: it says nothing that makes sense.
    """
    with _sensible(directory):
        return {
            name: LossCurve(step=found["history"]["step"], loss=found["history"]["loss"])
            for name, found in _notes(directory).items()
            if "history" in found
        }


def _notes(directory: Path) -> dict[str, dict[str, Any]]:
    manifest = Manifest.present(directory)
    return manifest.notes if manifest is not None else {}


@contextmanager
def _sensible(directory: Path) -> Iterator[None]:
    """Notes that fit no record become a sentence."""
    try:
        yield
    except (ValidationError, KeyError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else f"{error} is missing"
        raise CheckpointError(
            f"The notes in {directory / FILE} are damaged: {reason}.",
            "Copy it again, or make the model again.",
        ) from error


def _check_alike(models: Sequence[ClassModel], directories: Sequence[Path]) -> None:
    """Refuse models that cannot draw the same pictures."""
    fields = ("kind", "input_size", "in_channels", "num_classes", "pixel_space")
    for model, directory in zip(models, directories, strict=True):
        for field in fields:
            own, first = getattr(model.config, field), getattr(models[0].config, field)
            if own != first:
                raise UnsupportedModel(
                    f"{directory.name} has {field} {own}, {directories[0].name} has {first}.",
                    "Compare a model with what was made of it.",
                )


def _draw(
    models: Sequence[ClassModel],
    policies: Sequence[Policies],
    wanted: ClassRequest,
    vae: torch.nn.Module | None,
    progress: Callable[[int, int], None],
) -> tuple[list[Tensor], list[list[float]]]:
    """Images of every model, and its seconds per image in every batch; the models take turns."""
    batches = wanted.batches()
    images: list[list[Tensor]] = [[] for _ in models]
    seconds: list[list[float]] = [[] for _ in models]
    with evaluating(*models):
        for model, policy in zip(models, policies, strict=True):
            with policy.attach(model):
                draw_batch(model, {**batches[0], "steps": WARM_UP}, vae)
        for turn, batch in enumerate(batches):
            for place, model in enumerate(models):
                with policies[place].attach(model):
                    drawn, taken = draw_batch(model, batch, vae)
                images[place].append(drawn)
                seconds[place].append(taken / len(drawn))
                progress(turn * len(models) + place + 1, len(batches) * len(models))
    return [torch.cat(parts) for parts in images], seconds


def _entry(
    directory: Path,
    model: ClassModel,
    policies: Policies,
    images: Tensor,
    seconds: list[float],
    base: list[float],
    judge: Judge | None,
    wanted: ClassRequest,
) -> DepthEntry:
    quality = {}
    if judge is not None and len(images) > 1:
        seen = for_judge(images)
        labels = torch.tensor(wanted.labels)
        quality = {"accuracy": judge.accuracy(seen, labels), "frechet": judge.distance(seen)}
    return DepthEntry(
        name=directory.name,
        blocks=model.config.depth,
        parameters=parameter_count(model),
        disk_bytes=Shards(network_of(directory)).nbytes(),
        training_losses={name: found["loss"] for name, found in _notes(directory).items() if "loss" in found},
        loss_curves=loss_curves(directory),
        policies=policies.described(),
        seconds=Spread.of(seconds),
        seconds_ratio=Spread.of(own / first for own, first in zip(seconds, base, strict=True)),
        **quality,
    )
