"""The arrays of one DFloat11 group, and the questions that they must answer before anything decodes them.

A 16-bit float is a sign, eight bits and seven bits. In bfloat16 the eight are the exponent, some forty values of which
occur in a trained model; they are Huffman-coded, and sign and the seven bits stay as they are in one raw byte:

    weight:          s eeeeeeee mmmmmmm
    symbol, coded:     eeeeeeee            raw byte: s mmmmmmm

The same cut works for float16, where the eight are the exponent and the upper three bits of the mantissa, and for the
upper half of a float32, whose lower half is kept as it is. Only bfloat16 is DFloat11; the others are this format with
more raw bits.

The codes of all weights follow each other, most significant bit first. A chunk is 8 bytes of them, which one lane of a
GPU decodes, and a block is 512 chunks. Because a code has at most 32 bits, one begins in every chunk; `gaps` tells
where, and `output_positions` the weight with which each block begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modicum.errors import CheckpointError
from modicum.kernels.huffman.code import Code
from modicum.kernels.huffman.luts import code_of_luts
from modicum.kernels.huffman.tables import LaneTables, Tables, lane_tables, tables_of

CHUNK_BITS = 64
CHUNKS = 512
BLOCK_BITS = CHUNKS * CHUNK_BITS
BLOCK_BYTES = BLOCK_BITS // 8
GAP_BITS = 5
GAP_BYTES = CHUNKS * GAP_BITS // 8
"""Of one block."""

MOST = 2**31 - 1
"""Weights of a group, and bytes of its stream: the original counts both in int32."""

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Encoded:
    """A group of weights, one code for all; the first six are the tensors of a published file, under their names there.

    Attributes:
        luts: uint8 [rows + 1, 256], the code (see `luts.py`).
        encoded_exponent: uint8 [bytes], the stream of codes.
        sign_mantissa: uint8 [n], the raw bytes.
        gaps: uint8 [320 * blocks], for every chunk the bit at which the first code begins, 5 bits each.
        output_positions: uint8 [4 * (blocks + 1)], uint32 numbers: each block's first weight; last, n.
        split_positions: int64 [tensors - 1], where the second, third, ... tensor begins.
        dtype: of the weights.
        low: int16 [n], the lower halves of float32 weights; None for others.
    """

    luts: Tensor
    encoded_exponent: Tensor
    sign_mantissa: Tensor
    gaps: Tensor
    output_positions: Tensor
    split_positions: Tensor
    dtype: torch.dtype = torch.bfloat16
    low: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What is to be stored, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    @property
    def nbytes(self) -> int:
        """Bytes of everything together."""
        return sum(tensor.nbytes for tensor in self.tensors().values())


@dataclass(frozen=True)
class Prepared:
    """A group whose arrays have been found consistent, with what decoders need beside them.

    Attributes:
        encoded: the arrays; they must not be changed.
        name: what an error calls them.
        code: what `luts` say.
        tables: the same for decoding on a processor.
        positions: int64 [blocks + 1], `output_positions` as numbers.
        begins: int64 [blocks + 1], the bit at which each block's first code begins; last, the bits of the stream.
        lanes: the code for decoding on a GPU, on the device of the arrays.
        firsts: int32 [blocks + 1], `positions` on the device of the arrays.
    """

    encoded: Encoded
    name: str
    code: Code
    tables: Tables
    positions: NDArray[np.int64]
    begins: NDArray[np.int64]
    lanes: LaneTables
    firsts: Tensor

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return len(self.positions) - 1


def prepare(encoded: Encoded, name: str = "weights") -> Prepared:
    """Check the arrays of a group against each other, on any device; no decoder runs without this.

    Args:
        encoded: as read from a file.
        name: the module that they belong to, for errors.

    Raises:
        CheckpointError: a shape, a type, a position, a count or a table is wrong.
    """
    _check_types(encoded, name)
    luts, gaps = encoded.luts.cpu().numpy(), encoded.gaps.cpu().numpy()
    positions = encoded.output_positions.cpu().contiguous().numpy().view(np.uint32).astype(np.int64)
    blocks = _check_sizes(encoded, positions, name)
    begins = np.arange(blocks + 1, dtype=np.int64) * BLOCK_BITS
    begins[:-1] += gaps[::GAP_BYTES][:blocks] >> (8 - GAP_BITS)
    begins[-1] = 8 * encoded.encoded_exponent.numel()
    code, device = code_of_luts(luts, f"{name}.luts"), encoded.encoded_exponent.device
    firsts = torch.from_numpy(positions.astype(np.int32)).to(device)
    tables = tables_of(code)
    lanes = lane_tables(code, tables, device)
    return Prepared(encoded, name, code, tables, positions, begins, lanes, firsts)


def _check_types(encoded: Encoded, name: str) -> None:
    expected = dict.fromkeys(encoded.tensors(), torch.uint8)
    expected |= {"split_positions": torch.int64, "low": torch.int16}
    for key, tensor in encoded.tensors().items():
        if tensor.dtype != expected[key] or tensor.ndim != (2 if key == "luts" else 1):
            refuse(name, f"{key} is {tensor.dtype} with {tensor.ndim} dimensions")
        if not tensor.is_contiguous():
            refuse(name, f"{key} is not contiguous")
    if encoded.dtype not in DTYPES or (encoded.low is None) != (encoded.dtype != torch.float32):
        refuse(
            name, f"weights of {encoded.dtype} {'need' if encoded.low is None else 'have no'} lower halves"
        )
    if len(encoded.output_positions) < 8 or len(encoded.output_positions) % 4:
        refuse(name, f"output_positions holds {len(encoded.output_positions)} bytes")


def _check_sizes(encoded: Encoded, positions: NDArray[np.int64], name: str) -> int:
    """The number of blocks, if all counts agree."""
    n, size = encoded.sign_mantissa.numel(), encoded.encoded_exponent.numel()
    blocks, streamed = len(positions) - 1, -(-size // BLOCK_BYTES)
    if not 0 < n <= MOST or not 0 < size <= MOST:
        refuse(name, f"{n} weights in {size} bytes are outside of 1 to {MOST}")
    # The original leaves out a last block that holds only the end of the last code.
    without_start = blocks == streamed - 1 and size - blocks * BLOCK_BYTES <= 4
    if blocks != streamed and not without_start:
        refuse(name, f"a stream of {size} bytes has {streamed} blocks, output_positions counts {blocks}")
    if encoded.gaps.numel() != GAP_BYTES * streamed:
        refuse(name, f"gaps holds {encoded.gaps.numel()} bytes instead of {GAP_BYTES * streamed}")
    steps = np.diff(positions)
    if positions[0] != 0 or positions[-1] != n or steps.min() < 0 or steps.max() > BLOCK_BITS:
        refuse(name, f"output_positions does not lead from 0 to {n} in steps of at most {BLOCK_BITS}")
    splits = encoded.split_positions.cpu().numpy()
    if (np.diff(splits, prepend=0, append=n) < 0).any():
        refuse(name, f"split_positions does not ascend within 0 to {n}")
    if encoded.low is not None and encoded.low.numel() != n:
        refuse(name, f"low holds {encoded.low.numel()} lower halves for {n} weights")
    return blocks


def unpacked_gaps(gaps: Tensor) -> Tensor:
    """`gaps`, uint8 [320 * blocks], one number per chunk: int64 [512 * blocks]."""
    groups = gaps.view(-1, GAP_BITS).long()  # 40 bits, of 8 chunks
    bytewise, gapwise = (
        torch.arange(start, -1, -step, device=gaps.device) for start, step in ((32, 8), (35, 5))
    )
    numbers = (groups << bytewise).sum(1, keepdim=True)
    return (numbers >> gapwise & 31).flatten()


def packed_gaps(gaps: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One number per chunk, uint8 [512 * blocks] below 32, in 5 bits each: uint8 [320 * blocks]."""
    return np.packbits(np.unpackbits(gaps[:, None], axis=1)[:, 8 - GAP_BITS :])


def refuse(name: str, wrong: str) -> NoReturn:
    """Say that the arrays of a group contradict each other."""
    raise CheckpointError(
        f"{name}: {wrong}.", "The file is damaged or not of DFloat11; fetch or make it again."
    )
