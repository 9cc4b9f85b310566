"""Language models: compare two checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from modicum.data.text import load_text
from modicum.data.windows import token_stream
from modicum.evaluate import Comparison, LayerRecord, Protocol
from modicum.evaluate import compare as compare_models
from modicum.evaluate.compare import EVERYTHING, StageProgress
from modicum.formats.manifest import Manifest
from modicum.pipeline.coding import describe_coding
from modicum.pipeline.loading import load_model, load_tokenizer, refuse_images
from modicum.pipeline.run import check_device
from modicum.zoo.locate import locate


def compare(
    before: str | Path,
    after: str | Path,
    *,
    text: str = "stdlib",
    tokens: int = 16384,
    what: Collection[str] = EVERYTHING,
    window: int | None = None,
    prompts: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    seed: int = 0,
    command: str | None = None,
    progress: StageProgress | None = None,
) -> Comparison:
    """Measure two checkpoints side by side on the same held-out text.

    Args:
        before: the original: a directory, nano model or hub id.
        after: the compressed one.
        text: evaluation text (its held-out part): stdlib, a file or folder, hf:DATASET.
        tokens: how many of its tokens.
        what: any of quality, size, memory, speed, samples.
        window: tokens per window of the perplexity; the context of the model (2048 at most) by default.
        prompts: texts to continue; places of the evaluation text by default.
        dtype: compute dtype of both.
        device: where both run.
        seed: carried into the result.
        command: the command line that repeats this, for the report.
        progress: told what is measured.
    """
    check_device(device)
    first, second = locate(before), locate(after)
    for directory in (first, second):
        refuse_images(directory, "Comparing texts", "Compare its cache policies: `modicum compare-kv`.")
    tokenizer = load_tokenizer(first)
    stream = token_stream(load_text(text, "heldout"), tokenizer, tokens)
    models = [load_model(path, dtype, device) for path in (first, second)]
    manifest = Manifest.present(second)
    protocol = Protocol.fitting(models[0], len(stream))
    if window is not None:
        protocol = protocol.model_copy(update={"window": min(window, protocol.window)})
    return compare_models(
        models[0],
        models[1],
        tokenizer,
        stream,
        what=what,
        before_dir=first,
        after_dir=second,
        protocol=protocol,
        prompts=prompts,
        layers=layer_records(manifest),
        coding=describe_coding(second, first) if "size" in what else None,
        recipe=manifest.recipe if manifest else None,
        command=command,
        name=first.name,
        data=f"{text}, held-out part",
        seed=seed,
        progress=progress,
    )


def layer_records(manifest: Manifest | None) -> list[LayerRecord]:
    """What became of each layer, as the report shows it."""
    if manifest is None:
        return []
    return [
        LayerRecord(
            name=name,
            relative_error=record.get("output_error", record.get("weight_error")),
            **{
                key: record.get(key)
                for key in ("block", "sparsity", "bits_per_weight", "nbytes", "dense_nbytes")
            },
            role=record["role"],
        )
        for name, record in manifest.layers.items()
        if "role" in record
    ]
