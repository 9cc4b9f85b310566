"""DiT and SiT: class-conditional pictures by denoising with a plain transformer.

noise --(network, many times)--> picture or latents          labels steer, guidance exaggerates
"""

from modicum.models.dit.config import PRESETS, DiTConfig
from modicum.models.dit.files import convert, from_diffusers, load_dit, save, save_diffusers
from modicum.models.dit.gaussian import GaussianDiffusion, Losses, Reverse
from modicum.models.dit.model import DiT
from modicum.models.dit.sampling import SamplingStep, denoise, seeded_noise
from modicum.models.dit.transformer import Block, Transformer

__all__ = [
    "Block",
    "DiT",
    "DiTConfig",
    "GaussianDiffusion",
    "Losses",
    "PRESETS",
    "Reverse",
    "SamplingStep",
    "Transformer",
    "convert",
    "denoise",
    "from_diffusers",
    "load_dit",
    "save",
    "save_diffusers",
    "seeded_noise",
]
