from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from modicum import zoo
from modicum.errors import CheckpointError, InvalidSetting
from modicum.models.infinity import Infinity, Resolution, TextEncoder, TextFeatures, load_infinity, save

SQUARE = Resolution.of(1.0).prefix(3)
PROMPTS = ["a cat", "a much longer prompt"]


@pytest.fixture(scope="module")
def encoder_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 with the tokenizer of nano-lm."""
    from transformers import AutoTokenizer, T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    config = T5Config(vocab_size=8192, d_model=256, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(zoo.path("nano-lm"))
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(encoder_directory: Path) -> TextEncoder:
    return TextEncoder(encoder_directory)


def test_only_true_tokens_are_kept(encoder: TextEncoder) -> None:
    both = encoder.encode(PROMPTS)
    assert both.lengths[0] < both.lengths[1]
    assert both.values.shape == (sum(both.lengths), 256)
    assert both.values.dtype == torch.float32
    for prompt, rows in zip(PROMPTS, both.values.split(both.lengths), strict=True):
        torch.testing.assert_close(encoder.encode([prompt]).values, rows, atol=1e-5, rtol=1e-4)


def test_too_long_prompts_are_refused(encoder_directory: Path) -> None:
    encoder = TextEncoder(encoder_directory, max_tokens=4)
    assert encoder.encode(["a"])
    with pytest.raises(InvalidSetting, match=r"'a b c a b c .* tokens; the model reads 4"):
        encoder.encode(["a b c " * 20])
    with pytest.raises(InvalidSetting, match="no prompt"):
        encoder.encode([])


def test_prompts_are_read_where_an_encoder_is(
    model: Infinity, encoder_directory: Path, tmp_path: Path
) -> None:
    out = save(model, tmp_path / "out")
    with pytest.raises(InvalidSetting, match="no text encoder"):
        load_infinity(out).generate("a cat", resolution=SQUARE)
    named = load_infinity(out, text_encoder=encoder_directory)
    shutil.copytree(encoder_directory, out / "text_encoder")
    beside = load_infinity(out)
    for prompts in ("a cat", PROMPTS):
        images = [
            one.generate(prompts, negative="a dog", resolution=SQUARE, seed=0) for one in (named, beside)
        ]
        assert torch.equal(*images)
    assert named.text_encoder is not None
    features = named.text_encoder.encode(PROMPTS)
    given = model.generate(features, negative=named.text_encoder.encode(["a dog"]), resolution=SQUARE, seed=0)
    assert torch.equal(given, images[0])
    with pytest.raises(InvalidSetting, match="tokens; the model reads 12"):
        named.generate("a b c d e f g h i j k l m n", resolution=SQUARE)


def test_no_encoder_in_a_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="T5 encoder"):
        TextEncoder(tmp_path)


@pytest.mark.parametrize(
    ("shape", "lengths"),
    [((3, 4), (2, 2)), ((3, 4), ()), ((3, 4), (3, 0)), ((3,), (3,)), ((1, 3, 4), (3,))],
)
def test_features_that_are_none(shape: tuple[int, ...], lengths: tuple[int, ...]) -> None:
    with pytest.raises(InvalidSetting):
        TextFeatures(torch.zeros(shape), lengths)


def test_features_of_another_model(model: Infinity) -> None:
    with pytest.raises(InvalidSetting, match="8 channels; the model reads 256"):
        model.generate(TextFeatures(torch.zeros(3, 8), (3,)), resolution=SQUARE)
    with pytest.raises(InvalidSetting, match="13 tokens; the model reads 12"):
        model.generate(TextFeatures(torch.zeros(13, 256), (13,)), resolution=SQUARE)
    three, two = (TextFeatures(torch.zeros(count, 256), (1,) * count) for count in (3, 2))
    with pytest.raises(InvalidSetting, match="2 negative prompts for 3 prompts"):
        model.generate(three, negative=two, resolution=SQUARE)


def test_padding_and_repetition() -> None:
    features = TextFeatures(torch.arange(8.0).view(4, 2), (1, 3))
    values, mask = features.padded()
    assert values[0].tolist() == [[0, 1], [0, 0], [0, 0]]
    assert mask is not None
    assert mask.tolist() == [[True, False, False], [True, True, True]]
    twice: Any = features.repeat(2)
    assert twice.lengths == (1, 1, 3, 3)
    assert torch.equal(twice.values[2:5], features.values[1:])
    assert TextFeatures(features.values, (2, 2)).padded()[1] is None
    assert len(TextFeatures.joined([features, twice])) == 6
