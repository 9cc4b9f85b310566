"""DFloat11: 30 % smaller bfloat16 weights that are decoded just before they are used.

Of the 16 bits of a trained bfloat16 weight, sign and mantissa are noise, but the exponent carries 2.6 of its 8 bits.
The exponents of a block get one Huffman code; a model runs from the codes, one block being decoded at a time.

float16 and float32 go through the same code with more raw bits (see `modicum.kernels.huffman`), which saves less and is
modicum's own extension, like the fused experts of a mixture, for which the published format has no place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from modicum.kernels.huffman.encoder import encode, symbol_counts, why_raw
from modicum.kernels.huffman.layout import DTYPES, MOST
from modicum.lossless.bound import bound
from modicum.method import Coding, Paper, StorageMethod
from modicum.models import Anatomy, Block


class DFloat11(StorageMethod):
    """Huffman-code the exponents of all weights; about 30 % smaller in bfloat16, and not one bit is changed.

    Weights of a block share one code, the embedding and the head have one each; the parts of a block of more than 2^31
    weights have one each, too. What would not shrink (few weights, flat exponents, infinities, magnitudes of 2^113 and
    more) is stored as it is. Bits per weight: 8 for sign and
    mantissa, the code, and 0.2 for the places at which many threads begin to decode.
    """

    paper: ClassVar[Paper] = Paper(
        "70% Size, 100% Accuracy: Lossless LLM Compression for Efficient GPU Inference via Dynamic-Length Float",
        "NeurIPS 2025",
        "2504.11651",
    )

    def groups(self, anatomy: Anatomy) -> dict[str, tuple[str, ...]]:
        groups: dict[str, tuple[str, ...]] = {}
        sizes = {name: p.numel() for name, p in anatomy.model.named_parameters(remove_duplicate=False)}
        for block in anatomy.blocks:
            groups |= _countable(block.name, _matrices(block), sizes)
            if block.experts is not None:
                fused = dict.fromkeys(p for layer in block.experts.layers for p in layer.parameter_names)
                groups[block.experts.name] = tuple(fused)
        for skipped in anatomy.outside:
            owner = anatomy.model.get_submodule(_owner(skipped.name, anatomy.model))
            if isinstance(owner, nn.Embedding | nn.Linear):
                groups[skipped.name] = (f"{skipped.name}.weight",)
        return {name: parameters for name, parameters in groups.items() if parameters}

    def encode(self, tensors: Sequence[Tensor]) -> Coding:
        if any(tensor.dtype not in DTYPES or tensor.dtype != tensors[0].dtype for tensor in tensors):
            return Coding({}, 0.0, "the weights are not of one float dtype of 16 or 32 bits")
        least = bound(tensors)
        encoded = encode(tensors)
        if encoded is None:
            return Coding({}, least, why_raw(symbol_counts(tensors)))
        if encoded.nbytes >= sum(tensor.nbytes for tensor in tensors):
            return Coding({}, least, "it would not become smaller")
        return Coding(encoded.tensors(), least)


def _matrices(block: Block) -> tuple[str, ...]:
    """The weights of a block that are modules of their own, in execution order."""
    return tuple(f"{layer.name}.weight" for layer in block.layers if layer.expert is None)


def _countable(
    name: str, parameters: tuple[str, ...], sizes: Mapping[str, int]
) -> dict[str, tuple[str, ...]]:
    """The weights of a module as one group; as those of its parts, if they are more than the format counts."""
    if sum(sizes[parameter] for parameter in parameters) <= MOST or parameters == (f"{name}.weight",):
        return {name: parameters}
    parts: dict[str, list[str]] = {}
    for parameter in parameters:
        part = parameter.removeprefix(f"{name}.").partition(".")[0]
        parts.setdefault(f"{name}.{part}", []).append(parameter)
    return {
        key: some for part, own in parts.items() for key, some in _countable(part, tuple(own), sizes).items()
    }


def _owner(name: str, model: nn.Module) -> str:
    """The module that `name` is; the one that it is a parameter of, if it is none."""
    return name if name in dict(model.named_modules()) else name.rpartition(".")[0]
