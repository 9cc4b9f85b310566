"""How much memory a run will hold at its fullest moment, from shapes alone.

A run passes through a few moments that can be the fullest: the calibration text is read; the embedding is in memory
beside the first hidden states; a block runs with its inputs being summed up; one of its layers is compressed; what lies
outside the blocks is copied. Each is a sum of things whose sizes are known. To that comes the process as it is, with
Python and the libraries. The sums are right when freed memory is given back between the moments (see
`modicum.kernels.allocator`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from modicum.calibrate.block import CALL_TOKENS
from modicum.calibrate.statistics import MATRICES, statistics_bytes
from modicum.kernels.allocator import MAPPED, resident, return_freed_memory
from modicum.kernels.products import widens
from modicum.method import LayerMethod
from modicum.models import Block, Layer
from modicum.pipeline.gradients import first_block, matrix_bytes
from modicum.pipeline.recipe import Recipe
from modicum.pipeline.source import Source, head_parameters
from modicum.pipeline.sweep import observed_statistics, touching, wanted_statistics

BATCH_TOKENS = 2048
LIBRARIES = 16 << 20  # code and tables that the libraries touch once they really compute
PRODUCTS = 16 << 20  # more of them, for matrix products, and the buffers that they keep
STDLIB_TEXT = 68 << 20  # the documentation of the standard library, while it is read
SHARED_INPUTS = ({"q", "k", "v"}, {"gate", "up"})


def peak_memory(
    source: Source, recipe: Recipe, steps: Sequence[LayerMethod], tokens: int, length: int
) -> int:
    """Resident bytes at the fullest moment: the interpreter as it is now, and what the run adds.

    Args:
        source: the opened checkpoint.
        recipe: what is done.
        steps: its steps.
        tokens: of the calibration; 0 if there is none.
        length: tokens of a window.
    """
    item = source.dtype.itemsize
    sizes = {name: parameter.numel() * item for name, parameter in source.model.named_parameters()}
    outside = [name for name in source.outside() if name in sizes]
    head = head_parameters(source.model)
    prelude = sum(sizes[name] for name in outside if name not in head) if tokens else 0
    hidden = tokens * hidden_width(source) * item
    batch = min(tokens, max(length, BATCH_TOKENS // length * length))
    blocks = max(_block_memory(source, steps, block, batch) for block in source.anatomy.blocks)
    run = max(prelude + hidden, hidden + blocks, sum(sizes[name] for name in outside))
    if tokens and first_block(steps, source.anatomy) is not None:
        run = max(run, _backward_memory(source, steps, hidden, length, sum(sizes[name] for name in outside)))
    reading = _text_memory(recipe) if tokens else 0
    return_freed_memory()
    return resident() + LIBRARIES + max(run + (PRODUCTS if tokens else 0), reading)


def _backward_memory(
    source: Source, steps: Sequence[LayerMethod], hidden: int, length: int, outside: int
) -> int:
    """Bytes of the pass over the dense model that takes gradients, one window of `length` tokens at a time.

    The loss is taken with everything outside the blocks in memory and five copies of the logits in float32. Then a
    block is there with its gradients and their sums, with what enters it, what is wanted of it, and what autograd keeps
    of one window.
    """
    vocabulary = int(getattr(source.model.config, "vocab_size", 0))
    logits = outside + hidden + 5 * 4 * length * vocabulary
    return max(
        logits, max(2 * hidden + _backward_of(source, steps, b, length) for b in source.anatomy.blocks)
    )


def _backward_of(source: Source, steps: Sequence[LayerMethod], block: Block, length: int) -> int:
    """Bytes of one block while gradients pass through it; products that are widened keep wide copies."""
    item = 4 if _widened(source, block, length) else 0
    weights = sum(p.numel() for p in block.module.parameters())
    features = sum(layer.in_features + layer.out_features for layer in block.layers)
    kept = 3 * length * features * (source.dtype.itemsize + item)
    return weights * (2 * source.dtype.itemsize + item) + matrix_bytes(steps, block) + kept


def _text_memory(recipe: Recipe) -> int:
    """Bytes that reading and tokenising the calibration text takes; what a data set will be is not known."""
    file = Path(recipe.calibration.source)
    if recipe.calibration.source == "stdlib":
        return STDLIB_TEXT
    return 2 * file.stat().st_size if file.is_file() else 0


def hidden_width(source: Source) -> int:
    """Features of the hidden states."""
    hidden = getattr(source.model.config, "hidden_size", None)
    return int(hidden or max((layer.in_features for layer in source.anatomy.blocks[0].layers), default=0))


def _block_memory(source: Source, steps: Sequence[LayerMethod], block: Block, batch: int) -> int:
    """Bytes that the work on one block needs, `batch` tokens at a time.

    The block is first run with its sums being collected, then its layers are compressed one after another.
    """
    weights = sum(p.numel() for p in block.module.parameters()) * source.dtype.itemsize
    sums = _statistics_memory(steps, block)
    calls = _calls_memory(source, steps, block, batch)
    observing = _activations(source, block, batch, bool(observed_statistics(steps, block)))
    observing += _widened(source, block, batch)
    return weights + sums + calls + max(observing, _layers_memory(source, steps, block, batch))


def _activations(source: Source, block: Block, batch: int, observed: bool) -> int:
    """Bytes of the activations of a batch at the fullest moment of a block: in its feed-forward part.

    The inputs of all observed layers are held. Then either three intermediates are there (gate, its activation,
    up), or the input of the widest layer is there in float32 and in the short form that products take it in.
    """
    item = source.dtype.itemsize
    inputs = {_input_of(layer): layer.in_features * _routed(source, layer) for layer in block.layers}
    widest = max(inputs.values(), default=0)
    held = 2 * hidden_width(source) * item + (sum(inputs.values()) - widest) * item * observed
    return int(batch * (held + widest * max(3 * item, (2 * item + 4) * observed)))


def _widened(source: Source, block: Block, batch: int) -> int:
    """Bytes of the float32 copies of the largest product, where the processor has no units for bfloat16."""
    if source.dtype != torch.bfloat16 or source.device.type != "cpu" or not widens():
        return 0
    return max(
        4 * (layer.in_features * layer.out_features + batch * (layer.in_features + layer.out_features))
        for layer in block.layers
    )


def _layers_memory(source: Source, steps: Sequence[LayerMethod], block: Block, batch: int) -> int:
    """Bytes that compressing the layers needs at its fullest moment, in the order in which it happens."""
    touched = [(layer, _meta(layer, source.dtype)) for layer in block.layers if touching(steps, layer)]
    references = sum(weight.nbytes for _, weight in touched)
    fullest = forms = 0
    for layer, weight in touched:
        own = touching(steps, layer)
        result = own[-1].expected_form(weight).nbytes
        work = max(step.workspace(weight) for step in own)
        fullest = max(fullest, forms + result + max(work, _checking(weight)))
        forms += result
    replay = _activations(source, block, min(batch, CALL_TOKENS), False) if _replays(steps) else 0
    return references + max(fullest, replay)


def _checking(weight: Tensor) -> int:
    """Bytes that decoding a form twice takes, to hold it against its promises; small matrices leave gaps as large."""
    decoded = 2 * weight.nbytes + weight.numel()
    return decoded if weight.nbytes >= MAPPED else 2 * decoded


def _calls_memory(source: Source, steps: Sequence[LayerMethod], block: Block, batch: int) -> int:
    """Bytes of the recorded inputs of the sub-modules that are replayed, and of what they should give and do."""
    if not _replays(steps):
        return 0
    vectors = 3 * len({fold.parent for fold in block.folds}) * max(batch, CALL_TOKENS)
    return vectors * hidden_width(source) * source.dtype.itemsize


def _replays(steps: Sequence[LayerMethod]) -> bool:
    return any(step.inputs() for step in steps)


def _input_of(layer: Layer) -> tuple[int | str, int | None]:
    """What layers that are fed by the same tensor have in common."""
    group = next((i for i, roles in enumerate(SHARED_INPUTS) if layer.role in roles), None)
    return (layer.name, None) if group is None else (group, layer.expert)


def _routed(source: Source, layer: Layer) -> float:
    """The share of all tokens that reach a layer: of an expert, its turn in an even distribution."""
    if layer.expert is None:
        return 1.0
    config = source.model.config
    experts = 1 + max(other.expert or 0 for other in source.anatomy.blocks[layer.block].layers)
    return min(1.0, getattr(config, "num_experts_per_tok", 1) / experts)


def _statistics_memory(steps: Sequence[LayerMethod], block: Block) -> int:
    """Bytes of the running sums, one for each distinct input."""
    wanted = wanted_statistics(steps, block)
    inputs = {_input_of(layer): layer for layer in block.layers if layer.name in wanted}
    sums = sum(statistics_bytes(wanted[layer.name], layer.in_features) for layer in inputs.values())
    known = [layer for layer in block.layers if layer.name in wanted]
    entries = [x.out_features * x.in_features * len(wanted[x.name] & MATRICES) for x in known]
    return sums + 4 * sum(entries)


def _meta(layer: Layer, dtype: torch.dtype) -> Tensor:
    return torch.empty(layer.out_features, layer.in_features, dtype=dtype, device="meta")
