"""The memory of this process, and how to give back to the system what was freed.

The allocator of the C library keeps what was freed for the next request. After a piece of work that needed much, the
process stays as large as it was, and the next large request may not fit into the gaps that are left.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from functools import cache

MAPPED = 32 << 20
"""From this size on glibc gives a tensor pages of its own; smaller ones lie among others and leave gaps behind."""


def return_freed_memory() -> None:
    """Hand all free pages back (glibc); elsewhere nothing happens."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def resident() -> int:
    """Resident bytes of this process now (Linux), or its peak so far where /proc is not there."""
    try:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
