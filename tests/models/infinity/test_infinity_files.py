from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modicum.errors import CheckpointError, InvalidSetting, OutputExists, UnknownName
from modicum.models.infinity import (
    PRESETS,
    BSQVAEConfig,
    Infinity,
    InfinityConfig,
    Resolution,
    convert,
    load_infinity,
    save,
)
from modicum.models.infinity.transformer import untrained_text

SQUARE = Resolution.of(1.0).prefix(4)


def _original_transformer(model: Infinity, chunks: int) -> dict[str, Tensor]:
    """Our parameters under the names of the original, whose blocks are grouped."""
    per_chunk = model.config.depth // chunks

    def chunked(found: re.Match[str]) -> str:
        return f"block_chunks.{int(found[1]) // per_chunk}.module.{int(found[1]) % per_chunk}."

    def original(name: str) -> str:
        name = name.replace("text_proj_for_sos.", "text_proj_for_sos.ca.")
        return re.sub(r"^blocks\.(\d+)\.", chunked, name) if chunks > 1 else name

    state = {original(name): tensor for name, tensor in model.transformer.state_dict().items()}
    return state | {"text_proj_for_sos.ca.zero_k_bias": torch.zeros(model.config.embed_dim)}


def _original_tokenizer(model: Infinity, *, wrapped: bool) -> dict[str, Tensor]:
    def original(name: str) -> str:
        if not wrapped:
            return name
        kind = "norm" if re.search(r"\bnorm\w*\.\w+$", name) else "conv"
        return re.sub(r"\.(\w+)$", rf".{kind}.\1", name)

    state = {original(name): tensor for name, tensor in model.vae.state_dict().items()}
    mask = 2 ** torch.arange(model.config.vae.codebook_dim)
    return state | {"quantizer.lfq.mask": mask, "quantize.lfq.mask": mask.clone()}


def _same(loaded: Infinity, model: Infinity) -> None:
    assert loaded.config == model.config
    assert not loaded.training
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in loaded.state_dict().items())


def test_converted_model_draws_the_same(any_model: Infinity, some_text: Any, tmp_path: Path) -> None:
    torch.save(_original_transformer(any_model, any_model.config.depth), tmp_path / "model.pth")
    torch.save({"vae": _original_tokenizer(any_model, wrapped=True)}, tmp_path / "vae.pth")
    loaded = load_infinity(
        convert(tmp_path / "model.pth", tmp_path / "vae.pth", tmp_path / "out", any_model.config)
    )
    _same(loaded, any_model)
    text = some_text(any_model, 4, 2)
    images = (one.generate(text, resolution=SQUARE, seed=1) for one in (loaded, any_model))
    assert torch.equal(*images)


@pytest.mark.parametrize("chunks", [1, 2, 4, 8])
def test_blocks_in_any_number_of_chunks(make_tiny: Any, tmp_path: Path, chunks: int) -> None:
    model = make_tiny("eight-blocks")
    save_file(_original_transformer(model, chunks), tmp_path / "model.safetensors")
    save_file(_original_tokenizer(model, wrapped=False), tmp_path / "vae.safetensors")
    out = convert(
        tmp_path / "model.safetensors", tmp_path / "vae.safetensors", tmp_path / "out", model.config
    )
    _same(load_infinity(out), model)


