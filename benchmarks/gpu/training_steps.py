"""What the training steps of depth pruning cost at the published shapes: time and peak memory of each.

    python benchmarks/gpu/training_steps.py [--size published] [--batch 128] [--parts 1] [--device cuda]

Four steps with random weights and random latents under bfloat16 autocast, AdamW included:

* lora: a LoRA step of the whole DiT-XL/2, what learning a mask is compared with
* mask: the same with TinyFusion's gates over pairs of blocks, 1:2, one mask per sample
* finetune: a plain step of TinyDiT-D14
* masked_kd: the same with DiT-XL/2 as teacher, masked distillation over all pairs of blocks

`--recompute` computes activations twice instead of keeping them. `--parts` splits the batch into passes that share a
step. Our module has the layout and the names of the original code, so the original is not measured beside it.

Prints a table and writes results/training-steps-DATE.json. `--size tiny --device cpu` shows only that it runs.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from modicum.diffusion.gates import GatedNetwork, Gates
from modicum.distill.masked_kd import MaskedKD
from modicum.evaluate import environment
from modicum.method import Context
from modicum.models import Anatomy
from modicum.models.depth import as_groups, gate, ungate
from modicum.models.dit import DiT, DiTConfig
from modicum.trainer import Batch, Moment, lora, objective_of

RESULTS = Path(__file__).parents[1] / "results"
MIB = 2**20
WARMUP = 2
SIZES = {
    "published": DiTConfig.preset("DiT-XL/2"),
    "tiny": DiTConfig(input_size=4, hidden_size=16, depth=4, num_heads=2, num_classes=10),
}
GROUPS = "1:2"
Step = Callable[[Batch, Moment], Tensor]


@dataclass(frozen=True)
class Row:
    """What was measured of one step; None where memory ran out, or where the device does not tell.

    Attributes:
        step: its name.
        trained: weights that it moves.
        ms: time of a step.
        peak_mib: most memory during a step, weights and states of the optimizer included.
    """

    step: str
    trained: int
    ms: float | None = None
    peak_mib: float | None = None


def model_of(config: DiTConfig, device: torch.device) -> DiT:
    """A model in training mode whose blocks do something: fresh ones are the identity."""
    torch.manual_seed(0)
    with device:
        model = DiT(config).train()
    for name, parameter in model.named_parameters():
        if "adaLN" in name or name.startswith("final_layer"):
            nn.init.normal_(parameter, std=0.02)
    return model


@contextmanager
def prepared(
    name: str, config: DiTConfig, device: torch.device, recompute: bool
) -> Iterator[tuple[Step, list[nn.Parameter]]]:
    """The loss of a step, and the weights that it moves."""
    half = config.model_copy(update={"depth": config.depth // 2})
    model = model_of(config if name in ("lora", "mask") else half, device)
    anatomy, objective = Anatomy.of(model), objective_of(model)
    with ExitStack() as stack:
        if name in ("lora", "mask"):
            weights = stack.enter_context(lora(model, 8, 16, seed=0))
        else:
            weights = [p for p in model.parameters() if p.requires_grad]
        if name == "mask":
            gates = Gates(as_groups(GROUPS, config.depth)).to(device)
            network: nn.Module = GatedNetwork(anatomy, gates, recompute).train()
            gates.tau, gates.scaling = 4.0, 100.0
            yield (
                lambda batch, at: objective(network, batch, at.generator).mean(),
                [*weights, *gates.parameters()],
            )
            return
        taps: Sequence[nn.Module] = [block.module for block in anatomy.blocks]
        if recompute:
            taps = gate(anatomy, recompute=True)
            stack.callback(ungate, anatomy)
        if name == "masked_kd":
            context = Context(torch.Generator(), device=device, teacher=model_of(config, device))
            distilled = MaskedKD().loss(anatomy, taps, objective, context)
            yield lambda batch, at: distilled(model, batch, at), weights
        else:
            yield lambda batch, at: objective(model, batch, at.generator).mean(), weights


def measure(name: str, options: argparse.Namespace) -> Row:
    """Median time of a step, after some that are not counted."""
    device, config = torch.device(options.device), SIZES[options.size]
    reset(device)
    seconds = []
    with prepared(name, config, device, options.recompute) as (loss, weights):
        row = Row(name, sum(p.numel() for p in weights))
        optimizer = torch.optim.AdamW(weights, lr=1e-4)
        generator = torch.Generator(device).manual_seed(0)
        rows, side = options.batch // options.parts, config.input_size
        batch = {
            "x0": torch.randn(rows, config.in_channels, side, side, device=device),
            "y": torch.arange(rows, device=device) % config.num_classes,
        }
        try:
            for step in range(WARMUP + options.repeats):
                start = now(device)
                for _ in range(options.parts):
                    with torch.autocast(device.type, torch.bfloat16):
                        lost = loss(batch, Moment(step, 100, generator))
                    (lost / options.parts).backward()
                optimizer.step()
                optimizer.zero_grad()
                seconds.append(now(device) - start)
        except torch.OutOfMemoryError:
            return row
    peak = torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else None
    return Row(name, row.trained, 1000 * median(seconds[WARMUP:]), peak)


def reset(device: torch.device) -> None:
    """Begin to count memory anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def now(device: torch.device) -> float:
    """Seconds, when the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def table(rows: Sequence[Row]) -> str:
    """The measurements as markdown; each over the plain step that it is compared with."""
    plain = {"mask": "lora", "masked_kd": "finetune"}
    lines = [
        "| step | trained | ms | times plain | peak MiB | times plain |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    found = {row.step: row for row in rows}
    for row in rows:
        base = found.get(plain.get(row.step, row.step), row)
        pairs = ((row.ms, base.ms), (row.peak_mib, base.peak_mib))
        cells = [f"{a:,.1f} | {a / b:.2f}" if a and b else "- | -" for a, b in pairs]
        if row.ms is None:
            cells[0] = "out of memory | -"
        lines.append(f"| {row.step} | {row.trained:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure the four steps."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="published")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    rows = [measure(name, options) for name in ("lora", "mask", "finetune", "masked_kd")]
    facts = {"rows": [asdict(row) for row in rows], "environment": environment(torch.device(options.device))}
    facts["options"] = {key: str(value) for key, value in vars(options).items() if key != "out"}
    options.out.mkdir(parents=True, exist_ok=True)
    stamp = facts["environment"]["date"][:16].replace(":", "").replace("T", "-")
    (options.out / f"training-steps-{stamp}.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
