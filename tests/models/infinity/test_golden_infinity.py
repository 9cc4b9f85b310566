"""Parity with the original code, over every recorded model named infinity-* below $MODICUM_GOLDEN."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modicum.models.infinity import (
    Infinity,
    InfinityConfig,
    MapStep,
    Resolution,
    TextFeatures,
    bsq,
    convert,
    load_infinity,
)
from modicum.models.infinity.positions import rotary_table
from modicum.models.next_scale import FullCache, Schedule

ROOT = Path(os.environ.get("MODICUM_GOLDEN", Path(__file__).parents[2] / "golden"))
FOLDERS = sorted(ROOT.glob("infinity-*"))
RUNS = ("sq", "rect", "neg", "full7")


@dataclass
class Golden:
    """A recorded model: settings, tensors in and out, and our model with its weights."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    model: Infinity

    def matches(self, name: str, got: Tensor) -> None:
        """Integers exactly, floats to 1e-4 of the largest recorded value (at least 1)."""
        want = self.tensors[name]
        assert got.shape == want.shape, name
        if not want.is_floating_point():
            assert torch.equal(got.long(), want.long()), name
            return
        allowed = 1e-4 * max(1.0, want.abs().max().item())
        assert (got.float() - want).abs().max().item() <= allowed, name

    def has(self, name: str) -> bool:
        return name in self.tensors

    def run(self, name: str) -> dict[str, Any]:
        if name not in self.settings["runs"]:
            pytest.skip("not recorded")
        return self.settings["runs"][name]

    def resolution(self, name: str) -> Resolution:
        run = self.run(name)
        published = Resolution.of(run["ratio"]).prefix(run["scales"])
        rows, columns = run["rope_final_grid"]
        assert published == Resolution(Schedule.of(run["schedule"]), (rows, columns))
        return published

    def text(self, name: str) -> TextFeatures:
        lengths = tuple(self.settings["text_lens"])
        features = TextFeatures(self.tensors["in.text"], lengths)
        if name == "full7":  # the first prompt alone
            return TextFeatures(features.values[: lengths[0]], lengths[:1])
        return features

    def negative(self, name: str) -> TextFeatures | None:
        if name != "neg":
            return None
        return TextFeatures(self.tensors["in.text_negative"], tuple(self.settings["negative_lens"]))

    def steps(self, name: str, **settings: Any) -> Iterator[MapStep]:
        run = self.run(name)
        return self.model.steps(
            self.text(name),
            negative=self.negative(name),
            resolution=self.resolution(name),
            cfg=run["cfg"],
            tau=run["tau"],
            top_k=1,
            top_p=0,
            **settings,
        )


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def golden(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    folder: Path = request.param
    settings = json.loads((folder / "config.json").read_text())
    out = tmp_path_factory.mktemp("converted") / "model"
    config = InfinityConfig.from_dict(settings)
    convert(folder / "model.safetensors", folder / "vae.safetensors", out, config)
    return Golden(settings, load_file(folder / "io.safetensors"), load_infinity(out))


@pytest.fixture(autouse=True)
def _no_gradients() -> Any:
    with torch.no_grad():
        yield


@contextmanager
def _recorded_logits(model: Infinity) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []
    handle = model.transformer.head.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        yield seen
    finally:
        handle.remove()


def test_golden_models_are_there() -> None:
    assert FOLDERS, f"no infinity-* below {ROOT}"


def test_golden_sizes(golden: Golden) -> None:
    config, settings = golden.model.config, golden.settings
    for name in ("ffn_hidden", "head_dim", "text_pool_heads", "d_vae"):
        assert getattr(config, name) == settings["model"][name]
    assert config.pixels_per_token == settings["pixels_per_token"]


def test_golden_text(golden: Golden) -> None:
    values, mask = golden.text("sq").padded()
    condition = golden.model.transformer.condition(values, mask)
    shown = torch.ones(values.shape[:2], dtype=torch.bool) if mask is None else mask
    golden.matches("out.text.normed", golden.model.transformer.text_norm(values)[shown])
    golden.matches("out.text.pooled", condition.pooled)
    golden.matches("out.text.context", condition.context[shown])
    golden.matches("out.text.adaln", condition.modulation)


@pytest.mark.parametrize("name", RUNS)
def test_golden_positions(golden: Golden, name: str) -> None:
    resolution = golden.resolution(name)
    if not golden.has(f"out.{name}.rope_cos_sin"):
        pytest.skip("not recorded")
    table = rotary_table(resolution, golden.model.config.head_dim, torch.device("cpu"))
    golden.matches(f"out.{name}.rope_cos_sin", table)


@pytest.mark.parametrize(("name", "text_kv"), [*((name, "once") for name in RUNS), ("neg", "recompute")])
def test_golden_generation(golden: Golden, name: str, text_kv: Any) -> None:
    cache, codes = FullCache(store_last=True), []
    with _recorded_logits(golden.model) as raw:
        steps = list(golden.steps(name, cache=cache, text_kv=text_kv))
    for step in steps:
        codes.append(bsq.to_codes(step.bits))
        found = {
            "bits": step.bits,
            "logits_guided": step.logits,
            "logits_raw": raw[step.scale],
            "codes": codes[-1],
            "next_input": step.next_input,
        }
        for kind, got in found.items():
            if got is not None and golden.has(f"out.{name}.{kind}.{step.scale}"):
                golden.matches(f"out.{name}.{kind}.{step.scale}", got)
    golden.matches(f"out.{name}.summed_codes", steps[-1].summed)
    for kind, held in zip("kv", cache.held(0), strict=True):
        if golden.has(f"out.{name}.block0.{kind}"):
            golden.matches(f"out.{name}.block0.{kind}", held)


@pytest.mark.parametrize("name", RUNS)
def test_golden_images(golden: Golden, name: str) -> None:
    *_, last = golden.steps(name)
    image = golden.model.picture(last.summed)
    if golden.has(f"out.{name}.image_float"):
        golden.matches(f"out.{name}.image_float", image * 2 - 1)
    want = golden.tensors[f"out.{name}.image_u8_bgr"].int()
    bytes_ = (image * 255).to(torch.uint8).permute(0, 2, 3, 1).flip(-1).int()
    assert bytes_.shape == want.shape
    assert (bytes_ - want).abs().max() <= 1  # the original cuts off, so a rounding error may cost one


@pytest.mark.parametrize("name", RUNS)
def test_golden_masked_pass(golden: Golden, name: str) -> None:
    resolution = golden.resolution(name)
    if not golden.has(f"out.{name}.tf_logits"):
        pytest.skip("not recorded")
    bits = [golden.tensors[f"out.{name}.bits.{scale}"].bool() for scale in range(len(resolution.schedule))]
    values, mask = golden.text(name).padded()
    condition = golden.model.transformer.condition(values, mask)
    inputs = golden.model.teacher_input(bits, resolution)
    golden.matches(f"out.{name}.tf_logits", golden.model.transformer(condition, inputs, resolution))


def test_golden_tokenizer(golden: Golden) -> None:
    vae, image, resolution = golden.model.vae, golden.tensors["in.image"], golden.resolution("sq")
    features = vae.features(image)
    golden.matches("out.enc.features", features)
    bits, total = bsq.quantize(features, bsq.grid(resolution.schedule, golden.model.config.patch))
    for scale, chosen in enumerate(bits):
        golden.matches(f"out.enc.bits.{scale}", chosen)
    golden.matches("out.enc.quantized", total)
    golden.matches("out.enc.image", vae.picture(total))
    encoded = golden.model.encode((image + 1) / 2, resolution)
    golden.matches("out.enc.image", golden.model.decode(encoded) * 2 - 1)
