"""What a step costs that learns the mask of TinyFusion, beside a LoRA step of the whole model.

    python benchmarks/tinyfusion_cost.py [--width 192] [--depth 12]

Time and memory of both, each in a process of its own; benchmarks/results/tinyfusion-cost.json keeps the numbers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import torch

from modicum.diffusion.gates import GatedNetwork, Gates
from modicum.models import Anatomy
from modicum.models.depth import as_groups
from modicum.models.dit import DiT, DiTConfig
from modicum.trainer import lora, objective_of

RESULT = Path(__file__).parent / "results" / "tinyfusion-cost.json"


def one_cost(gated: bool, width: int, depth: int, steps: int = 8) -> dict[str, float]:
    """Median processor seconds of a LoRA step, and the memory that it needs beside the model, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = DiT(DiTConfig(hidden_size=width, depth=depth, num_heads=6, input_size=32, num_classes=10)).train()
    objective, seconds = objective_of(model), []
    batch = {"x0": torch.randn(4, 4, 32, 32), "y": torch.arange(4)}
    generator = torch.Generator().manual_seed(0)
    anatomy, gates = Anatomy.of(model), Gates(as_groups("1:2", depth))
    with lora(model, 8, 16, seed=0) as weights:
        network = GatedNetwork(anatomy, gates).train() if gated else model
        optimizer = torch.optim.AdamW([*weights, *(gates.parameters() if gated else [])], lr=1e-4)
        before = _memory("VmRSS")
        for _ in range(steps):
            started = time.process_time()  # of one thread: what else runs does not count
            objective(network, batch, generator).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            seconds.append(time.process_time() - started)
    return {"seconds": median(seconds[2:]), "bytes": _memory("VmHWM") - before}


def _memory(key: str) -> int:
    """Resident bytes of this process, now (VmRSS) or at their peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def cost(given: argparse.Namespace) -> None:
    """Both steps in turn, twice, in processes of their own; the best of each counts."""
    found: dict[str, list[dict[str, float]]] = {"dense": [], "gated": []}
    for _ in range(2):
        for kind in found:
            line = [
                sys.executable,
                __file__,
                "--one",
                kind,
                "--width",
                str(given.width),
                "--depth",
                str(given.depth),
            ]
            found[kind].append(
                json.loads(subprocess.run(line, capture_output=True, check=True, text=True).stdout)
            )
    least = {k: {key: min(r[key] for r in runs) for key in ("seconds", "bytes")} for k, runs in found.items()}
    ratios = {key: least["gated"][key] / least["dense"][key] for key in ("seconds", "bytes")}
    content = {
        "command": " ".join(["python benchmarks/tinyfusion_cost.py", *sys.argv[1:]]),
        "model": {"width": given.width, "depth": given.depth},
        "least": least,
        "ratios": ratios,
    }
    RESULT.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"time {ratios['seconds']:.3f}x, memory {ratios['bytes']:.3f}x of a LoRA step of the whole model")


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--one", choices=["dense", "gated"], help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--depth", type=int, default=12)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one_cost(given.one == "gated", given.width, given.depth)))
    else:
        cost(given)


if __name__ == "__main__":
    main()
