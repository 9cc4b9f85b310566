"""Checkpoints that somebody damaged: whatever the damage, loading ends in one of our errors or in a model."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from modicum import api
from modicum.errors import CheckpointError, ModicumError, NotFinite, UnknownName, UnsafeCheckpoint
from modicum.formats.manifest import FILE, Manifest
from modicum.formats.shards import SINGLE

_HYPOTHESIS: Any = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def written(tiny_models: Any, tokens: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A native checkpoint with packed, masked, 2:4 and expert forms."""
    steps: list[Any] = [
        {"prune.magnitude": {"only": ["q", "*.experts.*"]}},
        {"prune.wanda": {"pattern": "2:4", "only": ["k"]}},
        {"quantize.rtn": {"group_size": 32, "symmetric": False, "only": ["v", "o"]}},
    ]
    out = tmp_path_factory.mktemp("written") / "out"
    source = tiny_models("mixtral", num_hidden_layers=1, vocab_size=2048)
    api.prepare(source, steps, out, data=tokens, form="modicum").execute()
    return out


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "copy")
    return tmp_path / "copy"


def opens(directory: Path) -> bool:
    """Whether the directory opens; any other exception than ours is raised."""
    try:
        api.load(directory)
    except ModicumError:
        return False
    return True


def test_the_whole_one_opens(written: Path) -> None:
    assert opens(written)


@_HYPOTHESIS
@given(data=st.data())
def test_flipped_bytes_in_the_header_of_the_weights(written: Path, copy: Path, data: st.DataObject) -> None:
    content = bytearray((written / SINGLE).read_bytes())
    header = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header - 1))] ^= data.draw(st.integers(1, 255))
    (copy / SINGLE).write_bytes(content)
    opens(copy)


@_HYPOTHESIS
@given(data=st.data())
def test_flipped_bytes_in_the_weights_themselves(written: Path, copy: Path, data: st.DataObject) -> None:
    content = bytearray((written / SINGLE).read_bytes())
    header = 8 + struct.unpack("<Q", content[:8])[0]
    entries = json.loads(content[8:header])
    forms = [
        v["data_offsets"] for k, v in entries.items() if k[-9:] in ("t_bitmask", "ght_index", "ght_shape")
    ]
    start, stop = data.draw(st.sampled_from(forms))
    for _ in range(data.draw(st.integers(1, 3))):
        content[header + data.draw(st.integers(start, stop - 1))] ^= data.draw(st.integers(1, 255))
    (copy / SINGLE).write_bytes(content)
    assert not opens(copy) or len(forms) > 3


@_HYPOTHESIS
@given(data=st.data())
@pytest.mark.parametrize("name", [FILE, "config.json"])
def test_flipped_bytes_in_the_json_files(name: str, written: Path, copy: Path, data: st.DataObject) -> None:
    content = bytearray((written / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(
            st.integers(32, 126) | st.integers(0, 255)
        )
    (copy / name).write_bytes(content)
    opens(copy)


_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**66), 2**66),
    st.sampled_from(["", "packed", "float16", 1e300, [], {}, [64, 64], [10**9, 10**9], {"kind": "masked"}]),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value of nested JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in _places(part, (*path, key)))]


@_HYPOTHESIS
@given(data=st.data())
@pytest.mark.parametrize("name", [FILE, "config.json"])
def test_odd_values_in_the_json_files(name: str, written: Path, copy: Path, data: st.DataObject) -> None:
    value = json.loads((written / name).read_text())
    kept = {k: v for k, v in value.items() if k not in ("versions", "recipe", "promises", "source")}
    place = data.draw(st.sampled_from([p for p in _places(kept) if p]))
    owner = value
    for key in place[:-1]:
        owner = owner[key]
    owner[place[-1]] = data.draw(_ODD)
    (copy / name).write_text(json.dumps(value))
    opens(copy)


def _without(key: str) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        del value["layers"][next(name for name in value["layers"] if key in name)]

    return change


@pytest.mark.parametrize(
    "change",
    [
        _without("experts.3.up_proj"),
        _without("q_proj"),
        lambda value: value["layers"].update({"model.nowhere": value["layers"].popitem()[1]}),
        lambda value: value["layers"].update(
            {"model.norm": {"form": next(iter(value["layers"].values()))["form"]}}
        ),
        lambda value: value.update(format=99),
        lambda value: value.update(layers=[]),
        lambda value: value.update(shapes={"model.norm.weight": [10**12]}),
        lambda value: value.update(shapes={"model.norm.weight": [-1]}),
        lambda value: value.update(attributes={"model.nothing": 3}),
    ],
)
def test_damage_that_must_be_noticed(change: Callable[[dict[str, Any]], Any], copy: Path) -> None:
    value = json.loads((copy / FILE).read_text())
    change(value)
    (copy / FILE).write_text(json.dumps(value))
    with pytest.raises(CheckpointError):
        api.load(copy)


