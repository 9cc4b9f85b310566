"""Groups of blocks: their candidates, their spans, what a setting may say."""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from modicum.errors import InvalidSetting
from modicum.models.depth import GroupSetting, as_groups, candidates, last_of_groups, spans

PATTERN = st.integers(1, 6).flatmap(lambda of: st.tuples(st.integers(1, of), st.just(of)))


class Setting(BaseModel):
    groups: GroupSetting


@given(PATTERN)
def test_candidates_are_all_choices_in_lexicographic_order(pattern: tuple[int, int]) -> None:
    keep, of = pattern
    rows = candidates(keep, of)
    assert rows.shape == (comb(of, keep), of)
    kept = [tuple(row.nonzero().flatten().tolist()) for row in rows]
    assert kept == list(combinations(range(of), keep))
    assert set(rows.unique().tolist()) <= {0.0, 1.0}


@given(st.lists(PATTERN, min_size=1, max_size=5))
def test_spans_cover_the_stack_once(groups: list[tuple[int, int]]) -> None:
    covered = [block for span in spans(tuple(groups)) for block in span]
    assert covered == list(range(sum(of for _, of in groups)))


@given(st.lists(PATTERN, min_size=1, max_size=5), st.randoms())
def test_pairs_are_the_last_of_each_group(groups: list[tuple[int, int]], random: Any) -> None:
    kept, expected = [], []
    for span, (keep, _) in zip(spans(tuple(groups)), groups, strict=True):
        kept += sorted(random.sample(list(span), keep))
        expected.append((len(kept) - 1, span[-1]))
    assert last_of_groups(kept, tuple(groups)) == expected


def test_published_pairs() -> None:
    halves = as_groups("1:2", 28)
    assert last_of_groups(list(range(0, 28, 2)), halves) == [(i, 2 * i + 1) for i in range(14)]
    d19 = ((3, 4), (3, 4), (2, 4), (3, 4), (2, 4), (3, 4), (3, 4))
    kept = [block for span, (keep, _) in zip(spans(d19), d19, strict=True) for block in list(span)[:keep]]
    students, teachers = zip(*last_of_groups(kept, d19), strict=True)
    assert students == (2, 5, 7, 10, 12, 15, 18)
    assert teachers == (3, 7, 11, 15, 19, 23, 27)


@pytest.mark.parametrize(
    ("given", "depth", "expected"),
    [
        ("1:2", 4, ((1, 2), (1, 2))),
        ("2:4", 4, ((2, 4),)),
        ([[3, 4], [1, 2]], 6, ((3, 4), (1, 2))),
        (["1:2", "2:3", "3:4"], 9, ((1, 2), (2, 3), (3, 4))),
        ("1:2, 2:3", 5, ((1, 2), (2, 3))),
    ],
)
def test_settings_in_words_and_numbers(given: Any, depth: int, expected: Any) -> None:
    setting = Setting(groups=given).groups
    assert as_groups(setting, depth) == expected
    assert Setting(groups=Setting(groups=given).model_dump(mode="json")["groups"]).groups == setting


@pytest.mark.parametrize(
    "wrong", ["3:2", "0:2", "1:2:3", "half", [], [[1, 2], [4, 3]], 7, ["1:2", "x"], [[1]]]
)
def test_what_is_no_pattern_is_refused(wrong: Any) -> None:
    with pytest.raises(ValidationError, match=r"N:M|N must lie|give a pattern"):
        Setting(groups=wrong)


@pytest.mark.parametrize(("setting", "depth"), [("1:2", 5), ("2:4", 6), (((3, 4),) * 7, 14)])
def test_groups_must_add_up_to_the_depth(setting: Any, depth: int) -> None:
    with pytest.raises(InvalidSetting, match=f"cover .* blocks; the model has {depth}"):
        as_groups(setting, depth)


def test_candidates_are_plain_numbers() -> None:
    assert candidates(1, 2).dtype == torch.float32
