"""Decode on an NVIDIA GPU with a kernel of our own, `decode.cu`, which is compiled in a second on its first use.

PyTorch brings the compiler (NVRTC) and a launcher, from version 2.9 on and not yet under a public name. Where they are
missing, or the arrays do not lie on multiples of 16 bytes, the Triton kernel takes over.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from modicum.kernels.huffman.layout import CHUNKS, Prepared
from modicum.kernels.huffman.tables import WINDOW

ALIGNED = 16
TABLES = (8 + 2) << WINDOW  # bytes of both tables in shared memory
SUMS = 4 * CHUNKS // 32
SLACK = 16
FREE_SHARED = 48 << 10  # what a kernel may use without asking
RESIDENT = 4  # blocks of threads per multiprocessor


def decode_nvrtc(prepared: Prepared, out: Tensor) -> bool:
    """Decode into `out`, int16 [n], on the GPU where the arrays lie; False, and nothing done, if it cannot be."""
    encoded, lanes = prepared.encoded, prepared.lanes
    arrays = [encoded.encoded_exponent, encoded.sign_mantissa, encoded.gaps, prepared.firsts]
    arrays += [lanes.windows, lanes.first, lanes.luts, out]
    if any(array.data_ptr() % ALIGNED for array in arrays):
        return False
    launch = _kernel(out.device)
    if launch is None:
        return False
    room = int((prepared.positions[1:] - prepared.positions[:-1]).max())
    shared = -(-(TABLES + SUMS + room + SLACK) // ALIGNED) * ALIGNED
    if shared >= FREE_SHARED:
        launch.set_shared_memory_config(shared)
    sizes = [
        encoded.encoded_exponent.numel(),
        encoded.gaps.numel(),
        len(lanes.luts) - 1,
        prepared.blocks,
        room,
    ]
    processors = torch.cuda.get_device_properties(out.device).multi_processor_count
    grid = min(prepared.blocks, RESIDENT * processors)
    with torch.cuda.device(out.device):
        launch((grid, 1, 1), (CHUNKS, 1, 1), [*arrays, *sizes], shared)
    return True


@lru_cache
def _kernel(device: torch.device) -> Any:
    """The compiled kernel for a device; None if PyTorch cannot compile one."""
    build: Callable[..., Any] | None = getattr(torch.cuda, "_compile_kernel", None)
    if build is None:
        return None
    source = files("modicum.kernels.huffman").joinpath("decode.cu").read_text(encoding="utf-8")
    try:
        with torch.cuda.device(device):
            return build(source, "decode")
    except (OSError, RuntimeError):  # no compiler, or none for this device
        return None
