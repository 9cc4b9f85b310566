"""Compare modicum with llm-compressor: seconds, peak memory and held-out perplexity, with equal settings.

For each checkpoint and method both tools run one after the other as whole processes on one thread, several
times. A process's memory is counted from that of a process which only imports the same packages. Both
outputs go through the same evaluator. Everything is written to results/ with the date and the machine, and
printed as a table; a ratio below 1 says that modicum took less.

    python benchmarks/against_llmcompressor.py wide src/modicum/zoo/weights/nano-lm --repeats 3
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import commands
from processes import Measurement, measure, run, write_results

CACHE = Path("~/.cache/modicum-bench").expanduser()
TOOLS: dict[str, Callable[[commands.Case, Path, Path, Path], list[str]]] = {
    "modicum": commands.modicum_command,
    "llmcompressor": commands.peer_command,
}
PYTHONS = {"modicum": commands.PYTHON, "llmcompressor": commands.PEER_PYTHON}
PACKAGES = {
    "modicum": ("modicum", "torch", "transformers", "compressed-tensors"),
    "llmcompressor": ("llmcompressor", "torch", "transformers", "compressed-tensors"),
}


def token_file(kind: str, checkpoint: Path, options: argparse.Namespace) -> Path:
    """The tokens of that kind for a checkpoint's tokenizer, made anew."""
    windows = options.windows if kind == "calibration" else options.held_out_windows
    out = options.cache / "tokens" / f"{checkpoint.name}-{kind}.safetensors"
    made = run(commands.tokens_command(kind, checkpoint, out, windows, options.length, options.source))
    if made.returncode:
        raise SystemExit(made.error)
    return out


def size_on_disk(directory: Path) -> int:
    """Bytes of a checkpoint's weights."""
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def compare(
    name: str, checkpoint: Path, options: argparse.Namespace, tokens: dict[str, Path]
) -> dict[str, Any]:
    """All runs of one method on one checkpoint, the tools taking turns."""
    case = commands.CASES[name]
    runs: dict[str, list[Measurement]] = {tool: [] for tool in options.tools}
    outs = {tool: options.cache / "out" / f"{checkpoint.name}-{name}-{tool}" for tool in options.tools}
    for repeat in range(options.repeats):
        for tool in options.tools:
            command = TOOLS[tool](case, checkpoint, tokens["calibration"], outs[tool])
            label = f"{checkpoint.name} {name} {tool} {repeat + 1}/{options.repeats}"
            clear = partial(shutil.rmtree, outs[tool], ignore_errors=True)
            runs[tool].append(measure(command, label, options.tries, clear))
    row: dict[str, Any] = {"checkpoint": checkpoint.name, "method": name, "runs": runs}
    for tool in options.tools:
        if all(taken.returncode == 0 for taken in runs[tool]):
            scored = run(commands.perplexity_command(outs[tool], tokens["held-out"]))
            row[tool] = {**scored.report, "bytes": size_on_disk(outs[tool]), "evaluation_error": scored.error}
        shutil.rmtree(outs[tool], ignore_errors=True)
    return row


