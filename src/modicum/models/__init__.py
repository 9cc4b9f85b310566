"""One view over any model: its blocks, its layers, and how to run and load them one block at a time."""

from __future__ import annotations

import modicum.models.architectures
import modicum.models.image_families  # noqa: F401  (fills the table of families)
from modicum.models.anatomy import Anatomy, Block, ExpertsView, Layer, ResolvedFold, Skipped
from modicum.models.checkpoint_map import CheckpointMap, SourceTensor, disk_names
from modicum.models.families import Experts, Family, Fold, family_of, register, supported
from modicum.models.replay import Replay, capture
from modicum.models.skeleton import load_tensors, release, skeleton

__all__ = [
    "Anatomy",
    "Block",
    "CheckpointMap",
    "Experts",
    "ExpertsView",
    "Family",
    "Fold",
    "Layer",
    "Replay",
    "ResolvedFold",
    "Skipped",
    "SourceTensor",
    "capture",
    "disk_names",
    "family_of",
    "load_tensors",
    "register",
    "release",
    "skeleton",
    "supported",
]
