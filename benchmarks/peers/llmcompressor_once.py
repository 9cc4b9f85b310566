"""Run one method of llm-compressor once on a local checkpoint and print what it took as one line of JSON.

Runs in the environment of the peers, which has llm-compressor and not modicum. The settings that the two
tools choose differently by default are all given here; the decoder's linear layers are the scope and
`lm_head` is left alone.

Two departures from a plain call of `oneshot`:

* AWQ pins its cached batches in memory, which raises on a machine without an accelerator: pinning is
  switched off.
* magnitude pruning exists there only for training: `oneshot` builds its masks and throws them away again.
  The modifier's own mask is therefore multiplied onto the weights here.

    python benchmarks/peers/llmcompressor_once.py wanda CHECKPOINT TOKENS OUT --sparsity 0.5
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.core import Event, EventType, State
from llmcompressor.modifiers import Modifier
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import (
    MagnitudePruningModifier,
    SparseGPTModifier,
    WandaPruningModifier,
)
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

LINEAR = ["Linear"]
HEAD = ["re:.*lm_head"]


def peak_rss() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def recipe(options: argparse.Namespace) -> list[Modifier]:
    """The modifiers of one method, with every setting that the two tools default differently given."""
    if options.method == "wanda":
        return [WandaPruningModifier(**sparsity(options), targets=LINEAR, ignore=HEAD)]
    if options.method == "sparsegpt":
        solver = {"block_size": options.block_size, "dampening_frac": options.damping}
        return [SparseGPTModifier(**sparsity(options), **solver, targets=LINEAR, ignore=HEAD)]
    if options.method == "gptq":
        solver = {"block_size": options.block_size, "dampening_frac": options.damping}
        order = "static" if options.act_order else None
        return [GPTQModifier(config_groups=groups(options), ignore=HEAD, actorder=order, **solver)]
    search = AWQModifier(duo_scaling=not options.no_duo_scaling, n_grid=options.n_grid)
    return [search, QuantizationModifier(config_groups=groups(options), ignore=HEAD)]


def sparsity(options: argparse.Namespace) -> dict[str, object]:
    """Pruning settings: a fraction, or N of every M weights pruned."""
    pattern = options.pattern or "0:0"
    if options.pattern is None:
        return {"sparsity": options.sparsity, "mask_structure": pattern}
    pruned, group = map(int, pattern.split(":"))
    return {"sparsity": pruned / group, "mask_structure": pattern}


def groups(options: argparse.Namespace) -> dict[str, QuantizationScheme]:
    """One integer grid with a scale for each group of weights of a row."""
    grid = QuantizationArgs(
        num_bits=options.bits,
        type="int",
        strategy="group",
        group_size=options.group_size,
        symmetric=not options.asymmetric,
        observer="memoryless_minmax",
    )
    return {"group_0": QuantizationScheme(targets=LINEAR, weights=grid)}


def batches(tokens: Path, batch_size: int) -> DataLoader:
    """The calibration windows in the order of the file."""
    windows: Any = load_file(tokens)["tokens"]  # [windows, length]
    return DataLoader(
        windows, batch_size=batch_size, collate_fn=lambda rows: {"input_ids": torch.stack(rows)}
    )


def compress(model: PreTrainedModel, options: argparse.Namespace) -> None:
    """Compress the model in place."""
    if options.method == "magnitude":
        prune_by_magnitude(model, options.sparsity)
        return
    IntermediatesCache.pin_memory = lambda *_args, **_kwargs: None
    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    calibration = batches(options.tokens, options.batch_size)
    propagate_error = not options.dense_inputs
    oneshot(
        model=model, processor=tokenizer, dataset=calibration, recipe=recipe(options),
        propagate_error=propagate_error,
    )  # fmt: skip


def prune_by_magnitude(model: PreTrainedModel, fraction: float) -> None:
    """Multiply the modifier's own masks, one threshold for each matrix, onto the weights."""
    targets = [name for name, module in model.named_modules() if is_scope(name, module)]
    modifier = MagnitudePruningModifier(
        targets=targets, init_sparsity=fraction, final_sparsity=fraction, start=0.0, end=1.0
    )
    state = State(model=model)
    modifier.on_initialize(state)
    modifier.on_start(state, Event(type_=EventType.BATCH_START, global_step=0))
    for name in modifier.parameterized_layers_:
        modifier.apply_mask_weight(name)
    modifier.on_finalize(state)


def is_scope(name: str, module: torch.nn.Module) -> bool:
    """Whether a module is one of the linear layers that are compressed."""
    return isinstance(module, torch.nn.Linear) and not name.endswith("lm_head")


def save(model: PreTrainedModel, checkpoint: Path, out: Path) -> None:
    """Write the result as the peer itself writes it, with the tokenizer beside it."""
    if hasattr(model.save_pretrained, "_overridden"):
        model.save_pretrained(out, save_compressed=True)
    else:
        model.save_pretrained(out)
    for file in checkpoint.glob("tokenizer*"):
        shutil.copy(file, out)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", choices=["magnitude", "wanda", "sparsegpt", "gptq", "awq"])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--pattern", help="N:M, prune N of every M weights of a row")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--asymmetric", action="store_true")
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--damping", type=float, default=0.01)
    parser.add_argument("--act-order", action="store_true")
    parser.add_argument("--no-duo-scaling", action="store_true")
    parser.add_argument("--dense-inputs", action="store_true", help="calibrate on the dense model's values")
    parser.add_argument("--n-grid", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--dtype", default="auto", help="auto (as stored), float32 or bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Load, compress, save, and print seconds and bytes."""
    after_imports = peak_rss()
    options = arguments()
    torch.set_num_threads(options.threads)
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=options.dtype)
    loaded = time.perf_counter()
    compress(model, options)
    compressed = time.perf_counter()
    after_compress = peak_rss()
    save(model, options.checkpoint, options.out)
    saved = time.perf_counter()
    outcome = {
        "method": options.method,
        "wall_load": loaded - started,
        "wall_compress": compressed - loaded,
        "wall_save": saved - compressed,
        "rss_imports": after_imports,
        "rss_compress": after_compress,
        "rss_peak": peak_rss(),
        "rss_over_imports": peak_rss() - after_imports,
        "settings": {key: str(value) for key, value in vars(options).items()},
    }
    sys.stdout.flush()
    print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
