"""What a request asks for, and that the watched bytes are those of the formula."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from modicum.errors import InvalidSetting
from modicum.evaluate.drawing import Request, draw_request, watched
from modicum.models.next_scale import NextScaleModel
from modicum.models.var import VAR, load_var


@pytest.fixture(scope="module")
def model(tiny_var: Path) -> VAR:
    return load_var(tiny_var)


def _request(model: VAR, labels: list[int], at_once: int = 8, **settings: float) -> Request:
    captions = tuple(map(str, labels))
    return Request({"labels": labels}, captions, model.schedule, tuple(range(len(labels))), settings, at_once)


def test_batches_hand_every_image_its_input_and_its_seed(model: VAR) -> None:
    request = _request(model, [3, 1, 4, 1, 0], at_once=2, cfg=2.0)
    assert request.batches() == [
        {"labels": [3, 1], "seed": [0, 1], "cfg": 2.0},
        {"labels": [4, 1], "seed": [2, 3], "cfg": 2.0},
        {"labels": [0], "seed": [4], "cfg": 2.0},
    ]
    packed = replace(request, pack=tuple)
    assert packed.batches()[0]["labels"] == (3, 1)


def test_requests_that_ask_for_nothing(model: VAR) -> None:
    with pytest.raises(InvalidSetting, match="0 images"):
        _request(model, [])
    with pytest.raises(InvalidSetting, match="0 at once"):
        _request(model, [1], at_once=0)
    with pytest.raises(InvalidSetting, match="2 labels for 1 images"):
        replace(_request(model, [1, 2]), seeds=(0,))


def test_an_image_depends_on_its_seed_alone(model: VAR) -> None:
    one_batch = draw_request(model, _request(model, [3, 1, 4, 1], at_once=4).batches())
    singles = draw_request(model, _request(model, [3, 1, 4, 1], at_once=1).batches())
    torch.testing.assert_close(one_batch.images, singles.images, rtol=0, atol=1e-4)
    assert not torch.equal(one_batch.images[1], one_batch.images[3])  # same label, another seed


@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_carried_bytes_are_those_of_the_formula(model: VAR, cfg: float) -> None:
    told: list[tuple[int, int]] = []
    request = _request(model, [0, 1, 2], at_once=2, cfg=cfg)
    drawing = draw_request(model, request.batches(), lambda done, of: told.append((done, of)))
    rows, shape, maps = 2 * (2 if cfg else 1), model.shape, len(model.schedule)
    per_token = shape.channels * 2 * 4 * shape.layers * rows  # keys and values in float32
    assert drawing.carried == tuple(tokens * per_token for tokens in model.schedule.offsets[1:-1])
    assert drawing.carried_bytes == drawing.carried[-1] <= drawing.peak_bytes
    assert told == [(k, maps) for k in range(1, maps + 1)] * 2
    assert len(drawing.seconds) == 2
    assert all(seconds > 0 for seconds in drawing.seconds)


def test_the_last_map_is_not_carried_anywhere_even_if_it_is_stored(model: VAR) -> None:
    from modicum.models.next_scale import FullCache

    plain = draw_request(model, _request(model, [0]).batches())
    with model.caching(lambda: FullCache(store_last=True)):
        stored = draw_request(model, _request(model, [0]).batches())
    assert stored.carried == plain.carried
    assert stored.peak_bytes > plain.peak_bytes


def test_a_cache_that_does_not_count(model: NextScaleModel) -> None:
    class Blind:
        pass

    with model.caching(Blind), pytest.raises(InvalidSetting, match="Blind"):  # type: ignore[arg-type]
        watched(model, lambda done, of: None)
