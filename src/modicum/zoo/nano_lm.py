"""nano-lm: a language model of 4.65 million parameters that writes Python, trained on the standard library.

A compression toolkit that is to be tried, tested and taught without a download needs a model that has learnt
something: random weights have no outliers, no low-rank structure and nothing to lose. nano-lm is a Llama as
small as one can be and still have every part of a large one (grouped-query attention, rotary positions, gated
MLP, tied embeddings), with its own byte-level BPE vocabulary, trained on one CPU in an hour. It beats a
5-gram model with Kneser-Ney smoothing on held-out modules by a margin, so a loss of quality shows.

Training follows the habit of small Llamas: AdamW, warm-up, cosine to zero. Short sequences for the first part
(they are cheaper and most of what there is to learn is local), long ones for the rest.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from modicum.data import Document, standard_library, token_stream
from modicum.errors import OutputExists
from modicum.zoo.lm_card import card, measure
from modicum.zoo.loop import Budget, Loop

END = "<|end|>"


@dataclass(frozen=True)
class NanoLm:
    """Sizes of the model and of its training. The defaults are those of the shipped model."""

    vocab: int = 2048
    hidden: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 4
    intermediate: int = 640
    context: int = 512  # tokens
    batch: int = 4  # windows of `context` tokens per step
    short: int = 256  # tokens per sequence in the first part of the training
    short_share: float = 0.7  # of the budget
    lr: float = 2e-3
    texts: int | None = None  # documents of each split; None: all


def train(
    out: Path,
    work: Path,
    budget: Budget,
    seed: int = 0,
    report: Callable[[str], None] = print,
    sizes: NanoLm = NanoLm(),
    start: Path | None = None,
) -> None:
    """Train nano-lm and write it to `out` as a Hugging Face directory; resumes what `work` holds.

    Args:
        out: directory to write; it appears whole, at the end.
        work: directory for the tokenizer, the token cache and the checkpoint.
        budget: steps or minutes.
        seed: of the initial weights and of the order of the windows.
        report: receives lines of progress.
        sizes: of the model.
        start: an earlier nano-lm to train on, with a schedule of its own; a new one by default.

    Raises:
        OutputExists: `out` is there already.
        CheckpointError: `work` holds another training.
    """
    if out.exists():
        raise OutputExists(f"{out} is already there.", "Name another --out, or move it away.")
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(work, sizes, start)
    streams = _streams(work, tokenizer, sizes)
    loop = training(work, budget, seed, report, sizes, streams["train"], start)
    loop.run()
    write(out, loop, tokenizer, streams, sizes, seed, start)
    report(f"wrote {out}")


def training(
    work: Path,
    budget: Budget,
    seed: int,
    report: Callable[[str], None],
    sizes: NanoLm,
    stream: Tensor,
    start: Path | None = None,
) -> Loop:
    """The loop with a new model or that of `start`; `run()` it, or resume it to look at an unfinished model."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(configuration(sizes)).train()
    # For heads this small the plain formula is a third faster on a CPU than the fused kernel.
    model.set_attn_implementation("eager")
    if start is not None:
        model.load_state_dict(LlamaForCausalLM.from_pretrained(start).float().state_dict())

    def loss_at(step: int, progress: float) -> Tensor:
        ids = _batch(stream, sizes, seed, step)  # [batch, context + 1]
        length = sizes.short if progress < sizes.short_share else sizes.context
        inputs, targets = ids[:, :-1].reshape(-1, length), ids[:, 1:].reshape(-1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=inputs, use_cache=False).logits  # [sequences, length, vocab]
        return F.cross_entropy(logits.flatten(0, 1).float(), targets)

    began = None if start is None else _metrics(start)["heldout_loss"]
    named = {"recipe": "nano-lm", "seed": seed, "start": began, **asdict(budget), **asdict(sizes)}
    identity = json.dumps(named)
    return Loop(model, loss_at, budget, identity, work, sizes.lr, report=report)


def configuration(sizes: NanoLm) -> LlamaConfig:
    """The Llama configuration of these sizes."""
    return LlamaConfig(
        vocab_size=sizes.vocab,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=sizes.context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
    )