def test_an_unknown_form_is_named(copy: Path) -> None:
    value = json.loads((copy / FILE).read_text())
    next(iter(value["layers"].values()))["form"]["kind"] = "maskd"
    (copy / FILE).write_text(json.dumps(value))
    with pytest.raises(UnknownName, match="maskd"):
        api.load(copy)


def test_a_tensor_that_is_not_there_is_named(copy: Path) -> None:
    tensors = load_file(copy / SINGLE)
    del tensors["model.norm.weight"]
    save_file(tensors, copy / SINGLE, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        api.load(copy)


@pytest.mark.parametrize("name", [FILE, "config.json", SINGLE])
def test_a_file_that_is_not_there_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=name if name != SINGLE else "safetensors"):
        api.load(copy)


def test_a_manifest_survives_writing_and_reading(written: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(written)
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert (tmp_path / FILE).read_bytes() == (written / FILE).read_bytes()


class TestSource:
    """What a run refuses to begin with."""

    @pytest.fixture
    def model(self, tiny_llama: Path, tmp_path: Path) -> Path:
        shutil.copytree(tiny_llama, tmp_path / "model")
        return tmp_path / "model"

    @staticmethod
    def refused(model: Path, kind: type[ModicumError] = CheckpointError) -> ModicumError:
        """The error of compressing `model`; nothing that looks finished may be left."""
        out = model.with_name("out")
        with pytest.raises(kind) as caught:
            api.prepare(model, ["prune.magnitude"], out).execute()
        assert not out.exists()
        assert "Traceback" not in str(caught.value)
        return caught.value

    def test_nan_is_named(self, model: Path) -> None:
        tensors = load_file(model / SINGLE)
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
        save_file(tensors, model / SINGLE, {"format": "pt"})
        assert "model.layers.1.mlp.up_proj.weight" in self.refused(model, NotFinite).what

    def test_infinity_outside_the_blocks_is_named(self, model: Path) -> None:
        tensors = load_file(model / SINGLE)
        tensors["lm_head.weight"][0, 0] = float("inf")
        save_file(tensors, model / SINGLE, {"format": "pt"})
        assert "lm_head.weight" in self.refused(model, NotFinite).what

    @pytest.mark.parametrize(
        ("key", "value", "named"),
        [
            ("hidden_size", 128, "model.embed_tokens.weight"),
            ("num_hidden_layers", 4, "model.layers.3"),
            ("intermediate_size", 80, "mlp"),
            ("num_attention_heads", 5, "config.json"),
            ("hidden_size", -3, ""),
            ("vocab_size", "many", "config.json"),
            ("model_type", "none-such", "none-such"),
        ],
    )
    def test_a_config_that_disagrees(self, model: Path, key: str, value: Any, named: str) -> None:
        config = json.loads((model / "config.json").read_text())
        config[key] = value
        config.pop("head_dim", None)
        (model / "config.json").write_text(json.dumps(config))
        assert named in self.refused(model).what

    def test_pickles_are_refused(self, model: Path) -> None:
        torch.save(load_file(model / SINGLE), model / "pytorch_model.bin")
        (model / SINGLE).unlink()
        assert "pytorch_model.bin" in self.refused(model, UnsafeCheckpoint).what

    def test_what_is_compressed_already(self, model: Path, written: Path) -> None:
        with pytest.raises(CheckpointError, match="compressed already"):
            api.prepare(written, ["prune.magnitude"], model.with_name("out"))

    @_HYPOTHESIS
    @given(data=st.data())
    def test_flipped_bytes_of_a_source(self, tiny_llama: Path, model: Path, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from([SINGLE, "config.json"]))
        content = bytearray((tiny_llama / name).read_bytes())
        content[data.draw(st.integers(0, min(len(content), 2500) - 1))] = data.draw(st.integers(0, 255))
        for file in (SINGLE, "config.json"):
            shutil.copyfile(tiny_llama / file, model / file)
        (model / name).write_bytes(content)
        try:
            plan = api.plan(model, ["prune.magnitude"])
        except ModicumError:
            return
        assert plan.layers
