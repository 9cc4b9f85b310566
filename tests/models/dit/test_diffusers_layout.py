"""The other implementation: same weights, same numbers, once its constants are those of the authors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modicum.errors import CheckpointError, InvalidSetting
from modicum.models.dit import DiT, load_dit, save_diffusers
from modicum.models.dit.diffusers_layout import exact, from_diffusers, read_config, to_diffusers

Make = Callable[..., Any]
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def three(tiny_dit: Make) -> DiT:
    return tiny_dit(depth=3, hidden_size=48)


@pytest.fixture
def written(three: DiT, tmp_path: Path) -> Path:
    return save_diffusers(three, tmp_path / "model")


def _theirs(directory: Path) -> Any:
    return pytest.importorskip("diffusers").DiTTransformer2DModel.from_pretrained(directory).eval()


@torch.no_grad()
def test_same_numbers_after_the_constants_are_put_right(three: DiT, written: Path, batch: Make) -> None:
    theirs, (x, t, y) = _theirs(written), batch(three)
    want = three(x, t, y)
    off = theirs(x, timestep=t, class_labels=y).sample
    assert (off - want).norm() > 0.01 * want.norm()  # k / 127: another model
    got = exact(theirs)(x, timestep=t, class_labels=y).sample
    torch.testing.assert_close(got, want, atol=2e-6, rtol=2e-6)


def test_what_diffusers_saves_is_read_back_bit_for_bit(three: DiT, written: Path, tmp_path: Path) -> None:
    theirs = _theirs(written)
    theirs.save_pretrained(tmp_path / "again")
    theirs.save_pretrained(tmp_path / "pipeline" / "transformer")
    (tmp_path / "pipeline" / "model_index.json").write_text("{}")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for directory in (written, tmp_path / "again", tmp_path / "pipeline", tmp_path / "shards"):
        back = load_dit(directory)
        assert back.config == three.config
        assert all(torch.equal(tensor, back.state_dict()[n]) for n, tensor in three.state_dict().items())


def test_original_to_diffusers_and_back_is_the_same(any_dit: DiT) -> None:
    state, config = any_dit.state_dict(), any_dit.config
    theirs = to_diffusers(state, config)
    assert "pos_embed" not in theirs
    copies = [name for name in theirs if name.endswith("embedding_table.weight")]
    assert len(copies) == config.depth
    back = from_diffusers(theirs, config)
    assert back.keys() == state.keys()
    assert all(torch.equal(tensor, back[name]) for name, tensor in state.items())


def test_thirds_not_heads(three: DiT) -> None:
    theirs = to_diffusers(three.state_dict(), three.config)
    rows = three.blocks[1].attn.qkv.weight
    for part, name in enumerate("qkv"):
        want = rows[part * 48 : (part + 1) * 48]
        assert torch.equal(theirs[f"transformer_blocks.1.attn1.to_{name}.weight"], want)


@pytest.mark.parametrize("name", ["class_embedder.embedding_table.weight", "timestep_embedder.linear_2.bias"])
def test_embedders_that_differ_between_blocks_are_refused(written: Path, name: str) -> None:
    tensors = load_file(written / WEIGHTS)
    key = f"transformer_blocks.2.norm1.emb.{name}"
    tensors[key] = tensors[key] + 1e-3
    save_file(tensors, written / WEIGHTS)
    with pytest.raises(CheckpointError, match=rf"{key} differs"):
        load_dit(written)


def test_missing_and_unknown_tensors(written: Path) -> None:
    tensors = load_file(written / WEIGHTS)
    kept = {n: t for n, t in tensors.items() if n != "transformer_blocks.1.ff.net.2.weight"}
    save_file({**kept, "lora.up": torch.ones(1)}, written / WEIGHTS)
    with pytest.raises(CheckpointError) as error:
        load_dit(written)
    assert "missing: blocks.1.mlp.fc2.weight" in str(error.value)
    assert "unexpected: lora.up" in str(error.value)
    save_file({n: t for n, t in tensors.items() if not n.endswith("0.attn1.to_k.bias")}, written / WEIGHTS)
    with pytest.raises(CheckpointError, match="Block 0 holds 2 of the three"):
        load_dit(written)
    (written / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load_dit(written)


def test_pickled_weights(three: DiT, written: Path) -> None:
    torch.save(load_file(written / WEIGHTS), written / "diffusion_pytorch_model.bin")
    (written / WEIGHTS).unlink()
    assert torch.equal(load_dit(written).blocks[2].attn.qkv.weight, three.blocks[2].attn.qkv.weight)


def test_published_config_is_the_published_model() -> None:
    config = read_config({"_class_name": "DiTTransformer2DModel", "out_channels": 8, "sample_size": 32})
    assert (config.hidden_size, config.depth, config.num_heads, config.learn_sigma) == (1152, 28, 16, True)
    assert not read_config({}).learn_sigma
    with pytest.raises(InvalidSetting, match="7 output channels"):
        read_config({"out_channels": 7})


@pytest.mark.parametrize("case", ["sit", "odd", "no-null-label"])
def test_what_diffusers_cannot_hold(tiny_dit: Make, case: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="this model has kind"):
        save_diffusers(tiny_dit(case), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_config_names_the_right_constants(written: Path) -> None:
    assert json.loads((written / "config.json").read_text())["norm_eps"] == 1e-6
