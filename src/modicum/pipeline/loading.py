"""Open a checkpoint as a model: anything transformers opens, and what modicum wrote in its compressed form."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from tqdm import tqdm
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from modicum.errors import CheckpointError, ModicumError, UnsupportedModel
from modicum.formats.coded_layout import Layout
from modicum.formats.dfloat11 import is_published
from modicum.formats.manifest import Manifest
from modicum.formats.native import ModicumConfig
from modicum.formats.shards import Shards
from modicum.models.image_models import image_kind
from modicum.pipeline.coded import load_coded
from modicum.pipeline.source import check_sizes, read_config
from modicum.pipeline.sparse_products import to_device


def load_model(
    directory: Path,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    *,
    sparse_kernels: bool = False,
    offload: bool = False,
    prefetch: bool = False,
) -> nn.Module:
    """The model of a checkpoint directory, in eval mode; integer weights stay packed.

    Args:
        directory: a Hugging Face model directory.
        dtype: compute dtype; that of the checkpoint by default.
        device: where the model goes.
        sparse_kernels: let layers be 2:4 matrices that the kernels of the device take; what became of every N:M
            layer is in the model's `sparse_products`.
        offload: of a DFloat11 model, as of `load_coded`.
        prefetch: of a DFloat11 model, as of `load_coded`.

    Raises:
        CheckpointError: files are missing, corrupt, or do not fit together.
    """
    if is_published(directory) or Layout.of(Manifest.present(directory), directory) is not None:
        return load_coded(directory, dtype, device, offload=offload, prefetch=prefetch)
    config = read_config(directory)
    # What is damaged is named here, before transformers stumbles over it.
    check_sizes(config, Shards(directory), directory)
    manifest = Manifest.present(directory)
    if manifest is not None and manifest.forms():
        config.quantization_config = ModicumConfig().to_dict()
    try:
        with _without_bars():
            model, report = _class_of(config).from_pretrained(
                directory,
                config=config,
                dtype=dtype or "auto",
                local_files_only=True,
                output_loading_info=True,
            )
    except ModicumError:
        raise
    except (
        Exception
    ) as error:  # transformers and its quantizers raise whatever a damaged file makes them stumble on
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{directory} cannot be opened: {reason}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(
            f"{directory} holds no tensor for {missing[0]} ({len(missing)} are missing).",
            "Copy the checkpoint again, or use the config.json that belongs to it.",
        )
    products = to_device(model, manifest or Manifest(), torch.device(device), sparse_kernels)
    if products is not None:
        model.sparse_products = products
    return model.eval()


def refuse_images(directory: Path, what: str, instead: str) -> None:
    """Refuse a model that draws images where one that writes text is needed.

    Args:
        directory: of the model.
        what: what needs a language model.
        instead: what can be done with a model that draws.

    Raises:
        UnsupportedModel: it draws.
    """
    if image_kind(directory) is not None:
        raise UnsupportedModel(f"{what} needs a language model; {directory.name} draws images.", instead)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep transformers and compressed-tensors from drawing their own progress bars."""
    shown, begin = transformers_logging.is_progress_bar_enabled(), tqdm.__init__
    transformers_logging.disable_progress_bar()
    tqdm.__init__ = partialmethod(begin, disable=True)
    try:
        yield
    finally:
        tqdm.__init__ = begin
        if shown:
            transformers_logging.enable_progress_bar()


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer of a checkpoint directory.

    Raises:
        CheckpointError: there is none.
        UnsupportedModel: the model draws images.
    """
    refuse_images(directory, "Reading text", "Use steps that need no data, such as quantize.rtn.")
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain exceptions for a damaged file
        raise CheckpointError(
            f"{directory} holds no tokenizer that transformers can open.",
            "Copy tokenizer.json beside the weights.",
        ) from error


def _class_of(config: Any) -> Any:
    names = getattr(config, "architectures", None) or []
    found = getattr(transformers, names[0], None) if names else None
    return found if found is not None else transformers.AutoModel
