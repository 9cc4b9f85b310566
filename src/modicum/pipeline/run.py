"""A run: recipe + checkpoint + data -> compressed checkpoint, block by block, resumable at any moment.

For each block: read its weights, run the calibration data through it with hooks, let the recipe's steps compress its
layers, write the block, run the data through the compressed block, drop the weights. What is held is one block, the
hidden states, and the statistics of one block.

A run that was killed begins again at the first unfinished block: the finished ones are read back from the workspace
and only run forward, so that nothing but finished weights is ever kept on disk. The final bytes are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from modicum.calibrate.block import CalibratedBlock, observe
from modicum.errors import DeviceUnavailable, OutOfSpace
from modicum.formats.manifest import Manifest
from modicum.formats.shards import Shards
from modicum.kernels.allocator import return_freed_memory
from modicum.kernels.products import widened_products
from modicum.models import Block, Replay, capture
from modicum.pipeline.calibration import check_tokens
from modicum.pipeline.checkpoint import block_tensors, file_hash, finish, form_specs, restore_block
from modicum.pipeline.footprint import BATCH_TOKENS
from modicum.pipeline.gradients import GradientPass
from modicum.pipeline.outliers import OutlierPass
from modicum.pipeline.plan import Format, Plan, layer_steps, make_plan
from modicum.pipeline.recipe import Recipe
from modicum.pipeline.sharing import notes, with_outliers, with_tables
from modicum.pipeline.source import Source
from modicum.pipeline.sweep import Steps, observed_statistics, reads_inputs, replayed_parents, sweep_block
from modicum.pipeline.workspace import HIDDEN, Workspace
from modicum.version import __version__


class Progress(Protocol):
    """What a run tells while it works."""

    def planned(self, plan: Plan, finished_blocks: int) -> None:
        """The plan, and how many blocks an earlier run has finished."""

    def working(self, block: int, text: str) -> None:
        """What is being done to which block."""

    def finished(self, block: int) -> None:
        """A block is written."""

    def learning(self, text: str) -> None:
        """How far a step over the whole model is."""


class Silent:
    """Progress that tells nothing."""

    def planned(self, plan: Plan, finished_blocks: int) -> None:
        """Nothing."""

    def working(self, block: int, text: str) -> None:
        """Nothing."""

    def finished(self, block: int) -> None:
        """Nothing."""

    def learning(self, text: str) -> None:
        """Nothing."""


@dataclass
class Run:
    """One run over a checkpoint on disk.

    Args:
        source: the opened checkpoint.
        recipe: what to do.
        out: the directory to write; must not exist.
        tokens: calibration windows, int64 [windows, length]; None if no step needs data.
        form: storage format.
        overwrite: replace `out` if it exists.
        offload: keep the hidden states of the calibration on disk instead of in memory.
        progress: who to tell.
        workspace: the unfinished output, if an earlier stage has opened it; a new one by default.
        header: recipe, source and notes for modicum.json, if an earlier stage knows better.

    Raises:
        OutputExists: `out` is there already, or an unfinished run of something else is.
        OutOfSpace: the disk has no room for the result.
    """

    source: Source
    recipe: Recipe
    out: Path
    tokens: Tensor | None = None
    form: Format = "auto"
    overwrite: bool = False
    offload: bool = False
    progress: Progress = field(default_factory=Silent)
    workspace: Workspace | None = None
    header: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.steps: Steps = with_tables(layer_steps(self.recipe), self.source.anatomy)
        if self.tokens is not None:
            check_tokens(self.tokens, getattr(self.source.model.config, "vocab_size", None))
        self.plan = self._planned()

    def _planned(self) -> Plan:
        recipe = self.recipe.model_copy(update={"steps": self.steps})
        shape = None if self.tokens is None else (self.tokens.shape[0], self.tokens.shape[1])
        return make_plan(self.source, recipe, self.form, shape)

    @property
    def weights_before(self) -> int:
        """Weight bytes of the original on disk."""
        return self.plan.weights_before

    def execute(self) -> Manifest:
        """Carry the run out, or take it up where it was interrupted; returns what modicum.json says."""
        header = self.header or self._header()
        workspace = self.workspace or Workspace(self.out, self.fingerprint(), overwrite=self.overwrite)
        if workspace.complete():
            workspace.publish()
            return Manifest.read(self.out)
        check_space(self.out, self.plan.scratch - workspace.nbytes())
        finished = workspace.finished()
        self.progress.planned(self.plan, finished)
        self._share_out(workspace)
        if finished < self.plan.blocks:
            self._sweep(workspace, finished)
        found = {**header.get("notes", {}), **notes(self.steps, self.source.anatomy)}
        return finish(workspace, self.source, self.plan, {**header, "notes": found})

    @widened_products()
    def _share_out(self, workspace: Workspace) -> None:
        """Settle how layers share a sparsity, from the dense model, before anything is changed."""
        folder = workspace.blocks / "outliers"

        def captured() -> tuple[Replay | None, list[Tensor]]:
            return self._capture(workspace.root)

        outliers = OutlierPass(self.source, self.steps, folder, captured, self.progress.working).collect()
        if outliers:
            self.steps = with_outliers(self.steps, self.source.anatomy, outliers)
            now = self._planned()
            self.plan = replace(
                self.plan,
                layers=now.layers,
                weights_after=now.weights_after,
                live=now.live,
                shares=now.shares,
            )
            for sentence in now.shares:
                self.progress.learning(sentence)

    @torch.no_grad()
    @widened_products()
    def _sweep(self, workspace: Workspace, finished: int) -> None:
        gradients = self._gradients(workspace, finished)
        replay, hidden = self._capture(workspace.root)
        blocks = self.source.anatomy.blocks
        for block in blocks:
            if block.index < finished and replay is None:
                continue
            self.source.load(block)
            return_freed_memory()
            moved = False
            if block.index >= finished:
                moved = self._compress(workspace, block, replay, hidden, gradients)
            elif self.recipe.calibration.propagate_error:
                self.progress.working(block.index, "reading the finished block")
                restore_block(workspace, block, self.source.names, self.plan.format)
            if replay is not None and not moved and block.index + 1 < len(blocks):
                self.progress.working(block.index, "passing the data on")
                advance(replay, block, hidden)
            self.source.release(block)
            return_freed_memory()

    def _gradients(self, workspace: Workspace, finished: int) -> GradientPass | None:
        """The gradients of the dense model, all of them taken before anything is changed."""
        if self.tokens is None:
            return None
        folder = workspace.blocks / "gradients"
        gradients = GradientPass(self.source, self.steps, self.tokens, folder, self.progress.working)
        gradients.collect(finished)
        return gradients

    def _compress(
        self,
        workspace: Workspace,
        block: Block,
        replay: Replay | None,
        hidden: list[Tensor],
        gradients: GradientPass | None,
    ) -> bool:
        """Write a block; True if the hidden states are those of the next one already."""
        self.progress.working(block.index, "collecting statistics")
        onward = not self.recipe.calibration.propagate_error and block.index + 1 < self.plan.blocks
        calibrated = calibrate(self.steps, block, replay, hidden, onward=onward)
        if gradients is not None:
            gradients.add_to(calibrated)
        return_freed_memory()

        def told(text: str) -> None:
            return_freed_memory()  # the next layer needs other sizes
            self.progress.working(block.index, text)

        swept = sweep_block(self.steps, calibrated, self.plan.live, told)
        tensors = block_tensors(block, swept.forms, self.source.names, self.plan.format)
        specs = form_specs(block, swept.forms, self.plan.format)
        records = {name: {"form": specs.get(name), **record} for name, record in swept.records.items()}
        records |= {name: {"form": spec} for name, spec in specs.items() if name not in records}
        if self.plan.format == "plain":
            records = {name: as_stored_dense(record) for name, record in records.items()}
        workspace.write_block(block.index, tensors, records)
        if gradients is not None:
            gradients.drop(block)
        return_freed_memory()
        self.progress.finished(block.index)
        return onward

    def _capture(self, scratch: Path) -> tuple[Replay | None, list[Tensor]]:
        """How the blocks are called, and what enters the first one."""
        if self.tokens is None or not self.plan.tokens or not reads_inputs(self.steps):
            return None, []
        self.source.load_prelude()
        rows = max(1, BATCH_TOKENS // self.tokens.shape[1])
        replay = capture(self.source.anatomy, self.tokens.to(self.source.device).split(rows))
        self.source.release_prelude()
        return_freed_memory()
        hidden = on_disk(replay.hidden, scratch / HIDDEN) if self.offload else list(replay.hidden)
        return replace(replay, hidden=()), hidden

    def _header(self) -> dict[str, Any]:
        made = self.source.made
        return {
            "recipe": self.recipe.to_dict(),
            "source": provenance(self.source.directory, self.source.shards),
            "history": made.past() if made else [],
            "notes": made.notes if made else {},
        }

    def fingerprint(self) -> dict[str, Any]:
        """Everything that shapes the result, as plain JSON values."""
        tokens = b"" if self.tokens is None else self.tokens.numpy().tobytes()
        return {
            **(self.header or self._header()),
            "files": self.source.shards.fingerprint(),
            "modicum": __version__,
            "format": self.plan.format,
            "dtype": self.plan.dtype,
            "tokens_sha256": hashlib.sha256(tokens).hexdigest(),
        }


def provenance(directory: Path, shards: Shards) -> dict[str, Any]:
    """What modicum.json says of the original."""
    return {
        "model": directory.name,
        "config_sha256": file_hash(directory / "config.json"),
        "tensors": shards.summary(),
    }


def as_stored_dense(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a layer whose form is written out as a dense matrix."""
    bits = record["bits_per_weight"] * record["dense_nbytes"] / record["nbytes"]
    return {**record, "nbytes": record["dense_nbytes"], "bits_per_weight": round(bits, 4)}


