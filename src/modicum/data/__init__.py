"""Text sources and the token windows made of them."""

from modicum.data.text import Document, Split, load_text, standard_library
from modicum.data.windows import contiguous_windows, token_stream, windows

__all__ = [
    "Document",
    "Split",
    "contiguous_windows",
    "load_text",
    "standard_library",
    "token_stream",
    "windows",
]
