"""Stable Diffusion of the smallest possible sizes, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from modicum.apps.pixelgen.generator import StableDiffusion, open_generator
from modicum.apps.pixelgen.generator.colour import luma
from modicum.apps.pixelgen.generator.stable_diffusion import drawn_edges, readings_of
from modicum.apps.pixelgen.prompt import SensorTokens, tokens
from modicum.errors import CheckpointError

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
WIDTH = 32
UNET: dict[str, Any] = {
    "block_out_channels": (WIDTH, WIDTH),
    "layers_per_block": 1,
    "in_channels": 4,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
}


def _tokenizer(folder: Path) -> Any:
    letters = [chr(code) for code in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory as `StableDiffusionControlNetPipeline.save_pretrained` writes it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pipeline")
    tokenizer = _tokenizer(folder)
    unet = diffusers.UNet2DConditionModel(
        **UNET, sample_size=8, out_channels=4, up_block_types=("CrossAttnUpBlock2D", "UpBlock2D")
    )
    control = diffusers.ControlNetModel(**UNET, conditioning_embedding_out_channels=(4, 8, 8, 8))
    for parameter in control.controlnet_cond_embedding.conv_out.parameters():
        torch.nn.init.normal_(parameter, std=30)
    for convolution in control.controlnet_down_blocks:
        torch.nn.init.normal_(convolution.weight)
    for name, parameter in unet.named_parameters():
        if "attn2" in name:  # what reads the sentence
            torch.nn.init.normal_(parameter, std=0.5)
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1,
        num_attention_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionControlNetPipeline(
        vae=diffusers.AutoencoderKL(block_out_channels=(8, 8, 8, 8), norm_num_groups=4,
                                    down_block_types=("DownEncoderBlock2D",) * 4,
                                    up_block_types=("UpDecoderBlock2D",) * 4),
        text_encoder=transformers.CLIPTextModel(text), tokenizer=tokenizer, unet=unet, controlnet=control,
        scheduler=diffusers.DDIMScheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "saved")
    return folder / "saved"


@pytest.fixture(scope="module")
def painter(directory: Path) -> StableDiffusion:
    opened = open_generator(f"diffusers:{directory}")
    assert isinstance(opened, StableDiffusion)
    opened.side = 64
    return opened


FRAME = torch.linspace(0, 1, 30).expand(1, 1, 24, 30).clone()
FRAME[..., 8:16, 4:14] = 0
WHOLE = torch.ones_like(FRAME, dtype=torch.bool)
TOLD = torch.ones(1, len(SensorTokens.sizes), dtype=torch.int64)


def test_it_paints_by_seed_edges_and_sentence(painter: StableDiffusion) -> None:
    def paint(frame: torch.Tensor = FRAME, told: torch.Tensor = TOLD, seed: int = 0) -> torch.Tensor:
        return painter.generate(frame, WHOLE, told, steps=2, seed=seed)

    first = paint()
    assert first.shape == (1, 3, 24, 30)
    assert 0 <= first.min() <= first.max() <= 1
    assert torch.equal(first, paint())
    for name, other in {
        "seed": paint(seed=1), "edges": paint(frame=FRAME.flip(-1)), "sentence": paint(told=0 * TOLD)
    }.items():  # fmt: skip
        assert (first - other).abs().max() > 2e-5, name


def test_measured_luma_can_be_kept(directory: Path) -> None:
    painter = StableDiffusion.load(directory, side=64, keep_luma=True)
    mask = WHOLE.clone()
    mask[..., 10:] = False
    painted = painter.generate(FRAME, mask, TOLD, steps=1)
    difference = (luma(painted) - FRAME).abs()
    assert difference[mask].max() < 1e-5
    assert difference[~mask].mean() > 0.01


def test_a_segmentation_takes_the_place_of_edges(directory: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.SegformerConfig(
        num_labels=150,
        depths=[1] * 4,
        hidden_sizes=[8] * 4,
        num_attention_heads=[1] * 4,
        decoder_hidden_size=16,
    )
    transformers.SegformerForSemanticSegmentation(config).save_pretrained(tmp_path)
    transformers.SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    painter = open_generator(f"diffusers:{directory}", segmenter=str(tmp_path))
    assert isinstance(painter, StableDiffusion)
    painter.side = 64
    segmented = painter.generate(FRAME, WHOLE, TOLD, steps=2)
    painter.control = drawn_edges
    edged = painter.generate(FRAME, WHOLE, TOLD, steps=2)
    painter.control = lambda frames: torch.zeros(1, 3, *frames.shape[2:])
    for other in (edged, painter.generate(FRAME, WHOLE, TOLD, steps=2)):
        assert (segmented - other).abs().max() > 2e-5


def test_edges_are_white_on_black_and_those_of_the_frame() -> None:
    drawn = drawn_edges(FRAME)
    assert drawn.shape == (1, 3, 24, 30)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert drawn[0, 0, 8:16, 12:16].any()  # the right side of the dark square


def test_tokens_go_to_the_sentence_and_back() -> None:
    for position, size in enumerate(SensorTokens.sizes):
        for token in range(size):
            told = torch.zeros(1, len(SensorTokens.sizes), dtype=torch.int64)
            told[0, position] = token
            assert tokens(readings_of(told)[0]) == told[0].tolist()


def test_what_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="StableDiffusionControlNetPipeline"):
        open_generator(f"diffusers:{tmp_path}")
