"""How fast DiT-XL/2 and its shallower descendants run: passes of the network per second.

    python benchmarks/gpu/tinyfusion_dit.py [--size published] [--batch 1 8 64] [--compile off on] [--device cuda]

Random weights in bfloat16 at the published shapes (256 x 256 pixels, latents of 32 x 32); time does not depend on what
the weights are. An iteration is what a sampler does per step under guidance: one pass over twice as many rows as
pictures. The models are DiT-XL/2 with 28 blocks and TinyDiT with 19, 14 and 7; beside them runs diffusers'
`DiTTransformer2DModel` with the same weights (where diffusers is installed), whose output is compared with ours first.
The original code has the same module layout as ours and is not measured beside it.
What share of the dense model's multiplications is left is printed beside the speed, because the two need not agree.

Prints a table and writes results/tinyfusion-dit-DATE.json. `--size tiny --device cpu` runs in seconds and shows only
that it runs.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor

from modicum.evaluate import environment
from modicum.models.dit import DiT, DiTConfig
from modicum.models.dit.diffusers_layout import exact, to_diffusers, write_config

RESULTS = Path(__file__).parents[1] / "results"
MIB = 2**20
WARMUP = 3
ALLOWED = 0.05  # of the norm of the output, in bfloat16

_TINY = DiTConfig(input_size=4, hidden_size=16, depth=4, num_heads=2, num_classes=10)
_DEPTHS = {"published": (28, 19, 14, 7), "tiny": (4, 3, 2, 1)}
SIZES = {"published": DiTConfig.preset("DiT-XL/2"), "tiny": _TINY}
Pass = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """What was measured of one model; None where memory ran out, or where the device does not tell.

    Attributes:
        code: "modicum" or "diffusers".
        depth: blocks.
        batch: pictures; the network sees twice as many rows.
        compiled: whether torch.compile was on.
        gmacs: multiplications of an iteration per picture, in thousands of millions.
        step_ms: time of an iteration.
        peak_mib: most memory during an iteration, weights included.
    """

    code: str
    depth: int
    batch: int
    compiled: bool
    gmacs: float
    step_ms: float | None = None
    peak_mib: float | None = None

    @property
    def iterations(self) -> float | None:
        """Iterations per second."""
        return 1000 / self.step_ms if self.step_ms else None


def random_model(config: DiTConfig, device: torch.device) -> DiT:
    """A model in bfloat16 whose blocks do something: fresh ones are the identity."""
    torch.manual_seed(0)
    with device:
        model = DiT(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "adaLN" in name or name.startswith("final_layer"):
            torch.nn.init.normal_(parameter, std=0.02)
    return model.bfloat16()


def inputs(config: DiTConfig, batch: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Noise, one step for all, labels and as many times none."""
    side, rows = config.input_size, 2 * batch
    x = torch.randn(rows, config.in_channels, side, side, device=device, dtype=torch.bfloat16)
    labels = torch.arange(batch, device=device) % config.num_classes
    y = torch.cat((labels, torch.full_like(labels, config.num_classes)))
    return x, torch.full((rows,), 500, device=device), y


def theirs(model: DiT) -> Pass:
    """The same weights in diffusers.

    Raises:
        SystemExit: its output is another.
    """
    from diffusers import DiTTransformer2DModel

    with torch.device("meta"):
        other = DiTTransformer2DModel.from_config(write_config(model.config))
    other.load_state_dict(to_diffusers(model.state_dict(), model.config), assign=True)
    embedding = model.pos_embed.detach()
    other.pos_embed.pos_embed = embedding
    other = exact(other.eval())

    def run(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return other(x, timestep=t, class_labels=y, return_dict=False)[0]

    given = inputs(model.config, 2, model.device)
    want, got = model(*given).float(), run(*given).float()
    if (got - want).norm() > ALLOWED * want.norm():
        raise SystemExit(f"diffusers gives another output: {(got - want).norm() / want.norm():.1%} off.")
    return run


@torch.no_grad()
def measure(code: str, run: Pass, model: DiT, batch: int, compiled: bool, repeats: int) -> Row:
    """Median time of an iteration, after some that are not counted."""
    config, device, seconds = model.config, model.device, []
    row = Row(code, config.depth, batch, compiled, 2 * config.macs() / 1e9)
    given = inputs(config, batch, device)
    _reset(device)
    try:
        if compiled:
            torch.compiler.reset()  # every shape is compiled for itself
        step = torch.compile(run, dynamic=False) if compiled else run
        for _ in range(WARMUP + repeats):
            start = _now(device)
            step(*given)
            seconds.append(_now(device) - start)
    except torch.OutOfMemoryError:
        return row
    peak = torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else None
    return Row(**{**asdict(row), "step_ms": 1000 * median(seconds[WARMUP:]), "peak_mib": peak})


def _reset(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def table(rows: Sequence[Row]) -> str:
    """The measurements as markdown; speed over the deepest model of the same kind, batch and setting."""
    lines = [
        "| blocks | code | batch | compiled | GMACs | ms/step | it/s | times as fast | by multiplications | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        like = [r for r in rows if (r.code, r.batch, r.compiled) == (row.code, row.batch, row.compiled)]
        dense = max(like, key=lambda r: r.depth)
        times = dense.step_ms / row.step_ms if dense.step_ms and row.step_ms else None
        numbers = (row.gmacs, row.step_ms, row.iterations, times, dense.gmacs / row.gmacs, row.peak_mib)
        cells = [str(row.depth), row.code, str(row.batch), "yes" if row.compiled else "no"]
        cells += ["-" if number is None else f"{number:,.2f}" for number in numbers]
        if row.step_ms is None:
            cells[5] = "out of memory"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure every depth, code, batch and setting."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="published")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--compile", nargs="+", choices=("off", "on"), default=["off", "on"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    device, rows = torch.device(options.device), []
    for depth in _DEPTHS[options.size]:
        model = random_model(SIZES[options.size].model_copy(update={"depth": depth}), device)
        codes: dict[str, Pass] = {"modicum": model}
        if importlib.util.find_spec("diffusers"):
            codes["diffusers"] = theirs(model)
        for code, run in codes.items():
            for setting in options.compile:
                for batch in options.batch:
                    rows.append(measure(code, run, model, batch, setting == "on", options.repeats))
                    print(table(rows[-1:]).splitlines()[-1], flush=True)
        del model, codes, run
        _reset(device)
    facts = {"rows": [asdict(row) for row in rows], "environment": environment(device)}
    facts["options"] = {"size": options.size, "repeats": options.repeats}
    options.out.mkdir(parents=True, exist_ok=True)
    stamp = facts["environment"]["date"][:16].replace(":", "").replace("T", "-")
    (options.out / f"tinyfusion-dit-{stamp}.json").write_text(json.dumps(facts, indent=2) + "\n")
    print("\n" + table(rows))
    return rows


if __name__ == "__main__":
    main()
