"""What is drawn: labels or prompts in turn, one seed per image, and what a cache policy is fitted with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from modicum.api.inputs import calibration, guided, read_features, request
from modicum.errors import CheckpointError, InvalidSetting, UnknownName, UnusableData
from modicum.models.infinity import Infinity, TextFeatures, load_infinity
from modicum.models.next_scale import NextScaleModel
from modicum.models.var import VAR, load_var


@pytest.fixture(scope="module")
def var(tiny_var: Path) -> VAR:
    return load_var(tiny_var)


@pytest.fixture(scope="module")
def infinity(tiny_infinity: Path) -> Infinity:
    return load_infinity(tiny_infinity)


@settings(max_examples=30, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=6),
    count=st.one_of(st.none(), st.integers(1, 9)),
    seed=st.integers(0, 10**6),
    at_once=st.integers(1, 5),
)
def test_labels_take_turns_and_seeds_count_up(
    var: VAR, labels: list[int], count: int | None, seed: int, at_once: int
) -> None:
    made = request(var, labels=labels, count=count, seed=seed, at_once=at_once)
    images = count or len(labels)
    assert made.seeds == tuple(range(seed, seed + images))
    assert made.captions == tuple(str(labels[index % len(labels)]) for index in range(images))
    batches = made.batches()
    assert [label for batch in batches for label in batch["labels"]] == [
        int(caption) for caption in made.captions
    ]
    assert all(len(batch["labels"]) == len(batch["seed"]) <= at_once for batch in batches)


def test_without_labels_the_seed_chooses_the_class(var: VAR) -> None:
    many = request(var, count=20)
    assert set(many.captions) == {"0", "1", "2", "3", "4"}
    assert request(var, count=3, seed=11).captions == many.captions[11:14]


def test_prompts_take_turns_as_features(infinity: Infinity, text_features: Path) -> None:
    made = request(infinity, features=text_features, count=3, at_once=2, cfg=2.0)
    assert made.captions == ("a boat", "a cat", "a boat")
    first, second = made.batches()
    assert isinstance(first["prompts"], TextFeatures)
    assert first["prompts"].lengths == (3, 5)
    assert second["prompts"].lengths == (3,)
    assert first["negative"].lengths == (4,)
    assert first["cfg"] == 2.0


def test_an_encoder_reads_each_prompt_once(infinity: Infinity) -> None:
    class Encoder:
        def __init__(self) -> None:
            self.read: list[str] = []

        def encode(self, prompts: list[str]) -> TextFeatures:
            self.read += prompts
            return TextFeatures.of([torch.full((len(prompt), 256), 1.0) for prompt in prompts])

    encoder = Encoder()
    infinity.text_encoder = encoder  # type: ignore[assignment]
    try:
        made = request(infinity, prompts=["cat", "boats"], negative="ugly", count=4)
    finally:
        infinity.text_encoder = None
    assert encoder.read == ["cat", "boats", "ugly"]
    assert made.captions == ("cat", "boats", "cat", "boats")
    assert made.batches()[0]["prompts"].lengths == (3, 5, 3, 5)
    assert made.settings["negative"].lengths == (4,)


def test_the_maps_of_a_request_are_those_that_are_drawn(infinity: Infinity, text_features: Path) -> None:
    made = request(infinity, features=text_features, ratio=2.0)
    assert made.schedule != infinity.schedule
    height, width = made.schedule.final
    assert height == 2 * width
    assert request(infinity, features=text_features).schedule == infinity.schedule


def test_a_policy_for_var_is_fitted_with_all_classes_whatever_is_drawn(var: VAR) -> None:
    one, other = request(var, labels=[1], seed=3), request(var, labels=[4, 2], count=7)
    assert calibration(var, one) == calibration(var, other)
    assert calibration(var, one)[0]["labels"] == [0, 1, 2, 3]
    assert calibration(var, request(var, cfg=3.0))[0]["cfg"] == 3.0


def test_a_policy_for_infinity_is_fitted_with_each_prompt_once_in_the_usual_shape(
    infinity: Infinity, text_features: Path
) -> None:
    made = request(infinity, features=text_features, count=6, ratio=2.0, pixels="0.06M", seed=9)
    batches = calibration(infinity, made)
    assert [batch["prompts"].lengths for batch in batches] == [(3,), (5,)]
    assert all(batch["seed"] == [0] and not {"ratio", "pixels"} & batch.keys() for batch in batches)


def test_guidance(var: VAR, infinity: Infinity, text_features: Path) -> None:
    assert guided(var, request(var))
    assert not guided(var, request(var, cfg=0))
    assert guided(infinity, request(infinity, features=text_features))
    assert not guided(infinity, request(infinity, features=text_features, cfg=1))


def test_inputs_of_another_model(var: VAR, infinity: Infinity, text_features: Path) -> None:
    with pytest.raises(InvalidSetting, match="reads no prompts"):
        request(var, prompts=["a cat"])
    with pytest.raises(InvalidSetting, match="knows no classes"):
        request(infinity, labels=[1])
    with pytest.raises(InvalidSetting, match="twice"):
        request(infinity, prompts=["a cat"], features=text_features)
    with pytest.raises(InvalidSetting, match="no text encoder"):
        request(infinity, prompts=["a cat"])
    with pytest.raises(InvalidSetting, match="what to draw"):
        request(infinity)
    with pytest.raises(UnknownName, match="taw"):
        request(infinity, features=text_features, taw=1.0)
    with pytest.raises(UnknownName, match="cache"):
        request(var, cache=None)  # a policy brings the cache
    with pytest.raises(InvalidSetting, match="class 5"):
        request(var, labels=[0, 5])
    with pytest.raises(InvalidSetting, match="seed -1"):
        request(var, seed=-1)
    with pytest.raises(InvalidSetting, match="NextScaleModel"):
        request(NextScaleModel(var.schedule, var.shape))


def test_files_that_hold_no_features(tmp_path: Path) -> None:
    file = tmp_path / "features.safetensors"
    for tensors, match in [
        ({"negative": torch.zeros(2, 4)}, "holds no prompt"),
        ({"cat": torch.zeros(4)}, r"\[4\]"),
        ({"cat": torch.zeros(0, 4)}, r"\[0, 4\]"),
    ]:
        save_file(tensors, file)
        with pytest.raises(UnusableData, match=match):
            read_features(file)
    file.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_features(file)
