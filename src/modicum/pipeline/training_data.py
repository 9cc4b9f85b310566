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
