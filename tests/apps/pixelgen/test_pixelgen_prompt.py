from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modicum.apps.pixelgen.prompt import SensorTokens, rewritten, sentence, tokens
from modicum.apps.pixelgen.readings import Readings

value = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))


@given(st.builds(Readings, value, value, value, value, value, value))
def test_every_reading_has_tokens_and_a_sentence(readings: Readings) -> None:
    found = tokens(readings)
    assert len(found) == len(SensorTokens.sizes) == len(SensorTokens.names)
    for name, token, size in zip(SensorTokens.names, found, SensorTokens.sizes, strict=True):
        known = getattr(readings, name)
        assert 0 <= token < size
        assert (token == 0) == (known is None or math.isnan(known))
    assert sentence(readings).startswith("A photograph")


def test_nothing_is_known() -> None:
    assert tokens(Readings()) == [0, 0, 0, 0, 0]
    assert sentence(Readings()) == "A photograph"
    assert tokens(Readings(pressure=101_325.0)) == [0] * 5


@pytest.mark.parametrize(
    ("name", "position", "edges"),
    [
        ("temperature", 0, (0, 15, 26, 33)),
        ("lux", 2, (10, 400, 2000)),
    ],
)
def test_bins_begin_at_their_edges(name: str, position: int, edges: tuple[float, ...]) -> None:
    for index, edge in enumerate(edges):
        below, at = (tokens(Readings(**{name: v}))[position] for v in (math.nextafter(edge, -1), edge))
        assert (below, at) == (index + 1, index + 2)


@given(st.sampled_from(SensorTokens.scales), st.floats(-100, 1e5), st.floats(-100, 1e5))
def test_tokens_grow_with_the_reading(scale: object, a: float, b: float) -> None:
    name = scale.reading  # type: ignore[attr-defined]
    low, high = sorted((a, b))
    assert sum(tokens(Readings(**{name: low}))) <= sum(tokens(Readings(**{name: high})))


@pytest.mark.parametrize(
    ("readings", "said"),
    [
        (
            Readings(35.0, 20.0, None, 5000.0, 80.0, 3000.0),
            "A photograph in daylight, hot and dry air, loud sound of high pitch",
        ),
        (Readings(-5.0, lux=1.0), "A photograph at night, freezing air"),
        (Readings(20.0, 70.0, lux=100.0), "A photograph in dim indoor light, mild and humid air"),
        (Readings(30.0, lux=1999.0, level=0.0, frequency=0.0), "A photograph under an overcast sky, warm air, silence"),
        (Readings(10.0, 90.0, level=40.0), "A photograph, cold and damp air, quiet sound"),
        (Readings(frequency=100.0, level=60.0), "A photograph, lively sound of low pitch"),
    ],
)  # fmt: skip
def test_sentences(readings: Readings, said: str) -> None:
    assert sentence(readings) == said


def test_a_local_model_goes_on_from_the_sentence() -> None:
    said = sentence(Readings(20.0))
    written = rewritten(said, "nano-lm")
    assert written.startswith(said)
    assert len(written) > len(said) + 30
