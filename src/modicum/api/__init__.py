"""The Python interface: load, compress, compare; draw under a cache policy and compare policies."""

from modicum.api.compression import RecipeLike, as_recipe, compress, plan, prepare
from modicum.api.language import compare, layer_records
from modicum.api.loading import load, save
from modicum.api.training import prepare_recovery, recover

__all__ = [
    "RecipeLike",
    "as_recipe",
    "compare",
    "compress",
    "layer_records",
    "load",
    "plan",
    "prepare",
    "prepare_recovery",
    "recover",
    "save",
]
