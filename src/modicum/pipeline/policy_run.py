"""A run whose recipe ends with runtime steps: their policies are fitted to the finished model and saved beside it.

What the steps before them leave is written into the workspace by a run of its own; without such steps the files of the
original are linked there, so that no weight is copied. Then the model is opened, each step fits its policy, and all
policies go into policies.json (`modicum.formats.policies`). A killed run goes on where it stood, like any other.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modicum.errors import UnsupportedModel, UnusableData
from modicum.formats import policies as saved
from modicum.formats.manifest import FILE, Manifest
from modicum.formats.policies import Policies
from modicum.formats.shards import Shards
from modicum.method import Context, Policy, RuntimeMethod
from modicum.models import Anatomy
from modicum.models.class_models import class_kind, network_of
from modicum.models.image_models import image_kind
from modicum.pipeline.checkpoint import COMPANIONS, file_hash
from modicum.pipeline.classes import load_classes
from modicum.pipeline.composition import split_steps
from modicum.pipeline.images import load_images
from modicum.pipeline.recipe import Recipe
from modicum.pipeline.run import Progress, Run, Silent, provenance
from modicum.pipeline.storage_run import StorageRun
from modicum.pipeline.whole_run import WholeRun
from modicum.pipeline.workspace import RUN, Workspace
from modicum.trainer import is_first
from modicum.version import __version__

Batches = Callable[[nn.Module], list[dict[str, Any]]]
"""What a model draws while a policy is fitted to it."""


@dataclass
class PolicyRun:
    """One run over a checkpoint on disk, ending with runtime steps.

    Args:
        directory: of the original.
        recipe: all steps.
        out: the directory to write; must not exist.
        weights: makes the run of the steps that change what is on disk, for the directory that it is to write.
        batches: what steps that measure draw.
        dtype: compute dtype while policies are fitted; float32 by default.
        device: where that happens.
        overwrite: replace `out` if it exists.
        progress: who to tell.

    Raises:
        RecipeConflict: steps that cannot follow each other.
        UnsupportedModel: a step that cannot run this kind of model.
        UnusableData: a step that measures what only prompts can show.
    """

    directory: Path
    recipe: Recipe
    out: Path
    weights: Callable[[Recipe, Path], Run | WholeRun | StorageRun]
    batches: Batches = lambda model: []
    dtype: torch.dtype | None = None
    device: str = "cpu"
    overwrite: bool = False
    progress: Progress = field(default_factory=Silent)

    def __post_init__(self) -> None:
        steps = split_steps(self.recipe.steps)
        self.steps = steps.runtime
        check_fitting(self.directory, self.steps)
        self.shards = Shards(network_of(self.directory))
        scratch = self.out.resolve()
        self.made = scratch.with_name(f"{scratch.name}.partial") / "blocks" / "weights" / self.directory.name
        changing = self.recipe.model_copy(update={"steps": steps.written})
        self.before = self.weights(changing, self.made) if steps.written else None

    @property
    def weights_before(self) -> int:
        """Weight bytes of the original on disk."""
        return self.shards.nbytes()

    def execute(self) -> Manifest:
        """Carry the run out, or take it up where it was interrupted; returns what modicum.json says.

        Under `accelerate launch` all processes train, and the first one alone fits and writes.
        """
        if not is_first():
            return Manifest.read(self.made) if self.before is None else self.before.execute()
        workspace = Workspace(self.out, self.fingerprint(), overwrite=self.overwrite)
        if not workspace.complete():
            if not (self.made / FILE).exists():
                self._write_weights()
            if not any((place / saved.FILE).exists() for place in (self.made, workspace.root)):
                self._fit()
            (self.made / RUN).unlink(missing_ok=True)
            workspace.adopt(self.made)
        workspace.publish()
        return Manifest.read(self.out)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that shapes the result, as plain JSON values."""
        return {
            "recipe": self.recipe.to_dict(),
            "files": self.shards.fingerprint(),
            "modicum": __version__,
            "dtype": str(self.dtype),
            "weights": None if self.before is None else self.before.fingerprint(),
        }

    def _write_weights(self) -> None:
        if self.before is not None:
            self.before.execute()
            return
        shutil.rmtree(self.made, ignore_errors=True)
        network = network_of(self.directory)
        link_model(network, self.made)
        known = Manifest.present(self.directory) or Manifest()
        hashes = {file.name: file_hash(file) for file in sorted(self.made.glob("*.safetensors"))}
        source = provenance(network, self.shards)
        known.model_copy(update={"source": source, "files": hashes}).write(self.made)

    def _fit(self) -> None:
        anatomy = Anatomy.of(self._opened())
        fitted = tuple(self._policy(step, anatomy) for step in self.steps)
        manifest = Manifest.read(self.made).model_copy(update={"recipe": self.recipe.to_dict()})
        manifest.write(self.made)
        Policies(fitted, len(anatomy.blocks)).write(self.made)  # last: the sign that all is done

    def _opened(self) -> nn.Module:
        kind = image_kind(self.made)
        if kind is not None:
            return load_images(self.made, kind, self.dtype, self.device)
        return load_classes(self.made, self.dtype, self.device)

    def _policy(self, step: RuntimeMethod, anatomy: Anatomy) -> Policy:
        self.progress.learning(f"{step.name}  fitting")
        context = Context(
            torch.Generator().manual_seed(self.recipe.seed),
            device=torch.device(self.device),
            dtype=self.dtype or torch.float32,
            batches=self.batches(anatomy.model) if step.measures() else [],
        )
        return step.fit(anatomy, context)


def check_fitting(directory: Path, steps: tuple[RuntimeMethod, ...]) -> None:
    """Refuse steps that cannot be fitted to a model, before any work is done.

    Raises:
        UnsupportedModel: a step does not run this kind of model.
        UnusableData: a step measures on images, and the model draws none without a prompt.
    """
    kind = image_kind(directory) or class_kind(directory) or "language"
    for step in steps:
        if kind not in step.runs:
            raise UnsupportedModel(
                f"{step.name} runs {' and '.join(step.runs)} models; {directory.name} is a {kind} model.",
                "Leave the step out, or choose another model.",
            )
        if step.measures() and kind == "infinity":
            raise UnusableData(
                f"{step.name} measures on images, and {directory.name} draws none without prompts.",
                "Name the drafters, or fit it with modicum generate --kv --save-policy.",
            )


def link_model(directory: Path, out: Path) -> None:
    """The files of a model under another directory, without a copy where the file system has links.

    Reports and cards stay behind: what they say is said of the original.
    """
    names = {"config.json", *COMPANIONS}
    out.mkdir(parents=True)
    for found in sorted(directory.iterdir()):
        if found.is_dir() and image_kind(directory) is not None:
            shutil.copytree(found, out / found.name, copy_function=_link)
        elif found.name in names or ".safetensors" in found.suffixes:
            _link(str(found), str(out / found.name))


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)
