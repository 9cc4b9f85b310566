"""Top-1 accuracy of a pretrained ResNet for CIFAR after channels were cut, before any training.

    python benchmarks/channel_pruning.py WEIGHTS TEST [--depth 56] [--ratios 0.1 0.2 0.3] [--images 2000]
                                         [--batch-norm TRAIN]

WEIGHTS is an original checkpoint; TEST and TRAIN are .npz files with JPEG pictures: arrays `jpeg`, `offset`, `label`.
With --batch-norm the running statistics are estimated anew from 500 pictures after the cut. Multiplications are
counted by forward hooks. Prints a markdown table and writes benchmarks/results/channel-pruning.json.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from modicum.evaluate import environment
from modicum.method import Context
from modicum.models import Anatomy
from modicum.models.channels import couple, cut
from modicum.models.cifar_resnet import CifarResNetConfig, convert, load_cifar_resnet
from modicum.prune.depgraph import DepGraph

RESULTS = Path(__file__).parent / "results" / "channel-pruning.json"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHOICES = ("group norm", "group norm, global", "group L1", "random")


def pictures(file: Path, count: int) -> tuple[Tensor, Tensor]:
    """The first pictures, normalized [n, 3, 32, 32], and their classes."""
    data = np.load(file)
    ends = data["offset"]
    images = [
        np.asarray(Image.open(io.BytesIO(data["jpeg"][a:b].tobytes())))
        for a, b in pairwise(ends[: count + 1])
    ]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (x - mean) / std, torch.from_numpy(data["label"][:count]).long()


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of right answers."""
    right = [
        (model(part).logits.argmax(1) == of).sum()
        for part, of in zip(x.split(250), y.split(250), strict=True)
    ]
    return sum(map(int, right)) / len(y)


@torch.no_grad()
def renew_statistics(model: nn.Module, x: Tensor) -> None:
    """Running means and variances from these pictures."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    model.train()
    for part in x.split(125):
        model(part)
    model.eval()


@torch.no_grad()
def multiplications(model: nn.Module) -> int:
    """Of all convolutions and linear layers for one picture."""
    total = 0

    def count(module: nn.Module, _: object, out: Tensor) -> None:
        nonlocal total
        total += module.weight.numel() * (out.shape[2] * out.shape[3] if out.dim() == 4 else 1)  # type: ignore[union-attr, operator]

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    model(**model.dummy_inputs)  # type: ignore[arg-type]
    for hook in hooks:
        hook.remove()
    return total


def choose(model: nn.Module, choice: str, ratio: float, seed: int) -> None:
    """Cut this share of the channels."""
    if choice != "random":
        scope, norm = ("global" if "global" in choice else "group"), (1.0 if "L1" in choice else 2.0)
        DepGraph(ratio=ratio, scope=scope, norm=norm).transform(
            Anatomy.of(model), Context(torch.Generator().manual_seed(seed))
        )
        return
    channels = couple(model, model.dummy_inputs)  # type: ignore[arg-type]
    scores = np.random.default_rng(seed).random(len(channels))
    cut(
        model,
        channels,
        DepGraph(ratio=ratio).removed(channels, scores, [*map(len, channels.groups)], 1 - ratio),
    )


def main() -> None:
    """Measure every choice at every ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--depth", type=int, default=56)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch-norm", type=Path)
    given = parser.parse_args()
    x, y = pictures(given.test, given.images)
    sample = pictures(given.batch_norm, 500)[0] if given.batch_norm else None
    with tempfile.TemporaryDirectory() as folder:
        directory = convert(given.weights, Path(folder) / "whole", CifarResNetConfig.of_depth(given.depth))
        whole = load_cifar_resnet(directory)
        dense, macs = accuracy(whole, x, y), multiplications(whole)
        rows = []
        print(
            f"whole model: {dense:.2%}\n\n| ratio | choice | times fewer multiplications | accuracy |\n"
            "|---|---|---:|---:|"
        )
        for ratio in given.ratios:
            for choice in CHOICES:
                seeds = range(3) if choice == "random" else range(1)
                scores, fewer = [], []
                for seed in seeds:
                    model = load_cifar_resnet(directory)
                    choose(model, choice, ratio, seed)
                    if sample is not None:
                        renew_statistics(model, sample)
                    scores.append(accuracy(model, x, y))
                    fewer.append(macs / multiplications(model))
                rows.append({"ratio": ratio, "choice": choice, "accuracy": scores, "fewer": fewer})
                shown = " ".join(f"{score:.1%}" for score in scores)
                print(f"| {ratio} | {choice} | {sum(fewer) / len(fewer):.2f} | {shown} |", flush=True)
    facts = {"dense": dense, "renewed": sample is not None, "rows": rows, "environment": environment()}
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
