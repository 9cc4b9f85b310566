"""What steps over the whole model read: windows of text, or the rows of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from modicum.data.samples import Samples, Table, Windows
from modicum.data.text import load_text
from modicum.data.windows import token_stream
from modicum.errors import UnusableData
from modicum.formats.shards import Shards
from modicum.models.class_models import ClassConfig

FLIPPED = "_flipped"  # ending of the name of a second version of a tensor


def text_samples(source: str, tokenizer: Any, length: int, count: int, seed: int) -> Samples:
    """Windows of the training part of a text.

    Args:
        source: stdlib, a file or folder, hf:DATASET.
        tokenizer: of the model.
        length: tokens per window.
        count: how many windows will be read; no more text than that is tokenised.
        seed: of the order of the documents.

    Raises:
        UnusableData: the text is missing, or shorter than two windows.
    """
    texts = load_text(source, "train")
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    # One window is lost to the shift of the grid, and two are the least.
    limit = (max(count, 2) + 1) * length
    return Windows(token_stream([texts[i] for i in order], tokenizer, limit), length)


def file_samples(file: Path) -> Samples:
    """The rows of a safetensors file.

    `tokens` are windows of token ids; all other tensors keep their names (x0 and y for diffusion, pixel_values and
    labels for classifiers). One called NAME_flipped is another version of NAME, and either is drawn.

    Raises:
        UnusableData: the file holds nothing, or tensors of different lengths.
        CheckpointError: it cannot be read.
    """
    shards = Shards(file)
    tensors = {name: shards.read(name) for name in shards.names()}
    if not tensors:
        raise UnusableData(f"{file} holds no tensor.", "Store one row per sample, such as x0 and y.")
    versions = {
        name.removesuffix(FLIPPED): (tensors.pop(name),) for name in list(tensors) if name.endswith(FLIPPED)
    }
    if "tokens" in tensors:
        tensors["input_ids"] = tensors.pop("tokens").long()
    unknown = sorted(versions.keys() - tensors.keys())
    if unknown:
        raise UnusableData(
            f"{file} holds {unknown[0]}{FLIPPED} without {unknown[0]}.", "Store both or neither."
        )
    return Table(tensors, versions)


def check_pictures(data: Table, config: ClassConfig, source: str) -> None:
    """Refuse pictures that a model cannot be trained on, before training begins.

    Args:
        data: rows x0 (pictures or latents) and y (classes).
        config: of the model.
        source: where they come from, for the message.

    Raises:
        UnusableData: a class that the model does not have, or pictures of another size.
    """
    labels, pictures = (data.versions.get(name, ()) for name in ("y", "x0"))
    strangers = [
        label for y in labels for label in y.unique().tolist() if not 0 <= label < config.num_classes
    ]
    if strangers:
        raise UnusableData(
            f"{source} holds pictures of class {strangers[0]} (y); the model has classes 0 to "
            f"{config.num_classes - 1}.",
            "Leave them out, or train the model that has as many classes as the data.",
        )
    wanted = (config.in_channels, config.input_size, config.input_size)
    for x0 in pictures:
        if tuple(x0.shape[1:]) != wanted:
            raise UnusableData(
                f"{source} holds pictures (x0) of shape {list(x0.shape[1:])}; the model draws {list(wanted)}.",
                "Encode them for this model: modicum encode-latents --for MODEL.",
            )
