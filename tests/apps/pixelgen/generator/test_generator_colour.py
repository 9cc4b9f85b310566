from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from modicum.apps.pixelgen.generator.canny import canny, equalised
from modicum.apps.pixelgen.generator.canvas import Known
from modicum.apps.pixelgen.generator.colour import chroma, colours, luma
from modicum.apps.pixelgen.generator.frames import GREY, conceal, edges
from modicum.apps.pixelgen.generator.missing import arrived
from modicum.apps.pixelgen.generator.scene import scene_tokens
from modicum.apps.pixelgen.prompt import SensorTokens

LIGHT, TEMPERATURE, HUMIDITY = (SensorTokens.names.index(name) for name in ("lux", "temperature", "humidity"))


def test_colours_survive_the_way_through_luma_and_chroma() -> None:
    pictures = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(colours(luma(pictures), chroma(pictures)), pictures, atol=1e-6, rtol=0)


@given(y=st.floats(0, 1), cb=st.floats(-2, 2), cr=st.floats(-2, 2))
def test_luma_is_kept_whatever_the_chroma(y: float, cb: float, cr: float) -> None:
    painted = colours(torch.full((1, 1, 1, 1), y), torch.tensor([cb, cr]).view(1, 2, 1, 1))
    assert 0 <= painted.min() <= painted.max() <= 1
    assert abs(luma(painted).item() - y) < 1e-6


def test_a_colour_that_does_not_exist_keeps_its_hue() -> None:
    strong, weak = (
        colours(torch.tensor(0.5).view(1, 1, 1, 1), c * torch.tensor([[[[-0.1]], [[0.2]]]])) for c in (9, 1)
    )
    offsets = strong.flatten() - 0.5, weak.flatten() - 0.5
    assert torch.cosine_similarity(*offsets, dim=0) > 0.9999
    assert strong.max() > 0.999


def test_a_lost_pixel_becomes_the_mean_of_its_neighbours() -> None:
    frame = torch.arange(25.0).view(1, 1, 5, 5) / 25
    mask = torch.ones_like(frame, dtype=torch.bool)
    mask[..., 2, 2] = mask[..., 0, 0] = mask[..., 2, 3] = False
    filled = conceal(frame, mask)
    around = [frame[0, 0, r, c] for r in (1, 2, 3) for c in (1, 2, 3) if (r, c) not in ((2, 2), (2, 3))]
    torch.testing.assert_close(filled[0, 0, 2, 2], torch.stack(around).mean())
    torch.testing.assert_close(filled[0, 0, 0, 0], frame[0, 0, (0, 1, 1), (1, 0, 1)].mean())
    assert torch.equal(filled[mask], frame[mask])


def test_concealing_ignores_what_stands_in_the_gaps() -> None:
    frame = torch.rand(2, 1, 9, 40, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros_like(frame, dtype=torch.bool)
    mask[..., :2, :3] = True
    assert torch.equal(conceal(frame, mask), conceal(torch.where(mask, frame, 7.0), mask))
    assert (conceal(frame, torch.zeros_like(mask)) == GREY).all()


def test_edges_are_where_the_frame_changes() -> None:
    frame = torch.zeros(1, 1, 8, 8)
    frame[..., 4:] = 1
    found = edges(frame)[0, 0]
    assert (found[:, 3:5] > 0.9).all()
    assert found[:, :3].max() == found[:, 5:].max() == 0


def test_canny_draws_a_line_one_pixel_wide_and_drops_what_is_weak() -> None:
    frame = torch.zeros(1, 1, 24, 24)
    frame[..., 12:] = 1
    frame[..., 4:8, 2:6] = 0.02  # far from the line
    found = canny(frame)[0, 0]
    assert found.sum(1).eq(1).all()
    assert found[:, 10:14].any(1).all()
    assert not canny(torch.rand(1, 1, 1, 1).expand(1, 1, 24, 24)).any()


def test_a_weak_edge_stays_only_where_it_continues_a_strong_one() -> None:
    frame = torch.zeros(1, 1, 30, 30)
    frame[..., :15, 10:] = 1
    frame[..., 15:, 10:] = torch.linspace(1, 0.3, 15)[:, None]  # the same line fading
    strong_only = canny(frame, low=0.4, high=0.4)[0, 0].sum()
    assert canny(frame, low=0.15, high=0.4)[0, 0].sum() > strong_only > 0


def test_equalised_grey_levels_are_evenly_frequent() -> None:
    dark = 0.2 * torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) ** 2
    shares = torch.histc(equalised(dark), 4, 0, 1) / dark.numel()
    assert (shares - 0.25).abs().max() < 0.1  # grey levels that are equal stay equal


def test_a_state_stands_for_its_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand(3, 3, 1, 1, generator=generator).expand(3, 3, 16, 16)
    pictures = (0.25 + 0.5 * cells + 0.1 * torch.rand(3, 1, 16, 16, generator=generator)).clamp(0, 1)
    known = Known.of(luma(pictures), arrived(3, 16, generator))
    torch.testing.assert_close(known.pictures(known.state(pictures)), pictures, atol=1e-5, rtol=0)
    assert (known.state(pictures)[known.unknown == 0] == 0).all()


def test_masks_are_those_of_a_bad_link() -> None:
    shares = arrived(4000, 32, torch.Generator().manual_seed(0)).float().mean((1, 2, 3))
    assert abs((shares == 0).float().mean() - 0.1) < 0.02
    assert 0.3 <= (shares == 1).float().mean() < 0.36  # few runs lost at a low rate may all arrive
    assert abs(shares[(shares > 0) & (shares < 1)].mean() - 0.75) < 0.02


def test_tokens_follow_what_they_are_defined_on() -> None:
    grey = torch.full((3, 3, 4, 4), 0.5) * torch.tensor([0.2, 1.0, 1.9]).view(3, 1, 1, 1)
    light = scene_tokens(grey)[:, LIGHT]
    assert light.tolist() == [1, 3, 4]
    blue, red = torch.tensor([0.3, 0.5, 0.8]), torch.tensor([0.8, 0.5, 0.3])
    tinted = scene_tokens(torch.stack((blue, red)).view(2, 3, 1, 1).expand(2, 3, 4, 4))
    assert tinted[:, TEMPERATURE].tolist() == [1, 5]
    assert (tinted[:, HUMIDITY] < scene_tokens(grey)[:2, HUMIDITY]).all()  # vivid is dry
    sizes = torch.tensor(SensorTokens.sizes)
    assert ((tinted >= 0) & (tinted < sizes)).all()
