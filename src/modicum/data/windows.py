"""From texts to token ids: one long stream for evaluation, windows drawn by seed for calibration.

Thirty megabytes of text take a minute to tokenise and a calibration wants some thousands of tokens, so text
is tokenised in pieces, in the order in which the pieces are needed, and no further than needed. A piece ends
at the end of a line, where the tokenizers in use cut as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from modicum.data.text import pieces
from modicum.errors import InvalidSetting, UnusableData

STREAM_PIECE = 65536  # characters; long enough that a changed token at a cut does not show in a perplexity
WINDOW_PIECE = 8  # characters of a piece per token of a window: a piece holds one to three windows


def token_stream(texts: Sequence[str], tokenizer: Any, limit: int | None = None) -> Tensor:
    """Token ids of the texts one after another, as an evaluation of perplexity reads them.

    Args:
        texts: documents; between two of them stands the tokenizer's end (or begin) token, else two newlines.
        tokenizer: a transformers tokenizer.
        limit: stop at this many tokens; the text behind it is never tokenised.

    Returns:
        int64 ids, `[n]` with n <= limit.

    Raises:
        UnusableData: fewer than two tokens, which predict nothing.
    """
    if limit is not None and limit < 2:
        raise InvalidSetting(
            f"A stream of {limit} tokens predicts nothing.", "Give a limit of two tokens or more."
        )
    ids: list[int] = []
    joint = _joint(tokenizer)
    for text in texts:
        if ids:
            ids += joint
        for piece in pieces(text, STREAM_PIECE):
            if limit is not None and len(ids) >= limit:
                return torch.tensor(ids[:limit])
            ids += _encode(tokenizer, piece)
    if len(ids) < 2:
        raise UnusableData(f"The text has {len(ids)} tokens.", "Name a data source with more text.")
    return torch.tensor(ids[:limit])


def contiguous_windows(stream: Tensor, length: int) -> list[Tensor]:
    """Cut a stream into windows that do not overlap; the last one is shorter, none of the stream is lost.

    Args:
        stream: ids `[n]`.
        length: tokens per window.

    Returns:
        Windows `[length]`, the last `[n mod length]`; a tail of one token is left out, since it predicts
        nothing.
    """
    if length < 2:
        raise InvalidSetting(
            f"A window of {length} tokens predicts nothing.", "Give a length of two tokens or more."
        )
    return [window for window in stream.split(length) if window.numel() > 1]


def windows(texts: Sequence[str], tokenizer: Any, length: int, count: int, seed: int) -> Tensor:
    """Draw windows of tokens for a calibration; the same seed draws the same windows.

    Pieces of all documents are shuffled by the seed and tokenised in that order until there are enough
    windows. A window lies within one piece; what is left of the pieces is joined and cut as well, so short
    documents count. Windows share no token unless the text is too short for that; then the rest is drawn at
    random places.

    Args:
        texts: documents.
        tokenizer: a transformers tokenizer.
        length: tokens per window.
        count: number of windows.
        seed: of the draw.

    Returns:
        int64 ids, `[count, length]`.

    Raises:
        UnusableData: all the text together is shorter than one window.
    """
    if length < 1 or count < 1:
        raise InvalidSetting(f"{count} windows of {length} tokens are none.", "Give one or more of both.")
    generator = torch.Generator().manual_seed(seed)
    parts = [piece for text in texts for piece in pieces(text, WINDOW_PIECE * length)]
    order = torch.randperm(len(parts), generator=generator).tolist()
    drawn: list[Tensor] = []
    for window in _disjoint((parts[i] for i in order), tokenizer, length):
        drawn.append(window)
        if len(drawn) == count:
            return torch.stack(drawn)  # [count, length]
    stream = token_stream(texts, tokenizer) if parts else torch.empty(0, dtype=torch.long)
    if stream.numel() < length:
        raise UnusableData(
            f"The text has {stream.numel()} tokens, fewer than one window of {length}.",
            "Name a data source with more text, or shorten the windows.",
        )
    starts = torch.randint(stream.numel() - length + 1, (count - len(drawn),), generator=generator)
    drawn += [stream[start : start + length] for start in starts.tolist()]
    return torch.stack(drawn)  # [count, length]


def _disjoint(parts: Iterator[str], tokenizer: Any, length: int) -> Iterator[Tensor]:
    """Windows `[length]` that share no token: those within a piece, and those of the joined leftovers."""
    joint = _joint(tokenizer)
    leftover: list[int] = []
    for piece in parts:
        ids = _encode(tokenizer, piece)
        whole = len(ids) - len(ids) % length
        for start in range(0, whole, length):
            yield torch.tensor(ids[start : start + length])
        if whole == len(ids):
            continue
        leftover += (joint if leftover else []) + ids[whole:]
        if len(leftover) >= length:
            yield torch.tensor(leftover[:length])
            del leftover[:length]


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _joint(tokenizer: Any) -> list[int]:
    """What stands between two documents."""
    for token in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token is not None:
            return [token]
    return _encode(tokenizer, "\n\n")
