"""Peak memory of a piece of work, measured instead of estimated.

On an accelerator the allocator keeps the high-water mark. On the CPU the kernel does, but for the life of the
process; Linux lets a process reset its own mark (writing 5 to /proc/self/clear_refs), which makes it exact
for one call. Where that is refused a thread samples the resident set; where there is no /proc, the growth of
the lifetime mark is a lower bound. The method used is part of the result.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import torch

from modicum.kernels.allocator import return_freed_memory

Result = TypeVar("Result")
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
SAMPLE_SECONDS = 0.001


class PeakMemory(NamedTuple, Generic[Result]):
    """What the call returned, the most bytes it held above the start, and how that was measured.

    `bytes` is None where the system offers no way to know. `method` is "allocator" (accelerator), "high-water
    mark" (exact), "sampled" (may miss spikes shorter than a millisecond) or "lifetime mark" (a lower bound).
    """

    result: Result
    bytes: int | None
    method: str


def peak_memory(fn: Callable[[], Result], device: torch.device | str = "cpu") -> PeakMemory[Result]:
    """Calls `fn` and measures the most memory of `device` that it held at once, above the start.

    Call `fn` once beforehand if its first call loads libraries or fills caches that should not count.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        return _on_cuda(fn, device)
    return_freed_memory()  # else the call reuses pages that an earlier one left, and looks cheaper
    if _reset_high_water_mark():
        start = _status("VmRSS")
        result = fn()
        return PeakMemory(result, max(0, _status("VmHWM") - start), "high-water mark")
    if STATUS.exists():
        return _sampled(fn)
    return _lifetime(fn)


def _on_cuda(fn: Callable[[], Result], device: torch.device | str) -> PeakMemory[Result]:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    start = torch.cuda.memory_allocated(device)
    result = fn()
    torch.cuda.synchronize(device)
    return PeakMemory(result, torch.cuda.max_memory_allocated(device) - start, "allocator")


def _reset_high_water_mark() -> bool:
    """Resets VmHWM to the present resident set; False where that is not allowed or has no effect."""
    try:
        CLEAR_REFS.write_text("5")
        return _status("VmHWM") <= _status("VmRSS") + 2**20  # some sandboxes accept the write and ignore it
    except (OSError, KeyError):
        return False


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0]) * 1024


def _sampled(fn: Callable[[], Result]) -> PeakMemory[Result]:
    start = peak = _status("VmRSS")
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_SECONDS):
            peak = max(peak, _status("VmRSS"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        result = fn()
        peak = max(peak, _status("VmRSS"))
    finally:
        done.set()
        watcher.join()
    return PeakMemory(result, peak - start, "sampled")


def _lifetime(fn: Callable[[], Result]) -> PeakMemory[Result]:
    try:
        import resource
    except ImportError:  # Windows
        return PeakMemory(fn(), None, "unavailable")
    unit = 1 if sys.platform == "darwin" else 1024
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = fn()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
    return PeakMemory(result, grown * unit, "lifetime mark")
