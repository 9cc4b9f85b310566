from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modicum.report.units import byte_size, number, percent, ratio, relative_change


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (12.345, "12.3"),
        (1234.5, "1,234"),
        (0.04321, "0.0432"),
        (3.2e-7, "3.20e-07"),
        (math.inf, "inf"),
    ],
)
def test_numbers_have_three_significant_digits(value: float, text: str) -> None:
    assert number(value) == text


@given(st.floats(1e-3, 1e9))
def test_a_number_is_what_it_stands_for_to_three_digits(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=0.006)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (9_318_800, "9.32 MB"), (2.5e12, "2,500 GB")],
)
def test_bytes_are_decimal(value: float, text: str) -> None:
    assert byte_size(value) == text


@given(st.floats(0, 2) | st.floats(0.999, 1.001))
def test_a_hundred_percent_is_said_of_nothing_else(share: float) -> None:
    assert (percent(share) == "100 %") == (share == 1)


@pytest.mark.parametrize(
    ("share", "text"), [(0.5, "50.0 %"), (0.99996, "99.996 %"), (1.0, "100 %"), (0.0, "0 %")]
)
def test_percents(share: float, text: str) -> None:
    assert percent(share) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.083, "1.08"), (1.0005, "1.0005"), (1.0, "1.00"), (0.031, "0.0310"), (250.0, "250")]
)
def test_factors_show_that_they_differ_from_one(value: float, text: str) -> None:
    assert ratio(value) == f"{text}\u00d7"


@pytest.mark.parametrize(
    ("after", "text"),
    [(45.0, "\u221255.0 %"), (108.0, "+8.0 %"), (100.0, "unchanged"), (100.004, "+0.004 %")],
)
def test_changes_carry_their_sign(after: float, text: str) -> None:
    assert relative_change(100.0, after) == text
