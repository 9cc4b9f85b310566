"""A run whose recipe ends with a storage step: the finished weights are coded without loss, group by group.

What the steps before it leave is written into the workspace as a dense checkpoint by a run of its own; without such
steps the original is read where it lies. Then one group after the other is read, coded and written; what is not coded
follows as it is. Held are the weights of one group and their codes. A killed run goes on behind its last written group.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from modicum.formats.coded_layout import CodedGroup, Layout, coded_json
from modicum.formats.dfloat11 import published_config
from modicum.formats.manifest import FILE, Manifest
from modicum.formats.merge import join_all, plan_shards
from modicum.formats.native import config_entries
from modicum.formats.shards import Shards, write_json
from modicum.kernels.allocator import return_freed_memory
from modicum.models.class_models import network_of
from modicum.pipeline.checkpoint import file_hash
from modicum.pipeline.coded import REST_BYTES, copy_beside_weights, own_kind
from modicum.pipeline.composition import split_steps
from modicum.pipeline.dense import coded_groups, copies_of, dense_source
from modicum.pipeline.recipe import Recipe
from modicum.pipeline.run import Progress, Run, Silent, check_space, provenance
from modicum.pipeline.source import Source
from modicum.pipeline.whole_run import WholeRun
from modicum.pipeline.workspace import Workspace
from modicum.trainer import is_first
from modicum.version import __version__


@dataclass
class StorageRun:
    """One run over a checkpoint on disk, ending with a storage step.

    Args:
        directory: of the original.
        recipe: all steps.
        out: the directory to write; must not exist.
        weights: makes the run of the steps that change weights, for the directory that it is to write.
        overwrite: replace `out` if it exists.
        progress: who to tell.

    Raises:
        RecipeConflict: steps that cannot follow each other.
        UnsupportedModel: the architecture has no description.
    """

    directory: Path
    recipe: Recipe
    out: Path
    weights: Callable[[Recipe, Path], Run | WholeRun]
    overwrite: bool = False
    progress: Progress = field(default_factory=Silent)

    def __post_init__(self) -> None:
        steps = split_steps(self.recipe.steps)
        (self.step,) = steps.storage
        self.shards = Shards(network_of(self.directory))
        scratch = self.out.resolve()
        self.made = scratch.with_name(f"{scratch.name}.partial") / "blocks" / "weights" / self.directory.name
        changing = self.recipe.model_copy(update={"steps": steps.weights})
        self.before = self.weights(changing, self.made) if steps.weights else None
        if self.before is None:
            self.source  # noqa: B018  what cannot be coded is refused at once

    @property
    def weights_before(self) -> int:
        """Weight bytes of the original on disk."""
        return self.shards.nbytes()

    @cached_property
    def source(self) -> Source:
        """The dense checkpoint that is coded."""
        return dense_source(self.directory if self.before is None else self.made)

    def execute(self) -> Manifest:
        """Carry the run out, or take it up where it was interrupted; returns what modicum.json says."""
        if not is_first():
            return Manifest.read(self.made) if self.before is None else self.before.execute()
        workspace = Workspace(self.out, self.fingerprint(), overwrite=self.overwrite)
        if not workspace.complete():
            if self.before is not None and not (self.made / FILE).exists():
                self.before.execute()
            if self.before is None:
                check_space(self.out, self.shards.nbytes() - workspace.nbytes())
            self._code(workspace)
            records: dict[str, Any] = {}
            for index in range(len(self._groups)):
                records |= workspace.records(index)
            self._finish(workspace, records, self._layout(records))
        workspace.publish()
        return Manifest.read(self.out)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that shapes the result, as plain JSON values."""
        return {
            "recipe": self.recipe.to_dict(),
            "files": self.shards.fingerprint(),
            "modicum": __version__,
            "weights": None if self.before is None else self.before.fingerprint(),
        }

    @cached_property
    def _groups(self) -> dict[str, CodedGroup]:
        return coded_groups(self.source, self.step)

    def _code(self, workspace: Workspace) -> None:
        finished = workspace.finished()
        for index, (name, group) in enumerate(self._groups.items()):
            if index < finished:
                continue
            tensors, record = self._coded(name, group)
            workspace.write_block(index, tensors, {name: record})
            del tensors
            return_freed_memory()
            share = record["nbytes"] / record["dense_nbytes"]
            least = record["bound"] / record["bits"]
            how = f"raw: {record['raw']}" if record["raw"] else f"{share:.1%}, bound {least:.1%}"
            self.progress.learning(
                f"{index + 1}/{len(self._groups)}  {name}  {record['dense_nbytes']:,} bytes  {how}"
            )

    def _coded(self, name: str, group: CodedGroup) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The arrays of a group, or its tensors as they are; and what is to be said of it."""
        tensors = {tensor: self.source.shards.read(tensor) for tensor, _ in group.tensors()}
        dense = sum(tensor.nbytes for tensor in tensors.values())
        coding = self.step.encode(list(tensors.values()))
        if not coding.raw:
            tensors = {f"{name}.{key}": array for key, array in coding.tensors.items()}
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        return tensors, {
            "raw": coding.raw,
            "nbytes": nbytes,
            "dense_nbytes": dense,
            "weights": group.numel,
            "bits": 8 * dense // group.numel,
            "bound": coding.bound,
        }

    def _layout(self, records: dict[str, Any]) -> Layout:
        """What was coded, and which of the other tensors need no bytes of their own."""
        groups = {name: group for name, group in self._groups.items() if not records[name]["raw"]}
        coded = [tensor for group in groups.values() for tensor, _ in group.tensors()]
        return Layout(method=self.step.name, groups=groups, copies=copies_of(coded, self.source))

    def _copy_rest(self, workspace: Workspace, copies: Collection[str]) -> None:
        """Every other tensor of the original, whether the model needs it or not, a part at a time."""
        shards = self.source.shards
        known = {tensor for group in self._groups.values() for tensor, _ in group.tensors()} | set(copies)
        rest = sorted(name for name in shards.names() if name not in known)
        sizes = [shards.tensors[name].nbytes for name in rest]
        for part, places in enumerate(plan_shards(sizes, REST_BYTES)):
            tensors = {rest[i]: shards.read(rest[i]) for i in places}
            workspace.write_rest(tensors, len(self._groups) + part)

    def _finish(self, workspace: Workspace, records: dict[str, Any], layout: Layout) -> None:
        """Write everything beside the coded weights and join the files; may be interrupted and called again."""
        root, directory = workspace.root, self.source.directory
        copy_beside_weights(directory, root)
        config = json.loads((directory / "config.json").read_text())
        config |= published_config(layout, self.source.model)
        write_json(root / "config.json", config | ({} if own_kind(directory) else config_entries()))
        if not (root / "shards.json").exists() and not list(root.glob("model*.safetensors")):
            self._copy_rest(workspace, layout.copies)
        shards = join_all(workspace.blocks, root)
        known = Manifest.present(directory) or Manifest()
        known.model_copy(
            update={
                "recipe": self.recipe.to_dict(),
                "source": provenance(network_of(self.directory), self.shards),
                "history": known.past() if self.before is None and known.recipe else known.history,
                "versions": {"modicum": __version__, "torch": torch.__version__,
                             "transformers": transformers.__version__},
                "coded": coded_json(layout),
                "notes": {**known.notes, self.step.name: summary(records, Shards(root).nbytes())},
                "files": {name: file_hash(root / name) for name in shards},
            }
        ).write(root)  # fmt: skip


def summary(records: dict[str, Any], nbytes: int) -> dict[str, Any]:
    """What modicum.json says of a coded checkpoint: bits per weight, the bound, and what is stored as it is.

    Args:
        records: of all groups.
        nbytes: of the written weights.
    """
    coded = [record for record in records.values() if not record["raw"]]
    weights = max(1, sum(record["weights"] for record in coded))
    return {
        "weights_bytes": nbytes,
        "coded_weights": sum(record["weights"] for record in coded),
        "bits": round(sum(record["bits"] * record["weights"] for record in coded) / weights, 4),
        "bits_per_weight": round(8 * sum(record["nbytes"] for record in coded) / weights, 4),
        "bound": round(sum(record["bound"] * record["weights"] for record in coded) / weights, 4),
        "raw": {name: record["raw"] for name, record in records.items() if record["raw"]},
        "groups": {
            name: {"nbytes": record["nbytes"], "dense_nbytes": record["dense_nbytes"]}
            for name, record in records.items()
        },
    }