def _batch(stream: Tensor, sizes: NanoLm, seed: int, step: int) -> Tensor:
    """Windows `[batch, context + 1]` of a step; every epoch shifts and shuffles the grid of windows anew."""
    per_epoch = max((stream.numel() - 1) // sizes.context - 1, 1)
    steps = max(per_epoch // sizes.batch, 1)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step // steps)
    shift = int(torch.randint(sizes.context, (1,), generator=generator))
    order = torch.randperm(per_epoch, generator=generator)
    chosen = order[(step % steps) * sizes.batch :][: sizes.batch]
    starts = chosen * sizes.context + shift
    return stream[starts[:, None] + torch.arange(sizes.context + 1)].long()


def _documents(split: str, sizes: NanoLm) -> list[Document]:
    return standard_library("train" if split == "train" else "heldout")[: sizes.texts]


def _metrics(directory: Path) -> dict[str, Any]:
    """The figures beside an earlier nano-lm."""
    found: dict[str, Any] = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    return found


def _tokenizer(work: Path, sizes: NanoLm, start: Path | None = None) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the training split, trained once per work directory; that of `start` if there is one."""
    file = work / "tokenizer.json"
    if not file.exists() and start is not None:
        shutil.copyfile(start / "tokenizer.json", file)
    if not file.exists():
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=sizes.vocab, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        )
        bpe.train_from_iterator((document.text for document in _documents("train", sizes)), trainer)
        bpe.save(f"{file}.partial")
        os.replace(f"{file}.partial", file)
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file),
        bos_token=END,
        eos_token=END,
        model_max_length=sizes.context,
        clean_up_tokenization_spaces=False,
    )


def _streams(work: Path, tokenizer: PreTrainedTokenizerFast, sizes: NanoLm) -> dict[str, Tensor]:
    """Token ids of both splits, int16 `[n]`, tokenised once per work directory."""
    file = work / "tokens.safetensors"
    if not file.exists():
        streams = {
            split: token_stream([document.text for document in _documents(split, sizes)], tokenizer).short()
            for split in ("train", "heldout")
        }
        save_file(streams, f"{file}.partial")
        os.replace(f"{file}.partial", file)
    return load_file(file)


def write(
    out: Path,
    loop: Loop,
    tokenizer: PreTrainedTokenizerFast,
    streams: dict[str, Tensor],
    sizes: NanoLm,
    seed: int,
    start: Path | None = None,
) -> None:
    """Write the loop's model in bfloat16, its tokenizer, `metrics.json` and the card; `out` appears whole or
    not.

    Args:
        out: directory that does not exist yet.
        loop: of a finished or unfinished training.
        tokenizer: saved beside the weights.
        streams: "train" and "heldout" ids, for the figures on the card.
        sizes: of the model and the training, for the card.
        seed: of the training, for the card.
        start: the nano-lm that the training began with, for the card.
    """
    model: Any = LlamaForCausalLM(configuration(sizes))
    model.load_state_dict(loop.model.state_dict())
    model = model.to(torch.bfloat16).eval()
    metrics = {**measure(model, tokenizer, streams), **_provenance(loop, sizes, seed, start)}
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    (partial / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    (partial / "README.md").write_text(card(metrics), encoding="utf-8")
    for file in partial.iterdir():
        file.chmod(0o644)
    os.replace(partial, out)


def _provenance(loop: Loop, sizes: NanoLm, seed: int, start: Path | None) -> dict[str, int | float | str]:
    earlier = {} if start is None else _metrics(start)
    command = f"{earlier['command']} && " if earlier else ""
    given = f"--steps {loop.budget.steps}" if loop.budget.steps else f"--minutes {loop.budget.minutes:g}"
    return {
        "vocab": sizes.vocab,
        "context": sizes.context,
        "steps": earlier.get("steps", 0) + loop.step,
        "tokens_trained": earlier.get("tokens_trained", 0) + loop.step * sizes.batch * sizes.context,
        "minutes": round(earlier.get("minutes", 0) + loop.seconds / 60, 1),
        "seed": seed,
        "command": f"{command}python -m modicum.zoo.train nano-lm {given} --seed {seed}"
        + (" --start nano-lm --out nano-lm-2" if earlier else ""),
    }
