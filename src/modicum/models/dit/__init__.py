"""DiT and SiT: class-conditional pictures by denoising with a plain transformer.

noise --(network, many times)--> picture or latents          labels steer, guidance exaggerates
"""

from modicum.models.dit.config import PRESETS, DiTConfig
from modicum.models.dit.transformer import Block, Transformer

__all__ = ["Block", "DiTConfig", "PRESETS", "Transformer"]
