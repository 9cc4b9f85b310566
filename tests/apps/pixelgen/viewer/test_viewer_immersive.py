"""The immersive mode in a browser whose headset is emulated.

The emulator is Meta's Immersive Web Emulation Runtime. It is no part of modicum, and the test is skipped without it:

    npm install --no-save --no-package-lock iwer@2.5.0
"""

from __future__ import annotations

import base64
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from .browser import CHROMIUM, Page, browser

EMULATOR = Path(__file__).parents[4] / "node_modules/iwer/build/iwer.min.js"
HEADSET = """
window.headset = new IWER.XRDevice(IWER.metaQuest3, { stereoEnabled: true, ipd: 0.063 });
headset.installRuntime({ forceInstall: true });  // the browser has a WebXR of its own, without a headset
const plain = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, settings) {  // what was drawn can be read afterwards
  const made = plain.call(this, kind, { ...settings, preserveDrawingBuffer: true });
  if (kind === "webgl2") window.drawn = made;
  return made;
};
"""
READ = """(() => {
  const { drawingBufferWidth: width, drawingBufferHeight: height } = drawn, pixels = new Uint8Array(4 * width * height);
  drawn.readPixels(0, 0, width, height, drawn.RGBA, drawn.UNSIGNED_BYTE, pixels);
  const text = btoa([...pixels].map((b) => String.fromCharCode(b)).join(""));
  return { width, height, error: drawn.getError(), pixels: text };
})()"""
SHOWN = f"(() => new Set(atob({READ}.pixels)).size > 64)()"
SMALL = {"width": 960, "height": 480}
MADE = np.array((233, 184, 114))  # the colour in which generated colour is called so


def eyes(page: Page) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What the left and the right eye see, float64 [H, W, 3]."""
    read = page.says(READ)
    assert read["error"] == 0
    pixels = np.frombuffer(base64.b64decode(read["pixels"]), np.uint8)
    whole = pixels.reshape(read["height"], read["width"], 4)[::-1, :, :3].astype(float)
    middle = read["width"] // 2
    return whole[:, :middle], whole[:, middle:]


@pytest.mark.skipif(CHROMIUM is None, reason="no browser is installed")
@pytest.mark.skipif(not EMULATOR.exists(), reason="no emulated headset: npm install iwer")
def test_both_eyes_see_the_picture_in_depth(tmp_path: Path, started: Any) -> None:
    demo = started(
        "demo", "--port", 0, "--mode", "qqvga", "--period", 0.5, "--loss", 0, "--recordings", tmp_path
    )
    with browser(tmp_path / "profile") as page:
        page.call("Page.addScriptToEvaluateOnNewDocument", source=EMULATOR.read_text() + HEADSET)
        page.open(demo.stdout.readline().removeprefix("open ").strip(), **SMALL)
        page.until("document.getElementById('status').textContent === 'live'")
        page.until("!document.getElementById('immersive').disabled")
        page.says("document.getElementById('immersive').click()")
        page.until("!!headset.activeSession && !!window.drawn")
        page.until(SHOWN)

        left, right = eyes(page)
        for eye in (left, right):
            assert eye.std() > 10  # a picture
            assert np.ptp(eye, axis=-1).max() > 30  # in colour
            lower_right = eye[eye.shape[0] // 2 :, eye.shape[1] // 2 :]
            assert (np.abs(lower_right - MADE).max(-1) < 40).sum() > 30  # which says that it is generated
        assert np.abs(left - right).mean() > 1
        page.says("headset.ipd = 0")
        page.says("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        left, right = eyes(page)
        assert np.abs(left - right).max() > 10  # what is left is the depth of the picture itself
        assert np.abs(left - right).mean() < 30

        page.says("headset.activeSession.end()")
        page.until("!headset.activeSession")
        page.says("document.getElementById('immersive').click()")  # and once more
        page.until(f"!!headset.activeSession && {SHOWN}")
        assert page.complaints == []
        demo.send_signal(signal.SIGINT)
        demo.wait(30)
        page.until("document.getElementById('status').textContent.startsWith('connection lost')")
        page.says("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert np.ptp(eyes(page)[0], axis=(0, 1)).max() == 0  # nothing old is left in front of the wearer
        page.says("headset.activeSession.end()")
        page.until("!headset.activeSession")
