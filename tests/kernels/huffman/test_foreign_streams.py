"""Streams as other writers make them: codes that are not canonical, junk in unused entries, a missing last position.

The writer here follows the description of the published format, one symbol at a time, and shares no code with ours.
"""

from __future__ import annotations

import heapq
from itertools import count

import numpy as np
import pytest
import torch
from torch import Tensor

from modicum.errors import CheckpointError
from modicum.kernels.huffman.code import code_of_counts
from modicum.kernels.huffman.decoder import check_gaps, decode
from modicum.kernels.huffman.encoder import encode, symbol_counts
from modicum.kernels.huffman.layout import Encoded, prepare
from modicum.kernels.huffman.stepwise import decode_stepwise

END = 1000


def tree_codes(counts: dict[int, int]) -> dict[int, str]:
    """Codes read off a tree in which the rarer half always takes the 0; the end symbol is the rarest of all."""
    age = count()
    heap = [(n, next(age), {symbol: ""}) for symbol, n in [(END, 1), *counts.items()]]
    heapq.heapify(heap)
    while len(heap) > 1:
        (a, _, rarer), (b, _, other) = heapq.heappop(heap), heapq.heappop(heap)
        merged = {s: "0" + c for s, c in rarer.items()} | {s: "1" + c for s, c in other.items()}
        heapq.heappush(heap, (a + b, next(age), merged))
    return heap[0][2]


