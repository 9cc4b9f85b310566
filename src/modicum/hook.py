"""Register modicum's quantizer with transformers as soon as transformers is there, without importing it.

`import modicum` must be enough for `from_pretrained` to open a modicum checkpoint, and must not cost the seconds that
importing transformers takes. So the registration waits for the import of `transformers.quantizers.auto`, the module
that holds the table of quantizers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

WATCHED = "transformers.quantizers.auto"
QUANTIZER = "modicum.formats.native"


def install() -> None:
    """Register now if transformers' table is loaded, else when it is."""
    if WATCHED in sys.modules:
        import_module(QUANTIZER)
    elif not any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watcher())


class _Watcher(MetaPathFinder):
    """Finds the watched module as usual, and has the quantizer registered behind its import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader)
        return spec


class _Registering(Loader):
    """Loads a module with its own loader and then imports the quantizer."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        import_module(QUANTIZER)
