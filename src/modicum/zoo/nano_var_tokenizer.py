"""The first two parts of nano-var's training: an autoencoder, then its quantizer."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modicum.models.var import VQVAE
from modicum.models.var.quantizer import ResidualConv
from modicum.zoo.digits import jitter
from modicum.zoo.nano_var_training import Loss, Training, rounded


def train_tokenizer(training: Training, images: Tensor) -> VQVAE:
    """A VQVAE trained on images `[n, channels, side, side]` in [0, 1]; weights rounded to bfloat16."""
    torch.manual_seed(training.seed)
    vae = VQVAE(training.sizes.config.vae, training.sizes.config.schedule)
    images = images * 2 - 1

    def make() -> dict[str, Tensor]:
        lr = training.sizes.lr_images
        training.run("autoencoder", vae, _autoencoder_loss(vae, images, training), lr)
        start_codebook(vae, images, training.seed)
        training.run("quantizer", vae, _quantizer_loss(vae, images, training), lr)
        return rounded(vae)

    vae.load_state_dict(training.once("vae", make))
    return vae.eval()


def _autoencoder_loss(vae: VQVAE, images: Tensor, training: Training) -> Loss:
    """Reconstruction, half of the time through features shrunk to a map's size (the first two are too small)."""
    maps = len(vae.quantize.schedule)

    def loss_at(step: int, progress: float) -> Tensor:
        generator = training.generator(step)
        batch = _batch(images, training, generator)
        features = vae.features(batch)
        scale = int(torch.randint(2, 2 * maps, (1,), generator=generator))
        if scale < maps:
            shrunk = vae.quantize.shrink(features, scale)
            features = F.interpolate(shrunk, features.shape[-2:], mode="bicubic")
        rebuilt = vae.decoder(vae.post_quant_conv(features))
        return F.mse_loss(rebuilt, batch) + 1e-3 * features.square().mean()

    return loss_at


def _quantizer_loss(vae: VQVAE, images: Tensor, training: Training) -> Loss:
    """Reconstruction, plus what each running sum leaves of the features; the encoder has no gradient."""

    def loss_at(step: int, progress: float) -> Tensor:
        batch = _batch(images, training, training.generator(1_000_003 + step))
        with torch.no_grad():
            features = vae.features(batch)
            tokens, _ = vae.quantize.encode(features)
        sums = vae.quantize.running(tokens)
        rebuilt = vae.decoder(vae.post_quant_conv(sums[-1]))
        left = torch.stack([F.mse_loss(f_hat, features) for f_hat in sums]).mean()
        return F.mse_loss(rebuilt, batch) + left / features.square().mean()

    return loss_at


def _batch(images: Tensor, training: Training, generator: torch.Generator) -> Tensor:
    rows = torch.randint(len(images), (training.sizes.image_batch,), generator=generator)
    return jitter((images[rows] + 1) / 2, generator) * 2 - 1


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
            nn.init.zeros_(cast("Tensor", module.bias))
    features = vae.features(images[torch.randperm(len(images), generator=generator)[:256]])
    shrunk = [quantizer.shrink(features, scale) for scale in range(len(quantizer.schedule))]
    vectors = torch.cat([each.transpose(0, 1).flatten(1).T for each in shrunk])  # [n, channels]
    fading = torch.rand(len(vectors), 1, generator=generator).square()
    codes.copy_((vectors * fading)[torch.randperm(len(vectors), generator=generator)[: len(codes)]])
