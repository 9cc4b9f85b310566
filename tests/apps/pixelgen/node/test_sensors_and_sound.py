from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modicum.apps.pixelgen.node.sensors import FromPicture, Scripted, from_table
from modicum.apps.pixelgen.node.sound import (
    BUFFER,
    Recording,
    array,
    mel_filters,
    read_wav,
    summary,
)
from modicum.apps.pixelgen.readings import Readings
from modicum.errors import UnusableData

LIGHT = np.full((4, 4), 0.25, np.float32)
RATE = 3989


def save(path: Path, samples: np.ndarray, rate: int = RATE, width: int = 2, channels: int = 1) -> Path:
    """Samples in steps of 16-bit sound as a WAV file."""
    wide = np.rint(samples * 2.0 ** (8 * width - 16)).astype("<i8")
    data = (wide + 128 if width == 1 else wide).astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data.tobytes())
    return path


def tone(bin_: float, rate: int = RATE, amplitude: float = 8000.0, count: int = BUFFER) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * bin_ * np.arange(count) / BUFFER)


def test_scripts_and_pictures() -> None:
    script = Scripted([Readings(1.0), Readings(2.0)])
    assert [script.read(LIGHT).temperature for _ in range(3)] == [1.0, 2.0, 1.0]
    assert FromPicture().read(LIGHT) == Readings(lux=5000.0)
    assert FromPicture(gain=40).read(LIGHT).lux == 10.0


def test_tables(tmp_path: Path) -> None:
    table = tmp_path / "sensor_data.csv"
    table.write_text("Temperature,Humidity,Pressure,Lux\n21.5,40,None,300\n-3,,101325,0\n")
    read = from_table(table)
    assert read.read(LIGHT) == Readings(21.5, 40.0, None, 300.0)
    assert read.read(LIGHT) == Readings(-3.0, None, 101_325.0, 0.0)
    table.write_text("Lux\n7\n")
    assert from_table(table).read(LIGHT) == Readings(lux=7.0)


@pytest.mark.parametrize(
    "content",
    [b"", b"Lux\n", b"a,b\n1,2\n", b"Lux\nbright\n", b"Lux\ninf\n", b"\xff\xfe\x00", b"Lux\n\x00\n"],
)
def test_tables_that_are_none(tmp_path: Path, content: bytes) -> None:
    table = tmp_path / "table.csv"
    table.write_bytes(content)
    with pytest.raises(UnusableData, match="table"):
        from_table(table)
    with pytest.raises(UnusableData):
        from_table(tmp_path / "none.csv")


@pytest.mark.parametrize("bin_", [1, 100, 451, 2047])
def test_the_loudest_tone(bin_: int) -> None:
    found = summary(tone(bin_) + tone(777, amplitude=2000), RATE)
    assert found.frequency == RATE * bin_ / 4096


def test_levels() -> None:
    assert summary(np.zeros(BUFFER), RATE).level == 0
    assert summary(np.zeros(BUFFER), RATE).mel.tolist() == [0] * 32
    square = 32_767.0 * np.sign(tone(16.5))
    assert summary(square, RATE).level == pytest.approx(90.3, abs=0.02)
    loud, quiet = (summary(tone(200, amplitude=a), RATE).level for a in (4000, 2000))
    assert loud - quiet == pytest.approx(6.02, abs=0.01)
    assert loud == pytest.approx(20 * np.log10(4000 / np.sqrt(2)), abs=0.01)


def test_mel_bands_follow_the_tone() -> None:
    filters = mel_filters(RATE)
    assert filters.shape == (32, 2048)
    assert filters.min() == 0
    inner = slice(*np.flatnonzero(filters.sum(0) > 0.999)[[0, -1]])
    assert np.allclose(filters[:, inner].sum(0), 1)  # neighbours overlap to one
    bins = filters.argmax(1)
    loudest = [int(summary(tone(int(b)), RATE).mel.argmax()) for b in bins[1:]]
    assert loudest == list(range(1, 32))
    at_peak = summary(tone(int(bins[20]), amplitude=1000), RATE)
    assert at_peak.mel[20] == pytest.approx(2 * at_peak.level, abs=1.5)  # in half decibels


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_files(tmp_path: Path, width: int, channels: int) -> None:
    samples = np.rint(tone(40) / 256) * 256
    path = save(tmp_path / "a.wav", np.repeat(samples, channels), 8000, width, channels)
    found, rate = read_wav(path)
    assert rate == 8000
    assert np.array_equal(found, samples)


def test_a_recording_goes_round(tmp_path: Path) -> None:
    heard = Recording(save(tmp_path / "short.wav", tone(64, count=1024)))
    assert [heard.read().frequency for _ in range(3)] == [RATE * 64 / 4096] * 3
    long = Recording(save(tmp_path / "long.wav", np.concatenate([tone(64), tone(128)])))
    assert [round(long.read().frequency * 4096 / RATE) for _ in range(3)] == [64, 128, 64]


def test_sound_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    wide = bytearray(save(tmp_path / "wide.wav", tone(1)).read_bytes())
    wide[34] = 64  # bits per sample
    (tmp_path / "wide.wav").write_bytes(wide)
    with pytest.raises(UnusableData, match="64 bits"):
        read_wav(tmp_path / "wide.wav")
    for path in (tmp_path / "none.wav", tmp_path / "text.wav", save(tmp_path / "empty.wav", np.zeros(0))):
        with pytest.raises(UnusableData):
            read_wav(path)


@given(
    cut=st.integers(0, 200), changes=st.lists(st.tuples(st.integers(0, 43), st.integers(0, 255)), max_size=6)
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_wav_files(tmp_path: Path, cut: int, changes: list[tuple[int, int]]) -> None:
    content = bytearray(save(tmp_path / "b.wav", tone(3, count=60)).read_bytes())
    for place, value in changes:
        content[place] = value
    (tmp_path / "b.wav").write_bytes(content[:cut])
    try:
        heard = Recording(tmp_path / "b.wav").read()
    except UnusableData:
        return
    assert np.isfinite(heard.level)
    assert len(heard.mel) == 32


def test_four_microphones_hear_the_direction() -> None:
    samples, rate, spacing = np.random.default_rng(0).standard_normal(4096), 48_000, 0.2
    ahead = array(samples, rate, 0.0, 0.0, spacing)
    assert np.allclose(ahead, samples)
    right = array(samples, rate, np.pi / 2, 0.0, spacing)
    assert np.allclose(right[0], right[2])
    delay = round(spacing / 343.0 * rate)  # samples by which the left pair is late
    product = np.fft.irfft(np.fft.rfft(right[0]) * np.conj(np.fft.rfft(right[1])))
    assert int(product.argmax()) == delay == 28
    above = array(samples, rate, 1.0, np.pi / 2, spacing)
    assert np.allclose(above[0], above[1])
    assert not np.allclose(above[0], above[2])
    assert np.allclose(np.linalg.norm(right, axis=1), np.linalg.norm(samples), rtol=1e-3)
