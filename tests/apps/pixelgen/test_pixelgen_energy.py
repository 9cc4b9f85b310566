from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modicum.apps.pixelgen.energy import RGB_CAMERAS, EnergyModel, RgbCamera

MODEL = EnergyModel()


@pytest.mark.parametrize(("phy", "transmit", "total"), [("1M", 2088e-6, 2468e-6), ("2M", 1048e-6, 1392e-6)])
def test_air_times_of_a_full_packet(phy: str, transmit: float, total: float) -> None:
    air = EnergyModel(phy=phy).air(244)
    assert air.packets == 1
    assert air.transmit == pytest.approx(transmit, abs=1e-12)
    assert air.total == pytest.approx(total, abs=1e-12)
    frame = EnergyModel(phy=phy).air(79_056)
    assert frame.packets == 324
    assert frame.total == pytest.approx(324 * total, abs=1e-9)
    assert round(frame.total, 3) == {"1M": 0.800, "2M": 0.451}[phy]


@given(
    nbytes=st.integers(1, 10**6),
    period=st.floats(100, 1e5),
    volts=st.floats(1, 5),
    send=st.floats(1e-4, 1e-1),
    hear=st.floats(1e-4, 1e-1),
    listen=st.floats(0, 2),
)
def test_the_closed_form(
    nbytes: int, period: float, volts: float, send: float, hear: float, listen: float
) -> None:
    model = EnergyModel(voltage=volts, transmit_current=send, receive_current=hear, microphone_seconds=listen)
    full, rest = divmod(nbytes, 244)
    t_tx = full * 2088e-6 + (8e-6 * (17 + rest) if rest else 0)
    t_ack = 80e-6 * (full + bool(rest))
    t_active = 0.2 + t_tx + t_ack + 300e-6 * (full + bool(rest))
    p_mcu = volts * 6e-12 * 96e6
    e_sense = volts * (3.6e-6 + 120e-6 * 0.136 + 0.6e-3 * listen)
    expected = (
        2e-3 * 0.2 + p_mcu * 0.2 + e_sense + volts * send * t_tx + volts * hear * t_ack
        + volts * 18e-6 * (period - t_active)
    )  # fmt: skip
    found = model.frame(nbytes, period)
    assert found.total == pytest.approx(expected, rel=1e-9)
    assert found.basis == "model"
    assert found.day == pytest.approx(expected * 86_400 / period, rel=1e-9)


@given(st.integers(1, 10**6), st.integers(1, 10**4), st.sampled_from([(244, 0), (236, 8), (228, 16)]))
def test_more_bytes_cost_more(nbytes: int, more: int, packet: tuple[int, int]) -> None:
    payload, overhead = packet
    less = MODEL.frame(nbytes, 1e4, payload, overhead)
    assert MODEL.frame(nbytes + more, 1e4, payload, overhead).total > less.total
    assert less.packets == -(-nbytes // payload)


def test_the_figures_of_the_defaults() -> None:
    frame = MODEL.frame(79_056)
    assert frame.transmit == pytest.approx(6.7e-3, abs=0.05e-3)
    assert frame.transmit / (8 * 79_056) == pytest.approx(10.6e-9, abs=0.05e-9)
    assert frame.camera == pytest.approx(0.4e-3)
    assert frame.processor == pytest.approx(0.4e-3, abs=0.03e-3)
    assert frame.camera + frame.processor + frame.transmit == pytest.approx(7.5e-3, abs=0.05e-3)
    assert MODEL.frame(19_764).transmit == pytest.approx(1.7e-3, abs=0.05e-3)
    assert frame.period == 12.0


def test_colour_cameras_cost_several_times_as_much() -> None:
    mono = MODEL.frame(79_056)
    for camera, sensor in zip(RGB_CAMERAS, (4e-3, 8.33e-3), strict=True):
        colour = MODEL.rgb_frame(camera)
        assert colour.packets == 2519
        assert colour.air_seconds == pytest.approx(6.2, abs=0.05)
        assert colour.transmit == pytest.approx(52e-3, abs=0.1e-3)
        assert colour.camera == pytest.approx(sensor, rel=1e-3)
        assert 6 < colour.total / mono.total < 9
    small = RgbCamera(name="x", watts=0.06, frames_per_second=15, nbytes=79_056, source="none")
    assert MODEL.rgb_frame(small).transmit == mono.transmit


def test_a_cell_lasts_longer_the_rarer_the_frames() -> None:
    days = [MODEL.cell_days(MODEL.frame(79_056, period)) for period in (2, 12, 60, 3600)]
    assert days == sorted(days)
    sleep = 810 * 3.0 / (3.3 * 18e-6 * 86_400)
    assert MODEL.cell_days(MODEL.frame(79_056, 1e9)) == pytest.approx(sleep, rel=1e-3)


def test_a_frame_takes_as_long_as_it_takes() -> None:
    busy = MODEL.frame(79_056, period=0.0)
    assert busy.period == pytest.approx(0.2 + 324 * 2468e-6)
    assert busy.sleep == pytest.approx(0, abs=1e-15)


def test_every_constant_has_a_value_a_unit_and_a_source() -> None:
    constants = MODEL.constants()
    assert {name for name, *_ in constants} == set(EnergyModel.model_fields) - {"phy"}
    for name, value, unit, source in constants:
        assert isinstance(value, float)
        assert value == getattr(MODEL, name)
        assert unit
        assert len(source) > 10
    assert EnergyModel(sleep_current=1e-6).frame(79_056).total < MODEL.frame(79_056).total
    for wrong in ({"voltage": -1}, {"volts": 3}, {"phy": "3M"}):
        with pytest.raises(ValidationError):
            EnergyModel(**wrong)  # type: ignore[arg-type]
