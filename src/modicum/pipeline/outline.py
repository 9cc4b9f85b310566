"""A model as its config and headers describe it: modules without weights, and the bytes of every block on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modicum.errors import CheckpointError
from modicum.formats.manifest import Manifest
from modicum.formats.shards import Shards
from modicum.models import Anatomy, Block
from modicum.models.cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification
from modicum.models.class_models import class_config, network_of
from modicum.models.dit import DiT
from modicum.models.dit.files import POSITIONS
from modicum.models.mar import MAR, MARConfig
from modicum.models.state_files import read_json
from modicum.pipeline.source import Source, stored_dtype


@dataclass(frozen=True)
class Outline:
    """A model without weights.

    Attributes:
        model: parameters on the meta device.
        anatomy: of it.
        dtype: that its layers are stored in.
        before: bytes of all weights on disk.
        outside: bytes of what lies outside the blocks, as it will be written.
        blocks: bytes of each block, likewise.
        irregular: whether its blocks have other sizes than its config says.
    """

    model: nn.Module
    anatomy: Anatomy
    dtype: torch.dtype
    before: int
    outside: int
    blocks: tuple[int, ...]
    irregular: bool = False

    @classmethod
    def of_source(cls, source: Source) -> Outline:
        """That of a checkpoint of transformers."""

        def stored(block: Block) -> int:
            names = source.names.needed(block.name)
            return source.shards.nbytes({part.name for name in names for part in source.names.sources(name)})

        before, blocks = source.shards.nbytes(), tuple(map(stored, source.anatomy.blocks))
        outside, irregular = before - sum(blocks), source.irregular is not None
        return cls(source.model, source.anatomy, source.dtype, before, outside, blocks, irregular)

    @classmethod
    def of_classes(cls, directory: Path) -> Outline:
        """That of a DiT, SiT or MAR, which is written in bfloat16 or float32.

        Raises:
            CheckpointError: files are missing or damaged, or hold compressed weights.
        """
        config, shards = class_config(directory), _dense(directory)
        with torch.device("meta"):
            model: nn.Module = MAR(config) if isinstance(config, MARConfig) else DiT(config)
        half = stored_dtype(config, shards) == torch.bfloat16
        kept = (POSITIONS,) if isinstance(model, DiT) else ()
        return cls._of_state(model, shards, torch.bfloat16 if half else torch.float32, kept)

    @classmethod
    def of_cifar(cls, directory: Path) -> Outline:
        """That of a ResNet for CIFAR, which is written in float32.

        Raises:
            CheckpointError: files are missing or damaged.
        """
        config = CifarResNetConfig.from_dict(read_json(directory / "config.json", "a ResNet for CIFAR"))
        model = CifarResNetForImageClassification(config)
        return cls._of_state(model, _dense(directory), torch.float32)

    @classmethod
    def _of_state(
        cls, model: nn.Module, shards: Shards, dtype: torch.dtype, float32: Sequence[str] = ()
    ) -> Outline:
        def written(name: str, tensor: Tensor) -> int:
            return tensor.numel() * (4 if name in float32 else dtype.itemsize)

        anatomy = Anatomy.of(model)
        state = {name: written(name, t) for name, t in model.state_dict().items() if t.is_floating_point()}
        blocks = tuple(
            sum(size for name, size in state.items() if name.startswith(f"{block.name}."))
            for block in anatomy.blocks
        )
        return cls(model, anatomy, dtype, shards.nbytes(), sum(state.values()) - sum(blocks), blocks)

    @property
    def parameters(self) -> int:
        """How many there are."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def alike(self) -> bool:
        """Whether the blocks of every stack have the same layers of the same sizes."""
        blocks = iter(zip(self.anatomy.blocks, self.blocks, strict=True))
        return all(len({_shapes(*next(blocks)) for _ in range(count)}) == 1 for count in self.anatomy.stacks)


def _shapes(block: Block, nbytes: int) -> Any:
    layers = ((x.name.removeprefix(block.name), x.out_features, x.in_features) for x in block.layers)
    return nbytes, tuple(layers)


def _dense(directory: Path) -> Shards:
    manifest = Manifest.present(directory)
    if manifest is not None and manifest.forms():
        raise CheckpointError(
            f"{directory} is compressed already.", "Compress the original, with all steps in one recipe."
        )
    return Shards(network_of(directory))
