"""Make local Llama checkpoints with random weights, the same bytes on every machine.

Speed and memory depend on the shapes of a model and not on what it has learnt, so they can be measured
without downloading anything. `wide` has layers wide enough for the solvers to dominate (about 190 MB);
`large` is about 4 GB in shards of 500 MB and shows whether the peak memory of a run grows with the model.
Each tensor is drawn from its own generator and written shard by shard, so making a checkpoint takes the
memory of one shard.

    python benchmarks/checkpoints.py wide large --cache ~/.cache/modicum-bench
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = ROOT / "src" / "modicum" / "zoo" / "weights" / "nano-lm"
CACHE = Path("~/.cache/modicum-bench").expanduser()
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
SHARD_BYTES = 500 * 10**6


@dataclass(frozen=True)
class Shape:
    """The dimensions of one Llama."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    dtype: torch.dtype = torch.bfloat16

    @property
    def head_dim(self) -> int:
        """Features of one attention head."""
        return self.hidden // self.heads


SHAPES = {
    "wide": Shape(hidden=1024, intermediate=2816, layers=8, heads=16, kv_heads=8),
    "wide-float32": Shape(1024, 2816, layers=8, heads=16, kv_heads=8, dtype=torch.float32),
    "large": Shape(hidden=2048, intermediate=5632, layers=42, heads=16, kv_heads=8),
}


def parameters(shape: Shape, vocabulary: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every parameter, in the order in which they are stored."""
    keys = shape.kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (vocabulary, shape.hidden)
    for index in range(shape.layers):
        block = f"model.layers.{index}"
        yield f"{block}.input_layernorm.weight", (shape.hidden,)
        yield f"{block}.self_attn.q_proj.weight", (shape.hidden, shape.hidden)
        yield f"{block}.self_attn.k_proj.weight", (keys, shape.hidden)
        yield f"{block}.self_attn.v_proj.weight", (keys, shape.hidden)
        yield f"{block}.self_attn.o_proj.weight", (shape.hidden, shape.hidden)
        yield f"{block}.post_attention_layernorm.weight", (shape.hidden,)
        yield f"{block}.mlp.gate_proj.weight", (shape.intermediate, shape.hidden)
        yield f"{block}.mlp.up_proj.weight", (shape.intermediate, shape.hidden)
        yield f"{block}.mlp.down_proj.weight", (shape.hidden, shape.intermediate)
    yield "model.norm.weight", (shape.hidden,)
    yield "lm_head.weight", (vocabulary, shape.hidden)


def random_parameter(name: str, size: tuple[int, ...]) -> torch.Tensor:
    """A bfloat16 tensor seeded by its name: ones for a norm, else normal with deviation 0.02."""
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.empty(size, dtype=torch.bfloat16).normal_(0.0, 0.02, generator=generator)


def shards(shape: Shape, vocabulary: int) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Parameters divided, in order, into files of at most SHARD_BYTES."""
    files: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    room = SHARD_BYTES
    for name, size in parameters(shape, vocabulary):
        nbytes = shape.dtype.itemsize * torch.Size(size).numel()
        if nbytes > room:
            files.append([])
            room = SHARD_BYTES
        files[-1].append((name, size))
        room -= nbytes
    return files


def write_weights(directory: Path, shape: Shape, vocabulary: int) -> None:
    """Write the shards and, if there are several, their index."""
    files = shards(shape, vocabulary)
    where: dict[str, str] = {}
    total = 0
    for number, names in enumerate(files, start=1):
        file = "model.safetensors" if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        tensors = {name: random_parameter(name, size).to(shape.dtype) for name, size in names}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(tensors, file))
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def config(shape: Shape, vocabulary: int) -> dict[str, object]:
    """The `config.json` of a Llama of that shape."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "dtype": str(shape.dtype).removeprefix("torch."),
    }


def vocabulary_size(tokenizer: Path) -> int:
    """Number of token ids of a `tokenizer.json`, rounded up to a multiple of 64."""
    stored = json.loads((tokenizer / "tokenizer.json").read_text())
    ids = [*stored["model"]["vocab"].values(), *(added["id"] for added in stored.get("added_tokens", []))]
    return -(-(max(ids) + 1) // 64) * 64


def make(name: str, cache: Path = CACHE, tokenizer: Path = TOKENIZER) -> Path:
    """The directory of checkpoint `name` under `cache`, made if it is not there yet."""
    directory = cache / name
    if directory.exists():
        return directory
    partial = cache / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    vocabulary = vocabulary_size(tokenizer)
    write_weights(partial, SHAPES[name], vocabulary)
    (partial / "config.json").write_text(json.dumps(config(SHAPES[name], vocabulary), indent=2))
    for file in TOKENIZER_FILES:
        if (tokenizer / file).exists():
            shutil.copy(tokenizer / file, partial)
    os.replace(partial, directory)
    return directory


def main() -> None:
    """Make the checkpoints named on the command line and print where they are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="+", choices=sorted(SHAPES))
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="directory with a tokenizer.json")
    options = parser.parse_args()
    for name in options.names:
        print(make(name, options.cache.expanduser(), options.tokenizer))


if __name__ == "__main__":
    main()
