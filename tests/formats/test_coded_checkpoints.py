"""Checkpoints that are coded without loss: every bit comes back, published files open, damaged ones are refused."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

import modicum
from modicum.cli.app import app
from modicum.cli.failures import explain
from modicum.errors import (
    CheckpointError,
    InvalidSetting,
    ModicumError,
    OutputExists,
    RecipeConflict,
    UnsupportedModel,
)
from modicum.formats.coded_layout import Layout, coded_json
from modicum.formats.manifest import Manifest
from modicum.lossless import dfloat11
from modicum.pipeline import storage_run
from modicum.pipeline.coded import expand
from modicum.pipeline.verifying import verify

METHOD = "lossless.dfloat11"
NAMES = ["luts", "encoded_exponent", "sign_mantissa", "gaps", "output_positions", "split_positions"]
BLOCK = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, toolbox: Any) -> Path:
    """A Llama in bfloat16 with a head of its own."""
    return toolbox.save(
        "llama", tmp_path_factory.mktemp("llama") / "tiny", "bfloat16", tie_word_embeddings=False
    )


@pytest.fixture(scope="module")
def coded(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, coded."""
    out = tmp_path_factory.mktemp("coded") / "tiny"
    modicum.compress(llama, METHOD, out=out)
    return out


class TestBits:
    @pytest.mark.parametrize(
        ("name", "changed"),
        [
            ("llama", {"tie_word_embeddings": True}),
            ("qwen2_moe", {}),
            ("gpt2", {}),
            ("gemma", {}),
            ("vit", {}),
        ],
    )
    def test_models_compute_what_the_original_computes(
        self, name: str, changed: dict[str, Any], tmp_path: Path, toolbox: Any
    ) -> None:
        original = toolbox.save(name, tmp_path / "dense", "bfloat16", **changed)
        modicum.compress(original, METHOD, out=tmp_path / "coded")
        dense = modicum.load(original)
        wanted = toolbox.logits_of(dense)
        assert torch.equal(toolbox.logits_of(modicum.load(tmp_path / "coded")), wanted)
        assert torch.equal(toolbox.logits_of(type(dense).from_pretrained(tmp_path / "coded")), wanted)
        assert verify(original, tmp_path / "coded").identical
        size = sum(file.stat().st_size for file in (tmp_path / "coded").glob("*.safetensors"))
        assert size < 0.8 * (original / "model.safetensors").stat().st_size

    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    @pytest.mark.parametrize("method", [METHOD, "lossless.byteplanes"])
    def test_other_dtypes_shrink_too(self, dtype: str, method: str, tmp_path: Path, toolbox: Any) -> None:
        original = toolbox.save("llama", tmp_path / "dense", dtype)
        manifest = modicum.compress(original, method, out=tmp_path / "coded")
        assert manifest.notes[method]["bits_per_weight"] < manifest.notes[method]["bits"]
        assert "dfloat11_config" not in (tmp_path / "coded" / "config.json").read_text()
        assert verify(original, tmp_path / "coded").identical
        wanted = toolbox.logits_of(modicum.load(original))
        assert torch.equal(toolbox.logits_of(modicum.load(tmp_path / "coded")), wanted)

    def test_weights_that_cannot_be_coded_stay(self, llama: Path, tmp_path: Path, toolbox: Any) -> None:
        shutil.copytree(llama, tmp_path / "odd")
        tensors = load_file(llama / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.inf
        tensors["lm_head.weight"] = torch.randint(
            -(2**15), 2**15, tensors["lm_head.weight"].shape, dtype=torch.int16
        ).view(torch.bfloat16)
        save_file(tensors, tmp_path / "odd" / "model.safetensors", {"format": "pt"})
        manifest = modicum.compress(tmp_path / "odd", METHOD, out=tmp_path / "coded")
        raw = manifest.notes[METHOD]["raw"]
        assert sorted(raw) == ["lm_head", "model.layers.1"]
        assert "infinities" in raw["model.layers.1"]
        assert verify(tmp_path / "odd", tmp_path / "coded").identical
        sizes = manifest.notes[METHOD]["groups"].values()
        assert all(size["nbytes"] <= size["dense_nbytes"] for size in sizes)

    def test_what_is_expanded_is_the_original(self, llama: Path, coded: Path, tmp_path: Path) -> None:
        expand(coded, tmp_path / "out")
        assert verify(llama, tmp_path / "out").identical
        before, after = (load_file(d / "model.safetensors") for d in (llama, tmp_path / "out"))
        assert all(torch.equal(after[n].view(torch.int16), t.view(torch.int16)) for n, t in before.items())
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert not {"quantization_config", "dfloat11_config", "transformers_weights"} & set(config)
        with pytest.raises(OutputExists):
            expand(coded, tmp_path / "out")
        with pytest.raises(InvalidSetting, match="not coded"):
            expand(llama, tmp_path / "other")

    def test_text_is_the_same(self, llama: Path, coded: Path) -> None:
        tokens = torch.tensor([[5, 9, 3]])
        texts = [modicum.load(d).generate(tokens, max_new_tokens=6, do_sample=False) for d in (llama, coded)]
        assert torch.equal(*texts)

    def test_a_model_may_compute_in_another_dtype(self, llama: Path, coded: Path, toolbox: Any) -> None:
        wanted = toolbox.logits_of(modicum.load(llama, dtype=torch.float32))
        assert torch.equal(toolbox.logits_of(modicum.load(coded, dtype=torch.float32)), wanted)


class TestPublishedLayout:
    def test_names_types_and_config_are_the_published_ones(self, coded: Path) -> None:
        config = json.loads((coded / "config.json").read_text())["dfloat11_config"]
        assert config == {
            "version": "0.5.0", "threads_per_block": [512], "bytes_per_thread": 8,
            "pattern_dict": {r"model\.layers\.\d+": BLOCK, r"model\.embed_tokens": [], "lm_head": []},
        }  # fmt: skip
        tensors = load_file(coded / "model.safetensors")
        assert sorted(n for n in tensors if n.startswith("model.layers.0.") and "norm" not in n) == sorted(
            f"model.layers.0.{name}" for name in NAMES
        )
        dtypes = {name: tensors[f"model.layers.0.{name}"].dtype for name in NAMES}
        assert dtypes == {**dict.fromkeys(NAMES, torch.uint8), "split_positions": torch.int64}
        assert tensors["model.layers.0.split_positions"].tolist() == torch.tensor(
            [64 * 64, 32 * 64, 32 * 64, 64 * 64, 96 * 64, 96 * 64]
        ).cumsum(0).tolist()  # fmt: skip
        assert tensors["lm_head.split_positions"].tolist() == []
        assert tensors["model.layers.0.input_layernorm.weight"].dtype == torch.bfloat16

    @pytest.mark.parametrize(
        ("most", "patterns"),
        [
            (20_000, {r"model\.layers\.\d+\.self_attn": [p.partition(".")[2] for p in BLOCK[:4]],
                      r"model\.layers\.\d+\.mlp": [p.partition(".")[2] for p in BLOCK[4:]]}),
            (10_000, {r"model\.layers\.\d+\." + re.escape(path): [] for path in BLOCK}),
        ],
    )  # fmt: skip
    def test_blocks_that_are_too_large_for_the_format_are_coded_in_parts(
        self, llama: Path, tmp_path: Path, monkeypatch: Any, most: int, patterns: dict[str, Any], toolbox: Any
    ) -> None:
        monkeypatch.setattr(dfloat11, "MOST", most)
        modicum.compress(llama, METHOD, out=tmp_path / "parts")
        config = json.loads((tmp_path / "parts" / "config.json").read_text())["dfloat11_config"]
        assert config["pattern_dict"] == {**patterns, r"model\.embed_tokens": [], "lm_head": []}
        assert verify(llama, tmp_path / "parts").identical
        wanted = toolbox.logits_of(modicum.load(llama))
        assert torch.equal(toolbox.logits_of(modicum.load(tmp_path / "parts")), wanted)
        (tmp_path / "parts" / "modicum.json").unlink()  # as others would read it
        assert torch.equal(toolbox.logits_of(modicum.load(tmp_path / "parts")), wanted)

    @pytest.mark.parametrize("single", [True, False])
    def test_files_of_an_independent_writer_open(
        self, llama: Path, tmp_path: Path, single: bool, toolbox: Any
    ) -> None:
        write_published(llama, tmp_path, single)
        wanted = toolbox.logits_of(modicum.load(llama))
        assert torch.equal(toolbox.logits_of(modicum.load(tmp_path)), wanted)
        assert verify(llama, tmp_path).identical

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"bytes_per_thread": 16}, "16 bytes"),
            ({"pattern_dict": {"lm_head": []}}, "no pattern"),
            ({"pattern_dict": {".*": ["nowhere"]}}, "no weight"),
            ({"pattern_dict": {"(": []}}, "damaged"),
            ({"pattern_dict": 3}, "damaged"),
        ],
    )
    def test_a_config_that_does_not_fit_is_refused(
        self, llama: Path, tmp_path: Path, change: dict[str, Any], said: str
    ) -> None:
        write_published(llama, tmp_path, True)
        config = json.loads((tmp_path / "config.json").read_text())
        config["dfloat11_config"] |= change
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=said):
            modicum.load(tmp_path)


