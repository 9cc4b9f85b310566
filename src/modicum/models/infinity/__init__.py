"""Infinity: text to image by next-scale prediction of bits (Han et al., CVPR 2025, arXiv 2412.04431).

    prompt --text encoder--> features --transformer--> bits of a map --quantizer--> features --decoder--> image
                                           ^                            |
                                           +--- features so far, at the next map's size

Three parts: `BSQVAE` turns images into maps of bits and back, `Transformer` predicts the bits of a map from the earlier
maps and the text, `Infinity` holds both, generates, loads and saves. Every bit is predicted by itself, so a token has
2^32 or more values without a table of them.
"""

from modicum.models.infinity.autoencoder import BSQVAE
from modicum.models.infinity.conditioning import Condition
from modicum.models.infinity.config import PRESETS, BSQVAEConfig, InfinityConfig
from modicum.models.infinity.files import convert, load_infinity, save
from modicum.models.infinity.model import Infinity, MapStep
from modicum.models.infinity.schedules import TABLE, Resolution
from modicum.models.infinity.text import TextEncoder, TextFeatures
from modicum.models.infinity.transformer import Transformer

__all__ = [
    "BSQVAE",
    "BSQVAEConfig",
    "Condition",
    "Infinity",
    "InfinityConfig",
    "MapStep",
    "PRESETS",
    "Resolution",
    "TABLE",
    "TextEncoder",
    "TextFeatures",
    "Transformer",
    "convert",
    "load_infinity",
    "save",
]
