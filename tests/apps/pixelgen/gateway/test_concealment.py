from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modicum.apps.pixelgen.gateway.concealment import conceal
from modicum.apps.pixelgen.modes import QVGA
from modicum.apps.pixelgen.radio.channel import Channel
from modicum.apps.pixelgen.radio.framing import Layout

shapes = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
scenes = shapes.flatmap(lambda s: st.tuples(arrays.arrays(np.uint8, s), arrays.arrays(bool, s)))


def _slowly(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The same by plain loops."""
    values, known = frame.astype(float), mask.copy()
    while known.any() and not known.all():
        rim = {}
        for place in np.argwhere(~known):
            box = tuple(slice(max(i - 1, 0), i + 2) for i in place)
            if known[box].any():
                rim[tuple(place)] = values[box][known[box]].mean()
        for place, value in rim.items():
            values[place], known[place] = value, True
    return values


@given(scenes)
def test_equals_plain_loops(scene: tuple[np.ndarray, np.ndarray]) -> None:
    frame, mask = scene
    filled = conceal(frame, mask)
    assert np.array_equal(filled[mask], frame[mask])
    if mask.any():
        assert np.abs(filled - _slowly(frame, mask)).max() <= 0.51
    else:
        assert not filled.any()


def test_constant_pictures_come_back_whole() -> None:
    mask = np.zeros((30, 40), bool)
    mask[7, 9] = True
    assert (conceal(np.full((30, 40), 77, np.uint8), mask) == 77).all()


@pytest.mark.parametrize("loss", [0.05, 0.2])
def test_scattered_holes_are_filled_better(loss: float) -> None:
    rows, columns = np.mgrid[0:244, 0:324]
    smooth = (127 + 60 * np.sin(rows / 17) + 60 * np.cos(columns / 9)).astype(np.uint8)
    errors = []
    for interleaved in (False, True):
        layout, air = Layout(QVGA.nbytes, 236, interleaved), Channel(loss=loss).open(0)
        mask = QVGA.mask(layout.known(~air.lost(335)))
        errors.append(np.square(conceal(smooth * mask, mask) - smooth.astype(float))[~mask].mean())
    assert errors[1] < errors[0]
    assert errors[1] < np.square(smooth.astype(float)).mean() / 100  # against leaving black holes
