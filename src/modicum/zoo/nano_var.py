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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.errors import OutputExists
from modicum.models.var import VAR, VQVAE, Transformer, VAEConfig, VARConfig
from modicum.models.var.files import save
from modicum.models.var.quantizer import ResidualConv
from modicum.zoo.digits import Digits, Judge, jitter, load_digits, train_judge
from modicum.zoo.loop import Budget, Loop
from modicum.zoo.var_card import card, measure

Report = Callable[[str], None]
SHARES = {"autoencoder": 0.12, "quantizer": 0.08, "transformer": 0.8}  # of the budget


def _config() -> VARConfig:
    vae = VAEConfig(vocab_size=128, z_channels=8, ch=16, ch_mult=(1, 2), num_res_blocks=1, groupnorm_groups=8)
    return VARConfig(
        num_classes=10,
        depth=6,
        embed_dim=128,
        num_heads=4,
        patch_nums=(1, 2, 3, 4, 6, 8, 12, 16),
        vae=vae,
    )


@dataclass(frozen=True)
class NanoVar:
    """Sizes of the model and of its training. The defaults are those of the shipped model."""

    config: VARConfig = field(default_factory=_config)
    image_batch: int = 32  # images per step of the first two parts
    batch: int = 16  # images per step of the transformer; half as many where it sees all maps
    lr_images: float = 2e-3
    lr: float = 1.5e-3
    versions: int = 8  # jittered copies of the training digits
    digits: int | None = None  # of the training digits; None: all
    drawn_per_class: int = 50  # for the figures on the card


