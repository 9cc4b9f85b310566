"""nano-dit: a diffusion transformer of a million parameters that draws handwritten digits.

Depth pruning, step caching and the distillation of large diffusion transformers (DiT, SiT) are to be tried and taught
without a download and without an accelerator. nano-dit is DiT with every part in place: twelve blocks modulated by
time and class, a thousand steps of noise, learned variance, guidance. It works on pixels, so that no autoencoder is
needed: the 8x8 that the digits have in the original, in patches of 2x2, which makes a picture 16 tokens.

What is shipped is a moving average of the weights, as is usual for diffusion. The times of a batch are spread evenly
over the thousand steps instead of drawn one by one: the same expectation, with less noise in the gradient.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from modicum.errors import OutputExists
from modicum.models.dit import DiT, DiTConfig, GaussianDiffusion, save
from modicum.models.dit.files import POSITIONS
from modicum.models.dit.respacing import STEPS
from modicum.zoo.digits import CLASSES, Digits, jitter, load_digits, train_judge
from modicum.zoo.dit_card import card, measure, to_canvas
from modicum.zoo.loop import Budget, Loop
from modicum.zoo.nano_var_training import rounded


def _config() -> DiTConfig:
    return DiTConfig(
        input_size=8,
        patch_size=2,
        in_channels=1,
        hidden_size=64,
        depth=12,
        num_heads=4,
        num_classes=CLASSES,
        pixel_space=True,
    )


@dataclass(frozen=True)
class NanoDiT:
    """Sizes of the model and of its training. The defaults are those of the shipped model."""

    config: DiTConfig = field(default_factory=_config)
    batch: int = 32
    lr: float = 2e-3
    decay: float = 0.998  # of the moving average
    digits: int | None = None  # of the training digits; None: all
    drawn_per_class: int = 50  # for the figures on the card


class Averaged(nn.Module):
    """A model that is trained, and the moving average of its weights; both go into the checkpoint.

    Args:
        model: trained in place.
        decay: share of the old average that survives a step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.online, self.decay = model, decay
        self.average = copy.deepcopy(model).requires_grad_(False)

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights in."""
        averages: list[Tensor] = list(self.average.parameters())
        weights: list[Tensor] = list(self.online.parameters())
        torch._foreach_lerp_(averages, weights, 1 - self.decay)


def train(
    out: Path,
    work: Path,
    budget: Budget,
    seed: int = 0,
    report: Callable[[str], None] = print,
    sizes: NanoDiT = NanoDiT(),
) -> None:
    """Train nano-dit and write it to `out`; resumes what `work` holds.

    Args:
        out: directory to write; it appears whole, at the end.
        work: directory for the checkpoint.
        budget: steps or minutes.
        seed: of the initial weights, the jitter, the noise and the order of the images.
        report: receives lines of progress.
        sizes: of the model and the training.

    Raises:
        OutputExists: `out` is there already.
        CheckpointError: `work` holds another training.
        MissingExtra: scikit-learn, which brings the digits, is not installed.
    """
    if out.exists():
        raise OutputExists(f"{out} is already there.", "Name another --out, or move it away.")
    digits = load_digits("train")
    torch.manual_seed(seed)
    models = Averaged(DiT(sizes.config).train(), sizes.decay)
    settings = {**asdict(sizes), "config": sizes.config.to_dict()}
    identity = json.dumps({"recipe": "nano-dit", **asdict(budget), "seed": seed, **settings})
    loss_at = _loss(models, Digits(digits.images[: sizes.digits], digits.labels[: sizes.digits]), seed, sizes)
    loop = Loop(models, loss_at, budget, identity, work, sizes.lr, report=report)
    loop.run()
    models.update()
    write(out, models, loop, seed, sizes)
    report(f"wrote {out}")


def _loss(models: Averaged, digits: Digits, seed: int, sizes: NanoDiT) -> Callable[[int, float], Tensor]:
    """The published loss of DiT on jittered digits: squared error of the noise, and the bound for the variance."""
    diffusion = GaussianDiffusion(learn_sigma=sizes.config.learn_sigma)

    def loss_at(step: int, progress: float) -> Tensor:
        if step:
            models.update()
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        torch.manual_seed(generator.initial_seed())  # the label dropout of the model
        rows = torch.randint(len(digits.labels), (sizes.batch,), generator=generator)
        x0 = to_canvas(jitter(digits.images[rows], generator), sizes.config)
        spread = torch.arange(sizes.batch) + torch.rand(sizes.batch, generator=generator)
        t = (spread * STEPS / sizes.batch).long().clamp_max(STEPS - 1)
        noise = torch.randn(x0.shape, generator=generator)
        labels = digits.labels[rows]
        return diffusion.losses(lambda x, times: models.online(x, times, labels), x0, t, noise).loss.mean()

    return loss_at


def write(out: Path, models: Averaged, loop: Loop, seed: int, sizes: NanoDiT) -> None:
    """Write the averaged model in bfloat16 with its figures, its card and the judge.

    Args:
        out: directory that does not exist yet; it appears whole or not.
        models: trained, or on the way.
        loop: that trained them, for the card.
        seed: of the training.
        sizes: of model and training.
    """
    model = DiT(sizes.config).eval()
    model.load_state_dict(rounded(models.average) | {POSITIONS: model.pos_embed})
    judge, budget = train_judge(seed), loop.budget
    metrics = measure(model, judge, sizes.drawn_per_class, seed)
    metrics |= {
        "seed": seed,
        "minutes": round(loop.seconds / 60, 1),
        "steps": loop.step,
        "budget": f"--steps {budget.steps}" if budget.steps else f"--minutes {budget.minutes:g}",
    }
    texts = {"metrics.json": json.dumps(metrics, indent=2) + "\n", "README.md": card(metrics, model.config)}
    save(model, out, half=True, extra=texts, tensors={"judge.safetensors": judge.state_dict()})
