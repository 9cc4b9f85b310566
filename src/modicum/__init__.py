"""modicum: make trained models smaller, faster and cheaper to run, and say honestly what that cost.

    import modicum

    model = modicum.load("out")                                     # what modicum wrote, in its compressed form
    model = modicum.compress(model, recipe, data=windows)           # in memory
    modicum.save(model, "small")                                    # whatever its layers have become
    result = modicum.compress("nano-lm", recipe, out="out")         # on disk, block by block, resumable
    comparison = modicum.compare("nano-lm", "out")                  # quality, bytes, memory, speed
    comparison, images = modicum.compare_kv("nano-var", ["scalekv"], ["10%"])       # cache policies, the same images

Importing this package also lets `transformers.AutoModel….from_pretrained` open what modicum wrote. It loads neither
torch nor transformers: names are resolved when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from modicum import hook
from modicum.version import __version__

if TYPE_CHECKING:
    from modicum.api import compare, compress, load, save
    from modicum.api.images import compare_kv
    from modicum.api.policies import fit_policy, saved_policies
    from modicum.errors import ModicumError
    from modicum.pipeline.recipe import Recipe

__all__ = [
    "ModicumError",
    "Recipe",
    "__version__",
    "compare",
    "compare_kv",
    "compress",
    "fit_policy",
    "load",
    "save",
    "saved_policies",
]

_HOMES = {
    "ModicumError": "modicum.errors",
    "Recipe": "modicum.pipeline.recipe",
    "compare": "modicum.api",
    "compare_kv": "modicum.api.images",
    "compress": "modicum.api",
    "fit_policy": "modicum.api.policies",
    "load": "modicum.api",
    "save": "modicum.api",
    "saved_policies": "modicum.api.policies",
}

hook.install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'modicum' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
