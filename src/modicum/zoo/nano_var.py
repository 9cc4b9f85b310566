"""nano-var: a next-scale image model of two million parameters that draws handwritten digits.

The caches, budgets and schedules of large next-scale models (VAR, Infinity) are to be tried and taught without
a download and without an accelerator. nano-var is VAR with every part in place, at a size that one CPU core
trains in less than an hour: eight token maps from 1x1 to 16x16 (530 tokens), guidance, a multi-scale VQVAE.

Training has three parts, each resumable by itself:

1. an autoencoder, whose features are shrunk to a random map's size half of the time, so that coarse maps come
   to carry the picture and fine maps what little is left;
2. the quantizer: a codebook of feature vectors, then codebook, residual convolutions and decoder by gradient,
   while the encoder stands still;
3. the transformer on the tokens. Most steps stop after the sixth map (130 tokens): what there is to learn
   lies there, and a step costs a fifth.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from modicum.errors import OutputExists
from modicum.models.var import VAR, VQVAE, Transformer
from modicum.models.var.files import save
from modicum.zoo.digits import Digits, Judge, jitter, load_digits, train_judge
from modicum.zoo.loop import Budget, Loop
from modicum.zoo.nano_var_tokenizer import train_tokenizer
from modicum.zoo.nano_var_training import NanoVar, Training, rounded
from modicum.zoo.var_card import card, measure


def train(
    out: Path,
    work: Path,
    budget: Budget,
    seed: int = 0,
    report: Callable[[str], None] = print,
    sizes: NanoVar = NanoVar(),
) -> None:
    """Train nano-var and write it to `out`; resumes what `work` holds.

    Args:
        out: directory to write; it appears whole, at the end.
        work: directory for the parts that are done and the checkpoints.
        budget: steps or minutes, of all three parts together.
        seed: of the initial weights, the jitter and the order of the images.
        report: receives lines of progress.
        sizes: of the model and the training.

    Raises:
        OutputExists: `out` is there already.
        CheckpointError: `work` holds another training.
        MissingExtra: scikit-learn, which brings the digits, is not installed.
    """
    if out.exists():
        raise OutputExists(f"{out} is already there.", "Name another --out, or move it away.")
    work.mkdir(parents=True, exist_ok=True)
    training = Training(work, budget, seed, report, sizes)
    digits = load_digits("train")
    digits = Digits(digits.images[: sizes.digits], digits.labels[: sizes.digits])
    judge = Judge()
    judge.load_state_dict(training.once("judge", lambda: train_judge(seed).state_dict()))
    vae = train_tokenizer(training, digits.images)
    loop = _train_transformer(training, vae, digits)
    write(out, training, vae, loop, judge.eval())
    report(f"wrote {out}")


def _train_transformer(training: Training, vae: VQVAE, digits: Digits) -> Loop:
    """Part three."""
    bank, labels = _tokens(training, vae, digits)
    sizes, schedule = training.sizes, training.sizes.config.schedule
    torch.manual_seed(training.seed)
    model = Transformer(sizes.config).train()

    def loss_at(step: int, progress: float) -> Tensor:
        generator = training.generator(step)
        torch.manual_seed(generator.initial_seed())  # the label dropout of the model
        maps = _maps(len(schedule), progress, generator)
        images = max(sizes.batch // 2, 1) if maps == len(schedule) else sizes.batch
        rows = torch.randint(len(bank), (images,), generator=generator)
        tokens = bank[rows, : schedule.offsets[maps]].long()
        with torch.no_grad():
            inputs = vae.quantize.teacher_input(tokens.split(list(schedule.tokens[:maps]), dim=1))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(labels[rows], inputs)
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    return training.run("transformer", model, loss_at, sizes.lr)


def _maps(total: int, progress: float, generator: torch.Generator) -> int:
    """How many maps a step learns: mostly all but two; all of them more and more often."""
    dice = float(torch.rand(1, generator=generator))
    if dice < 0.05 + 0.25 * progress:
        return total
    return max(total - 1 if dice > 0.9 else total - 2, 1)


@torch.no_grad()
def _tokens(training: Training, vae: VQVAE, digits: Digits) -> tuple[Tensor, Tensor]:
    """Tokens of the jittered training digits, int16 `[n, total]`, and their labels."""

    def make() -> dict[str, Tensor]:
        generator = training.generator()
        images = torch.cat([jitter(digits.images, generator) for _ in range(training.sizes.versions)])
        chunks = [torch.cat(vae.encode(chunk * 2 - 1), dim=1).short() for chunk in images.split(256)]
        return {"tokens": torch.cat(chunks)}

    return training.once("tokens", make)["tokens"], digits.labels.repeat(training.sizes.versions)


def write(out: Path, training: Training, vae: VQVAE, loop: Loop, judge: Judge) -> None:
    """Write the model in bfloat16 with its figures, its card and the judge; `out` appears whole or not.

    Args:
        out: directory that does not exist yet.
        training: its budget, seed and sizes, for the card.
        vae: tokenizer.
        loop: of the transformer, finished or not.
        judge: trained.
    """
    budget, model = training.budget, VAR(training.sizes.config).eval()
    model.transformer.load_state_dict(rounded(loop.model))
    model.vae.load_state_dict(rounded(vae))
    metrics = measure(model, judge, training.sizes.drawn_per_class, training.seed)
    metrics |= {
        "seed": training.seed,
        "minutes": round(loop.seconds / 60, 1),
        "steps": loop.step,
        "budget": f"--steps {budget.steps}" if budget.steps else f"--minutes {budget.minutes:g}",
    }
    texts = {"metrics.json": json.dumps(metrics, indent=2) + "\n", "README.md": card(metrics, model.config)}
    save(model, out, half=True, extra=texts, tensors={"judge.safetensors": judge.state_dict()})
