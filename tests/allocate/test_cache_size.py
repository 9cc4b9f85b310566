"""Budgets as people write them; bytes of keys and values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modicum.allocate import kv_nbytes, parse_budget
from modicum.errors import InvalidSetting
from modicum.models.next_scale import AttentionShape, Schedule

MEGAPIXEL = Schedule.square((1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64))
INFINITY_8B, INFINITY_2B = AttentionShape(40, 28, 128), AttentionShape(32, 16, 128)
MIB = 2**20
PUBLISHED = (torch.float32, torch.bfloat16)  # keys, values


def var(depth: int) -> AttentionShape:
    return AttentionShape(depth, depth, 64)


@pytest.mark.parametrize(
    ("shape", "tokens", "rows", "mebibytes"),
    [
        (INFINITY_8B, 6425, 16, 84328.125),
        (INFINITY_8B, 1300, 16, 17062.5),
        (INFINITY_8B, 650, 16, 8531.25),
        (INFINITY_8B, 265, 16, 3478.125),
        (INFINITY_8B, 10521, 16, 138088.125),
        (INFINITY_8B, 6425, 2, 10541.015625),
        (INFINITY_2B, 6425, 16, 38550),
        (INFINITY_2B, 1300, 16, 7800),
        (INFINITY_2B, 650, 16, 3900),
        (INFINITY_2B, 265, 16, 1590),
        (INFINITY_2B, 6425, 2, 4818.75),
        (INFINITY_2B, 10521, 2, 7890.75),
        (var(16), 680, 2, 127.5),
        (var(16), 424, 2, 79.5),
        (var(30), 680, 2, 448.2421875),
        (var(30), 424, 2, 279.4921875),
        (var(36), 2240, 2, 2126.25),
        (var(36), 1216, 2, 1154.25),
    ],
)
def test_published_bytes(shape: AttentionShape, tokens: int, rows: int, mebibytes: float) -> None:
    assert kv_nbytes(tokens, shape, rows, *PUBLISHED) / MIB == mebibytes


@pytest.mark.parametrize(("shape", "nbytes"), [(INFINITY_2B, 393216), (INFINITY_8B, 860160)])
def test_published_bytes_per_token(shape: AttentionShape, nbytes: int) -> None:
    assert kv_nbytes(1, shape, 1, *PUBLISHED) == nbytes
    assert kv_nbytes(1, shape, 1, torch.bfloat16, torch.bfloat16) == nbytes * 2 / 3


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("100%", 6425),
        ("10%", 642),
        ("0.5%", 32),
        (" 650 ", 650),
        ("6425", 6425),
        ("8531.25MiB", 650),
        ("8531MiB", 649),
        ("8GB", 8_000_000_000 // 13_762_560),
        ("8 GiB", 8 * 2**30 // 13_762_560),
        ("220200960B", 16),
        ("0.3TB", None),
    ],
)
def test_budgets_in_tokens(text: str, tokens: int | None) -> None:
    budget = parse_budget(text)
    if tokens is None:
        with pytest.raises(InvalidSetting, match="more than the 6425 tokens"):
            budget.tokens(MEGAPIXEL, INFINITY_8B, 16, *PUBLISHED)
    else:
        assert budget.tokens(MEGAPIXEL, INFINITY_8B, 16, *PUBLISHED, window=16) == tokens


@given(st.integers(1, 6425), st.integers(1, 64))
def test_bytes_buy_exactly_the_tokens_they_pay_for(tokens: int, rows: int) -> None:
    nbytes = kv_nbytes(tokens, INFINITY_2B, rows, *PUBLISHED)
    for extra in (0, 1):
        bought = parse_budget(f"{nbytes + extra}B").tokens(MEGAPIXEL, INFINITY_2B, rows, *PUBLISHED)
        assert bought == tokens
    if tokens > 1:
        assert parse_budget(f"{nbytes - 1}B").tokens(MEGAPIXEL, INFINITY_2B, rows, *PUBLISHED) == tokens - 1


NONSENSE = [
    "",
    "%",
    "ten",
    "-5",
    "1e3",
    "650.5",
    "10 %%",
    "5XB",
    "5ib",
    "5b",
    "5GIB",
    "5kiB",
    "nan",
    "inf",
    "٣",
]


@pytest.mark.parametrize("text", [*NONSENSE, "9" * 5000])
def test_nonsense(text: str) -> None:
    with pytest.raises(InvalidSetting, match="is not a cache budget"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["0", "0%", "0.0GB", "101%", "100.1%"])
def test_impossible(text: str) -> None:
    with pytest.raises(InvalidSetting, match="is not possible"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.1%", r"0.1% \(6 tokens per layer\) is below the window of 16"),
        ("15", "budget of 15 is below the window of 16"),
        ("1kB", r"1kB \(0 tokens per layer\) is below"),
        ("6426", "6426 is more than the 6425 tokens"),
    ],
)
def test_budgets_that_do_not_fit_the_model(text: str, message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        parse_budget(text).tokens(MEGAPIXEL, INFINITY_8B, 16, *PUBLISHED, window=16)