def calibrate(
    steps: Steps,
    block: Block,
    replay: Replay | None,
    hidden: list[Tensor],
    masks: Sequence[Tensor | None] = (),
    *,
    onward: bool = False,
) -> CalibratedBlock:
    """What the steps want to know of a block; nothing is run if they want nothing or there is no data.

    Args:
        steps: that will work on it.
        block: its weights must be in memory.
        replay: how it is called; None if there is no data.
        hidden: its inputs, one tensor per batch.
        masks: as of `observe`.
        onward: replace `hidden` by what the block gives now, before any step has changed it.
    """
    wanted = observed_statistics(steps, block)
    if replay is None:
        return CalibratedBlock(block)
    if not wanted:
        if onward:
            advance(replay, block, hidden)
        return CalibratedBlock(block)

    def run(i: int, states: Tensor) -> Tensor:
        return replay.run_block(block, states, i)

    def keep(i: int, output: Tensor) -> None:
        _put(hidden, i, output)

    parents = replayed_parents(steps, block)
    return observe(block, run, hidden, wanted, parents, masks, keep if onward else None)


def advance(replay: Replay, block: Block, hidden: list[Tensor]) -> None:
    """Replace the inputs of `block` by its outputs, batch by batch, in place where the shape allows it."""
    for i, states in enumerate(hidden):
        _put(hidden, i, replay.run_block(block, states, i))