def write_published(directory: Path, out: Path, single: bool) -> None:
    """An independent writer: fixed codes of 8 bits, so that every stream is its exponents, and no gap is needed."""
    tensors = load_file(directory / "model.safetensors")
    groups = {f"model.layers.{i}": [f"model.layers.{i}.{path}" for path in BLOCK] for i in range(3)}
    groups |= {name: [name] for name in ("model.embed_tokens", "lm_head")}
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, owners in groups.items():
        weights = [tensors.pop(f"{owner}.weight") for owner in owners]
        words = torch.cat([weight.flatten() for weight in weights]).view(torch.int16).int() & 0xFFFF
        exponents = (words >> 7 & 0xFF).to(torch.uint8)
        blocks = -(-len(words) // 4096)
        positions = torch.arange(blocks + 1, dtype=torch.int32).mul(4096).clamp(max=len(words))
        table = torch.arange(256).clamp(max=239).to(torch.uint8)
        sizes = torch.tensor([weight.numel() for weight in weights])
        files[name.replace(".", "_")] = {
            f"{name}.luts": torch.stack([table, 8 * (torch.arange(256) < 240).to(torch.uint8)]),
            f"{name}.encoded_exponent": exponents,
            f"{name}.sign_mantissa": (words >> 8 & 0x80 | words & 0x7F).to(torch.uint8),
            f"{name}.gaps": torch.zeros(320 * blocks, dtype=torch.uint8),
            f"{name}.output_positions": positions.view(torch.uint8),
            f"{name}.split_positions": sizes.cumsum(0)[:-1],
        }
    files["model"] = tensors
    if single:
        files = {"model": {name: tensor for file in files.values() for name, tensor in file.items()}}
    out.mkdir(exist_ok=True)
    for file, content in files.items():
        save_file(content, out / f"{file}.safetensors")
    shutil.copy(directory / "tokenizer.json", out)
    patterns = {r"model\.layers\.\d+": BLOCK, r"model\.embed_tokens": [], "lm_head": []}
    about = {"version": "0.5.0", "threads_per_block": [512], "bytes_per_thread": 8, "pattern_dict": patterns}
    config = json.loads((directory / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "dfloat11_config": about}))


