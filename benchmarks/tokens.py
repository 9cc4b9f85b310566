"""Turn text into token ids once, so that every tool calibrates and is judged on exactly the same tokens.

`calibration` draws windows by seed from the training split of a text source; `held-out` takes the start of
its held-out split. Both are written as one int64 tensor `tokens` of shape [windows, length] in safetensors.

    python benchmarks/tokens.py calibration --tokenizer DIR --out cal.safetensors --windows 32 --length 256
    python benchmarks/tokens.py held-out --tokenizer DIR --out held.safetensors --windows 64 --length 256
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from checkpoints import TOKENIZER
from safetensors.torch import save_file
from transformers import AutoTokenizer

from modicum.data import load_text, token_stream, windows


def draw(kind: str, source: str, tokenizer: Path, count: int, length: int, seed: int) -> torch.Tensor:
    """The windows of one kind. [count, length]"""
    encoder = AutoTokenizer.from_pretrained(tokenizer)
    if kind == "calibration":
        return windows(load_text(source, "train"), encoder, length, count, seed)
    stream = token_stream(load_text(source, "heldout"), encoder, limit=count * length)
    count = len(stream) // length
    return stream[: count * length].view(count, length)


def main() -> None:
    """Write one token file and print its path and shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=["calibration", "held-out"])
    parser.add_argument(
        "--source", default="stdlib", help="a text source of modicum: stdlib, a file, a directory"
    )
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER, help="a directory with a tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    drawn = draw(
        options.kind, options.source, options.tokenizer, options.windows, options.length, options.seed
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file({"tokens": drawn}, options.out)
    print(options.out, tuple(drawn.shape))


if __name__ == "__main__":
    main()
