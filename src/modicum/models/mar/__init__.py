"""MAR: class-conditional pictures, drawn token by token in random order, each token by a small diffusion.

class | tokens so far --transformer--> a vector per missing token --token network, 100 steps--> its numbers
"""

from modicum.models.families import Family, Fold, register
from modicum.models.mar.config import PRESETS, MARConfig
from modicum.models.mar.files import convert, load_mar, save
from modicum.models.mar.model import MAR
from modicum.models.mar.training import masked_loss
from modicum.models.mar.transformer import Block, Transformer

__all__ = [
    "Block",
    "MAR",
    "MARConfig",
    "PRESETS",
    "Transformer",
    "convert",
    "load_mar",
    "masked_loss",
    "save",
]

register(
    Family(
        name="mar",
        model_types=(MARConfig.model_type,),
        blocks=("encoder_blocks", "decoder_blocks"),
        roles={"attn.qkv": "qkv", "attn.proj": "o", "mlp.fc1": "fc1", "mlp.fc2": "fc2"},
        attention="attn",
        mlp="mlp",
        folds=(Fold("norm1", ("attn.qkv",), "attn"), Fold("norm2", ("mlp.fc1",), "mlp")),
    )
)
