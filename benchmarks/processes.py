"""Measure whole processes: wall time and peak resident memory of one child, on one thread.

The kernel counts into a child's peak what the parent held when it was forked, so this file and the drivers
import nothing beyond the standard library. Resident memory includes pages of mapped files, which cost nothing while
nobody else needs the room; what the child holds of its own is looked up a hundred times a second. The one-minute load
average is read before and after each run; a run that shared the machine is made again, and after some tries is kept
and marked as noisy.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

QUIET_LOAD = 1.5
PAUSE = 20.0  # seconds between two looks at the load
LOOK = 0.01  # seconds between two looks at the memory of a child


@dataclass(frozen=True)
class Measurement:
    """What one child took."""

    wall: float  # seconds
    cpu: float  # seconds of processor time, which a busy machine disturbs less
    peak_rss: int  # bytes
    peak_anonymous: int  # bytes of it that no file backs, as far as they were seen
    load: float  # the larger one-minute load average of before and after
    noisy: bool
    returncode: int
    report: dict[str, Any]  # the last line of its output, if that is JSON
    error: str  # the end of what it printed, if it failed


def one_thread() -> dict[str, str]:
    """The environment of a child: one thread, no network."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**os.environ, **single, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def run(command: list[str]) -> Measurement:
    """Run a child once."""
    before = os.getloadavg()[0]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        child = subprocess.Popen(command, stdout=output, stderr=errors, env=one_thread())
        anonymous, done = 0, 0
        while not done:
            anonymous = max(anonymous, anonymous_bytes(child.pid))
            time.sleep(LOOK)
            done, status, usage = os.wait4(child.pid, os.WNOHANG)
        wall = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        printed, complaint = output.read().decode(), errors.read().decode()
    load = max(before, os.getloadavg()[0])
    return Measurement(
        wall=wall,
        cpu=usage.ru_utime + usage.ru_stime,
        peak_rss=usage.ru_maxrss * 1024,
        peak_anonymous=anonymous,
        load=load,
        noisy=load > QUIET_LOAD,
        returncode=child.returncode,
        report=last_json(printed),
        error=(complaint + printed)[-2000:] if child.returncode else "",
    )


def anonymous_bytes(pid: int) -> int:
    """Resident bytes of a process that no file backs; 0 where /proc does not say."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def measure(
    command: list[str], label: str, tries: int = 4, prepare: Callable[[], None] | None = None
) -> Measurement:
    """Run a child until a run was quiet, at most `tries` times; `prepare()` is called before each."""
    for attempt in range(1, tries + 1):
        wait_for_quiet(tries)
        if prepare:
            prepare()
        taken = run(command)
        state = "failed" if taken.returncode else "noisy" if taken.noisy else "ok"
        cost = f"{taken.wall:.1f} s ({taken.cpu:.1f} of a processor), {taken.peak_rss / 2**20:.0f} MiB"
        print(f"  {label}: {cost}, load {taken.load:.2f}, {state}", flush=True)
        if taken.returncode or not taken.noisy or attempt == tries:
            break
    return taken


def wait_for_quiet(tries: int) -> None:
    """While the machine is busy, wait a little, `tries` - 1 times at most."""
    for _ in range(tries - 1):
        if os.getloadavg()[0] <= QUIET_LOAD:
            return
        time.sleep(PAUSE)


def last_json(printed: str) -> dict[str, Any]:
    """The JSON object in the last line of an output, or nothing."""
    lines = printed.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else {}
    except json.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def hardware() -> dict[str, Any]:
    """The machine that the numbers hold for."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory": memory,
        "system": platform.platform(),
        "threads": 1,
    }


def write_results(name: str, content: dict[str, Any], directory: Path) -> Path:
    """Write results/<name>-<date>.json with the date and the machine."""
    now = datetime.now(UTC)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}-{now:%Y-%m-%d-%H%M}.json"
    document = {"date": now.isoformat(timespec="seconds"), "hardware": hardware(), **content}
    partial = path.with_suffix(".json.partial")
    text = json.dumps(document, indent=2, default=asdict)
    root = Path(__file__).resolve().parent.parent
    partial.write_text(text.replace(f"{root}/", "./").replace(str(Path.home()), "~") + "\n")
    os.replace(partial, path)
    return path
