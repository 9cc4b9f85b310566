"""A recording as one MP4. The index of an MP4 stands at one end, and a program that is killed never writes it.

So the file is made of fragments (ISO/IEC 14496-12): the index of every frame stands right before that frame. The muxer
writes a fragment when the next frame comes; what is lost by a kill is the newest frame. Pictures are H.264, by PyAV,
and keep the times at which they came. Not every player can jump about in fragments, so `joined` puts the same packets
behind one index, without encoding anything again.
"""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

CODEC, PIXELS = "libx264", "yuv420p"
QUALITY = {"preset": "veryfast", "crf": "20", "tune": "zerolatency"}  # no frame waits in the encoder
KEY = 12
"""Frames from one that stands alone to the next."""
FRAGMENTS = {"movflags": "frag_every_frame+empty_moov+default_base_moof", "flush_packets": "1"}
MILLISECOND = Fraction(1, 1000)


def can_encode() -> bool:
    """Whether PyAV is installed, and has the encoder."""
    try:
        import av
    except ImportError:
        return False
    return CODEC in av.codecs_available


class Mp4:
    """One file, as large as its first frame; others are scaled to that.

    Args:
        folder: exists, and is empty.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / "film.mp4"
        self._out: Any = None
        self._stream: Any = None
        self._time = 0

    def add(self, image: Image.Image, gap: int) -> None:
        """One more frame, `gap` milliseconds after the one before."""
        from av import VideoFrame

        if self._out is None:
            self._open(*image.size)
        else:
            self._time += gap
        frame = VideoFrame.from_image(image.resize((self._stream.width, self._stream.height)))
        frame.pts, frame.time_base = self._time, MILLISECOND
        self._write(frame, gap)

    def close(self) -> None:
        """Write the last frame; a second time does nothing."""
        if self._out is not None:
            self._write(None, 0)
            self._out.close()
            self._out = None

    def files(self) -> list[Path]:
        """What is written."""
        return [self.file] if self.file.exists() else []

    def joined(self) -> Path | None:
        """The same pictures behind one index; None as long as there are none."""
        import av

        if not self.files():
            return None
        whole = self.file.with_name("whole.mp4")
        beside = whole.with_suffix(".part")
        with av.open(self.file) as written:
            packets = [packet for packet in written.demux(video=0) if packet.size]
            if not packets:
                return None
            with av.open(beside, "w", format="mp4", options={"movflags": "faststart"}) as out:
                stream = out.add_stream_from_template(written.streams.video[0])
                for packet in packets:
                    packet.stream = stream
                    out.mux(packet)
        os.replace(beside, whole)
        return whole

    def _open(self, width: int, height: int) -> None:
        import av

        self._out = av.open(self.file, "w", options=FRAGMENTS)
        self._stream = stream = self._out.add_stream(CODEC, options=QUALITY)
        stream.width, stream.height = (
            width - width % 2,
            height - height % 2,
        )  # colour is kept for squares of 2 x 2
        stream.pix_fmt, stream.codec_context.gop_size = PIXELS, KEY
        stream.time_base = stream.codec_context.time_base = MILLISECOND

    def _write(self, frame: Any, shown: int) -> None:
        for packet in self._stream.encode(frame):
            if shown:
                packet.duration = shown  # a guess, until the next frame comes
            self._out.mux(packet)
