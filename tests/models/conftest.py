"""Tiny random models of every family, and inputs for them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import transformers as tf

tf.logging.set_verbosity_error()
tf.logging.disable_progress_bar()

VOCABULARY = 64
_TOKENS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    **_TOKENS,
}
_GROUPED: dict[str, Any] = {**_SIZES, "num_key_value_heads": 2}
_MOE: dict[str, Any] = {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2}
_IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 4, "num_channels": 3}
_ENCODER: dict[str, Any] = {k: v for k, v in _SIZES.items() if k not in _TOKENS}
_STAGES: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1]}

# name -> (model class, config class, settings)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _SIZES),
    "llama-tied": ("LlamaForCausalLM", "LlamaConfig", {**_GROUPED, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**_GROUPED, "sliding_window": 4}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GROUPED),
    "qwen2-sliding": (
        "Qwen2ForCausalLM",
        "Qwen2Config",
        {**_GROUPED, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_GROUPED, "head_dim": 16}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**_GROUPED, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**_GROUPED, "head_dim": 8, "sliding_window": 4}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**_GROUPED, "head_dim": 8, "sliding_window": 4}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _GROUPED),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {**{k: v for k, v in _SIZES.items() if k != "intermediate_size"}, "ffn_dim": 48},
    ),
    "opt-postnorm": (
        "OPTForCausalLM",
        "OPTConfig",
        {
            **{k: v for k, v in _SIZES.items() if k != "intermediate_size"},
            "ffn_dim": 48,
            "word_embed_proj_dim": 24,
            "do_layer_norm_before": False,
        },
    ),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 3, "n_head": 4, **_TOKENS}),
    "bert": ("BertForSequenceClassification", "BertConfig", _SIZES),
    "vit": ("ViTForImageClassification", "ViTConfig", {**_ENCODER, **_IMAGE}),
    "deit": ("DeiTForImageClassification", "DeiTConfig", {**_ENCODER, **_IMAGE}),
    "resnet": ("ResNetForImageClassification", "ResNetConfig", {**_STAGES, "layer_type": "basic"}),
    "resnet-bottleneck": ("ResNetForImageClassification", "ResNetConfig", _STAGES),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 4, **_TOKENS},
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_GROUPED, "num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {
            **_MOE,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 24,
            "mlp_only_layers": [1],
        },
    ),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**_MOE, "moe_intermediate_size": 16, "head_dim": 8, "mlp_only_layers": [0]},
    ),
    "olmoe": ("OlmoeForCausalLM", "OlmoeConfig", _MOE),
}


@dataclass(frozen=True)
class Tiny:
    """A tiny model and what is needed to try it."""

    name: str
    model: Any
    config: Any

    @property
    def sees(self) -> bool:
        """Whether it takes images."""
        return self.name.split("-")[0] in ("vit", "deit", "resnet")

    def batch(self, size: int = 2, tokens: int = 9, padded: bool = False) -> dict[str, torch.Tensor]:
        """Random inputs; `padded` masks the first three tokens of the first sequence."""
        generator = torch.Generator().manual_seed(size * 100 + tokens)
        if self.sees:
            return {"pixel_values": torch.randn(size, 3, 16, 16, generator=generator)}
        batch = {"input_ids": torch.randint(3, VOCABULARY, (size, tokens), generator=generator)}
        if padded:
            batch["attention_mask"] = torch.ones(size, tokens, dtype=torch.long)
            batch["attention_mask"][0, :3] = 0
        return batch

    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """Output of the model for its standard batch."""
        return self.model(**self.batch()).logits


def build(name: str) -> Tiny:
    """A freshly initialised tiny model; norms and running statistics are not trivial."""
    model_class, config_class, settings = CASES[name]
    config = getattr(tf, config_class)(**settings, architectures=[model_class])
    torch.manual_seed(0)
    model = getattr(tf, model_class)(config).eval()
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            if tensor.dim() == 1 and ("norm" in key.lower() or "ln_" in key):
                tensor.add_(torch.rand_like(tensor) * 0.5)
            elif tensor.dim() >= 2:
                tensor.mul_(3.0)
    return Tiny(name, model, config)


@pytest.fixture(params=sorted(CASES))
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """Every tiny model in turn."""
    return build(request.param)


@pytest.fixture
def make_tiny() -> Any:
    """Builds the tiny model of a name."""
    return build
