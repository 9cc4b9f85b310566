"""Work on a matrix a few rows at a time, so that its temporaries stay small.

A float32 copy of a 16-bit matrix is twice as large as the matrix, and an expression makes several of them. Where the
rows do not depend on each other, a block of rows that fits into the cache gives the same numbers for a fixed amount
of memory, and usually sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import Tensor

CHUNK_BYTES = 2 << 20
"""Of one temporary: large beside the cost of an operation, small beside a matrix, and about the size of a cache."""


def row_chunks(rows: int, row_bytes: int) -> Iterator[slice]:
    """Slices that cover `rows` rows, each of at most `CHUNK_BYTES` bytes but at least one row.

    Args:
        rows: how many there are.
        row_bytes: bytes of one row of the largest temporary.
    """
    step = max(1, CHUNK_BYTES // max(row_bytes, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def by_rows(work: Callable[..., Tensor], *matrices: Tensor | None, row_bytes: int) -> Tensor:
    """`work(*matrices)`, computed for some rows of all matrices at a time.

    Args:
        work: gives one row per row of its arguments, each from that row alone.
        matrices: [rows, ...] each; None is passed on.
        row_bytes: bytes of one row of the largest temporary.
    """
    rows = next(len(matrix) for matrix in matrices if matrix is not None)
    result: Tensor | None = None
    for chunk in row_chunks(rows, row_bytes):
        part = work(*(None if matrix is None else matrix[chunk] for matrix in matrices))
        if len(part) == rows:
            return part
        if result is None:
            result = part.new_empty(rows, *part.shape[1:])
        result[chunk] = part
    return work(*matrices) if result is None else result


def chunked_bytes(entries: int) -> int:
    """Bytes that a row-wise expression over `entries` numbers holds at once: eight temporaries of a chunk."""
    return 8 * min(CHUNK_BYTES, 4 * entries)
