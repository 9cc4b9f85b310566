from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.data import contiguous_windows, token_stream, windows
from modicum.errors import InvalidSetting, UnusableData


class Characters:
    """A tokenizer whose tokens are the characters' code points; remembers how many it has read."""

    def __init__(self, eos: int | None = 0, bos: int | None = None) -> None:
        self.eos_token_id, self.bos_token_id, self.read = eos, bos, 0

    def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
        assert options["add_special_tokens"] is False
        self.read += len(text)
        return {"input_ids": [ord(character) for character in text]}


def distinct(length: int, start: int = 1000) -> str:
    """A text in which no character occurs twice."""
    return "".join(chr(start + offset) for offset in range(length))


def test_stream_joins_documents_with_the_end_token() -> None:
    assert token_stream(["ab", "c"], Characters(eos=7)).tolist() == [97, 98, 7, 99]
    assert token_stream(["ab", "c"], Characters(eos=None, bos=8)).tolist() == [97, 98, 8, 99]
    assert token_stream(["ab", "c"], Characters(eos=None)).tolist() == [97, 98, 10, 10, 99]


def test_stream_stops_reading_at_the_limit() -> None:
    tokenizer = Characters()
    stream = token_stream(["x" * 1_000_000] * 3, tokenizer, limit=100)
    assert stream.shape == (100,)
    assert stream.dtype == torch.long
    assert tokenizer.read < 100_000


def test_limited_stream_is_a_prefix_of_the_whole() -> None:
    texts = [distinct(300), distinct(200, 5000)]
    assert torch.equal(token_stream(texts, Characters(), 350), token_stream(texts, Characters())[:350])


@pytest.mark.parametrize("texts", [[], [""], ["x"]])
def test_stream_too_short(texts: list[str]) -> None:
    with pytest.raises(UnusableData):
        token_stream(texts, Characters())


@given(n=st.integers(2, 200), length=st.integers(2, 50))
@settings(max_examples=30, deadline=None)
def test_contiguous_windows_keep_the_tail(n: int, length: int) -> None:
    parts = contiguous_windows(torch.arange(n), length)
    assert all(part.numel() == length for part in parts[:-1])
    assert n - sum(part.numel() for part in parts) == (1 if n % length == 1 else 0)
    assert torch.equal(torch.cat(parts), torch.arange(n)[: sum(part.numel() for part in parts)])


@given(seed=st.integers(0, 2**32), length=st.integers(1, 40), count=st.integers(1, 10))
@settings(max_examples=40, deadline=None)
def test_windows_share_no_token_while_there_is_enough(seed: int, length: int, count: int) -> None:
    texts = [distinct(450, 1000), distinct(37, 3000), distinct(13, 4000)]
    drawn = windows(texts, Characters(), length, count, seed)
    assert drawn.shape == (count, length)
    assert drawn.dtype == torch.long
    ids = drawn[drawn != 0]  # 0 stands between documents
    assert ids.unique().numel() == ids.numel()


def test_windows_follow_the_seed() -> None:
    texts = [distinct(5000)]
    first = windows(texts, Characters(), 16, 4, seed=1)
    assert torch.equal(first, windows(texts, Characters(), 16, 4, seed=1))
    assert not torch.equal(first, windows(texts, Characters(), 16, 4, seed=2))


def test_windows_read_no_more_than_they_need() -> None:
    tokenizer = Characters()
    windows(["x" * 1_000_000] * 3, tokenizer, length=32, count=8, seed=0)
    assert tokenizer.read <= 8 * 8 * 32


def test_windows_of_short_documents_are_joined() -> None:
    drawn = windows(["ab", "cd", "ef"], Characters(eos=0), length=8, count=1, seed=0)
    assert (drawn == 0).sum() == 2
    assert {chr(token) for token in drawn[0].tolist() if token} == set("abcdef")


def test_windows_overlap_only_when_the_text_is_used_up() -> None:
    drawn = windows([distinct(20)], Characters(), length=10, count=5, seed=0)
    assert drawn[:2].flatten().unique().numel() == 20
    assert all((row.diff() == 1).all() for row in drawn)


def test_text_shorter_than_a_window() -> None:
    with pytest.raises(UnusableData, match=r"5 tokens, fewer than one window of 6"):
        windows(["abcde"], Characters(), length=6, count=1, seed=0)
    with pytest.raises(UnusableData, match="0 tokens"):
        windows([], Characters(), length=6, count=1, seed=0)


@pytest.mark.parametrize(("length", "count"), [(0, 1), (1, 0), (-3, 2)])
def test_no_windows_are_refused(length: int, count: int) -> None:
    with pytest.raises(InvalidSetting):
        windows(["abc"], Characters(), length, count, seed=0)


def test_windows_and_streams_of_one_token_are_refused() -> None:
    with pytest.raises(InvalidSetting):
        contiguous_windows(torch.arange(4), 1)
    with pytest.raises(InvalidSetting):
        token_stream(["abc"], Characters(), limit=1)
