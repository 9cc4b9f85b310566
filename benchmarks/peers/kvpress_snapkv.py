"""Time SnapKV's scoring of kvpress on one attention layer, once per line that arrives on standard input.

Runs in an environment with kvpress and without modicum. Queries of the window are projected, rotated and scored
against all cached keys; nothing is selected or copied. Answers with one line of JSON per request.

    echo 64 | python benchmarks/peers/kvpress_snapkv.py --rows 2 --heads 28 --head-dim 128 --tokens 4000
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch
from kvpress import SnapKVPress
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention


def layer_and_inputs(options: argparse.Namespace) -> tuple[LlamaAttention, dict[str, torch.Tensor], dict]:
    """A random layer of that size in bfloat16, what it reads, and its cache."""
    width = options.heads * options.head_dim
    config = LlamaConfig(
        hidden_size=width,
        num_attention_heads=options.heads,
        num_key_value_heads=options.heads,
        head_dim=options.head_dim,
    )
    torch.manual_seed(0)
    layer = LlamaAttention(config, 0).to(torch.bfloat16).eval()
    cache = (options.rows, options.heads, options.tokens, options.head_dim)
    tensors = {
        "hidden_states": torch.randn(options.rows, options.tokens, width).bfloat16(),
        "keys": torch.randn(cache).bfloat16(),
        "values": torch.randn(cache).bfloat16(),
    }
    angles = torch.randn(1, options.tokens, options.head_dim)
    rotation = {"position_embeddings": (angles.cos().bfloat16(), angles.sin().bfloat16())}
    return layer, tensors, rotation


@torch.no_grad()
def main() -> None:
    """Answer every request."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("--rows", "--heads", "--head-dim", "--tokens"):
        parser.add_argument(name, type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    layer, tensors, rotation = layer_and_inputs(options)
    for line in sys.stdin:
        press = SnapKVPress(compression_ratio=0.5, window_size=int(line))
        started = time.perf_counter()
        scores = press.score(layer, **tensors, attentions=None, kwargs=rotation)
        seconds = time.perf_counter() - started
        assert scores.shape == (options.rows, options.heads, options.tokens)
        print(json.dumps({"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
