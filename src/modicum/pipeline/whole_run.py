"""A run whose recipe begins with steps over the whole model: prune its depth, train it, then compress its layers.

The model is loaded whole, the steps change it one after another, and the result is written. If layer steps follow, it
is written into the workspace first, and the sweep over blocks (`modicum.pipeline.run`) reads it from there. Trainings
keep their checkpoints in the workspace: a run that was killed goes on where it stood, with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from torch import Tensor, nn

from modicum.data.samples import Samples
from modicum.formats.manifest import FILE, Manifest
from modicum.formats.shards import Shards
from modicum.method import Context, ModelMethod
from modicum.models import Anatomy
from modicum.models.class_models import class_kind
from modicum.pipeline.classes import check_format, compress_classes
from modicum.pipeline.composition import live_properties, split_steps
from modicum.pipeline.plan import Format
from modicum.pipeline.recipe import Recipe
from modicum.pipeline.run import Progress, Run, Silent, provenance
from modicum.pipeline.source import Source
from modicum.pipeline.whole import open_whole, write_whole
from modicum.pipeline.workspace import Workspace
from modicum.trainer import is_first
from modicum.version import __version__

Windows = Callable[[Source, Recipe], Tensor | None]
"""What calibrates layer steps, once there is something to calibrate."""


@dataclass
class WholeRun:
    """One run over a checkpoint on disk, beginning with steps over the whole model.

    Args:
        directory: of the original.
        recipe: steps over the whole model, then layer steps, if any.
        out: the directory to write; must not exist.
        data: what the steps over the whole model read; None if they read nothing.
        teacher: directory of the model to learn from; the original by default.
        windows: calibration of the layer steps.
        form: storage format of the layer steps.
        dtype: compute dtype of the layer steps; steps over the whole model compute in float32.
        device: where to work.
        overwrite: replace `out` if it exists.
        offload: of the layer steps, see `Run`.
        progress: who to tell.

    Raises:
        RecipeConflict: steps that cannot follow each other.
        InvalidSetting: a storage format that this model cannot have.
    """

    directory: Path
    recipe: Recipe
    out: Path
    data: Samples | None = None
    teacher: Path | None = None
    windows: Windows = lambda source, recipe: None
    form: Format = "auto"
    dtype: torch.dtype | None = None
    device: str = "cpu"
    overwrite: bool = False
    offload: bool = False
    progress: Progress = field(default_factory=Silent)

    def __post_init__(self) -> None:
        self.whole, self.layers, *_ = split_steps(self.recipe.steps)
        live_properties(self.recipe.steps)
        if self.layers and class_kind(self.directory):
            check_format(self.form)
        self.shards = Shards(self.directory)

    @property
    def weights_before(self) -> int:
        """Weight bytes of the original on disk."""
        return self.shards.nbytes()

    def execute(self) -> Manifest:
        """Carry the run out, or take it up where it was interrupted; returns what modicum.json says.

        Under `accelerate launch` all processes train, and the first one alone writes.
        """
        if not is_first():
            return self._changed(self.out.absolute().with_name(f"{self.out.name}.partial") / "blocks")[1]
        workspace = Workspace(self.out, self.fingerprint(), overwrite=self.overwrite)
        if not workspace.complete():
            changed = workspace.blocks / "whole" / self.directory.name
            if not (changed / FILE).exists():
                model, manifest = self._changed(workspace.blocks)
                write_whole(model, changed, self.directory, manifest)
            if self.layers and class_kind(changed):
                changed = self._compressed(workspace, changed)
            elif self.layers:
                return self._sweep(workspace, changed)
            workspace.adopt(changed)
        workspace.publish()
        return Manifest.read(self.out)

    def _changed(self, scratch: Path) -> tuple[nn.Module, Manifest]:
        """The model after all steps over it, and what is known of its making."""
        anatomy = Anatomy.of(open_whole(self.directory, self.device))
        known = Manifest.present(self.directory)
        notes = dict(known.notes) if known is not None else {}
        anatomy = transform(anatomy, self.whole, lambda i: self._context(scratch / f"step-{i}", i, notes))
        header = {"recipe": self.recipe.to_dict(), "source": provenance(self.directory, self.shards)}
        return anatomy.model, Manifest(**header, notes=notes)

    def _context(self, work: Path, index: int, notes: dict[str, dict[str, Any]]) -> Context:
        step = self.whole[index]
        device = torch.device(self.device)
        teacher = open_whole(self.teacher or self.directory, self.device) if step.asks_teacher else None
        return Context(
            generator=torch.Generator().manual_seed(self.recipe.seed),
            device=device,
            work_directory=work,
            progress=lambda text: self.progress.learning(f"{step.name}  {text}"),
            data=self.data,
            teacher=teacher,
            notes=notes,
        )

    def _compressed(self, workspace: Workspace, changed: Path) -> Path:
        """The directory of a model that draws classes, with compressed layers."""
        out = workspace.blocks / "layers" / self.directory.name
        if not (out / FILE).exists():
            rmtree(out, ignore_errors=True)
            recipe = self.recipe.model_copy(update={"steps": self.layers})
            compress_classes(changed, out, recipe, self.data, self.form, self.device, self.progress)
        return out

    def _sweep(self, workspace: Workspace, changed: Path) -> Manifest:
        source = Source.open(changed, self.dtype, self.device)
        recipe = self.recipe.model_copy(update={"steps": self.layers})
        made = Manifest.read(changed)
        return Run(
            source,
            recipe,
            self.out,
            self.windows(source, recipe),
            self.form,
            self.overwrite,
            self.offload,
            self.progress,
            workspace,
            {"recipe": made.recipe, "source": made.source, "notes": made.notes},
        ).execute()

    def fingerprint(self) -> dict[str, Any]:
        """Everything that shapes the result, as plain JSON values."""
        teacher = None if self.teacher is None else Shards(self.teacher).fingerprint()
        return {
            "recipe": self.recipe.to_dict(),
            "source": provenance(self.directory, self.shards),
            "files": self.shards.fingerprint(),
            "teacher": teacher,
            "modicum": __version__,
            "format": self.form,
            "dtype": str(self.dtype),
        }


def transform(anatomy: Anatomy, steps: tuple[ModelMethod, ...], context: Callable[[int], Context]) -> Anatomy:
    """Run steps over a model, in place.

    Args:
        anatomy: of the model.
        steps: in order.
        context: of the step with this index.
    """
    for index, step in enumerate(steps):
        anatomy = step.transform(anatomy, context(index))
    return anatomy
