"""VAR: class-conditional images by next-scale prediction (Tian et al., NeurIPS 2024, arXiv 2404.02905).

    labels --transformer--> token maps --quantizer--> features --decoder--> image
                  ^                        |
                  +--- features so far, shrunk to the next map's size

Three parts: `VQVAE` turns images into token maps and back, `Transformer` predicts a map from the earlier ones,
`VAR` holds both, generates, loads and saves. Parameter names and shapes are those of the original files.
"""

from modicum.models.var.config import PATCH_NUMS, PRESETS, VAEConfig, VARConfig
from modicum.models.var.files import convert, load_var
from modicum.models.var.model import VAR, MapStep
from modicum.models.var.quantizer import MultiScaleQuantizer
from modicum.models.var.transformer import Transformer
from modicum.models.var.vqvae import VQVAE

__all__ = [
    "MapStep",
    "MultiScaleQuantizer",
    "PATCH_NUMS",
    "PRESETS",
    "Transformer",
    "VAEConfig",
    "VAR",
    "VARConfig",
    "VQVAE",
    "convert",
    "load_var",
]
