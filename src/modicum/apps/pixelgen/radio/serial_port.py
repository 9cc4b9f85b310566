"""A serial line, or a pseudo-terminal that stands for one, opened for raw bytes."""

from __future__ import annotations

import os
from pathlib import Path

from modicum.errors import DeviceUnavailable, InvalidSetting

BAUD = 115_200


def open_line(path: str | Path, baud: int = BAUD) -> int:
    """The file descriptor of a line in raw mode: no echo, no translation, non-blocking reads.

    Args:
        path: such as /dev/ttyUSB0.
        baud: as the node was built for: 115200 with sensors, 921600 frames only, 500000 sound.

    Raises:
        InvalidSetting: a speed that the system does not know.
        DeviceUnavailable: there is no such line, or it is no terminal.
    """
    try:
        import termios
        import tty
    except ImportError as error:
        raise DeviceUnavailable("Serial lines need a POSIX system.", "Use UDP instead.") from error
    speed = getattr(termios, f"B{baud}", None)
    if speed is None:
        raise InvalidSetting(
            f"{baud} baud is not a speed of this system.", "Common ones are 115200 and 921600."
        )
    try:
        line = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError as error:
        raise DeviceUnavailable(
            f"{path}: {error.strerror}.", "Check the name and that you may open it."
        ) from error
    try:
        tty.setraw(line)
        settings = termios.tcgetattr(line)
        settings[4] = settings[5] = speed
        termios.tcsetattr(line, termios.TCSANOW, settings)
    except termios.error as error:
        os.close(line)
        raise DeviceUnavailable(f"{path} is not a serial line.", "Give one such as /dev/ttyUSB0.") from error
    return line
