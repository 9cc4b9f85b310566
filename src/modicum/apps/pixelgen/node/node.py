"""The node: once per period it takes a picture, reads its sensors, listens, and sends."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from modicum.apps.pixelgen.modes import Bytes
from modicum.apps.pixelgen.node.camera import Camera
from modicum.apps.pixelgen.node.sensors import FromPicture, Sensors
from modicum.apps.pixelgen.node.sound import Microphone
from modicum.apps.pixelgen.radio.columns import column_packets
from modicum.apps.pixelgen.radio.framing import Framing
from modicum.apps.pixelgen.radio.links import Link
from modicum.apps.pixelgen.radio.packets import MAX_NODE, Kind, Packet, encode
from modicum.apps.pixelgen.radio.serial_text import READY, encode_frame, encode_readings
from modicum.apps.pixelgen.radio.telemetry import pack_readings, pack_sound
from modicum.apps.pixelgen.readings import Readings, Sound

NUMBERS = 1 << 16


class NodeSettings(BaseModel):
    """Who the node is and how it speaks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int = Field(1, ge=0, le=MAX_NODE, description="of the node")
    key: bytes | None = Field(None, min_length=1, description="secret that signs every packet")
    protocol: Literal["packets", "columns", "text"] = Field("packets", description="what it speaks")
    framing: Framing = Field(Framing(), description="how frames become packets")
    first: int | None = Field(
        None, ge=0, lt=NUMBERS, description="number of the first frame; random by default"
    )

    @model_validator(mode="after")
    def _fits(self) -> NodeSettings:
        if self.protocol != "packets" and self.framing != Framing():
            raise ValueError("without packets frames have 324 x 244 pixels, in order, and no parity")
        if self.protocol != "packets" and self.key:
            raise ValueError("only packets can be signed")
        return self


@dataclass(frozen=True)
class Capture:
    """What a node knows of one moment.

    Attributes:
        frame: uint8 `[H, W]`.
        readings: sound included.
        sound: None without a microphone.
    """

    frame: Bytes
    readings: Readings
    sound: Sound | None = None


class Node:
    """A node in front of a scene.

    Args:
        pictures: what it sees, uint8 `[rows, columns, 3]` each.
        camera: its camera; must have the mode of the framing.
        settings: who it is.
        sensors: light from the picture by default.
        sound: none by default.
    """

    def __init__(
        self,
        pictures: Iterator[Bytes],
        camera: Camera,
        settings: NodeSettings | None = None,
        sensors: Sensors | None = None,
        sound: Microphone | None = None,
    ) -> None:
        self.pictures, self.camera, self.settings = pictures, camera, settings or NodeSettings()
        self.sensors, self.sound = sensors or FromPicture(), sound
        first = self.settings.first
        self.number = secrets.randbelow(NUMBERS) if first is None else first
        self._booted = False

    def capture(self) -> Capture | None:
        """Look, read, listen; None when the pictures are over. The first time, the exposure settles before."""
        picture = next(self.pictures, None)
        if picture is None:
            return None
        if not self._booted:
            self.camera.boot(picture)
            self._booted = True
        light = self.camera.light(picture)
        sound = self.sound.read() if self.sound else None
        readings = self.sensors.read(light)
        if sound:
            readings = replace(readings, level=sound.level, frequency=sound.frequency)
        return Capture(self.camera.expose(light), readings, sound)

    def encoded(self, capture: Capture) -> list[bytes]:
        """What is sent of a capture, in order; counts the frame."""
        speak = {"packets": self._packets, "columns": self._columns, "text": self._text}
        sent = speak[self.settings.protocol](capture)
        self.number = (self.number + 1) % NUMBERS
        return sent

    async def run(self, link: Link, period: float = 12.0, count: int | None = None) -> int:
        """Capture and send until the pictures or `count` are over.

        Args:
            link: where to.
            period: seconds from frame to frame; a frame that takes longer delays the next.
            count: frames; endless by default.

        Returns:
            Frames that were sent.
        """
        clock = asyncio.get_running_loop().time
        sent, due = 0, clock()
        if self.settings.protocol == "text":
            await link.send([READY])
        while count is None or sent < count:
            await asyncio.sleep(max(0.0, due - clock()))
            capture = self.capture()
            if capture is None:
                break
            await link.send(self.encoded(capture))
            sent, due = sent + 1, max(due + period, clock())
        return sent

    def _packets(self, capture: Capture) -> list[bytes]:
        id_, key, number = self.settings.id, self.settings.key, self.number
        notes = [Packet(id_, Kind.SENSORS, number, 0, pack_readings(capture.readings))]
        if capture.sound:
            notes.append(Packet(id_, Kind.AUDIO, number, 0, pack_sound(capture.sound)))
        frame = self.settings.framing.packets(capture.frame, id_, number, key)
        return [encode(note, key) for note in notes] + frame

    def _columns(self, capture: Capture) -> list[bytes]:
        return column_packets(capture.frame, self.settings.id)

    def _text(self, capture: Capture) -> list[bytes]:
        mirrored = np.ascontiguousarray(capture.frame[:, ::-1])  # as the sensor gives it
        return [encode_frame(mirrored), encode_readings(capture.readings)]
