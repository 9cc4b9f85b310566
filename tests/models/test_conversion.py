"""Original checkpoints: recognised by their tensors, written once, and refused with the difference named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from modicum.errors import CheckpointError, OutputExists, UnknownName
from modicum.models import infinity, var
from modicum.models.conversion import convert
from modicum.models.image_models import image_kind, load_image_model


class Originals:
    """Checkpoints in the original layout, of the models in two directories, and presets of their sizes."""

    def __init__(self, folder: Path, tiny_var: Path, tiny_infinity: Path) -> None:
        self.folder = folder
        self.var, self.infinity = var.load_var(tiny_var), infinity.load_infinity(tiny_infinity)

    def write(self, name: str, state: Any) -> Path:
        torch.save(state, self.folder / name)
        return self.folder / name

    def chunked(self) -> dict[str, torch.Tensor]:
        """Infinity's transformer under the original names: two chunks of one block each."""
        state = self.infinity.transformer.state_dict()
        names = {name: name.replace("blocks.", "block_chunks.", 1) for name in state}
        for name in state:
            if name.startswith("blocks."):
                _, index, rest = name.split(".", 2)
                names[name] = f"block_chunks.{index}.module.0.{rest}"
        return {names[n].replace("text_proj_for_sos.", "text_proj_for_sos.ca."): t for n, t in state.items()}


@pytest.fixture
def originals(
    tmp_path: Path, tiny_var: Path, tiny_infinity: Path, monkeypatch: pytest.MonkeyPatch
) -> Originals:
    made = Originals(tmp_path, tiny_var, tiny_infinity)
    monkeypatch.setattr(var, "PRESETS", {"d2": made.var.config, "d16": var.PRESETS["d16"]})
    presets = {"tiny": made.infinity.config, "tiny-too": made.infinity.config}
    monkeypatch.setattr(infinity, "PRESETS", presets)
    return made


def test_var_is_recognised(originals: Originals, tmp_path: Path) -> None:
    file = originals.write("var.pth", originals.var.transformer.state_dict())
    vae = originals.write("vae.pth", originals.var.vae.state_dict())
    found = convert(file, vae, tmp_path / "out")
    assert (found.kind, found.preset, found.alike) == ("var", "d2", ())
    assert found.parameters == sum(p.numel() for p in originals.var.transformer.parameters())
    assert image_kind(tmp_path / "out") == "var"
    opened = load_image_model(tmp_path / "out", "var")
    assert torch.equal(opened.generate([3], seed=[0]), originals.var.generate([3], seed=[0]))


def test_infinity_is_recognised_inside_a_training_checkpoint(originals: Originals, tmp_path: Path) -> None:
    file = originals.write("global_step.pth", {"trainer": {"gpt_fsdp": originals.chunked()}})
    vae = originals.write("vae.pth", {"vae": originals.infinity.vae.state_dict()})
    found = convert(file, vae, tmp_path / "out", half=True)
    assert (found.kind, found.preset, found.alike) == ("infinity", "tiny", ("tiny-too",))
    opened = load_image_model(tmp_path / "out", "infinity", torch.bfloat16)
    assert opened.dtype == torch.bfloat16
    chosen = convert(file, vae, tmp_path / "other", preset="tiny-too")
    assert (chosen.preset, chosen.alike) == ("tiny-too", ())


def test_what_is_refused(originals: Originals, tmp_path: Path) -> None:
    state = originals.var.transformer.state_dict()
    file = originals.write("var.pth", state)
    vae = originals.write("vae.pth", originals.var.vae.state_dict())
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="neither VAR nor Infinity"):
        convert(vae, file, out)
    with pytest.raises(UnknownName, match="d17"):
        convert(file, vae, out, preset="d17")
    with pytest.raises(CheckpointError, match=r"blocks\.10\.|blocks\.0\.|do not fit"):
        convert(file, vae, out, preset="d16")
    with pytest.raises(CheckpointError, match="not a state dict"):
        convert(originals.write("list.pth", [1, 2]), vae, out)
    with pytest.raises(CheckpointError, match="cannot be read"):
        convert(tmp_path / "missing.pth", vae, out)
    with pytest.raises(CheckpointError, match="weights do not fit"):
        convert(file, originals.write("wrong.pth", {"encoder": torch.zeros(1)}), out)
    deeper = state | {f"blocks.2.{key[9:]}": t for key, t in state.items() if key.startswith("blocks.1.")}
    with pytest.raises(CheckpointError, match=r"no published model; d2 is nearest.*'blocks\.2'"):
        convert(originals.write("deep.pth", deeper), vae, out)
    narrow = {**state, "head.bias": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"differs in 1 tensors, the first is 'head\.bias'"):
        convert(originals.write("narrow.pth", narrow), vae, out)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(OutputExists):
        convert(file, vae, out)


def test_kinds_of_directories(tiny_var: Path, tiny_infinity: Path, tiny_llama: Path, tmp_path: Path) -> None:
    assert image_kind(tiny_var) == "var"
    assert image_kind(tiny_infinity) == "infinity"
    assert image_kind(tiny_llama) is None
    assert image_kind(tmp_path) is None
    for text in ("[]", "{", '{"model_type": ["var"]}', "{}"):
        (tmp_path / "config.json").write_text(text)
        assert image_kind(tmp_path) is None
