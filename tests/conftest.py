"""Tiny random checkpoints on disk, made once per session, and what compares two of them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Threads that wait for each other must not spin: on a busy machine tiny operations would take 20 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

VOCABULARY = 2048  # that of nano-lm's tokenizer
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_WITHOUT_GROUPS = {k: v for k, v in _SIZES.items() if k != "num_key_value_heads"}
_IDS = {k: v for k, v in _SIZES.items() if k.endswith("_id")}
_VISION = {"image_size": 16, "num_channels": 3}

# name -> (model class, config class, settings)
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _SIZES),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**_SIZES, "head_dim": 16}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_SIZES, "head_dim": 32}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _SIZES),
    "opt": ("OPTForCausalLM", "OPTConfig", {**_WITHOUT_GROUPS, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 3, "n_head": 4, **_IDS},
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_SIZES, "num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {
            **_SIZES,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 64,
            "mlp_only_layers": [1],
        },
    ),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3, "state_size": 4, **_IDS},
    ),
    "bert": ("BertForSequenceClassification", "BertConfig", _WITHOUT_GROUPS),
    "vit": (
        "ViTForImageClassification",
        "ViTConfig",
        {**{k: v for k, v in _WITHOUT_GROUPS.items() if k not in _IDS}, **_VISION, "patch_size": 4},
    ),
    "resnet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1], "layer_type": "basic"},
    ),
}


def build(name: str, dtype: str = "float32", **settings: Any) -> Any:
    """A random tiny model in eval mode whose norms and biases are not trivial."""
    import torch
    import transformers as tf

    tf.logging.set_verbosity_error()
    tf.logging.disable_progress_bar()
    model_class, config_class, defaults = ARCHITECTURES[name]
    config = getattr(tf, config_class)(**{**defaults, **settings}, architectures=[model_class])
    torch.manual_seed(0)
    model = getattr(tf, model_class)(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1 and ("norm" in key.lower() or "ln_" in key or key.endswith("bias")):
                parameter.add_(torch.rand_like(parameter) * 0.5)
            elif parameter.dim() >= 2:
                parameter.mul_(3.0)
    return model.to(getattr(torch, dtype))


def save(name: str, folder: Path, dtype: str = "float32", **settings: Any) -> Path:
    """Write such a model with nano-lm's tokenizer beside it."""
    from modicum import zoo

    build(name, dtype, **settings).save_pretrained(folder)
    for companion in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(zoo.path("nano-lm") / companion, folder / companion)
    return folder


def inputs_of(model: Any) -> dict[str, Any]:
    """A batch that the model takes."""
    import torch

    generator = torch.Generator().manual_seed(1)
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    return {"input_ids": torch.randint(3, VOCABULARY, (2, 11), generator=generator)}


def logits_of(model: Any) -> Any:
    """Its logits for that batch."""
    import torch

    with torch.no_grad():
        return model(**inputs_of(model)).logits


def hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of every file of a directory."""
    return {
        str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `modicum ...` as a process of its own."""
    line = [sys.executable, "-m", "modicum", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False, **options)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`tiny_models(name)` is the directory of a tiny float32 checkpoint of that architecture; never write there."""
    root, made = tmp_path_factory.mktemp("tiny"), {}

    def directory(name: str, dtype: str = "float32", **settings: Any) -> Path:
        key = json.dumps([name, dtype, settings], sort_keys=True)
        if key not in made:
            made[key] = save(name, root / f"{name}-{len(made)}", dtype, **settings)
        return made[key]

    return directory


@pytest.fixture(scope="session")
def tiny_llama(tiny_models: Any) -> Path:
    """A Llama of three blocks in bfloat16 with a tokenizer."""
    return tiny_models("llama", "bfloat16")


@pytest.fixture(scope="session")
def tokens() -> Any:
    """Calibration windows, int64 [16, 32]."""
    import torch

    return torch.randint(3, VOCABULARY, (16, 32), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="session")
def token_file(tokens: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same windows as a file."""
    from safetensors.torch import save_file

    file = tmp_path_factory.mktemp("tokens") / "tokens.safetensors"
    save_file({"tokens": tokens}, file)
    return file


def stirred(model: Any) -> Any:
    """A random model whose gates and biases are far from their initial zero."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_var(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random VAR of two blocks and five classes that draws 16x16 pixels; never write there."""
    import torch

    from modicum.models.var import VAR, VAEConfig, VARConfig
    from modicum.models.var.files import save

    vae = VAEConfig(vocab_size=24, z_channels=4, ch=8, ch_mult=(1, 2), num_res_blocks=1, groupnorm_groups=4)
    sides = (1, 2, 3, 5, 8)
    config = VARConfig(num_classes=5, depth=2, embed_dim=24, num_heads=3, patch_nums=sides, vae=vae)
    torch.manual_seed(0)
    return save(stirred(VAR(config)), tmp_path_factory.mktemp("drawing") / "tiny-var")


@pytest.fixture(scope="session")
def tiny_infinity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Infinity of two blocks without text encoder that draws 32x32 pixels; never write there."""
    import torch

    from modicum.models.infinity import BSQVAEConfig, Infinity, InfinityConfig, save

    vae = BSQVAEConfig(codebook_dim=6, base_ch=24, ch_mult=(1, 2), num_res_blocks=1, patch_size=2)
    config = InfinityConfig(
        embed_dim=24,
        depth=2,
        num_heads=3,
        mlp_ratio=8.0,
        text_channels=256,
        text_maxlen=12,
        pixels="0.06M",
        vae=vae,
    )
    torch.manual_seed(0)
    return save(stirred(Infinity(config)), tmp_path_factory.mktemp("drawing") / "tiny-infinity")


@pytest.fixture(scope="session")
def text_features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text features for it: two prompts of different lengths, and one to be led away from."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    lengths = {"a boat": 3, "a cat": 5, "negative": 4}
    file = tmp_path_factory.mktemp("features") / "features.safetensors"
    save_file({name: torch.randn(n, 256, generator=generator) for name, n in lengths.items()}, file)
    return file


@pytest.fixture(scope="session")
def toolbox() -> Any:
    """The functions of this file for tests that need them directly."""
    return sys.modules[__name__]