class TestRecipes:
    def test_zeros_of_an_earlier_step_are_there(self, llama: Path, tmp_path: Path) -> None:
        steps: list[Any] = [{"prune.magnitude": {"sparsity": 0.5}}, METHOD]
        manifest = modicum.compress(llama, steps, out=tmp_path / "coded")
        assert [list(step) for step in manifest.recipe["steps"]] == [["prune.magnitude"], [METHOD]]
        assert "zero mask" in str(manifest.promises["model.layers.0.mlp.up_proj"])
        modicum.compress(llama, "prune.magnitude", out=tmp_path / "dense")
        expand(tmp_path / "coded", tmp_path / "plain")
        weight = load_file(tmp_path / "plain" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
        assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
        assert not (tmp_path / "coded.partial").exists()

    @pytest.mark.parametrize(
        "steps", [[METHOD, "prune.magnitude"], [METHOD, "lossless.byteplanes"], [METHOD, METHOD]]
    )
    def test_coding_is_the_last_thing_that_happens_to_weights(
        self, llama: Path, tmp_path: Path, steps: list[str]
    ) -> None:
        with pytest.raises(RecipeConflict):
            modicum.compress(llama, steps, out=tmp_path / "out")

    def test_what_is_coded_is_not_compressed_again(self, coded: Path, tmp_path: Path) -> None:
        for method in ("prune.magnitude", METHOD):
            with pytest.raises(CheckpointError, match="compressed already"):
                modicum.compress(coded, method, out=tmp_path / "out")

    def test_a_model_in_memory_is_refused(self, llama: Path) -> None:
        with pytest.raises(RecipeConflict, match="in memory"):
            modicum.compress(modicum.load(llama), METHOD)

    def test_a_run_that_was_killed_goes_on(
        self, llama: Path, coded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toolbox: Any
    ) -> None:
        write, calls = storage_run.Workspace.write_block, []

        def stopping(self: Any, index: int, *rest: Any) -> None:
            calls.append(index)
            if len(calls) == 3:
                raise KeyboardInterrupt
            write(self, index, *rest)

        monkeypatch.setattr(storage_run.Workspace, "write_block", stopping)
        with pytest.raises(KeyboardInterrupt):
            modicum.compress(llama, METHOD, out=tmp_path / "tiny")
        modicum.compress(llama, METHOD, out=tmp_path / "tiny")
        assert calls == [0, 1, 2, 2, 3, 4]
        assert toolbox.hashes(tmp_path / "tiny") == toolbox.hashes(coded)


class TestVerify:
    def test_the_first_difference_is_named(
        self, llama: Path, coded: Path, tmp_path: Path, capsys: Any
    ) -> None:
        shutil.copytree(llama, tmp_path / "other")
        tensors = load_file(llama / "model.safetensors")
        name = "model.layers.1.self_attn.k_proj.weight"
        words = tensors[name].view(torch.int16)
        before = int(words[7, 11]) & 0xFFFF
        words[7, 11] ^= 1
        save_file(tensors, tmp_path / "other" / "model.safetensors", {"format": "pt"})
        found = verify(coded, tmp_path / "other").difference
        assert found is not None
        assert (found.tensor, found.index) == (name, (7, 11))
        assert (found.first, found.second) == (f"0x{before:04x}", f"0x{before ^ 1:04x}")
        assert explain(app, ["verify", str(coded), str(tmp_path / "other")]) == 1
        assert name in capsys.readouterr().out.replace("\n", "")
        assert explain(app, ["verify", str(coded), str(tmp_path / "other"), "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["difference"]["index"] == [7, 11]

    def test_equal_ones_pass(self, llama: Path, coded: Path, capsys: Any) -> None:
        assert explain(app, ["verify", str(llama), str(coded)]) == 0
        assert "every bit is the same" in capsys.readouterr().out

    def test_a_tensor_that_is_missing_is_named(self, llama: Path, tmp_path: Path) -> None:
        shutil.copytree(llama, tmp_path / "other")
        tensors = load_file(llama / "model.safetensors")
        del tensors["model.norm.weight"]
        save_file(tensors, tmp_path / "other" / "model.safetensors", {"format": "pt"})
        found = verify(llama, tmp_path / "other").difference
        assert found is not None
        assert found.tensor == "model.norm.weight"
        assert str(llama) in found.what

    def test_other_shapes_and_signs_of_zero_are_differences(self, tmp_path: Path) -> None:
        zero = torch.zeros(2, 3)
        for name, tensor in (("a", zero), ("b", zero.view(3, 2)), ("c", -zero)):
            save_file({"x": tensor}, tmp_path / f"{name}.safetensors")
        a, b, c = (tmp_path / f"{name}.safetensors" for name in "abc")
        assert verify(a, a).identical
        assert "[3, 2]" in verify(a, b).difference.what  # type: ignore[union-attr]
        assert verify(a, c).difference.second == "0x80000000"  # type: ignore[union-attr]


class TestDamage:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_no_change_of_an_array_goes_unnoticed_or_crashes(
        self, data: st.DataObject, coded: Path, llama: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """What is damaged is refused, or `verify` finds another weight: not one bit is without a meaning."""
        out = tmp_path_factory.mktemp("damaged") / "tiny"
        shutil.copytree(coded, out)
        tensors = load_file(out / "model.safetensors")
        key = f"model.layers.0.{data.draw(st.sampled_from(NAMES))}"
        array, how = tensors[key], data.draw(st.sampled_from(["byte", "cut", "drop"]))
        if how == "drop":
            del tensors[key]
        elif how == "cut":
            tensors[key] = array[: data.draw(st.integers(0, len(array) - 1))].clone()
        else:
            place = data.draw(st.integers(0, array.nbytes - 1))
            array.reshape(-1).view(torch.uint8)[place] ^= data.draw(st.integers(1, 255))
        save_file(tensors, out / "model.safetensors", {"format": "pt"})
        try:
            same = verify(llama, out).identical
        except CheckpointError as error:
            assert "model.layers.0" in str(error)  # noqa: PT017
            return
        assert how == "byte"
        assert not same

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda c: c["groups"]["lm_head"]["weights"][0].update(shape=[9, 9]), "differ in size"),
            (lambda c: c["groups"].update(nowhere=c["groups"]["lm_head"]), "missing"),
            (lambda c: c.update(method="lossless.other"), "method"),
            (lambda c: c["groups"]["lm_head"]["weights"][0].update(name="model.nothing.weight"), "nothing"),
            (lambda c: c["groups"]["lm_head"].update(weights=[]), "weights"),
            (lambda c: c.update(copies={"x": "nowhere"}), "x is no copy of nowhere"),
            (lambda c: c.update(copies={"model.norm.weight": "lm_head.weight"}), "is no copy"),
        ],
    )
    def test_a_manifest_that_does_not_fit_is_refused(
        self, coded: Path, tmp_path: Path, change: Any, said: str
    ) -> None:
        """Even if the sums were made for it."""
        shutil.copytree(coded, tmp_path / "out")
        content = json.loads((tmp_path / "out" / "modicum.json").read_text())
        change(content["coded"])
        with contextlib.suppress(ValidationError):
            content["coded"] = coded_json(Layout.model_validate(content["coded"]))
        (tmp_path / "out" / "modicum.json").write_text(json.dumps(content))
        with pytest.raises(ModicumError, match=said):
            modicum.load(tmp_path / "out")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda g: g["lm_head"].update(dtype="float16"), r"lm_head\.dtype says float16, but bfloat16"),
            (lambda g: g["lm_head"].update(dtype="float32"), r"lm_head\.dtype says float32, but bfloat16"),
            (lambda g: g["lm_head"]["weights"][0].update(name="model.x.weight"), "lm_head does not say"),
            (lambda g: g.update(other=g.pop("lm_head")), "other does not say"),
            (
                lambda g: g["model.layers.0"]["weights"].reverse(),  # all sizes still agree
                r"model\.layers\.0 does not say",
            ),
        ],
    )
    def test_a_changed_manifest_is_named_with_file_and_key(
        self, coded: Path, llama: Path, tmp_path: Path, change: Any, said: str
    ) -> None:
        shutil.copytree(coded, tmp_path / "out")
        content = json.loads((tmp_path / "out" / "modicum.json").read_text())
        change(content["coded"]["groups"])
        (tmp_path / "out" / "modicum.json").write_text(json.dumps(content))
        for work in (modicum.load, lambda d: verify(llama, d), lambda d: expand(d, tmp_path / "plain")):
            with pytest.raises(CheckpointError, match=r"out/modicum\.json: coded\.groups\." + said):
                work(tmp_path / "out")

    def test_a_truncated_file_is_named(self, coded: Path, tmp_path: Path) -> None:
        shutil.copytree(coded, tmp_path / "out")
        file = tmp_path / "out" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        for work in (modicum.load, lambda d: verify(d, d), lambda d: expand(d, tmp_path / "plain")):
            with pytest.raises(CheckpointError, match=r"model\.safetensors"):
                work(tmp_path / "out")
        assert not (tmp_path / "plain").exists()

    def test_planes_run_nothing_by_themselves(self, llama: Path, tmp_path: Path) -> None:
        modicum.compress(llama, "lossless.byteplanes", out=tmp_path / "planes")
        with pytest.raises(CheckpointError, match="for storage"):
            transformers.LlamaForCausalLM.from_pretrained(tmp_path / "planes")
        tensors = load_file(tmp_path / "planes" / "model.safetensors")
        key = "model.layers.0.mlp.up_proj.weight.plane0"
        tensors[key][20:] = 0
        save_file(tensors, tmp_path / "planes" / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match="up_proj"):
            modicum.load(tmp_path / "planes")


def test_transformers_alone_is_told_to_stop(coded: Path) -> None:
    config = json.loads((coded / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "modicum"
    assert "import modicum first" in config["transformers_weights"]


def test_a_policy_run_codes_first(coded: Path, llama: Path) -> None:
    with pytest.raises(UnsupportedModel):
        modicum.compress(llama, [METHOD, "cache.streaming"], out=coded.parent / "policy")


def test_the_manifest_tells_ratio_and_bound(coded: Path) -> None:
    note = Manifest.read(coded).notes[METHOD]
    assert 10.4 < note["bound"] < note["bits_per_weight"] < 11.2
    assert note["raw"] == {}


def test_codes_may_stay_with_the_host(llama: Path, coded: Path, toolbox: Any) -> None:
    model: Any = modicum.load(coded, offload=True, prefetch=True)
    assert not any(name.endswith("encoded_exponent") for name, _ in model.named_buffers())
    assert torch.equal(toolbox.logits_of(model), toolbox.logits_of(modicum.load(llama)))