def train(
    out: Path,
    work: Path,
    budget: Budget,
    seed: int = 0,
    report: Report = print,
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
    digits = _digits(sizes)
    judge = _judge(work, seed)
    vae = _tokenizer(work, budget, seed, report, sizes, digits)
    loop = _predictor(work, budget, seed, report, sizes, vae, digits)
    model = VAR(sizes.config)
    model.transformer.load_state_dict(_rounded(loop.model))
    model.vae.load_state_dict(vae.state_dict())
    figures = measure(model.eval(), judge, sizes.drawn_per_class, seed)
    metrics = {**figures, **_provenance(loop, budget, seed)}
    texts = {"metrics.json": json.dumps(metrics, indent=2) + "\n", "README.md": card(metrics, model.config)}
    save(model, out, half=True, extra=texts, tensors={"judge.safetensors": judge.state_dict()})
    report(f"wrote {out}")


def _digits(sizes: NanoVar) -> Digits:
    digits = load_digits("train")
    return Digits(digits.images[: sizes.digits], digits.labels[: sizes.digits])


def _judge(work: Path, seed: int) -> Judge:
    file = work / "judge.safetensors"
    if not file.exists():
        save_file(train_judge(seed).state_dict(), file)
    judge = Judge()
    judge.load_state_dict(load_file(file))
    return judge.eval()


def _part(
    name: str,
    model: nn.Module,
    loss_at: Callable[[int, float], Tensor],
    work: Path,
    budget: Budget,
    lr: float,
    identity: dict[str, object],
    report: Report,
) -> Loop:
    """One part of the training, run to its end."""
    share = SHARES[name]
    own = (
        Budget(steps=max(round(budget.steps * share), 1))
        if budget.steps
        else Budget(minutes=cast(float, budget.minutes) * share)
    )
    text = json.dumps({"recipe": "nano-var", "part": name, **asdict(own), **identity})
    loop = Loop(
        model, loss_at, own, text, work / name, lr, warmup=100, report=lambda line: report(f"{name}: {line}")
    )
    loop.run()
    return loop


def _tokenizer(
    work: Path, budget: Budget, seed: int, report: Report, sizes: NanoVar, digits: Digits
) -> VQVAE:
    """Parts one and two: a trained VQVAE with weights rounded to bfloat16, in evaluation mode."""
    torch.manual_seed(seed)
    vae = VQVAE(sizes.config.vae, sizes.config.schedule)
    file = work / "vae.safetensors"
    if not file.exists():
        identity = _identity(seed, sizes)
        images = digits.images * 2 - 1
        loss = _autoencoder_loss(vae, images, sizes, seed)
        _part("autoencoder", vae, loss, work, budget, sizes.lr_images, identity, report)
        start_codebook(vae, images, seed)
        loss = _quantizer_loss(vae, images, sizes, seed)
        _part("quantizer", vae, loss, work, budget, sizes.lr_images, identity, report)
        save_file(_rounded(vae), file)
    vae.load_state_dict(load_file(file))
    return vae.eval()


def _autoencoder_loss(
    vae: VQVAE, images: Tensor, sizes: NanoVar, seed: int
) -> Callable[[int, float], Tensor]:
    def loss_at(step: int, progress: float) -> Tensor:
        batch, generator = _batch(images, sizes.image_batch, seed, step)
        features = vae.features(batch)
        scale = int(torch.randint(2, 2 * len(vae.quantize.schedule), (1,), generator=generator))
        if scale < len(vae.quantize.schedule):
            shrunk = vae.quantize.shrink(features, scale)
            features = F.interpolate(shrunk, features.shape[-2:], mode="bicubic")
        return F.mse_loss(vae.decoder(vae.post_quant_conv(features)), batch) + 1e-3 * features.square().mean()

    return loss_at


def _quantizer_loss(vae: VQVAE, images: Tensor, sizes: NanoVar, seed: int) -> Callable[[int, float], Tensor]:
    def loss_at(step: int, progress: float) -> Tensor:
        batch, _ = _batch(images, sizes.image_batch, seed + 1, step)
        with torch.no_grad():
            features = vae.features(batch)
            tokens, _ = vae.quantize.encode(features)
        sums = vae.quantize.running(tokens)
        rebuilt = vae.decoder(vae.post_quant_conv(sums[-1]))
        far = torch.stack([F.mse_loss(f_hat, features) for f_hat in sums]).mean()
        return F.mse_loss(rebuilt, batch) + far / features.square().mean()

    return loss_at


@torch.no_grad()
def start_codebook(vae: VQVAE, images: Tensor, seed: int) -> None:
    """Fill the codebook with feature vectors of all maps' sizes, faded at random as residuals are.

    Args:
        vae: an autoencoder that is trained but for its quantizer; its residual convolutions become identities.
        images: `[n, channels, side, side]` in [-1, 1].
        seed: of the choice of vectors.
    """
    generator = torch.Generator().manual_seed(seed)
    quantizer, codes = vae.quantize, vae.quantize.embedding.weight
    for module in quantizer.modules():
        if isinstance(module, ResidualConv):
            nn.init.dirac_(module.weight)
            nn.init.zeros_(cast(Tensor, module.bias))
    features = vae.features(images[torch.randperm(len(images), generator=generator)[:256]])
    shrunk = [quantizer.shrink(features, scale) for scale in range(len(quantizer.schedule))]
    vectors = torch.cat([each.transpose(0, 1).flatten(1).T for each in shrunk])  # [n, channels]
    fading = torch.rand(len(vectors), 1, generator=generator).square()
    codes.copy_((vectors * fading)[torch.randperm(len(vectors), generator=generator)[: len(codes)]])


def _predictor(
    work: Path, budget: Budget, seed: int, report: Report, sizes: NanoVar, vae: VQVAE, digits: Digits
) -> Loop:
    """Part three: the transformer."""
    bank, labels = _tokens(work, vae, digits, sizes, seed)
    schedule = sizes.config.schedule
    torch.manual_seed(seed)
    model = Transformer(sizes.config).train()

    def loss_at(step: int, progress: float) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        torch.manual_seed(seed * 1_000_003 + step)  # the label dropout of the model
        maps = _maps(len(schedule), progress, generator)
        images = max(sizes.batch // 2, 1) if maps == len(schedule) else sizes.batch
        rows = torch.randint(len(bank), (images,), generator=generator)
        tokens = bank[rows, : schedule.offsets[maps]].long()
        split = list(tokens.split(list(schedule.tokens[:maps]), dim=1))
        with torch.no_grad():
            inputs = vae.quantize.teacher_input(split)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(labels[rows], inputs)
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    return _part("transformer", model, loss_at, work, budget, sizes.lr, _identity(seed, sizes), report)


def _maps(total: int, progress: float, generator: torch.Generator) -> int:
    """How many maps a step learns: mostly all but two; all of them more and more often."""
    dice = float(torch.rand(1, generator=generator))
    if dice < 0.05 + 0.25 * progress:
        return total
    return max(total - 1 if dice > 0.9 else total - 2, 1)


@torch.no_grad()
def _tokens(work: Path, vae: VQVAE, digits: Digits, sizes: NanoVar, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens of the jittered training digits, int16 `[n, total]`, and their labels; made once."""
    file = work / "tokens.safetensors"
    if not file.exists():
        generator = torch.Generator().manual_seed(seed)
        images = torch.cat([jitter(digits.images, generator) for _ in range(sizes.versions)])
        chunks = [torch.cat(vae.encode(chunk * 2 - 1), dim=1).short() for chunk in images.split(256)]
        save_file({"tokens": torch.cat(chunks)}, file)
    return load_file(file)["tokens"], digits.labels.repeat(sizes.versions)


def _batch(images: Tensor, size: int, seed: int, step: int) -> tuple[Tensor, torch.Generator]:
    """Jittered images of a step, and the source of its other random choices."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    rows = torch.randint(len(images), (size,), generator=generator)
    return jitter((images[rows] + 1) / 2, generator) * 2 - 1, generator


def _rounded(module: nn.Module) -> dict[str, Tensor]:
    """State dict whose floats are what bfloat16 stores, so that figures hold for the files."""
    state = module.state_dict()
    return {n: t.bfloat16().float().contiguous() if t.is_floating_point() else t for n, t in state.items()}


def _provenance(loop: Loop, budget: Budget, seed: int) -> dict[str, int | float | str]:
    given = f"--steps {budget.steps}" if budget.steps else f"--minutes {budget.minutes:g}"
    return {"seed": seed, "minutes": round(loop.seconds / 60, 1), "steps": loop.step, "budget": given}


def _identity(seed: int, sizes: NanoVar) -> dict[str, object]:
    plain = {name: value for name, value in vars(sizes).items() if name != "config"}
    return {"seed": seed, **plain, "config": sizes.config.to_dict()}
