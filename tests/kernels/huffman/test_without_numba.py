"""Where Numba is missing, encoding says so and decoding falls back to tensor operations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from modicum.kernels.huffman.encoder import encode

SCRIPT = """
import sys
sys.modules["numba"] = None
from safetensors.torch import load_file, save_file
from modicum.errors import MissingExtra
from modicum.kernels.huffman.decoder import check_gaps, decode
from modicum.kernels.huffman.encoder import encode
from modicum.kernels.huffman.layout import Encoded, prepare
prepared = prepare(Encoded(**load_file(sys.argv[1])))
weight = decode(prepared)
save_file({"weight": weight}, sys.argv[2])
for attempt in (lambda: encode([weight]), lambda: check_gaps(prepared)):
    try:
        attempt()
    except MissingExtra as error:
        assert "modicum[lossless]" in error.hint and "'numba'" in error.what, error
    else:
        raise SystemExit("no error")
"""


def test_without_numba(tmp_path: Path) -> None:
    weight = (torch.randn(30_000, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    group = encode([weight])
    assert group is not None
    save_file(group.tensors(), tmp_path / "group.safetensors")
    paths = [str(tmp_path / name) for name in ("group.safetensors", "weight.safetensors")]
    subprocess.run([sys.executable, "-c", SCRIPT, *paths], check=True)
    assert torch.equal(load_file(paths[1])["weight"], weight)
