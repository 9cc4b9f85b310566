"""What the key-value cache of Infinity costs at full size, and what ScaleKV leaves of it.

    python benchmarks/gpu/scalekv_infinity.py [--size 2b 8b] [--batch 1 8] [--repeats 3] [--device cuda]

Random weights in bfloat16 at the published shapes, 1024 x 1024 pixels, guidance on; neither bytes nor time depend on
what the weights are. Five cases:

    original        as the original counts: float32 keys, the last map stored, keys of the text at every map again
    full            everything that is read is kept, in the dtype in which it is read
    scalekv 20/10/4 %   the published budgets and drafters

After every map the bytes that the layers carry are compared with the formula, tokens x channels x (key + value bytes)
x layers x rows, and the benchmark stops if they differ. Memory is the most that was allocated while the maps were
drawn, weights included; decoding to pixels comes after it, image by image, and is timed apart. Prints a table and
writes results/scalekv-infinity-DATE.json. `--size tiny --device cpu` runs in seconds and shows only that it runs.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from modicum.allocate.cache_size import kv_nbytes
from modicum.cache.full import Full
from modicum.cache.policy import CacheMethod, CachePolicy
from modicum.cache.scalekv import ScaleKV
from modicum.evaluate import environment
from modicum.models.infinity import BSQVAEConfig, Infinity, InfinityConfig, TextFeatures
from modicum.models.next_scale import Cache

RESULTS = Path(__file__).parents[1] / "results"
CASES = ("original", "full", "scalekv 20 %", "scalekv 10 %", "scalekv 4 %")
MIB = 2**20


@dataclass(frozen=True)
class Size:
    """A model and the budgets of ScaleKV for it.

    Attributes:
        config: sizes.
        budgets: tokens per layer, by case.
        drafters: (layer, map) pairs, from 0.
        window: probes that ScaleKV keeps.
        words: text tokens of a prompt.
    """

    config: InfinityConfig
    budgets: dict[str, int]
    drafters: tuple[tuple[int, int], ...]
    window: int = 16
    words: int = 40

    def policy(self, case: str, model: Infinity) -> CachePolicy:
        """The cache policy of a case."""
        method: CacheMethod
        if case not in self.budgets:
            original = case == "original"
            method = Full(store_last=original, key_dtype="computed" if original else "attention")
            table = method.table(model.schedule, model.shape.layers, model.schedule.offsets[-2])
            return CachePolicy(method, table, model.schedule.offsets[-2])
        budget = str(self.budgets[case])
        return ScaleKV(budget=budget, drafters=self.drafters, window=self.window).fitted(model)


_PUBLISHED = {"scalekv 20 %": 1300, "scalekv 10 %": 650, "scalekv 4 %": 265}
_TINY = InfinityConfig(
    embed_dim=64,
    depth=2,
    num_heads=4,
    text_channels=128,
    pixels="0.06M",
    vae=BSQVAEConfig(codebook_dim=4, base_ch=24, ch_mult=(1, 2), num_res_blocks=1, patch_size=2),
)
SIZES = {
    "tiny": Size(
        _TINY, {"scalekv 20 %": 52, "scalekv 10 %": 26, "scalekv 4 %": 10}, ((0, 5), (0, 6)), window=4
    ),
    "2b": Size(
        InfinityConfig.preset("2b"),
        _PUBLISHED,
        (*((0, scale) for scale in range(8, 13)), *((23, scale) for scale in range(8, 12))),
    ),
    "8b": Size(
        InfinityConfig.preset("8b"),
        _PUBLISHED,
        tuple((layer, scale) for layer in range(3) for scale in range(8, 13)),
    ),
}


@dataclass(frozen=True)
class Row:
    """What was measured of one case; None where memory ran out, or where the device does not tell.

    Attributes:
        size: of the model.
        case: of the cache.
        batch: images at once.
        carried_mib: most bytes of keys and values that were carried from one map to the next.
        peak_mib: most memory while the maps were drawn.
        weights_mib: memory of the model alone.
        draw_ms: time of the maps, per image.
        decode_ms: time of the pixels, per image.
    """

    size: str
    case: str
    batch: int
    weights_mib: float
    carried_mib: float | None = None
    peak_mib: float | None = None
    draw_ms: float | None = None
    decode_ms: float | None = None


def expected(case: str, policy: CachePolicy, model: Infinity, scale: int, rows: int) -> int:
    """Bytes that all layers together hold after map `scale`."""
    schedule, layers = model.schedule, model.shape.layers
    stored = scale + 1 if case == "original" else min(scale + 1, len(schedule) - 1)  # maps
    tokens = (
        layers * schedule.offsets[stored]
        if case in ("original", "full")
        else policy.table(schedule).total(stored)
    )
    key = torch.float32 if case == "original" else model.dtype
    return kv_nbytes(tokens, model.shape, rows, key, model.dtype) // layers


def draw(model: Infinity, case: str, policy: CachePolicy, text: TextFeatures) -> tuple[Any, int]:
    """Draw all maps, compare bytes with the formula after each.

    Returns:
        The features, and the most bytes that were carried to another map.

    Raises:
        SystemExit: the cache holds other bytes than the formula says.
    """
    cache, carried = policy.make_cache(), 0
    assert isinstance(cache, Cache)
    rows, maps = 2 * len(text), len(model.schedule)
    text_kv = "recompute" if case == "original" else "once"
    for step in model.steps(text, cfg=3.0, seed=0, cache=cache, text_kv=text_kv):  # type: ignore[arg-type]
        want = expected(case, policy, model, step.scale, rows)
        if cache.nbytes != want:
            raise SystemExit(f"{case}: {cache.nbytes} bytes after map {step.scale}, the formula says {want}.")
        if step.scale + 1 < maps:
            carried = cache.nbytes
    return step.summed, carried


def measure(name: str, case: str, batch: int, model: Infinity, text: TextFeatures, repeats: int) -> Row:
    """Draw a batch `repeats` times after one run that is not counted."""
    policy, device = SIZES[name].policy(case, model), model.transformer.device
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) / MIB
    drawn, decoded, peak = [], [], None
    try:
        for _ in range(repeats + 1):
            _reset(device)
            start = _now(device)
            summed, carried = draw(model, case, policy, text)
            middle = _now(device)
            peak = torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else None
            for image in summed.split(1):
                model.picture(image)
            drawn.append(1000 * (middle - start) / batch)
            decoded.append(1000 * (_now(device) - middle) / batch)
    except torch.OutOfMemoryError:
        return Row(name, case, batch, weights)
    return Row(name, case, batch, weights, carried / MIB, peak, median(drawn[1:]), median(decoded[1:]))


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
    """The measurements as markdown."""

    def shown(value: float | None, digits: int = 0) -> str:
        return "-" if value is None else f"{value:,.{digits}f}"

    lines = [
        "| model | batch | cache | carried MiB | peak MiB | of it weights | maps ms/image | pixels ms/image |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = (row.carried_mib, row.peak_mib, row.weights_mib, row.draw_ms, row.decode_ms)
        cells = [row.size, str(row.batch), row.case, *map(shown, numbers)]
        if row.draw_ms is None:
            cells[3] = "out of memory"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure every case for every size and batch."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["2b", "8b"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--case", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    device, rows = torch.device(options.device), []
    for name in options.size:
        torch.manual_seed(0)
        with device:
            model = Infinity(SIZES[name].config, torch.bfloat16).eval()
        for batch in options.batch:
            words, channels = SIZES[name].words, model.config.text_channels
            text = TextFeatures(torch.randn(batch * words, channels), (words,) * batch).to(device)
            for case in options.case:
                rows.append(measure(name, case, batch, model, text, options.repeats))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
        del model
        _reset(device)
    facts = {"rows": [asdict(row) for row in rows], "environment": environment(device)}
    facts["options"] = {
        "repeats": options.repeats,
        "words": {name: SIZES[name].words for name in options.size},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    stamp = facts["environment"]["date"][:16].replace(":", "").replace("T", "-")
    (options.out / f"scalekv-infinity-{stamp}.json").write_text(json.dumps(facts, indent=2) + "\n")
    print("\n" + table(rows))
    return rows


if __name__ == "__main__":
    main()
