from __future__ import annotations

import os
import pty
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from modicum.apps.pixelgen.radio.serial_port import open_line
from modicum.apps.pixelgen.radio.serial_text import (
    BEGIN,
    END,
    READY,
    encode_frame,
    encode_readings,
    read_published,
    spun,
)
from modicum.apps.pixelgen.radio.text_reader import NOWHERE, TextFrame, TextReader, placed
from modicum.apps.pixelgen.readings import Readings
from modicum.errors import DeviceUnavailable, InvalidSetting

Frame = NDArray[np.uint8]
LINES = 4941
SAID = Readings(21.53, 40.25, 101_325.0, 310.0)


@pytest.fixture(scope="module")
def text(frame: Frame) -> bytes:
    return encode_frame(frame)


def _frames(text: bytes, spin: int = 1) -> list[TextFrame]:
    return [event for event in TextReader(spin).feed(text) if isinstance(event, TextFrame)]


def test_the_text_of_a_frame(frame: Frame, text: bytes) -> None:
    assert len(text) == 296_488
    lines = text.split(b"\n")
    assert (lines[0], lines[-2], lines[-1]) == (b"+++ frame +++", b"--- frame ---", b"")
    values = frame.reshape(-1)
    for index in (0, 1, 333, LINES - 1):
        expected = f"0x{16 * index:08X} " + "".join(f"{v:02X} " for v in values[16 * index : 16 * index + 16])
        assert lines[1 + index].decode() == expected


def test_the_text_of_readings() -> None:
    assert encode_readings(SAID) == b"Temperature = 21.53\nHumidity = 40.25\nPressure = 101325\nLux = 310\n"
    assert encode_readings(Readings(lux=5)) == b"Lux = 5\n"
    assert READY == b"\x55"


def test_round_trip_is_bit_exact_and_mirrored(frame: Frame, text: bytes) -> None:
    (found,) = _frames(text)
    assert found.pixels.shape == (244, 324)
    assert np.array_equal(found.pixels, np.fliplr(frame))
    assert found.mask.all()
    assert (found.repaired, found.characters) == (0, 296_488)
    assert np.array_equal(read_published(text), np.fliplr(frame))


