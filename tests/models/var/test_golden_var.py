"""Parity with the original code, over every recorded model named var-* below $MODICUM_GOLDEN."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modicum.models.next_scale import FullCache
from modicum.models.var import VAR, VARConfig, convert, load_var
from modicum.models.var.quantizer import phi_index

ROOT = Path(os.environ.get("MODICUM_GOLDEN", Path(__file__).parents[2] / "golden"))
FOLDERS = sorted(ROOT.glob("var-*"))


@dataclass
class Golden:
    """A recorded model: settings, tensors in and out, and our model with its weights."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    model: VAR
    folder: Path

    def matches(self, name: str, got: Tensor) -> None:
        """Integers exactly, floats to 1e-4 of the largest recorded value (at least 1)."""
        want = self.tensors[name]
        assert got.shape == want.shape, name
        if not want.is_floating_point():
            assert torch.equal(got.long(), want.long()), name
            return
        allowed = 1e-4 * max(1.0, want.abs().max().item())
        assert (got.float() - want).abs().max().item() <= allowed, name

    @property
    def labels(self) -> Tensor:
        return self.tensors["in.labels"]

    @property
    def scales(self) -> range:
        return range(len(self.model.schedule))


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    folder: Path = request.param
    settings = json.loads((folder / "config.json").read_text())
    out = tmp_path_factory.mktemp("converted") / "model"
    convert(folder / "var.safetensors", folder / "vae.safetensors", out, VARConfig.from_dict(settings))
    return Golden(settings, load_file(folder / "io.safetensors"), load_var(out), folder)


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


def test_golden_models_are_there() -> None:
    assert FOLDERS, f"no var-* below {ROOT}"


def test_golden_names_and_shapes(golden: Golden) -> None:
    for part, file in ((golden.model.transformer, "var"), (golden.model.vae, "vae")):
        recorded = load_file(golden.folder / f"{file}.safetensors")
        ours = part.state_dict()
        assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in recorded.items()}
        derived = {n for n in ours if n.endswith(("attn_bias_for_masking", "lvl_1L", "zero_k_bias"))}
        assert all(torch.equal(ours[n], recorded[n]) for n in derived)
        part.load_state_dict(recorded, strict=True)


def test_golden_phi(golden: Golden) -> None:
    if "phi_index_per_map" not in golden.settings:
        pytest.skip("not recorded")
    quantizer = golden.model.vae.quantize
    modules = list(quantizer.quant_resi.modules())
    chosen = [modules.index(quantizer.phi(scale)) for scale in golden.scales]
    first = modules.index(quantizer.phi(0))
    count = golden.settings["vae"]["share_quant_resi"]
    recorded = golden.settings["phi_index_per_map"]
    assert [index - first + recorded[0] for index in chosen] == recorded
    if count > 1:
        progress = golden.model.schedule.progress
        assert [phi_index(count, progress(scale)) for scale in golden.scales] == recorded


def test_golden_teacher_forcing(golden: Golden) -> None:
    golden.matches("out.tf.logits", golden.model.transformer(golden.labels, golden.tensors["in.tf_x"]))


def test_golden_greedy(golden: Golden) -> None:
    model, cache, tokens = golden.model, FullCache(store_last=True), []
    for step in model.steps(golden.labels, cfg=golden.settings["cfg"], top_k=1, top_p=0, cache=cache):
        golden.matches(f"out.greedy.tokens.{step.scale}", step.tokens)
        golden.matches(f"out.greedy.logits_guided.{step.scale}", step.logits)
        golden.matches(f"out.greedy.f_hat.{step.scale}", step.f_hat)
        if step.next_map is not None:
            golden.matches(f"out.greedy.next_map.{step.scale}", step.next_map)
        tokens.append(step.tokens)
    golden.matches("out.greedy.f_hat_final", step.f_hat)
    golden.matches("out.greedy.image", model.picture(step.f_hat))
    for name, held in zip("kv", cache.held(0), strict=True):
        golden.matches(f"out.greedy.block0.{name}", held)
    inputs = model.vae.quantize.teacher_input(tokens)
    golden.matches("out.greedy.var_input", inputs)
    golden.matches("out.greedy.tf_logits", model.transformer(golden.labels, inputs))


def test_golden_greedy_without_what_nobody_reads(golden: Golden) -> None:
    image = golden.model.generate(golden.labels, cfg=golden.settings["cfg"], top_k=1, top_p=0)
    golden.matches("out.greedy.image", image)


def test_golden_sampled(golden: Golden) -> None:
    drawn = golden.settings["sample"]
    for step in golden.model.steps(
        golden.labels, cfg=drawn["cfg"], top_k=drawn["top_k"], top_p=drawn["top_p"], seed=drawn["g_seed"]
    ):
        golden.matches(f"out.sampled.tokens.{step.scale}", step.tokens)
        golden.matches(f"out.sampled.kept.{step.scale}", step.filtered.isfinite())
    golden.matches("out.sampled.f_hat_final", step.f_hat)
    golden.matches("out.sampled.image", golden.model.picture(step.f_hat))


def test_golden_tokenizer(golden: Golden) -> None:
    vae = golden.model.vae
    features = vae.features(golden.tensors["in.image"])
    golden.matches("out.enc.f", features)
    tokens, running = vae.quantize.encode(features)
    for scale in golden.scales:
        golden.matches(f"out.enc.tokens.{scale}", tokens[scale])
        golden.matches(f"out.enc.f_hat.{scale}", running[scale])
    golden.matches("out.enc.var_input", vae.quantize.teacher_input(tokens))
    golden.matches("out.enc.image", vae.decode(tokens))