def test_training_checkpoints_and_old_pickles(model: Infinity, tmp_path: Path) -> None:
    nested = {"epoch": 3, "trainer": {"gpt_fsdp": _original_transformer(model, 2)}}
    torch.save(nested, tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    torch.save(_original_tokenizer(model, wrapped=False), tmp_path / "vae.pth")
    _same(
        load_infinity(convert(tmp_path / "model.pth", tmp_path / "vae.pth", tmp_path / "out", model.config)),
        model,
    )


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_with_an_index(model: Infinity, tmp_path: Path, suffix: str) -> None:
    _write_shards(_original_transformer(model, 2), tmp_path / "weights", suffix)
    torch.save({"vae": _original_tokenizer(model, wrapped=True)}, tmp_path / "vae.pth")
    _same(
        load_infinity(convert(tmp_path / "weights", tmp_path / "vae.pth", tmp_path / "out", model.config)),
        model,
    )


def _write_shards(state: dict[str, Tensor], folder: Path, suffix: str) -> None:
    folder.mkdir()
    names, stem = sorted(state), "model" if suffix == "safetensors" else "pytorch_model"
    places = {}
    for number, part in enumerate((names[::2], names[1::2])):
        file = f"{stem}-{number}-of-2.{suffix}"
        content = {name: state[name].clone() for name in part}
        if suffix == "safetensors":
            save_file(content, folder / file)
        else:
            torch.save(content, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": places}))


def test_damaged_shards(model: Infinity, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    _write_shards(_original_transformer(model, 2), folder, "safetensors")
    torch.save(_original_tokenizer(model, wrapped=True), tmp_path / "vae.pth")
    index = folder / "model.safetensors.index.json"

    def fails(match: str) -> None:
        with pytest.raises(CheckpointError, match=match):
            convert(folder, tmp_path / "vae.pth", tmp_path / "out", model.config)
        assert not (tmp_path / "out").exists()

    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": places | {"absent": "model-0-of-2.safetensors"}}))
    fails("lack 1 tensors of their index, first absent")
    (folder / "model-1-of-2.safetensors").unlink()
    fails("model-1-of-2")
    index.write_text("{}")
    fails("no weight_map")
    index.unlink()
    fails("holds no weights")


@pytest.mark.parametrize("rows", [5, 12, 20])
def test_text_for_no_text_is_cut_or_filled_up(model: Infinity, tmp_path: Path, rows: int) -> None:
    state = _original_transformer(model, 2)
    state["cfg_uncond"] = torch.randn(rows, model.config.text_channels)
    torch.save(state, tmp_path / "model.pth")
    torch.save(_original_tokenizer(model, wrapped=True), tmp_path / "vae.pth")
    loaded = load_infinity(
        convert(tmp_path / "model.pth", tmp_path / "vae.pth", tmp_path / "out", model.config)
    )
    got, most = loaded.transformer.cfg_uncond, model.config.text_maxlen
    assert torch.equal(got[: min(rows, most)], state["cfg_uncond"][:most])
    assert torch.equal(got[rows:], untrained_text(most, model.config.text_channels)[rows:])


def test_every_fault_is_named(model: Infinity, tmp_path: Path) -> None:
    state = _original_transformer(model, 2)
    state["extra"] = state.pop("pos_start")
    state["head.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "model.pth")
    torch.save(_original_tokenizer(model, wrapped=True), tmp_path / "vae.pth")
    with pytest.raises(CheckpointError) as error:
        convert(tmp_path / "model.pth", tmp_path / "vae.pth", tmp_path / "out", model.config)
    assert "transformer weights do not fit" in str(error.value)
    assert "missing: pos_start; unexpected: extra; head.bias: (3,), expected (12,)" in str(error.value)
    state = _original_transformer(model, 2)
    torch.save(state, tmp_path / "model.pth")
    broken = _original_tokenizer(model, wrapped=True)
    broken.pop("decoder.conv_out.conv.bias")
    torch.save(broken, tmp_path / "vae.pth")
    with pytest.raises(CheckpointError, match=r"tokenizer weights .* missing: decoder\.conv_out\.bias"):
        convert(tmp_path / "model.pth", tmp_path / "vae.pth", tmp_path / "out", model.config)
    with pytest.raises(UnknownName, match="2bb"):
        convert(tmp_path / "model.pth", tmp_path / "vae.pth", tmp_path / "out", "2bb")


def test_blocks_in_bfloat16_and_the_rest_in_float32(model: Infinity, some_text: Any, tmp_path: Path) -> None:
    save(model, tmp_path / "out", half=True)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert all((t.dtype == torch.bfloat16) == n.startswith("blocks.") for n, t in stored.items())
    assert not any(name.endswith("zero_k_bias") for name in stored)
    half = load_infinity(tmp_path / "out", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.transformer.blocks.parameters()} == {torch.bfloat16}
    assert {half.transformer.head.weight.dtype, half.vae.decoder.conv_in.weight.dtype} == {torch.float32}
    assert half.generate(some_text(model, 3), resolution=SQUARE, seed=0).isfinite().all()


def test_directory_at_odds_with_its_config(model: Infinity, tmp_path: Path) -> None:
    out = save(model, tmp_path / "out")
    with pytest.raises(OutputExists):
        save(model, out)
    settings = json.loads((out / "config.json").read_text())
    assert settings["model_type"] == InfinityConfig.model_type == "infinity"
    settings["model"]["depth"] = 3
    (out / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"missing: blocks\.2"):
        load_infinity(out)
    (out / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="object"):
        load_infinity(out)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_infinity(tmp_path / "absent")


def test_config_round_trip(any_model: Infinity) -> None:
    config = any_model.config
    assert InfinityConfig.from_dict(config.to_dict()) == config
    assert InfinityConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    config = InfinityConfig.preset(name)
    assert InfinityConfig.from_dict(config.to_dict()) == config
    assert config.pixels_per_token == 16
    assert config.text_pool_heads == 16
    widths = {"layer32": 8192, "layer48": 13312}
    assert config.ffn_hidden == widths.get(name, 4 * config.embed_dim)


def test_original_constructor_arguments() -> None:
    model = {
        "depth": 40,
        "embed_dim": 3584,
        "num_heads": 28,
        "mlp_ratio": 4,
        "block_chunks": 8,
        "drop_path_rate": 0.1,
        "shared_aln": True,
        "apply_spatial_patchify": 1,
        "head_dim": 128,
    }
    vae = {"codebook_dim": 14, "ch_mult": [1, 2, 4, 4], "patch_size": 8}
    assert InfinityConfig.from_dict({"model": model, "vae": vae, "seeds": {}}) == PRESETS["8b"]


@pytest.mark.parametrize(
    ("part", "setting", "match"),
    [
        ("model", {"dept": 2}, "not usable"),
        ("model", {"embed_dim": 2050, "num_heads": 25}, "no multiple of 4"),
        ("model", {"mlp_ratio": 0.01}, "no hidden channels"),
        ("model", {"text_channels": 64}, "no whole heads"),
        ("model", {"head_dim": 64}, "sizes give 128"),
        ("model", {"shared_aln": False}, "another shared_aln"),
        ("model", {"rope2d_normalized_by_hw": 1}, "another rope2d_normalized_by_hw"),
        ("model", {"pixels": "2M"}, "not usable"),
        ("vae", {"codebook_dim": 0}, "not usable"),
        ("vae", {"patch_size": 12}, "patch_size 12"),
        ("vae", {"patch_size": 32}, "patch_size 32"),
        ("vae", {"base_ch": 20}, "do not divide"),
    ],
)
def test_unusable_settings(part: str, setting: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidSetting, match=match):
        InfinityConfig.from_dict({part: setting})


def test_levels_without_halving() -> None:
    config = BSQVAEConfig(base_ch=24, ch_mult=(1, 1, 2), patch_size=2, num_res_blocks=1, codebook_dim=2)
    assert config.halvings == 1
    with torch.device("meta"):
        model = Infinity(InfinityConfig(depth=1, vae=config))
        features = model.vae.features(torch.zeros(1, 3, 8, 12))
        assert features.shape == (1, 2, 4, 6)
        assert model.vae.picture(features).shape == (1, 3, 8, 12)
