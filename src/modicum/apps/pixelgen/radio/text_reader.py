"""Reads the serial text protocol from a line that loses and garbles.

Every line says at which address it belongs, and `offset = address / 16 - position in the text` is constant as long as
no line is lost and none comes between:

- a line is believed if its offset is also that of the line before or behind it, or if its address at least lies
  between those of the believed lines around it;
- a line with good values whose address is not believed is placed if the offsets before and behind it agree;
- a line with damaged values leaves a hole;
- where believed addresses fall, a new frame has begun and its markers were lost: what came before is dropped.

A frame opens at its beginning or, if that was lost, at its first line with an address; it closes at its end, at the
next beginning, or at address 0. Nothing that comes in raises. A digit that turned
into another digit stays unnoticed: the protocol has no checksum.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from modicum.apps.pixelgen.modes import QVGA, Bytes
from modicum.apps.pixelgen.radio.serial_text import BEGIN, END, LINES, PER_LINE, READY, spun
from modicum.apps.pixelgen.readings import Readings

LONGEST_LINE = 256
MOST_LINES = 2 * LINES
NOWHERE = -1

_PIXELS = re.compile(rb"(\S{1,12}) ((?:[0-9A-Fa-f]{2} ){15}[0-9A-Fa-f]{2}) ?\r?")
_ADDRESS = re.compile(rb"0x([0-9A-Fa-f]{8})")
_READING = re.compile(rb"(Temperature|Humidity|Pressure|Lux) = (-?\d{1,12}(?:\.\d{1,9})?)")
_BLANK = bytes(PER_LINE)


@dataclass(frozen=True)
class TextFrame:
    """A frame that was read.

    Attributes:
        pixels: uint8, 0 where nothing is known; `[244, 324]` for spin 1 and 3, `[324, 244]` for 0 and 2.
        mask: bool of the same shape, True where a pixel is known.
        repaired: lines that were placed although their address was damaged.
        characters: of its text.
    """

    pixels: Bytes
    mask: NDArray[np.bool_]
    repaired: int
    characters: int


class TextReader:
    """Takes the text in pieces of any size.

    Args:
        spin: how to turn the frames (`spun`).

    Attributes:
        ready: whether the node has said that it is, or sent a frame.
        readings: the newest ones.
    """

    def __init__(self, spin: int = 1) -> None:
        self.spin, self.ready = spin, False
        self.readings = Readings()
        self._rest, self._skipping = b"", False
        self._lines: _Lines | None = None

    def feed(self, data: bytes) -> list[TextFrame | Readings]:
        """Read on.

        Returns:
            What is complete now: frames, and the readings so far after each Lux line.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        events = [event for line in lines for event in self._line(line)]
        if len(self._rest) > LONGEST_LINE:  # no line is this long: forget it, up to its end
            self._rest, self._skipping = b"", True
        return events

    def _line(self, line: bytes) -> Iterator[TextFrame | Readings]:
        if self._skipping:
            line, self._skipping = b"", False
        text = line.strip()
        self.ready = self.ready or READY in text or text.endswith(BEGIN)
        if text.endswith(BEGIN):  # the ready byte and boot text may stand in front of it
            yield from self._closed()
            self._lines = _Lines()
        elif text == END:
            yield from self._closed()
        elif (found := _READING.fullmatch(text)) is not None:
            yield from self._reading(found[1].decode(), float(found[2]))
        elif self._lines is not None or _claim(line) != NOWHERE:  # the beginning may have been lost
            if self._lines is None or self._lines.ends_before(line):
                yield from self._closed()
                self._lines = _Lines()
            self._lines.add(line)

    def _reading(self, name: str, value: float) -> Iterator[Readings]:
        self.readings = replace(self.readings, **{name.lower(): value})
        if name == "Lux":  # the last line of a round
            yield self.readings

    def _closed(self) -> Iterator[TextFrame]:
        lines, self._lines = self._lines, None
        if lines is not None and (frame := lines.frame(self.spin)).mask.any():
            yield frame


class _Lines:
    """The lines of one frame in the order in which they came."""

    def __init__(self) -> None:
        self.claims: list[int] = []  # address / 16, or NOWHERE
        self.values: list[bytes | None] = []
        self.characters = len(BEGIN) + 1

    def add(self, line: bytes) -> None:
        found = _PIXELS.fullmatch(line)
        self.claims.append(_claim(line))
        self.values.append(bytes.fromhex(found[2].decode()) if found else None)
        self.characters += len(line) + 1

    def ends_before(self, line: bytes) -> bool:
        """Whether a line belongs to another frame."""
        return len(self.claims) >= MOST_LINES or (bool(self.claims) and _claim(line) == 0)

    def frame(self, spin: int) -> TextFrame:
        claims = np.array(self.claims, np.int64)
        readable = np.array([values is not None for values in self.values], bool)
        places = placed(claims)
        used = readable & (places != NOWHERE)
        pixels = np.zeros((LINES, PER_LINE), np.uint8)
        mask = np.zeros((LINES, PER_LINE), bool)
        content = np.frombuffer(b"".join(values or _BLANK for values in self.values), np.uint8)
        pixels[places[used]] = content.reshape(-1, PER_LINE)[used]
        mask[places[used]] = True
        return TextFrame(
            spun(pixels.reshape(QVGA.shape), spin),
            spun(mask.reshape(QVGA.shape), spin),
            int((used & (places != claims)).sum()),
            self.characters + len(END) + 1,
        )


def placed(claims: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where every line belongs.

    Args:
        claims: int64 `[lines]`, the line of the picture that each names, NOWHERE if it names none.

    Returns:
        int64 `[lines]`, NOWHERE for a line that cannot be placed.
    """
    position = np.arange(len(claims))
    named = claims != NOWHERE
    offset = np.where(named, claims - position, np.iinfo(np.int64).min)
    alike = named[1:] & (offset[1:] == offset[:-1])
    sure = np.append(alike, False) | np.insert(alike, 0, False)
    if not sure.any():
        return np.where(named, claims, NOWHERE)
    falls = np.flatnonzero(np.diff(claims[sure]) < 0)
    start = np.flatnonzero(sure)[falls[-1] + 1] if len(falls) else 0
    last, following = _neighbours(sure)
    claim, shift = np.append(claims, (LINES, -1)), np.append(offset, (LINES, 0))  # bounds for both ends
    between = named & (claim[last] < claims) & (claims < claim[following])
    repaired = np.where(shift[last] == shift[following], shift[last] + position, NOWHERE)
    place = np.where(sure | between, claims, repaired)
    return np.where((position >= start) & (place >= 0) & (place < LINES), place, NOWHERE)


def _neighbours(sure: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index of the last sure line up to each position (-1: none), and of the next one from there (count: none)."""
    position = np.arange(len(sure))
    last = np.maximum.accumulate(np.where(sure, position, -1))
    following = np.minimum.accumulate(np.where(sure, position, len(sure))[::-1])[::-1]
    return last, following


def _claim(line: bytes) -> int:
    found = _ADDRESS.match(line)
    if found is None:
        return NOWHERE
    index, rest = divmod(int(found[1], 16), PER_LINE)
    return index if rest == 0 and index < LINES else NOWHERE
