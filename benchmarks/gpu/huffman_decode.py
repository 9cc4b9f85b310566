"""How fast a GPU decodes DFloat11, and whether it finds the same bits as the processor.

    python benchmarks/gpu/huffman_decode.py [--weights 218103808] [--repeats 20] [--peer decode.ptx]

Gaussian weights of standard deviation 0.02, as many as one block of Llama-3.1-8B has, in one group; beside it a copy
of the decoded weights within the GPU, which is what reading them costs anyway, and with --peer the kernel of the
`dfloat11` package (the file decode.ptx in it, launched with CuPy) on the very same arrays. Medians of single launches.

Prints a table and writes results/huffman-decode-DATE.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from modicum.evaluate import environment
from modicum.kernels.huffman.decoder import decode
from modicum.kernels.huffman.encoder import encode
from modicum.kernels.huffman.gpu import decode_gpu
from modicum.kernels.huffman.layout import prepare

sys.path.append(str(Path(__file__).parents[1]))
from processes import write_results

BLOCK = 218_103_808  # q, k, v, o, gate, up, down of Llama-3.1-8B


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median time of a launch."""
    times = []
    for _ in range(repeats + 3):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return median(times[3:])


def peer(ptx: Path, arrays: dict[str, Any], count: int) -> Callable[[torch.Tensor], None]:
    """The published kernel as its package launches it: 512 threads of 8 bytes; writes to a bfloat16 tensor."""
    import cupy

    kernel = cupy.RawModule(path=str(ptx)).get_function("decode")
    positions = arrays["output_positions"].cpu().view(torch.uint32).long()
    shared = 512 * 4 + 4 + 2 * int(positions.diff().max())
    bytes_in = arrays["encoded_exponent"].numel()
    kernel.max_dynamic_shared_size_bytes = max(shared, 48 * 1024)
    names = ("luts", "encoded_exponent", "sign_mantissa", "output_positions", "gaps")

    def decode_there(out: torch.Tensor) -> None:
        pointers = [arrays[name].data_ptr() for name in names]
        given = [*pointers, out.data_ptr(), arrays["luts"].shape[0], bytes_in, count]
        kernel((-(-bytes_in // 4096),), (512,), given, shared_mem=shared)

    return decode_there


def main() -> None:
    """Measure, print, and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weights", type=int, default=BLOCK)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--peer", type=Path, help="decode.ptx of the dfloat11 package")
    options = parser.parse_args()
    weight = (torch.randn(options.weights, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    group = encode([weight])
    assert group is not None
    arrays: dict[str, Any] = {name: tensor.cuda() for name, tensor in group.tensors().items()}
    prepared = prepare(replace(group, **arrays))
    out, original = torch.empty_like(weight, device="cuda"), weight.cuda()
    same = torch.equal(decode(prepared, out).view(torch.int16), original.view(torch.int16))
    damaged = replace(prepared.encoded, encoded_exponent=arrays["encoded_exponent"].flip(0).contiguous())
    decode(prepare(damaged), torch.empty_like(out))
    torch.cuda.synchronize()  # a stream of nonsense must not touch what is not its own
    triton = torch.empty_like(out)
    decode_gpu(prepared, triton.view(torch.int16))
    same &= torch.equal(triton, out)
    took = {
        "triton": milliseconds(lambda: decode_gpu(prepared, triton.view(torch.int16)), options.repeats),
        "decode": milliseconds(lambda: decode(prepared, out), options.repeats),
        "copy": milliseconds(lambda: out.copy_(original), options.repeats),
    }
    if options.peer:
        there, other = peer(options.peer, arrays, options.weights), torch.zeros_like(out)
        there(other)
        torch.cuda.synchronize()
        agrees = torch.equal(other.view(torch.int16), original.view(torch.int16))
        print(f"the dfloat11 package reads our arrays: {'the same bits' if agrees else 'OTHER BITS'}")
        took["dfloat11"] = milliseconds(lambda: there(other), options.repeats)
    print(f"{torch.cuda.get_device_name()}: bits are {'the same' if same else 'WRONG'}")
    for name, ms in took.items():
        print(f"  {name:8s}{ms:9.3f} ms {weight.nbytes / ms / 1e6:9.1f} GB/s of bfloat16")
    content = {
        "weights": options.weights,
        "same bits": same,
        "same bits in the dfloat11 package": agrees if options.peer else None,
        "milliseconds": took,
        "versions": environment("cuda"),
    }
    print(write_results("huffman-decode", content, Path(__file__).parents[1] / "results"))


if __name__ == "__main__":
    main()
