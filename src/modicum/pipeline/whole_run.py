"""A run whose recipe holds steps over the whole model: prune its depth, train it, compress its layers, train it again.

Adjacent steps of one kind are a stage. For steps over the whole model it is loaded whole, they change it one after
another, and the result is written; for layer steps a sweep over the blocks (`modicum.pipeline.run`) reads and writes a
checkpoint. Every stage but the last leaves its result in the workspace, where the next one finds it. Trainings keep
their checkpoints there as well: a run that was killed goes on where it stood, with the same bytes.

What a layer step promised (zeros, a pattern) is written down with the result of its stage, handed to the steps behind
it, and verified after each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from torch import Tensor, nn

from modicum.data.samples import Samples
from modicum.errors import InvalidSetting, RecipeConflict
from modicum.formats.manifest import FILE, Manifest
from modicum.formats.shards import Shards
from modicum.method import Context, LayerMethod, Method, ModelMethod
from modicum.models import Anatomy
from modicum.models.class_models import class_kind
from modicum.pipeline.classes import check_format, compress_classes
from modicum.pipeline.composition import Stage, live_properties, split_steps
from modicum.pipeline.plan import Format
from modicum.pipeline.promises import Promised, Zeros, recorded
from modicum.pipeline.recipe import Recipe
from modicum.pipeline.run import Progress, Run, Silent, provenance
from modicum.pipeline.source import Source
from modicum.pipeline.whole import open_whole, refuse_untrainable, write_whole
from modicum.pipeline.workspace import Workspace
from modicum.trainer import is_first
from modicum.trainer.processes import many
from modicum.version import __version__
from modicum.weights.properties import ZeroMask

Windows = Callable[[Source, Recipe], Tensor | None]
"""What calibrates layer steps, once there is something to calibrate."""


@dataclass
class WholeRun:
    """One run over a checkpoint on disk with steps over the whole model.

    Args:
        directory: of the original.
        recipe: steps over the whole model and layer steps.
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
        CheckpointError: the weights are stored as integers or codes.
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
        split = split_steps(self.recipe.steps)
        self.whole, self.stages = split.whole, split.stages
        self.made = Manifest.present(self.directory)
        if not sweeps(self.stages[0]):
            refuse_untrainable(self.directory)
        live_properties(self.recipe.steps, frozenset().union(*recorded(self.made).values()))
        classes = class_kind(self.directory) is not None
        if classes and sweeps(self.stages[0]):
            self.stages = ((), *self.stages)  # such a model is read whole first
        if classes:
            check_format(self.form)
        elif self.form == "compressed-tensors" and not sweeps(self.stages[-1]):
            raise InvalidSetting(
                "compressed-tensors holds integers, and the last step trains.",
                "Use --format modicum, or plain.",
            )
        self.shards = Shards(self.directory)

    @property
    def weights_before(self) -> int:
        """Weight bytes of the original on disk."""
        return self.shards.nbytes()

    def execute(self) -> Manifest:
        """Carry the run out, or take it up where it was interrupted; returns what modicum.json says.

        Under `accelerate launch` all processes train, and the first one alone writes.

        Raises:
            RecipeConflict: in many processes, with layer steps before a training.
        """
        if many() and any(map(sweeps, self.stages[:-1])):
            raise RecipeConflict(
                "Many processes train together, but layers are compressed by one.",
                "Compress first, then `accelerate launch` the training alone: modicum recover.",
            )
        if not is_first():
            return self._changed(
                0, self.directory, self.out.absolute().with_name(f"{self.out.name}.partial") / "blocks"
            )[1]
        workspace = Workspace(self.out, self.fingerprint(), overwrite=self.overwrite)
        if not workspace.complete():
            before, last = self.directory, len(self.stages) - 1
            for index, stage in enumerate(self.stages):
                if index == last and sweeps(stage) and not class_kind(before):
                    return self._sweep(stage, before, self.out, self.form, workspace).execute()
                after = workspace.blocks / f"stage-{index}" / self.directory.name
                if not (after / FILE).exists():
                    self._run_stage(index, before, after, workspace.blocks)
                before = after
            workspace.adopt(before)
        workspace.publish()
        return Manifest.read(self.out)

    def _run_stage(self, index: int, before: Path, after: Path, scratch: Path) -> None:
        """Make the model in `after` out of that in `before`."""
        stage, form = self.stages[index], self.form if index == len(self.stages) - 1 else "plain"
        if not sweeps(stage):
            model, manifest = self._changed(index, before, scratch)
            write_whole(model, after, self.directory, manifest, self._small(form))
        elif class_kind(before):
            rmtree(after, ignore_errors=True)
            recipe = self.recipe.model_copy(update={"steps": stage})
            compress_classes(before, after, recipe, self.data, form, self.device, self.progress)
        else:
            self._sweep(stage, before, after, form).execute()

    def _small(self, form: Format) -> bool:
        """Whether pruned layers are stored without their zeros; by default as in the model that the run begins with."""
        return form == "modicum" or (form == "auto" and self.made is not None and bool(self.made.forms()))

    def _changed(self, index: int, directory: Path, scratch: Path) -> tuple[nn.Module, Manifest]:
        """The model in `directory` after all steps of a stage over it, and what is known of its making."""
        known = Manifest.present(directory) or Manifest()
        stage, notes = self.stages[index], dict(known.notes)
        first = sum(len(earlier) for earlier in self.stages[:index] if not sweeps(earlier))

        def context(step: int) -> Context:
            return self._context(scratch / f"step-{first + step}", first + step, notes)

        anatomy = transform(Anatomy.of(open_whole(directory, self.device)), stage, context, recorded(known))
        kept = all(ZeroMask in step.keeps for step in stage)
        pruned = {"layers": known.layers, "promises": known.promises} if kept else {}
        return anatomy.model, Manifest(**self._header(), notes=notes, **pruned)

    def _header(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.to_dict(),
            "source": provenance(self.directory, self.shards),
            "history": self.made.past() if self.made else [],
        }

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

    def _sweep(
        self, stage: Stage, before: Path, out: Path, form: Format, workspace: Workspace | None = None
    ) -> Run:
        """The run of layer steps over the checkpoint in `before`."""
        source = Source.open(before, self.dtype, self.device)
        recipe = self.recipe.model_copy(update={"steps": stage})
        notes = source.made.notes if source.made else {}
        overwrite = self.overwrite and workspace is not None
        return Run(
            source,
            recipe,
            out,
            self.windows(source, recipe),
            form,
            overwrite,
            self.offload,
            self.progress,
            workspace,
            {**self._header(), "notes": notes},
        )

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


def sweeps(stage: Stage) -> bool:
    """Whether a stage works layer by layer."""
    return any(isinstance(step, LayerMethod) for step in stage)


def transform(
    anatomy: Anatomy,
    steps: Sequence[Method],
    context: Callable[[int], Context],
    promised: Promised | None = None,
) -> Anatomy:
    """Run steps over a model, in place, and verify after each that what was promised still holds.

    Args:
        anatomy: of the model.
        steps: over the whole model, in order.
        context: of the step with this index.
        promised: what holds for the layers of the model.

    Raises:
        PromiseBroken: a pruned weight is no longer zero.
        CheckpointError: the model does not have what is promised of it.
    """
    promised = promised or {}
    for index, step in enumerate(steps):
        assert isinstance(step, ModelMethod)
        zeros = Zeros(anatomy, promised)
        anatomy = step.transform(anatomy, replace(context(index), promised=promised))
        zeros.verify(step, anatomy)
    return anatomy
