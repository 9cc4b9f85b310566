"""DiT, SiT and MAR by what their directory says, originals converted, and diffusers there and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modicum.errors import CheckpointError, OutputExists, UnknownName, UnsupportedModel
from modicum.models import Anatomy, class_conversion
from modicum.models.class_conversion import convert_classes
from modicum.models.class_models import (
    class_config,
    class_kind,
    load_class_model,
    network_of,
    save_class_model,
)
from modicum.models.depth import keep_blocks
from modicum.models.dit import DiT, DiTConfig, from_diffusers, save_diffusers
from modicum.models.dit.diffusers_layout import exact
from modicum.models.mar import MAR, MARConfig

SIZES = DiTConfig(input_size=4, hidden_size=16, depth=3, num_heads=2, num_classes=3)
MASKED = MARConfig(
    img_size=8, vae_stride=2, vae_embed_dim=2, encoder_embed_dim=8, encoder_depth=2, encoder_num_heads=2,
    decoder_embed_dim=12, decoder_depth=3, decoder_num_heads=2, class_num=3, buffer_size=2, diffloss_d=1,
    diffloss_w=8,
)  # fmt: skip


def lively(model: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # the position table is not learned, and diffusers does not store it
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def dit() -> DiT:
    return lively(DiT(SIZES))


@pytest.fixture
def pipeline(dit: DiT, tmp_path: Path) -> Path:
    """A directory as DiTPipeline has it, as far as it is read here."""
    root = tmp_path / "pipeline"
    root.mkdir()
    (root / "model_index.json").write_text(json.dumps({"_class_name": "DiTPipeline"}))
    save_diffusers(dit, root / "transformer")
    return root


def said(model: DiT) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x, t, y = torch.randn(2, 4, 4, 4, generator=generator), torch.tensor([3, 900]), torch.tensor([0, 2])
    with torch.no_grad():
        return model(x, t, y)


def test_all_layouts_open(dit: DiT, pipeline: Path, tmp_path: Path) -> None:
    own = save_class_model(dit, tmp_path / "own")
    for directory in (own, pipeline, pipeline / "transformer"):
        assert class_kind(directory) == "dit"
        assert class_config(directory) == SIZES
        assert torch.equal(said(load_class_model(directory)), said(dit))  # type: ignore[arg-type]
    assert network_of(pipeline) == pipeline / "transformer"
    assert network_of(own) == own
    assert class_kind(save_class_model(MAR(MASKED), tmp_path / "mar")) == "mar"


@pytest.mark.parametrize("content", ["", "[]", '{"model_type": "llama"}', '{"model_type": 3}'])
def test_anything_else_is_no_such_model(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    assert class_kind(tmp_path) is None
    assert class_kind(tmp_path / "nowhere") is None


class TestDiffusersObjects:
    def test_there_pruned_and_back(self, dit: DiT, pipeline: Path, tmp_path: Path) -> None:
        from diffusers import DiTTransformer2DModel

        theirs = DiTTransformer2DModel.from_pretrained(pipeline / "transformer", low_cpu_mem_usage=False)
        with pytest.raises(UnsupportedModel, match="copy of its embedders"):
            Anatomy.of(theirs)
        ours = from_diffusers(theirs)
        assert torch.equal(said(ours), said(dit))
        keep_blocks(Anatomy.of(ours), [1, 2])  # block 0, whose embedder the head of diffusers reads, is gone
        save_diffusers(ours, tmp_path / "small")
        small = exact(DiTTransformer2DModel.from_pretrained(tmp_path / "small", low_cpu_mem_usage=False))
        generator = torch.Generator().manual_seed(2)
        x = torch.randn(2, 4, 4, 4, generator=generator)
        got = small.eval()(x, torch.tensor([3, 900]), torch.tensor([0, 2])).sample
        torch.testing.assert_close(got.detach(), said(ours), atol=1e-5, rtol=1e-5)


class TestOriginals:
    @pytest.fixture(autouse=True)
    def presets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Published sizes of a few kilobytes."""
        flow = SIZES.model_copy(update={"kind": "sit"})
        named = {"tiny": SIZES, "tiny-flow": flow, "deeper": SIZES.model_copy(update={"depth": 4})}
        monkeypatch.setattr(class_conversion.dit, "PRESETS", named)
        monkeypatch.setattr(class_conversion.mar, "PRESETS", {"small": MASKED})
        monkeypatch.setattr(class_conversion, "SIDES", (32, 64))

    @pytest.mark.parametrize("key", ["ema", None])
    def test_dit_and_sit(self, dit: DiT, key: str | None, tmp_path: Path) -> None:
        torch.save({key: dit.state_dict()} if key else dit.state_dict(), tmp_path / "x.pt")
        found = convert_classes(tmp_path / "x.pt", tmp_path / "out")
        assert (found.preset, found.alike) == ("tiny", ("tiny-flow",))
        assert torch.equal(said(load_class_model(tmp_path / "out")), said(dit))  # type: ignore[arg-type]
        chosen = convert_classes(tmp_path / "x.pt", tmp_path / "flow", preset="tiny-flow")
        assert chosen.model.config.kind == "sit"

    def test_larger_pictures_are_known_by_the_positions(self, tmp_path: Path) -> None:
        large = DiT(SIZES.model_copy(update={"input_size": 8}))
        torch.save(large.state_dict(), tmp_path / "x.pt")
        assert convert_classes(tmp_path / "x.pt", tmp_path / "out").model.config.input_size == 8

    def test_mar(self, tmp_path: Path) -> None:
        model = lively(MAR(MASKED))
        torch.save({"model": MAR(MASKED).state_dict(), "model_ema": model.state_dict()}, tmp_path / "x.pth")
        found = convert_classes(tmp_path / "x.pth", tmp_path / "out", half=True)
        assert found.preset == "small"
        loaded = load_class_model(tmp_path / "out")
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(loaded.state_dict()[name], tensor.bfloat16().float())

    def test_what_is_refused(self, dit: DiT, tmp_path: Path) -> None:
        file = tmp_path / "x.pt"
        torch.save(dit.state_dict(), file)
        with pytest.raises(UnknownName, match="tiny"):
            convert_classes(file, tmp_path / "out", preset="tinny")
        with pytest.raises(CheckpointError, match=r"missing: blocks\.3"):
            convert_classes(file, tmp_path / "out", preset="deeper")
        with pytest.raises(OutputExists):
            convert_classes(file, tmp_path)
        torch.save({**dit.state_dict(), "blocks.9.attn.qkv.bias": torch.zeros(1)}, file)
        with pytest.raises(CheckpointError, match="no published model"):
            convert_classes(file, tmp_path / "out")
        torch.save({"a": torch.zeros(1)}, file)
        with pytest.raises(CheckpointError, match="no DiT, SiT or MAR"):
            convert_classes(file, tmp_path / "out")
        assert not (tmp_path / "out").exists()
