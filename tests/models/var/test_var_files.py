from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modicum.errors import CheckpointError, InvalidSetting, OutputExists, UnknownName
from modicum.models.state_files import read_tensors
from modicum.models.var import VAR, VARConfig, convert, load_var
from modicum.models.var.files import save

LABELS = [0, 3]


@pytest.fixture
def originals(any_model: VAR, tmp_path: Path) -> tuple[Path, Path]:
    """The two pickled state dicts, buffers included."""
    torch.save(any_model.transformer.state_dict(), tmp_path / "var.pth")
    torch.save(any_model.vae.state_dict(), tmp_path / "vae.pth")
    return tmp_path / "var.pth", tmp_path / "vae.pth"


def test_converted_model_draws_the_same(any_model: VAR, originals: tuple[Path, Path], tmp_path: Path) -> None:
    loaded = load_var(convert(*originals, tmp_path / "out", any_model.config))
    assert loaded.config == any_model.config
    assert not loaded.training
    assert torch.equal(loaded.generate(LABELS, seed=1), any_model.generate(LABELS, seed=1))
    for ours, theirs in ((loaded.transformer, any_model.transformer), (loaded.vae, any_model.vae)):
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert all(torch.equal(t, theirs.state_dict()[n]) for n, t in ours.state_dict().items())


def test_stored_without_what_follows_from_the_sizes(model: VAR, tmp_path: Path) -> None:
    save(model, tmp_path / "out", half=True)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert set(stored) == {name for name, _ in model.transformer.named_parameters()}
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    half = load_var(tmp_path / "out", dtype=torch.bfloat16)
    assert half.transformer.dtype == torch.bfloat16
    assert half.vae.post_quant_conv.weight.dtype == torch.float32
    assert half.generate(LABELS, seed=0).isfinite().all()


def test_usage_statistics_of_other_maps_are_ignored(model: VAR, tmp_path: Path) -> None:
    state = model.vae.state_dict() | {"quantize.ema_vocab_hit_SV": torch.ones(9, 24)}
    model.vae.load_state_dict(state, strict=True)
    torch.save(model.transformer.state_dict(), tmp_path / "var.pth")
    torch.save(state, tmp_path / "vae.pth")
    loaded = load_var(convert(tmp_path / "var.pth", tmp_path / "vae.pth", tmp_path / "out", model.config))
    assert loaded.vae.quantize.ema_vocab_hit_SV.shape == (4, 24)


def _converted(model: VAR, folder: Path, state: dict[str, Any], config: VARConfig | str) -> Path:
    torch.save(state, folder / "var.pth")
    torch.save(model.vae.state_dict(), folder / "vae.pth")
    return convert(folder / "var.pth", folder / "vae.pth", folder / "out", config)


def test_missing_and_unexpected_tensors_are_listed(model: VAR, tmp_path: Path) -> None:
    state = model.transformer.state_dict()
    state["blocks.0.attn.extra"] = state.pop("pos_start")
    with pytest.raises(CheckpointError) as error:
        _converted(model, tmp_path, state, model.config)
    assert "missing: pos_start" in str(error.value)
    assert "unexpected: blocks.0.attn.extra" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_checkpoint_of_another_width(model: VAR, tmp_path: Path) -> None:
    wider = model.config.model_copy(update={"embed_dim": 48})
    with pytest.raises(CheckpointError, match=r"mat_qkv\.weight: \(72, 24\), expected \(144, 48\)"):
        _converted(model, tmp_path, model.transformer.state_dict(), wider)


def test_checkpoint_of_another_depth_than_the_preset(model: VAR, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"transformer weights do not fit .* and \d+ more"):
        _converted(model, tmp_path, model.transformer.state_dict(), "d16")
    with pytest.raises(UnknownName, match="d17"):
        _converted(model, tmp_path, model.transformer.state_dict(), "d17")


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    torch.save({"step": 3}, tmp_path / "odd.pth")
    torch.save({"path": Path("x")}, tmp_path / "code.pth")  # would need code to open
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 not a zip")
    (tmp_path / "broken.safetensors").write_bytes(b"12")
    for name in ("odd.pth", "code.pth", "broken.pth", "broken.safetensors", "absent.pth"):
        with pytest.raises(CheckpointError):
            read_tensors(tmp_path / name)


def test_directory_at_odds_with_its_config(model: VAR, tmp_path: Path) -> None:
    out = save(model, tmp_path / "out")
    with pytest.raises(OutputExists):
        save(model, out)
    settings = json.loads((out / "config.json").read_text())
    settings["var"]["depth"] = 3
    (out / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=r"missing: blocks\.2"):
        load_var(out)
    (out / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="object"):
        load_var(out)
    (out / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_var(out)


def test_further_files(model: VAR, tmp_path: Path) -> None:
    out = save(model, tmp_path / "out", extra={"a.txt": "x"}, tensors={"b.safetensors": {"t": torch.ones(2)}})
    assert (out / "a.txt").read_text() == "x"
    assert load_file(out / "b.safetensors")["t"].sum() == 2
    assert list(tmp_path.iterdir()) == [out]


def test_config_round_trip_and_original_arguments(any_model: VAR) -> None:
    config = any_model.config
    assert VARConfig.from_dict(config.to_dict()) == config
    assert VARConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    original = {
        "vae": {"vocab_size": 8, "test_mode": True, "dropout": 0.0, "v_patch_nums": [1, 2]},
        "var": {"depth": 2, "embed_dim": 8, "num_heads": 2, "flash_if_available": True},
        "groupnorm_groups": 4,
        "seeds": {"vae": 1},
    }
    read = VARConfig.from_dict(original)
    assert (read.patch_nums, read.depth, read.vae.vocab_size) == ((1, 2), 2, 8)
    assert (read.vae.groupnorm_groups, read.vae.z_channels) == (4, 32)


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        ("var", {"dept": 2}),
        ("var", {"embed_dim": 10, "num_heads": 3}),
        ("vae", {"vocab_size": 0}),
        ("vae", {"ch_mult": []}),
    ],
)
def test_unusable_settings(part: str, setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting, match="configuration"):
        VARConfig.from_dict({part: setting})


def test_safetensors_with_original_names(model: VAR, tmp_path: Path) -> None:
    save_file(
        {n: t.contiguous() for n, t in model.transformer.state_dict().items()}, tmp_path / "a.safetensors"
    )
    save_file({n: t.contiguous() for n, t in model.vae.state_dict().items()}, tmp_path / "b.safetensors")
    out = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "out", model.config)
    assert torch.equal(load_var(out).generate(LABELS, seed=1), model.generate(LABELS, seed=1))