def summary(row: dict[str, Any], floors: dict[str, Measurement]) -> dict[str, dict[str, Any]]:
    """Medians of each tool that succeeded in every run."""
    found = {}
    for tool, taken in row["runs"].items():
        if any(each.returncode for each in taken):
            continue
        found[tool] = {
            "wall": median(each.wall for each in taken),
            "cpu": median(each.cpu for each in taken) - floors[tool].cpu,
            "memory": median(each.peak_rss for each in taken) - floors[tool].peak_rss,
            "noisy": any(each.noisy for each in taken),
            **row[tool],
        }
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The comparison as a Markdown table."""
    head = [
        "checkpoint",
        "method",
        "tool",
        "seconds",
        "processor, over imports",
        "MiB over imports",
        "ppl",
        "zeros",
        "MiB on disk",
        "notes",
    ]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for row in rows:
        for tool in row["runs"]:
            lines.append(
                " | ".join([row["checkpoint"], row["method"], tool, *cells(row["summary"].get(tool))])
            )
        if row["ratios"]:
            ratios = [f"**{row['ratios'][key]:.3f}**" for key in ("wall", "cpu", "memory")]
            lines.append(" | ".join([row["checkpoint"], row["method"], "ratio", *ratios, "", "", "", ""]))
    return "\n".join(f"| {line} |" for line in lines)


def cells(found: dict[str, Any] | None) -> list[str]:
    """The cells of one tool: seconds, memory, perplexity, zeros, size, notes."""
    if found is None:
        return ["", "", "", "", "", "", "failed"]
    quality = [f"{found['ppl']:.4f}", f"{found['zeros']:.4f}"] if "ppl" in found else ["", ""]
    costs = [f"{found['wall']:.1f}", f"{found['cpu']:.1f}", f"{found['memory'] / 2**20:.0f}"]
    return [*costs, *quality, f"{found['bytes'] / 2**20:.1f}", "noisy" if found["noisy"] else ""]


def ratios(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """modicum over llm-compressor, if both succeeded."""
    if len(found) < len(TOOLS):
        return {}
    return {key: found["modicum"][key] / found["llmcompressor"][key] for key in ("wall", "cpu", "memory")}


def checkpoint_path(name: str, cache: Path) -> Path:
    """A path as given, else a checkpoint that checkpoints.py has made."""
    for path in (Path(name), cache / name):
        if (path / "config.json").exists():
            return path.resolve()
    raise SystemExit(f"{name} is no checkpoint; make it with: python benchmarks/checkpoints.py {name}")


def with_eager_attention(checkpoint: Path, cache: Path) -> Path:
    """A copy of a checkpoint whose config asks for plain attention, which llm-compressor always runs."""
    copy = cache / f"{checkpoint.name}-eager"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(checkpoint, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "attn_implementation": "eager"}))
    return copy


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", help="directories, or names under the cache")
    parser.add_argument("--methods", nargs="+", choices=list(commands.CASES), default=list(commands.CASES))
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tries", type=int, default=4, help="runs to make before a noisy one is kept")
    parser.add_argument("--eager", action="store_true", help="plain attention in both tools: equal inputs")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--held-out-windows", type=int, default=64)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--source", default="stdlib", help="text source of the tokens")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--results", type=Path, default=commands.HERE / "results")
    return parser.parse_args()


def main() -> None:
    """Run everything, write the results, print the table."""
    options = arguments()
    options.cache = options.cache.expanduser().resolve()
    floors = {
        tool: measure(commands.bare_command(PYTHONS[tool]), f"imports {tool}", options.tries)
        for tool in options.tools
    }
    packages = {
        tool: run(commands.versions_command(PYTHONS[tool], PACKAGES[tool])).report for tool in options.tools
    }
    rows = []
    for name in options.checkpoints:
        checkpoint = checkpoint_path(name, options.cache)
        if options.eager:
            checkpoint = with_eager_attention(checkpoint, options.cache)
        tokens = {kind: token_file(kind, checkpoint, options) for kind in ("calibration", "held-out")}
        before = run(commands.perplexity_command(checkpoint, tokens["held-out"])).report
        print(f"{checkpoint.name}: ppl {before.get('ppl')} before", flush=True)
        for method in options.methods:
            row = {**compare(method, checkpoint, options, tokens), "before": before}
            row["summary"] = summary(row, floors)
            row["ratios"] = ratios(row["summary"])
            rows.append(row)
    content = {"options": {key: str(value) for key, value in vars(options).items()}, "packages": packages}
    path = write_results(
        "against-llmcompressor", {**content, "floors": floors, "rows": rows}, options.results
    )
    print(f"\n{table(rows)}\n\n{path}")


if __name__ == "__main__":
    main()
