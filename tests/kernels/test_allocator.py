"""What is freed goes back to the system."""

from __future__ import annotations

import sys

import pytest
import torch

from modicum.kernels.allocator import resident, return_freed_memory

MB = 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone hands pages back on request")
def test_gaps_between_what_is_held_are_returned() -> None:
    tensors = [
        torch.ones(64 * 1024 // 4) for _ in range(1600)
    ]  # 100 MB in pieces too small for pages of their own
    held = tensors[::2]
    del tensors
    return_freed_memory()
    full = resident()
    more = [torch.ones(64 * 1024 // 4) for _ in range(1600)]
    held += more[::2]
    del more
    before = resident()
    return_freed_memory()
    assert before - full > 90 * MB
    assert resident() - full < 75 * MB
    assert len(held) == 1600


def test_what_is_held_is_resident() -> None:
    return_freed_memory()  # else the tensor takes pages that are there already
    before = resident()
    held = torch.ones(64 * MB // 4)
    assert resident() - before > 50 * MB
    assert held[0] == 1