def _put(hidden: list[Tensor], i: int, output: Tensor) -> None:
    if output.shape == hidden[i].shape:
        hidden[i].copy_(output)
    else:
        hidden[i] = output


def on_disk(hidden: tuple[Tensor, ...], file: Path) -> list[Tensor]:
    """Copies of the hidden states that live in a file: the system may drop their pages from memory."""
    total = sum(states.numel() for states in hidden)
    file.unlink(missing_ok=True)
    flat = torch.from_file(str(file), shared=True, size=total, dtype=hidden[0].dtype)
    parts = flat.split([states.numel() for states in hidden])
    for part, states in zip(parts, hidden, strict=True):
        part.copy_(states.reshape(-1))
    return [part.view(states.shape) for part, states in zip(parts, hidden, strict=True)]


def check_space(out: Path, needed: int) -> None:
    """Refuse to begin what cannot be finished.

    Raises:
        OutOfSpace: the file system of `out` has less than `needed` bytes free.
    """
    import shutil

    folder = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutOfSpace(
            f"{folder} has {free / 1e9:.1f} GB free; the run needs {needed / 1e9:.1f} GB.",
            "Free some space or choose another --out.",
        )


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        DeviceUnavailable: torch cannot use it.
    """
    try:
        if torch.empty(1, device=device).is_meta:
            raise RuntimeError("it holds no values")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise DeviceUnavailable(
            f"The device {device!r} is not available: {reason}", "Use --device cpu."
        ) from error
