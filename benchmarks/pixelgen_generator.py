"""What PixelGen's generator is worth, and what compression makes of it: colours, and frames per second.

    python benchmarks/pixelgen_generator.py --images HELD-OUT.npz

Every generator paints the same held-out pictures (an .npz file or a folder, see the generator's images.py) with 1
to 20 steps. One 128x96 frame at a time is timed, a fifth of it lost, cut into 20 overlapping tiles: frames per second
on two threads, the best of several runs, the generators taking turns; and processor seconds per frame on one thread,
which a busy machine changes less. Both include the last stage. Everything is written to results/ with the machine, and
printed as a table.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from modicum.apps.pixelgen.generator import Generator, locate
from modicum.apps.pixelgen.generator.images import load_pictures
from modicum.apps.pixelgen.generator.measure import frames_per_second, processor_seconds, quality
from modicum.apps.pixelgen.prompt import SensorTokens
from modicum.evaluate import environment

RESULTS = Path(__file__).parent / "results" / "pixelgen_generator.json"
WIDTH, HEIGHT, THREADS = 128, 96, 2
SETTINGS = [(1, 0.0), (2, 0.0), (4, 0.0), (8, 0.0), (20, 0.0), (20, 1.0)]


def costs(generators: dict[str, Generator], rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Frames per second on two threads, and processor seconds per frame on one, by generator and number of steps."""
    torch.manual_seed(0)
    frames = torch.rand(1, 1, HEIGHT, WIDTH)
    mask, told = torch.rand_like(frames) > 0.2, torch.ones(1, len(SensorTokens.sizes), dtype=torch.int64)
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in generators}
    for steps in sorted({steps for steps, _ in SETTINGS}):
        paints = {
            name: partial(g.generate, frames, mask, told, steps=steps) for name, g in generators.items()
        }
        rates: dict[str, list[float]] = {name: [] for name in paints}
        for _ in range(rounds):
            for name, paint in paints.items():
                rates[name].append(frames_per_second(paint, seconds=0.5))
        for name, paint in paints.items():
            seconds = processor_seconds(paint)
            found[name][str(steps)] = {"frames_per_second": max(rates[name]), "processor_seconds": seconds}
    return found


def size(name: str) -> int:
    """Bytes of a generator's weights on disk, the last stage's among them."""
    return sum(file.stat().st_size for file in locate(name).glob("*.safetensors"))


HEAD = (
    "generator | kB | blocks | steps | temperature | frames/s | CPU s/frame | PSNR, dB | SSIM | "
    "readings unknown | 20 % of pixels lost | 20 % of runs lost"
)


def table(found: dict[str, dict[str, Any]]) -> str:
    """All generators and settings as a Markdown table."""
    lines = [HEAD, " | ".join("---" for _ in HEAD.split("|"))]
    for name, facts in found.items():
        for row in facts["rows"]:
            cost, known = facts["costs"][str(row["steps"])], row["known"]
            others = row["unknown"], row["lost_scattered"]["known"], row["lost_stripes"]["known"]
            cells = [name, f"{facts['bytes'] / 1000:.0f}", f"{facts['depth']}", f"{row['steps']}"]
            cells += [f"{row['temperature']:g}", f"{cost['frames_per_second']:.2f}"]
            cells += [f"{cost['processor_seconds']:.3f}", f"{known['psnr']:.2f}", f"{known['ssim']:.4f}"]
            lines.append(" | ".join([*cells, *(f"{scores['psnr']:.2f}" for scores in others)]))
    return "\n".join(f"| {line} |" for line in lines)


def baseline_lines(row: dict[str, Any]) -> str:
    """What painting nothing is worth."""
    parts = {
        "": row,
        "20 % of pixels lost: ": row["lost_scattered"],
        "20 % of runs lost: ": row["lost_stripes"],
    }
    lines = [
        f"{label}{name} {scores[name]['psnr']:.2f} dB, SSIM {scores[name]['ssim']:.4f}"
        for label, scores in parts.items()
        for name in ("grey", "mean_colour")
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure all generators in all settings."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("generators", nargs="*", default=["pixelgen-nano", "pixelgen-nano-small"])
    parser.add_argument(
        "--images", type=Path, required=True, help="held-out pictures: an .npz file or a folder"
    )
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5, help="of the timing")
    options = parser.parse_args()
    generators = {Path(name).name: Generator.load(name) for name in options.generators}
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    timed = costs(generators, options.rounds)
    torch.set_num_threads(threads)
    pictures = load_pictures(options.images)[: options.count] / 255
    found: dict[str, dict[str, Any]] = {}
    for given, (name, generator) in zip(options.generators, generators.items(), strict=True):
        rows = [quality(generator, pictures, steps=steps, temperature=heat) for steps, heat in SETTINGS]
        found[name] = {
            "bytes": size(given),
            "depth": generator.network.config.depth,
            "default_steps": generator.steps,
            "costs": timed[name],
            "rows": rows,
        }
    RESULTS.parent.mkdir(exist_ok=True)
    facts = {"frame": [WIDTH, HEIGHT], "threads": THREADS, "generators": found, "environment": environment()}
    RESULTS.write_text(json.dumps(facts, indent=2) + "\n")
    print(table(found))
    print(baseline_lines(next(iter(found.values()))["rows"][0]))


if __name__ == "__main__":
    main()
