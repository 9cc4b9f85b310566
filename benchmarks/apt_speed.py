"""What APT's exact update costs in time: whole runs of `modicum compress` beside SparseGPT's, in turn.

    python benchmarks/checkpoints.py wide
    python benchmarks/apt_speed.py [--pairs 3] [--windows 32] [--length 256]

A random Llama of 8 blocks, hidden 1024, bfloat16, on one thread; 50 % without a pattern, and 2:4. Both methods run one
after the other as processes of their own. CPU seconds are compared beside wall seconds, because they do not count what
else the machine is doing, though caches and memory are shared all the same; the ratios are medians over pairs. What a
process takes to import its packages is measured too. Prints a table and writes results/apt-speed-DATE.json.
"""

from __future__ import annotations

import argparse
import resource
import shutil
from pathlib import Path
from statistics import median
from typing import Any

from commands import HERE, PYTHON, Case, bare_command, modicum_command, tokens_command
from processes import run, write_results

CACHE = Path("~/.cache/modicum-bench").expanduser()
SETTINGS: dict[str, dict[str, object]] = {"50 %": {"sparsity": 0.5}, "2:4": {"pattern": "2:4"}}
METHODS = ("sparsegpt", "apt")
Run = dict[str, float]


def seconds(command: list[str]) -> Run:
    """Wall and CPU seconds of a process, and the load of the machine.

    Raises:
        SystemExit: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    taken = run(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if taken.returncode:
        raise SystemExit(taken.error)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": taken.wall, "cpu": cpu, "load": taken.load}


def pair(settings: dict[str, object], checkpoint: Path, tokens: Path, out: Path) -> dict[str, Run]:
    """One run of each method."""
    found = {}
    for method in METHODS:
        shutil.rmtree(out, ignore_errors=True)
        case = Case(f"prune.{method}", settings, "", {})
        found[method] = seconds(modicum_command(case, checkpoint, tokens, out))
    shutil.rmtree(out, ignore_errors=True)
    return found


def ratio(pairs: list[dict[str, Run]], what: str, floor: float) -> float:
    """Median over pairs of APT's seconds over SparseGPT's, imports not counted."""
    return median((each["apt"][what] - floor) / (each["sparsegpt"][what] - floor) for each in pairs)


def table(rows: dict[str, list[dict[str, Run]]], floor: Run) -> str:
    """The medians as markdown."""
    lines = [
        "| | SparseGPT CPU s | APT CPU s | ratio | ratio of wall s | load |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, pairs in rows.items():
        cpu = [f"{median(each[method]['cpu'] for each in pairs):.1f}" for method in METHODS]
        loads = [each[method]["load"] for each in pairs for method in METHODS]
        ratios = [f"{ratio(pairs, what, floor[what]):.2f}" for what in ("cpu", "wall")]
        lines.append(f"| {' | '.join([name, *cpu, *ratios, f'{min(loads):.1f} to {max(loads):.1f}'])} |")
    return "\n".join([*lines, "", f"imports: {floor['cpu']:.1f} CPU s, left out of the ratios"])


def main() -> None:
    """Measure, print, and keep the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=CACHE / "wide")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    given = parser.parse_args()
    tokens = CACHE / "tokens" / f"{given.checkpoint.name}-apt-speed.safetensors"
    run(tokens_command("calibration", given.checkpoint, tokens, given.windows, given.length, "stdlib"))
    floor = seconds(bare_command(PYTHON))
    rows: dict[str, list[dict[str, Run]]] = {name: [] for name in SETTINGS}
    for _ in range(given.pairs):
        for name, settings in SETTINGS.items():
            rows[name].append(pair(settings, given.checkpoint, tokens, CACHE / "out" / "apt-speed"))
            print(name, rows[name][-1], flush=True)
    print(f"\n{table(rows, floor)}")
    content: dict[str, Any] = {"imports": floor, "pairs": rows, "checkpoint": given.checkpoint.name}
    print(write_results("apt-speed", content, given.out))


if __name__ == "__main__":
    main()
