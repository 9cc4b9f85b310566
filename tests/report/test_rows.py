from __future__ import annotations

import pytest

from modicum.evaluate import Comparison, Measurements, Spread
from modicum.report import headline
from modicum.report.rows import comparison_rows


def between(before: dict[str, object], after: dict[str, object], **rest: object) -> Comparison:
    return Comparison(before=Measurements(**before), after=Measurements(**after), **rest)


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (
            {"disk_bytes": 100, "perplexity": 10.0},
            {"disk_bytes": 45, "perplexity": 10.8},
            "45 % of the bytes for 1.08\u00d7 the perplexity",
        ),
        (
            {"disk_bytes": 100, "perplexity": 10.0},
            {"disk_bytes": 70, "perplexity": 10.0},
            "70 % of the bytes for the same perplexity",
        ),
        (
            {"memory_bytes": 100, "perplexity": 10.0},
            {"memory_bytes": 45, "perplexity": 10.001},
            "45 % of the memory for 1.0001\u00d7 the perplexity",
        ),
        ({"disk_bytes": 100}, {"disk_bytes": 45, "perplexity": 9.0}, "45 % of the bytes"),
        ({"perplexity": 9.0}, {"perplexity": 9.0, "disk_bytes": 10}, "The same perplexity"),
        ({"perplexity": 9.0}, {}, "Nothing was measured"),
        ({}, {}, "Nothing was measured"),
    ],
)
def test_the_headline_uses_only_what_was_measured_on_both_sides(
    before: dict[str, object], after: dict[str, object], sentence: str
) -> None:
    assert headline(between(before, after)) == sentence


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [(Spread(1.2, 1.1, 1.3), "better"), (Spread(1.2, 0.9, 1.3), "same"), (Spread(0.8, 0.7, 0.9), "worse")],
)
def test_a_speed_changed_only_if_every_round_says_so(ratio: Spread, verdict: str) -> None:
    decode = next(
        row for row in comparison_rows(between({}, {}, decode_ratio=ratio)) if row.label == "Decode"
    )
    assert decode.verdict == verdict


@pytest.mark.parametrize(
    ("field", "label", "after", "verdict"),
    [
        ("perplexity", "Perplexity", 1010, "worse"),
        ("perplexity", "Perplexity", 1000, "same"),
        ("disk_bytes", "On disk", 990, "better"),
        ("peak_bytes", "Peak memory", 1015, "same"),  # below what a peak varies by
        ("peak_bytes", "Peak memory", 900, "better"),
    ],
)
def test_less_is_better(field: str, label: str, after: int, verdict: str) -> None:
    rows = comparison_rows(between({field: 1000}, {field: after}))
    assert next(row for row in rows if row.label == label).verdict == verdict


def test_nothing_is_compared_with_something_that_was_not_measured() -> None:
    for row in comparison_rows(between({"perplexity": 3.0}, {"disk_bytes": 5})):
        assert row.change.text == row.verdict == ""
