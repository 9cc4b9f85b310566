"""The model that a run reads: a checkpoint directory taken block by block, never as a whole.

The model is built without weights. A block's tensors are read when its turn comes, checked for NaN and infinity, and
dropped when the block is written.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from modicum.errors import CheckpointError, ModicumError, NotFinite, UnsupportedModel
from modicum.formats.irregular import check, reshape
from modicum.formats.manifest import Manifest
from modicum.formats.native import GUARD, METHOD
from modicum.formats.shards import Shards
from modicum.kernels.checks import all_finite
from modicum.models import Anatomy, Block, CheckpointMap, load_tensors, release, skeleton
from modicum.models.anatomy import module_name
from modicum.models.image_models import image_kind
from modicum.pipeline.images import image_skeleton


def read_config(directory: Path) -> Any:
    """The transformers config of a checkpoint directory.

    Raises:
        CheckpointError: config.json is missing or not a transformers config.
    """
    file = directory / "config.json"
    try:
        json.loads(file.read_text())
        return AutoConfig.from_pretrained(directory, local_files_only=True)
    except FileNotFoundError as error:
        hint = "Give a Hugging Face model directory, a nano model's name or a hub id."
        raise CheckpointError(f"{file} is missing.", hint) from error
    except Exception as error:  # configs check themselves, each with exceptions of its own
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{file} is not a config that transformers can read: {reason}") from error


def check_sizes(config: Any, shards: Shards, directory: Path) -> None:
    """Refuse sizes that the stored tensors cannot have, before a model of that size is built.

    Raises:
        CheckpointError: more blocks than tensors, or a width beyond the number of stored bytes.
    """
    limits = {"num_hidden_layers": len(shards.tensors)}
    limits |= dict.fromkeys(("hidden_size", "head_dim", "vocab_size"), shards.nbytes())
    for key, limit in limits.items():
        value = getattr(config, key, None)
        if isinstance(value, int) and value > limit:
            raise CheckpointError(
                f"{directory / 'config.json'} says {key} = {value}, which the stored tensors cannot have.",
                "config.json and the weights belong to different models, or the file is damaged.",
            )


def built(config: Any, dtype: torch.dtype, directory: Path) -> nn.Module:
    """The model of a config without weights.

    Raises:
        CheckpointError: the values of the config make no model.
    """
    try:
        return skeleton(config, dtype)
    except ModicumError:
        raise
    except Exception as error:  # whatever a model's constructor stumbles over
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{directory / 'config.json'} describes no model that can be built: {reason}",
            "Compare it with the config of the original model.",
        ) from error


@dataclass
class Source:
    """A checkpoint and its model without weights.

    Attributes:
        directory: where it lies.
        shards: its tensors.
        model: the model, parameters on the meta device unless loaded.
        anatomy: the model taken apart.
        names: which tensors feed which parameter.
        device: where a block lives while it is worked on.
        irregular: modicum.json, if blocks have other sizes than config.json says.
        made: modicum.json, if there is one.
    """

    directory: Path
    shards: Shards
    model: nn.Module
    anatomy: Anatomy
    names: CheckpointMap
    device: torch.device
    irregular: Manifest | None = None
    made: Manifest | None = None

    @classmethod
    def open(cls, directory: Path, dtype: torch.dtype | None = None, device: str = "cpu") -> Source:
        """Read config and headers, and check that they belong together; no weight is touched.

        Raises:
            CheckpointError: files are missing or corrupt, or config.json disagrees with the tensors.
            UnsupportedModel: the architecture has no description.
        """
        kind = image_kind(directory)
        config: Any = None if kind else read_config(directory)
        irregular = _irregular(config, directory)
        shards = Shards(directory)
        check_sizes(config, shards, directory)
        dtype = dtype or stored_dtype(config, shards)
        model = image_skeleton(directory, kind, dtype) if kind else built(config, dtype, directory)
        if irregular is not None:
            reshape(model, irregular)
            check(model, irregular, shards)
        anatomy = Anatomy.of(model)
        names = CheckpointMap(shards.names(), model, anatomy.family)
        names.check({name: at.shape for name, at in shards.tensors.items()})
        made = Manifest.present(directory)
        return cls(directory, shards, model, anatomy, names, torch.device(device), irregular, made)

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype of the model."""
        return next(self.model.parameters()).dtype

    def read(self, name: str) -> Tensor:
        """One tensor of the checkpoint.

        Raises:
            NotFinite: it holds NaN or infinity.
        """
        tensor = self.shards.read(name)
        if tensor.is_floating_point() and not all_finite(tensor):
            raise NotFinite(
                f"{self.directory}: the tensor {name} holds NaN or infinity.", "The checkpoint is damaged."
            )
        return tensor

    def outside(self) -> list[str]:
        """Names of the parameters and buffers outside the blocks."""
        prefixes = tuple(f"{block.name}." for block in self.anatomy.blocks)
        return [name for name in self.names.needed() if not name.startswith(prefixes)]

    def load_prelude(self, head: bool = False) -> None:
        """Load what runs before the first block (everything outside the blocks but the output head).

        Args:
            head: load the head as well.

        Raises:
            UnsupportedModel: the model draws images; no text can be sent through it.
        """
        if image_kind(self.directory):
            raise UnsupportedModel(
                f"Calibration sends text through a model; {self.directory.name} draws images.",
                "Use steps that need no data, such as quantize.rtn and prune.magnitude.",
            )
        left_out = set() if head else head_parameters(self.model)
        for name in self.outside():
            if name not in left_out:
                tensors = {part.name: self.read(part.name) for part in self.names.sources(name)}
                load_tensors(self.model, {name: self.names.assemble(name, tensors).to(self.device)})
        for module in self.model.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[key] = buffer.to(self.device)

    def release_prelude(self) -> None:
        """Drop everything that `load_prelude` loaded."""
        release(self.model)

    def load(self, block: Block) -> None:
        """Read the weights of one block."""
        self.names.load(block.name, self.read)
        block.module.to(self.device)

    def release(self, block: Block) -> None:
        """Drop the weights of one block."""
        release(block.module)


def _irregular(config: Any, directory: Path) -> Manifest | None:
    """What config.json does not say of dense blocks of different sizes; None if it says all.

    Raises:
        CheckpointError: weights are compressed.
    """
    quantizer = getattr(config, "quantization_config", None)
    if quantizer is None:
        return None
    method = quantizer.get("quant_method")
    manifest = Manifest.read(directory) if method == METHOD else None
    if manifest is None or manifest.forms() or manifest.coded:
        raise CheckpointError(
            f"{directory} is compressed already ({method}).",
            "Compress the original, with all steps in one recipe.",
        )
    for name in ("quantization_config", *GUARD):
        if hasattr(config, name):
            delattr(config, name)
    return manifest


def stored_dtype(config: Any, shards: Shards) -> torch.dtype:
    """The dtype of the config, else that of most of the stored bytes."""
    named = getattr(config, "dtype", None)
    if isinstance(named, torch.dtype):
        return named
    sizes: dict[torch.dtype, int] = {}
    for at in shards.tensors.values():
        if at.dtype.is_floating_point:
            sizes[at.dtype] = sizes.get(at.dtype, 0) + at.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)


def head_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that only the output head uses."""
    if not isinstance(model, PreTrainedModel):
        return set()
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Module):
        return set()
    embedding = model.get_input_embeddings()
    shared = {id(p) for p in embedding.parameters()} if isinstance(embedding, nn.Module) else set()
    path = module_name(model, head)
    return {f"{path}.{name}" for name, p in head.named_parameters() if id(p) not in shared}
