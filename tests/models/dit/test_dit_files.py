from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modicum.errors import CheckpointError, InvalidSetting, OutputExists, UnknownName
from modicum.models.dit import DiT, DiTConfig, convert, load_dit, save

Make = Callable[..., Any]


def _same(ours: DiT, theirs: DiT) -> bool:
    ours_state, theirs_state = ours.state_dict(), theirs.state_dict()
    return list(ours_state) == list(theirs_state) and all(
        torch.equal(tensor, theirs_state[name]) for name, tensor in ours_state.items()
    )


def test_converted_original_is_the_model(any_dit: DiT, batch: Make, tmp_path: Path) -> None:
    torch.save(any_dit.state_dict(), tmp_path / "DiT.pt")
    loaded = load_dit(convert(tmp_path / "DiT.pt", tmp_path / "out", any_dit.config))
    assert loaded.config == any_dit.config
    assert not loaded.training
    assert not loaded.pos_embed.requires_grad or not any_dit.pos_embed.requires_grad
    assert _same(loaded, any_dit)
    assert torch.equal(loaded(*batch(loaded)), any_dit(*batch(loaded)))


def test_training_checkpoint_gives_its_average(dit: DiT, tiny_dit: Make, tmp_path: Path) -> None:
    online = tiny_dit(seed=1)
    checkpoint = {
        "model": online.state_dict(),
        "ema": dit.state_dict(),
        "opt": torch.optim.AdamW(online.parameters()).state_dict(),
        "args": argparse.Namespace(model="DiT-XL/2", image_size=256),
    }
    torch.save(checkpoint, tmp_path / "0400000.pt")
    assert _same(load_dit(convert(tmp_path / "0400000.pt", tmp_path / "out", dit.config)), dit)


def test_stored_in_half(dit: DiT, tmp_path: Path) -> None:
    out = save(dit, tmp_path / "out", half=True)
    stored = load_file(out / "model.safetensors")
    assert set(stored) == set(dit.state_dict())
    assert torch.equal(stored.pop("pos_embed"), dit.pos_embed)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert load_dit(out, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert load_dit(out).dtype == torch.float32


def test_only_the_position_table_stands_still(dit: DiT, tmp_path: Path) -> None:
    loaded = load_dit(save(dit, tmp_path / "out"))
    assert [name for name, p in loaded.named_parameters() if not p.requires_grad] == ["pos_embed"]


def test_tensors_that_do_not_fit_are_listed(dit: DiT, tmp_path: Path) -> None:
    state = dit.state_dict()
    state["blocks.0.attn.extra"] = state.pop("x_embedder.proj.bias")
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError) as error:
        convert(tmp_path / "odd.safetensors", tmp_path / "out", dit.config)
    assert "missing: x_embedder.proj.bias" in str(error.value)
    assert "unexpected: blocks.0.attn.extra" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_checkpoint_of_other_sizes(dit: DiT, tmp_path: Path) -> None:
    torch.save(dit.state_dict(), tmp_path / "DiT.pt")
    smaller = DiTConfig.from_dict({**dit.config.to_dict(), "input_size": 4})
    with pytest.raises(CheckpointError, match=r"pos_embed: \(1, 16, 24\), expected \(1, 4, 24\)"):
        convert(tmp_path / "DiT.pt", tmp_path / "out", smaller)
    with pytest.raises(CheckpointError, match=r"DiT weights do not fit .* and \d+ more"):
        convert(tmp_path / "DiT.pt", tmp_path / "out", "DiT-S/8")
    with pytest.raises(UnknownName, match="DiT-S/8"):
        convert(tmp_path / "DiT.pt", tmp_path / "out", "DiT-S/3")


def test_files_that_are_no_weights(dit: DiT, tmp_path: Path) -> None:
    torch.save({"step": 3}, tmp_path / "odd.pt")
    torch.save({"ema": {"x": Path("x")}}, tmp_path / "code.pt")  # would need code to open
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 not a zip")
    for name in ("odd.pt", "code.pt", "broken.pt", "absent.pt"):
        with pytest.raises(CheckpointError):
            convert(tmp_path / name, tmp_path / "out", dit.config)


def test_directory_at_odds_with_its_config(dit: DiT, tmp_path: Path) -> None:
    out = save(dit, tmp_path / "out")
    with pytest.raises(OutputExists):
        save(dit, out)
    settings = json.loads((out / "config.json").read_text())
    assert settings["model_type"] == "dit"
    (out / "config.json").write_text(json.dumps(settings | {"depth": 3}))
    with pytest.raises(CheckpointError, match=r"missing: blocks\.2"):
        load_dit(out)
    (out / "config.json").write_text(json.dumps(settings | {"width": 3}))
    with pytest.raises(InvalidSetting, match="width"):
        load_dit(out)
    (out / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="object"):
        load_dit(out)
    (out / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_dit(out)


def test_further_files_beside_the_weights(dit: DiT, tmp_path: Path) -> None:
    out = save(dit, tmp_path / "out", extra={"a.txt": "x"}, tensors={"b.safetensors": {"t": torch.ones(2)}})
    assert (out / "a.txt").read_text() == "x"
    assert load_file(out / "b.safetensors")["t"].sum() == 2
