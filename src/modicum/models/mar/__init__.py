"""MAR: class-conditional pictures, drawn token by token in random order, each token by a small diffusion.

class | tokens so far --transformer--> a vector per missing token --token network, 100 steps--> its numbers
"""

from modicum.models.mar.config import PRESETS, MARConfig
from modicum.models.mar.files import convert, load_mar, save
from modicum.models.mar.model import MAR
from modicum.models.mar.training import hide
from modicum.models.mar.transformer import Block, Transformer

__all__ = [
    "Block",
    "MAR",
    "MARConfig",
    "PRESETS",
    "Transformer",
    "convert",
    "hide",
    "load_mar",
    "save",
]