def tables(codes: dict[int, str]) -> np.ndarray:
    """One row per byte-aligned prefix; whatever no code reaches repeats what was written before it, in any row."""
    real = {symbol: code for symbol, code in codes.items() if symbol != END}
    aligned = {code[: 8 * k] for code in real.values() for k in range((len(code) - 1) // 8 + 1)}
    prefixes = sorted(aligned, key=lambda prefix: (len(prefix), prefix))
    luts, current = np.zeros((len(prefixes) + 1, 256), np.uint8), 0
    for row, prefix in enumerate(prefixes):
        entries: dict[int, int] = {}
        for symbol, code in real.items():
            if code.startswith(prefix):
                rest = code[len(prefix) :]
                entry = symbol if len(rest) <= 8 else 256 - prefixes.index(code[: len(prefix) + 8])
                entries[int(rest[:8].ljust(8, "0"), 2)] = entry
        for byte in range(256):
            current = entries.get(byte, current)
            luts[row, byte] = current
    luts[-1, list(real)] = [len(code) for code in real.values()]
    return luts


def foreign(weight: Tensor, codes: dict[int, str] | None = None) -> Encoded:
    """A group written symbol by symbol."""
    words = weight.view(torch.int16).numpy().view(np.uint16).astype(int)
    exponents = ((words >> 7) & 0xFF).tolist()
    if codes is None:
        values, counts = np.unique(exponents, return_counts=True)
        codes = tree_codes(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    text, gaps, positions, bit = [], [], [], 0
    for place, symbol in enumerate([*exponents, END]):
        if symbol == END and bit % 8 == 0:
            break
        if bit // 64 >= len(gaps):
            gaps.append(bit % 64)
        if bit // 32768 >= len(positions):
            positions.append(place)
        text.append(codes[symbol])
        bit += len(codes[symbol]) if symbol != END else 0
    stream = "".join(text)[: -(-bit // 8) * 8].ljust(-(-bit // 8) * 8, "0")
    data = int(stream, 2).to_bytes(len(stream) // 8, "big")
    gaps += [0] * (512 * -(-len(data) // 4096) - len(gaps))
    packed = int("".join(f"{gap:05b}" for gap in gaps), 2).to_bytes(5 * len(gaps) // 8, "big")
    return Encoded(
        luts=torch.from_numpy(tables(codes)),
        encoded_exponent=torch.frombuffer(bytearray(data), dtype=torch.uint8),
        sign_mantissa=torch.from_numpy(((words >> 8) & 0x80 | words & 0x7F).astype(np.uint8)),
        gaps=torch.frombuffer(bytearray(packed), dtype=torch.uint8),
        output_positions=torch.from_numpy(np.array([*positions, len(words)], np.uint32).view(np.uint8)),
        split_positions=torch.empty(0, dtype=torch.int64),
    )


def assert_reads(group: Encoded, weight: Tensor) -> None:
    prepared = prepare(group)
    assert torch.equal(decode(prepared).view(torch.int16), weight.view(torch.int16))
    words = torch.empty(len(weight), dtype=torch.int16)
    decode_stepwise(prepared, words)
    assert torch.equal(words, weight.view(torch.int16))
    check_gaps(prepared)


def gaussian(n: int, seed: int = 0) -> Tensor:
    return (torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 0.02).bfloat16()


@pytest.mark.parametrize("n", [1, 2, 3, 17, 511, 30_000])
@pytest.mark.parametrize("seed", range(4))
def test_foreign_codes_are_read(n: int, seed: int) -> None:
    assert_reads(foreign(gaussian(n, seed)), gaussian(n, seed))


def steep() -> Tensor:
    """30 exponents, each half as frequent as the one before: codes of up to 14 bits and more."""
    shares = torch.tensor([2.0**-k for k in range(30)])
    exponents = torch.multinomial(
        shares, 20_000, replacement=True, generator=torch.Generator().manual_seed(3)
    )
    exponents[:30] = torch.arange(30)
    return (exponents + 100 << 7).to(torch.int16).view(torch.bfloat16)


def test_entries_that_lead_in_circles_but_are_never_reached_do_no_harm() -> None:
    """A chain of codes whose end lies first in the last row: that row begins with what the row before it ended with."""
    lengths = 25
    codes = {100 + k: "1" * k + "0" for k in range(lengths - 1)}
    codes |= {END: "1" * (lengths - 1) + "0", 100 + lengths: "1" * lengths}
    weight = steep()[:5000]
    weight.view(torch.int16)[:26] = (torch.tensor([*range(24), 25, 25]) + 100 << 7).to(torch.int16)
    allowed = torch.tensor([k != 24 and k <= 25 for k in range(256)])
    weight = weight[allowed[((weight.view(torch.int16) >> 7) & 0xFF).long() - 100]].clone()
    group = foreign(weight, codes)
    rows = len(group.luts) - 1
    assert rows == 4
    assert group.luts[3, 0] == 256 - 3  # the last row sends to itself
    assert_reads(group, weight)


def test_long_foreign_codes_are_read() -> None:
    group = foreign(steep())
    assert group.luts[-1].max() > 11
    assert_reads(group, steep())


def test_a_last_block_without_a_code_may_lack_its_position() -> None:
    codes = {100: "1", 101: "01", 102: "001" + "0" * 9, END: "001" + "1" * 9}
    exponents = torch.tensor([101] * 10 + [100] * (32768 - 20 - 4) + [102])  # ends at bit 32776, a whole byte
    weight = (exponents << 7).to(torch.int16).view(torch.bfloat16)
    group = foreign(weight, codes)
    assert (group.encoded_exponent.numel(), group.output_positions.numel()) == (4097, 8)
    assert_reads(group, weight)


def test_with_the_same_code_both_write_the_same_bytes() -> None:
    weight = gaussian(30_000)
    code = code_of_counts(symbol_counts([weight]))
    codes = {
        int(s): f"{int(code.codes[s]):0{int(code.lengths[s])}b}"
        for s in np.flatnonzero(code.lengths).tolist()
    }
    codes[END] = f"{code.end[0]:0{code.end[1]}b}"
    ours, other = encode([weight]), foreign(weight, codes)
    assert ours is not None
    for name, tensor in other.tensors().items():
        assert torch.equal(ours.tensors()[name], tensor), name


def test_a_code_without_a_symbol_is_an_error() -> None:
    codes = {100: "1", 101: "01", END: "00"}
    weight = (torch.tensor([100, 101] * 100) << 7).to(torch.int16).view(torch.bfloat16)
    group = foreign(weight, codes)
    group.encoded_exponent[5] = 0
    prepared = prepare(group)
    for read in (lambda: decode(prepared), lambda: check_gaps(prepared)):
        with pytest.raises(CheckpointError):
            read()
    with pytest.raises(CheckpointError):
        decode_stepwise(prepared, torch.empty(200, dtype=torch.int16))
