"""What decoding on the fly costs a language model on a GPU: seconds per token and memory, against plain bfloat16.

    python benchmarks/gpu/dfloat11.py [--blocks 4] [--batch 1 8 32 64 128] [--context 128] [--device cuda]

Random weights (Gaussian, standard deviation 0.02) in blocks of the shape of Llama-3.1-8B, fewer of them, with 32,000
words; coded by `modicum compress --method lossless.dfloat11`. Per batch: one step of generation with a cache, plain,
coded, coded and decoded ahead, and that with the codes in the memory of the host; and the logits of coded and plain are
compared bit for bit. A step of the whole model of 32 blocks takes about so many times longer as it has more blocks.

Prints a table and writes results/dfloat11-DATE.json. `--size tiny --device cpu` runs in seconds and shows only that it
runs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import modicum
from modicum.evaluate import environment

sys.path.append(str(Path(__file__).parents[1]))
from processes import write_results

SIZES = {
    "published": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "vocab_size": 32_000,
    },
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 128},
}


def random_llama(size: str, blocks: int, directory: Path) -> None:
    """Write a random model, untied, in bfloat16."""
    sizes = SIZES[size]
    heads = sizes["num_attention_heads"]
    config = LlamaConfig(
        **sizes, num_hidden_layers=blocks, num_key_value_heads=heads // 4, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(directory)
    torch.set_default_dtype(torch.float32)


@torch.no_grad()
def step_seconds(model: Any, batch: int, context: int, repeats: int) -> tuple[float, torch.Tensor]:
    """Median time of one step behind `context` tokens, and its logits."""
    words = model.config.vocab_size
    tokens = torch.arange(batch * (context + 1), device=model.device).view(batch, -1) % words
    cache = model(tokens[:, :-1], use_cache=True).past_key_values
    times = []
    for _ in range(repeats + 2):
        started = _now(model.device)
        logits = model(tokens[:, -1:], past_key_values=cache, use_cache=True).logits
        times.append(_now(model.device) - started)
        cache.crop(-1)
    return median(times[2:]), logits


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure every way of keeping the weights at every batch."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="published")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 64, 128])
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    given = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        plain, coded = Path(folder) / "plain", Path(folder) / "coded"
        random_llama(given.size, given.blocks, plain)
        modicum.compress(plain, ["lossless.dfloat11"], out=coded)
        ways: dict[str, Callable[[], Any]] = {
            "plain": lambda: modicum.load(plain, dtype=torch.bfloat16, device=given.device),
            "coded": lambda: modicum.load(coded, dtype=torch.bfloat16, device=given.device),
            "coded, ahead": lambda: modicum.load(
                coded, dtype=torch.bfloat16, device=given.device, prefetch=True
            ),
            "coded, on the host": lambda: modicum.load(
                coded, dtype=torch.bfloat16, device=given.device, offload=True, prefetch=True
            ),
        }
        seen: dict[int, torch.Tensor] = {}
        for way, opened in ways.items():
            model = opened()
            for batch in given.batch:
                if given.device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                seconds, logits = step_seconds(model, batch, given.context, given.repeats)
                same = torch.equal(logits, seen.setdefault(batch, logits))
                peak = torch.cuda.max_memory_allocated() / 2**20 if given.device == "cuda" else None
                rows.append(
                    {"way": way, "batch": batch, "ms": 1000 * seconds, "same": same, "peak_mib": peak}
                )
                dense = next(r for r in rows if r["batch"] == batch)["ms"]
                print(
                    f"{way:20} batch {batch:4}  {1000 * seconds:8.2f} ms  {1000 * seconds / dense:5.2f} x plain"
                    f"  peak {peak or 0:8.0f} MiB  {'same bits' if same else 'OTHER BITS'}",
                    flush=True,
                )
            del model
    options = {"size": given.size, "blocks": given.blocks, "context": given.context, "repeats": given.repeats}
    content = {"options": options, "rows": rows, "environment": environment(given.device)}
    print(write_results("dfloat11", content, given.out))
    return rows


if __name__ == "__main__":
    main()