@pytest.mark.parametrize("spin", range(4))
def test_spins_as_published(frame: Frame, text: bytes, spin: int) -> None:
    index = np.arange(frame.size)
    u, v = [
        (index % 324, index // 324),
        (index // 324, 323 - index % 324),
        (323 - index % 324, 243 - index // 324),
        (243 - index // 324, index % 324),
    ][spin]
    expected = np.zeros((324, 244) if spin % 2 == 0 else (244, 324), np.uint8)
    expected[u, v] = frame.reshape(-1)
    assert np.array_equal(_frames(text, spin)[0].pixels, expected)
    assert np.array_equal(read_published(text, spin), expected)
    with pytest.raises(InvalidSetting):
        spun(frame, 4)


def test_in_pieces_of_any_size(frame: Frame, text: bytes) -> None:
    stream, reader, found = READY + text + encode_readings(SAID), TextReader(), []
    cuts = np.sort(np.random.default_rng(1).integers(0, len(stream), 300))
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[start:end])
    assert len(found) == 2
    assert np.array_equal(found[0].pixels, np.fliplr(frame))
    assert found[1] == reader.readings == SAID
    assert reader.ready


def test_firmware_without_pressure() -> None:
    assert TextReader().feed(b"Temperature = 21.53\r\nHumidity = 40.25\nLux = 7\n") == [
        Readings(21.53, 40.25, None, 7.0)
    ]


Damage = Callable[[list[bytes]], None]


def _lose(lines: list[bytes]) -> None:
    del lines[101]


def _garble_address(lines: list[bytes]) -> None:
    lines[101] = b"0x0000q640" + lines[101][10:]


def _wrong_address(lines: list[bytes]) -> None:
    lines[101] = b"0x0000F000" + lines[101][10:]


def _odd_address(lines: list[bytes]) -> None:
    lines[101] = b"0x00000641" + lines[101][10:]


def _garble_value(lines: list[bytes]) -> None:
    lines[101] = lines[101][:20] + b"\xff" + lines[101][21:]


def _shorten(lines: list[bytes]) -> None:
    lines[101] = lines[101][:-3]


def _merge(lines: list[bytes]) -> None:
    lines[101] += lines.pop(102)


def _interrupt(lines: list[bytes]) -> None:
    lines.insert(102, b"camera: U are late")


# damage of the line of 16 pixels with index 100: lines that stay unknown, lines that are placed nevertheless
CASES: dict[str, tuple[Damage, int, int]] = {
    "a lost line": (_lose, 1, 0),
    "an address that is none": (_garble_address, 0, 1),
    "the address of another line": (_wrong_address, 0, 1),
    "an address between two lines": (_odd_address, 0, 1),
    "a value that is none": (_garble_value, 1, 0),
    "a value too few": (_shorten, 1, 0),
    "a lost end of line": (_merge, 2, 0),
    "a line that is no line": (_interrupt, 0, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_damaged_lines_stay_where_they_are(frame: Frame, text: bytes, case: str) -> None:
    damage, unknown, repaired = CASES[case]
    lines = text.split(b"\n")
    damage(lines)
    (found,) = _frames(b"\n".join(lines))
    assert (~found.mask).sum() == 16 * unknown
    assert found.repaired == repaired
    assert np.array_equal(found.pixels[found.mask], np.fliplr(frame)[found.mask])


def test_what_a_lost_line_does_to_the_published_reader(frame: Frame, text: bytes) -> None:
    lines = text.split(b"\n")
    _lose(lines)
    shifted = np.fliplr(read_published(b"\n".join(lines))).reshape(-1)
    flat = frame.reshape(-1)
    assert np.array_equal(shifted[:1600], flat[:1600])
    assert np.array_equal(shifted[1600:-16], flat[1616:])
    assert not shifted[-16:].any()
    assert read_published(BEGIN + b"\n0x0 1FF\n" + END)[0, 323] == 255
    with pytest.raises(InvalidSetting, match="TextReader"):
        read_published(BEGIN + b"\n0x0 zz\n" + END)


def test_frames_without_end_or_beginning(frame: Frame, text: bytes) -> None:
    endless, headless = text[: -len(END) - 1], text[len(BEGIN) + 1 :]
    assert [f.mask.all() for f in _frames(endless + text)] == [True, True]
    assert [f.mask.all() for f in _frames(endless + headless)] == [True, True]  # address 0 begins a new one
    assert [f.mask.all() for f in _frames(headless)] == [True]
    (late,) = _frames(text[100_000:])  # as heard by who comes in the middle
    assert 0.6 < late.mask.mean() < 0.7
    assert np.array_equal(late.pixels[late.mask], np.fliplr(frame)[late.mask])
    lines = (endless + headless).split(b"\n")
    del lines[LINES + 1]  # now neither markers nor address 0 part them: the newer frame is kept alone
    (found,) = _frames(b"\n".join(lines))
    assert (~found.mask).sum() == 16
    assert np.array_equal(found.pixels[found.mask], np.fliplr(frame)[found.mask])


def test_frames_in_which_nothing_is_known() -> None:
    assert _frames(BEGIN + b"\n" + END + b"\n" + BEGIN + b"\nU U U\n" + END + b"\n") == []


@given(st.lists(st.integers(0, LINES - 1), min_size=2, max_size=60, unique=True).map(sorted))
def test_placing_lines_that_are_left_over(left: list[int]) -> None:
    claims = np.array(left)
    assert np.array_equal(placed(claims), claims)


@given(st.integers(4, 200), st.data())
def test_placing_a_line_between_two_pairs(count: int, data: st.DataObject) -> None:
    place = data.draw(st.integers(2, count - 2))
    claims = np.arange(count + 1)
    claims[place] = data.draw(st.one_of(st.just(NOWHERE), st.integers(0, LINES - 1)))
    assert np.array_equal(placed(claims), np.arange(count + 1))


pieces = st.lists(
    st.one_of(
        st.binary(max_size=80),
        st.sampled_from(
            [BEGIN + b"\n", END + b"\n", b"Lux = 3\n", b"Lux = 1e999\n", b"Temperature = -\n", b"\n"]
        ),
        st.integers(0, 2**32 - 1).map(lambda a: b"0x%08X " % a + b"AB " * 16 + b"\n"),
        st.sampled_from([b"0x00000000 " + b"00 " * 15, b"U" * 700]),
    ),
    max_size=40,
)


SHORT = b"\n".join([*encode_frame(np.zeros((244, 324), np.uint8)).split(b"\n")[:3], END, b""])


@given(pieces)
@settings(max_examples=150)
def test_no_text_breaks_the_reader(stream: list[bytes]) -> None:
    reader = TextReader()
    for piece in stream:
        for event in reader.feed(piece):
            if isinstance(event, TextFrame):
                assert event.mask.any()
                assert event.pixels.shape == (244, 324)
    (whole,) = reader.feed(b"\n" + END + b"\n" + SHORT)[-1:]
    assert isinstance(whole, TextFrame)
    assert whole.mask.sum() == 32


def test_memory_stays_bounded_without_ends() -> None:
    reader, line = TextReader(), b"0x00000010 " + b"00 " * 16 + b"\n"
    reader.feed(b"U" * 100_000)
    assert len(reader._rest) == 0
    closed = reader.feed(b"\n" + BEGIN + b"\n" + line * (2 * LINES + 1))
    assert len(closed) == 1
    assert reader._lines is not None
    assert len(reader._lines.claims) == 1


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """The master of a pseudo-terminal and the name of its other end."""
    master, slave = pty.openpty()
    yield master, os.ttyname(slave)
    for end in (master, slave):
        with suppress(OSError):
            os.close(end)


def test_lines_are_raw(terminal: tuple[int, str]) -> None:
    master, name = terminal
    line = open_line(name, 921_600)
    os.write(master, b"\x03\x04\r\n\xff")
    assert os.read(line, 100) == b"\x03\x04\r\n\xff"
    os.write(line, b"a\nb")
    assert os.read(master, 100) == b"a\nb"  # neither translated nor echoed
    with pytest.raises(BlockingIOError):
        os.read(line, 1)
    os.close(line)


def test_lines_that_are_none(terminal: tuple[int, str], tmp_path: os.PathLike[str]) -> None:
    with pytest.raises(DeviceUnavailable, match="No such file"):
        open_line(os.path.join(tmp_path, "none"))
    file = os.path.join(tmp_path, "file")
    with open(file, "w"):
        pass
    with pytest.raises(DeviceUnavailable, match="not a serial line"):
        open_line(file)
    with pytest.raises(InvalidSetting, match="12345 baud"):
        open_line(terminal[1], 12_345)
