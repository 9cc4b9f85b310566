"""The compiled loops of `native.py`, if Numba is there."""

from __future__ import annotations

from types import ModuleType

from modicum.errors import MissingExtra


def compiled() -> ModuleType:
    """The module `native`, compiled at the first call and read from Numba's cache later.

    Raises:
        MissingExtra: Numba is not installed.
    """
    try:
        from modicum.kernels.huffman import native
    except ModuleNotFoundError as error:
        if error.name not in ("numba", "llvmlite"):
            raise
        raise MissingExtra.of("numba", "lossless", "Lossless compression") from error
    return native
