"""Every family of models coded without loss: it draws, writes and answers what the original does, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import modicum
from modicum.errors import CheckpointError
from modicum.formats.manifest import Manifest
from modicum.models.cifar_resnet import CifarResNetConfig, CifarResNetForImageClassification
from modicum.models.cifar_resnet import save as save_cifar_resnet
from modicum.models.class_models import network_of, save_class_model
from modicum.models.dit import DiT, DiTConfig, save_diffusers
from modicum.models.infinity import BSQVAEConfig, Infinity, InfinityConfig, TextFeatures
from modicum.models.infinity.files import save as save_infinity
from modicum.models.mar import MAR, MARConfig
from modicum.models.var import VAR, VAEConfig, VARConfig
from modicum.models.var.files import save as save_var
from modicum.pipeline.coded import expand
from modicum.pipeline.verifying import verify
from modicum.weights.absent import Absent

METHODS = ("lossless.dfloat11", "lossless.byteplanes")
DIT = DiTConfig(input_size=4, in_channels=2, hidden_size=32, depth=3, num_heads=2, num_classes=40)
MASKED = MARConfig(
    img_size=8, vae_stride=2, vae_embed_dim=2, encoder_embed_dim=32, encoder_depth=2, encoder_num_heads=2,
    decoder_embed_dim=48, decoder_depth=2, decoder_num_heads=2, class_num=40, buffer_size=2, diffloss_d=2,
    diffloss_w=32,
)  # fmt: skip
LEVELS = VARConfig(
    num_classes=40, depth=2, embed_dim=32, num_heads=2, patch_nums=(1, 2, 3),
    vae=VAEConfig(vocab_size=64, z_channels=4, ch=8, ch_mult=(1, 2), num_res_blocks=1, groupnorm_groups=4),
)  # fmt: skip
BITS = InfinityConfig(
    embed_dim=24, depth=2, num_heads=3, mlp_ratio=8.0, text_channels=256, text_maxlen=12, pixels="0.06M",
    vae=BSQVAEConfig(codebook_dim=6, base_ch=24, ch_mult=(1, 2), num_res_blocks=1, patch_size=2),
)  # fmt: skip
RESNET = CifarResNetConfig.of_depth(8)

Save = Callable[[Any, Path], Path]


def save_half(model: Any, out: Path) -> Path:
    return save_class_model(model, out, half=True)


def save_pipeline(model: DiT, out: Path) -> Path:
    """As diffusers has it: a pipeline with the network and an autoencoder in it."""
    save_diffusers(model.to(torch.bfloat16), out / "transformer")
    (out / "vae").mkdir()
    (out / "vae" / "config.json").write_text("{}")
    (out / "model_index.json").write_text("{}")
    return out


FAMILIES: dict[str, tuple[Callable[[], nn.Module], Save]] = {
    "dit": (lambda: DiT(DIT), save_half),
    "sit": (lambda: DiT(DIT.model_copy(update={"kind": "sit"})), save_half),
    "mar": (lambda: MAR(MASKED), save_half),
    "diffusers": (lambda: DiT(DIT), save_pipeline),
    "var": (lambda: VAR(LEVELS), lambda model, out: save_var(model, out, half=True)),
    "infinity": (lambda: Infinity(BITS), lambda model, out: save_infinity(model, out, half=True)),
    "cifar_resnet": (lambda: CifarResNetForImageClassification(RESNET), save_cifar_resnet),
}
WRITTEN = ("mixtral", "mamba", "bert", "vit", "opt", "phi3", "resnet")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, toolbox: Any) -> Callable[[str], Path]:
    """`originals(family)` is a checkpoint in bfloat16 (the ResNets: float32)."""
    root, made = tmp_path_factory.mktemp("originals"), {}

    def directory(family: str) -> Path:
        if family not in made and family in FAMILIES:
            build, save = FAMILIES[family]
            torch.manual_seed(0)
            made[family] = save(toolbox.stirred(build()), root / family)
        elif family not in made:
            dtype = "float32" if family == "resnet" else "bfloat16"
            made[family] = toolbox.save(family, root / family, dtype)
        return made[family]

    return directory


@torch.no_grad()
def answer(family: str, directory: Path, toolbox: Any) -> Tensor:
    """What the model says or draws, computed in bfloat16 wherever it was stored so."""
    half = None if family in WRITTEN or family == "cifar_resnet" else torch.bfloat16
    model: Any = modicum.load(directory, dtype=half)
    for parameter in model.parameters():  # products of float32 depend on where in memory their factors lie
        parameter.data = parameter.data.clone()
    if family in WRITTEN:
        return toolbox.logits_of(model)
    noise = torch.Generator().manual_seed(3)
    if family == "cifar_resnet":
        return model(torch.randn(2, 3, 32, 32, generator=noise)).logits
    if family == "infinity":
        return model.generate(TextFeatures(torch.randn(5, 256, generator=noise), (5,)), seed=1)
    few = {"mar": {"iterations": 2, "steps": 2}, "var": {}}.get(family, {"steps": 2})
    return model.generate([0, 2], seed=1, **few)


@pytest.mark.parametrize(
    ("family", "method"),
    [*((family, METHODS[0]) for family in (*FAMILIES, *WRITTEN)),
     *((family, METHODS[1]) for family in ("dit", "diffusers", "infinity", "cifar_resnet", "mixtral"))],
)  # fmt: skip
def test_a_coded_model_is_the_original(
    family: str, method: str, originals: Any, tmp_path: Path, toolbox: Any
) -> None:
    original = originals(family)
    manifest = modicum.compress(original, method, out=tmp_path / "coded")
    assert isinstance(manifest, Manifest)
    assert manifest.coded["groups"]
    assert verify(network_of(original), tmp_path / "coded").identical
    wanted = answer(family, original, toolbox)
    assert wanted.isfinite().all()
    assert torch.equal(answer(family, tmp_path / "coded", toolbox), wanted)
    expand(tmp_path / "coded", tmp_path / "plain")
    assert verify(network_of(original), tmp_path / "plain").identical
    assert torch.equal(answer(family, tmp_path / "plain", toolbox), wanted)
    absent = any(
        isinstance(value, Absent)
        for module in modicum.load(tmp_path / "coded").modules()
        for value in vars(module).values()
    )
    assert absent == (method == "lossless.dfloat11")


@pytest.mark.parametrize(
    ("family", "group"),
    [
        ("dit", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"]),
        ("var", ["attn.mat_qkv", "attn.proj", "ffn.fc1", "ffn.fc2", "ada_lin.1"]),
        ("mar", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]),
    ],
)
def test_blocks_are_groups_in_the_published_layout(
    family: str, group: list[str], originals: Any, tmp_path: Path
) -> None:
    modicum.compress(originals(family), METHODS[0], out=tmp_path / "coded")
    config = json.loads((tmp_path / "coded" / "config.json").read_text())
    patterns = config["dfloat11_config"]["pattern_dict"]
    blocks = "decoder_blocks" if family == "mar" else "blocks"
    assert sorted(patterns[rf"{blocks}\.\d+"]) == sorted(group)
    names = load_file(tmp_path / "coded" / "model.safetensors")
    assert f"{blocks}.1.encoded_exponent" in names
    assert not any(f"{blocks}.1.{path}.weight" in names for path in group)


def test_a_published_checkpoint_of_a_model_that_draws_classes_opens(
    originals: Any, tmp_path: Path, toolbox: Any
) -> None:
    """Nothing but config.json and the arrays, as the package dfloat11 writes them."""
    modicum.compress(originals("dit"), METHODS[0], out=tmp_path / "coded")
    (tmp_path / "coded" / "modicum.json").unlink()
    assert torch.equal(answer("dit", tmp_path / "coded", toolbox), answer("dit", originals("dit"), toolbox))
    assert verify(originals("dit"), tmp_path / "coded").identical


@pytest.mark.parametrize("family", ["var", "infinity"])
def test_what_turns_tokens_into_pixels_stays_as_it_is(family: str, originals: Any, tmp_path: Path) -> None:
    modicum.compress(originals(family), METHODS[0], out=tmp_path / "coded")
    assert (tmp_path / "coded" / "vae.safetensors").read_bytes() == (
        originals(family) / "vae.safetensors"
    ).read_bytes()


def test_the_autoencoder_of_a_pipeline_goes_along(originals: Any, tmp_path: Path) -> None:
    modicum.compress(originals("diffusers"), METHODS[0], out=tmp_path / "coded")
    expand(tmp_path / "coded", tmp_path / "plain")
    assert (tmp_path / "coded" / "vae" / "config.json").is_file()
    assert (tmp_path / "plain" / "vae" / "config.json").is_file()
    assert (tmp_path / "plain" / "diffusion_pytorch_model.safetensors").is_file()


def test_embedders_that_diffusers_repeats_are_stored_once(originals: Any, tmp_path: Path) -> None:
    manifest = modicum.compress(originals("diffusers"), METHODS[1], out=tmp_path / "coded")
    assert isinstance(manifest, Manifest)
    path = "norm1.emb.timestep_embedder.linear_1.weight"
    copies = {f"transformer_blocks.{i}.{path}": f"transformer_blocks.0.{path}" for i in (1, 2)}
    assert copies.items() <= manifest.coded["copies"].items()


@pytest.mark.parametrize("family", ["dit", "mar", "var", "cifar_resnet"])
def test_what_is_coded_is_not_coded_again(family: str, originals: Any, tmp_path: Path) -> None:
    modicum.compress(originals(family), METHODS[0], out=tmp_path / "coded")
    with pytest.raises(CheckpointError, match="compressed already"):
        modicum.compress(tmp_path / "coded", METHODS[1], out=tmp_path / "again")


@pytest.mark.parametrize("family", ["dit", "var", "cifar_resnet"])
def test_a_damaged_array_is_named_on_loading(family: str, originals: Any, tmp_path: Path) -> None:
    modicum.compress(originals(family), METHODS[0], out=tmp_path / "coded")
    tensors = load_file(tmp_path / "coded" / "model.safetensors")
    key = next(name for name in sorted(tensors) if name.endswith("output_positions"))
    tensors[key][-4:] = 7
    save_file(tensors, tmp_path / "coded" / "model.safetensors")
    with pytest.raises(CheckpointError, match=key.removesuffix(".output_positions")):
        modicum.load(tmp_path / "coded")


@pytest.mark.parametrize("family", ["dit", "var"])
def test_zeros_of_a_step_before_are_coded(family: str, originals: Any, tmp_path: Path) -> None:
    steps: list[Any] = [{"prune.magnitude": {"sparsity": 0.5}}, METHODS[0]]
    manifest = modicum.compress(originals(family), steps, out=tmp_path / "coded")
    assert isinstance(manifest, Manifest)
    assert "zero mask" in str(manifest.promises)
    expand(tmp_path / "coded", tmp_path / "plain")
    weight = load_file(tmp_path / "plain" / "model.safetensors")
    name = "blocks.1.mlp.fc1.weight" if family == "dit" else "blocks.1.ffn.fc1.weight"
    assert float((weight[name] == 0).float().mean()) == pytest.approx(0.5, abs=0.01)


class TestEveryTensor:
    """What the model does not need comes back as well."""

    @pytest.mark.parametrize("method", METHODS)
    def test_tensors_of_no_use(self, method: str, originals: Any, tmp_path: Path) -> None:
        for family, extra in (("bert", "embeddings.position_ids"), ("dit", "optimizer.step"), ("var", "x")):
            original = with_tensors(
                originals(family), tmp_path / family, {extra: torch.arange(5), "empty": torch.empty(0, 3)}
            )
            modicum.compress(original, method, out=tmp_path / f"{family}-coded")
            assert verify(original, tmp_path / f"{family}-coded").identical
            expand(tmp_path / f"{family}-coded", tmp_path / f"{family}-plain")
            assert extra in load_file(tmp_path / f"{family}-plain" / "model.safetensors")
            assert verify(original, tmp_path / f"{family}-plain").identical

    @pytest.mark.parametrize("method", METHODS)
    def test_a_tied_head_that_is_stored_twice(self, method: str, tmp_path: Path, toolbox: Any) -> None:
        single = toolbox.save("llama", tmp_path / "one", "bfloat16", tie_word_embeddings=True)
        embedding = load_file(single / "model.safetensors")["model.embed_tokens.weight"]
        double = with_tensors(single, tmp_path / "two", {"lm_head.weight": embedding.clone()})
        sizes = []
        for original in (single, double):
            modicum.compress(original, method, out=tmp_path / f"{original.name}-coded")
            assert verify(original, tmp_path / f"{original.name}-coded").identical
            coded = modicum.load(tmp_path / f"{original.name}-coded")
            assert torch.equal(toolbox.logits_of(coded), toolbox.logits_of(modicum.load(original)))
            sizes.append((tmp_path / f"{original.name}-coded" / "model.safetensors").stat().st_size)
        assert sizes[0] == sizes[1]  # twice the same costs nothing
        expand(tmp_path / "two-coded", tmp_path / "plain")
        assert verify(double, tmp_path / "plain").identical
        assert "lm_head.weight" in load_file(tmp_path / "plain" / "model.safetensors")

    def test_a_second_head_with_other_bits_is_kept_with_them(self, tmp_path: Path, toolbox: Any) -> None:
        single = toolbox.save("llama", tmp_path / "one", "bfloat16", tie_word_embeddings=True)
        other = load_file(single / "model.safetensors")["model.embed_tokens.weight"].clone()
        other[5, 7] = -other[5, 7]
        double = with_tensors(single, tmp_path / "two", {"lm_head.weight": other})
        manifest = modicum.compress(double, METHODS[0], out=tmp_path / "coded")
        assert isinstance(manifest, Manifest)
        assert manifest.coded["copies"] == {}
        assert verify(double, tmp_path / "coded").identical


def with_tensors(directory: Path, out: Path, extra: dict[str, Tensor]) -> Path:
    """A checkpoint with further tensors in it."""
    out.mkdir()
    for file in directory.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    tensors = load_file(directory / "model.safetensors")
    save_file({**tensors, **extra}, out / "model.safetensors", {"format": "pt"})
    return out
