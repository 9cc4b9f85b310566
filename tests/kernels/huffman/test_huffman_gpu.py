"""The GPU's decoder in Triton's interpreter, in a process of its own because the interpreter is chosen at import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modicum.kernels.huffman.encoder import encode

pytest.importorskip("triton")

DECODE = """
import sys, torch
from safetensors.torch import load_file, save_file
from modicum.kernels.huffman.gpu import decode_gpu
from modicum.kernels.huffman.layout import Encoded, prepare
arrays = load_file(sys.argv[1])
n = arrays["sign_mantissa"].numel()
around = torch.full((n + 200,), 77, dtype=torch.int16)
decode_gpu(prepare(Encoded(**arrays)), around[100 : n + 100])
arrays["encoded_exponent"] = arrays["encoded_exponent"].flip(0).contiguous()
damaged = torch.full((n + 200,), 77, dtype=torch.int16)
decode_gpu(prepare(Encoded(**arrays)), damaged[100 : n + 100])
save_file({"out": around, "damaged": damaged}, sys.argv[2])
"""


def test_the_kernel_gives_the_same_bits_and_stays_inside(tmp_path: Path) -> None:
    """Two blocks with short codes, codes beyond a window and codes that walk the tables down to the third byte."""
    weight = torch.randn(13_500, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[:60:2] = 2.0 ** torch.arange(30)  # 30 exponents of which each occurs once or little more
    weight = weight.bfloat16().view(torch.int16)
    group = encode([weight.view(torch.bfloat16)])
    assert group is not None
    assert group.luts[-1].max() > 11
    assert group.output_positions.numel() == 4 * 3
    save_file(group.tensors(), tmp_path / "group.safetensors")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-c",
        DECODE,
        str(tmp_path / "group.safetensors"),
        str(tmp_path / "out.safetensors"),
    ]
    subprocess.run(command, env=environment, check=True)
    result = load_file(tmp_path / "out.safetensors")
    assert torch.equal(result["out"][100:-100], weight)
    for values in result.values():
        assert (values[:100] == 77).all()
        assert (values[-100:] == 77).all()
