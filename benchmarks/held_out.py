"""Held-out perplexity of any checkpoint that transformers opens: one evaluator for every tool's output.

Packed weights are expanded to the precision in which they were quantized and only then widened to float32,
so that two checkpoints that hold the same numbers get the same perplexity. Prints one line of JSON.

    python benchmarks/held_out.py CHECKPOINT TOKENS
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig

from modicum.evaluate.perplexity import perplexity


def load(checkpoint: Path) -> nn.Module:
    """A dense float32 model with exactly the numbers that the checkpoint stands for."""
    config = AutoConfig.from_pretrained(checkpoint)
    packed = hasattr(config, "quantization_config")
    expand = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if packed else {}
    stored = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto", **expand).state_dict()
    if packed:
        del config.quantization_config
    dense = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    dense.load_state_dict({name: stored[name] for name in dense.state_dict()})
    return dense


def zero_fraction(model: nn.Module) -> float:
    """Zeros among the weights of the linear layers, the output head left out."""
    layers = [m for n, m in model.named_modules() if isinstance(m, nn.Linear) and not n.endswith("lm_head")]
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers)
    return zeros / sum(layer.weight.numel() for layer in layers)


def main() -> None:
    """Load, score, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("tokens", type=Path)
    options = parser.parse_args()
    model = load(options.checkpoint)
    tokens = load_file(options.tokens)["tokens"]  # [windows, length]
    result = perplexity(model, tokens.flatten(), window=tokens.shape[1])
    print(json.dumps({"ppl": result.ppl, "tokens": result.tokens, "zeros": zero_fraction(model)}))


if __name__ == "__main__":
    main()
