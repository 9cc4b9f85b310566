"""Tiny random models whose norms are not trivial, and some token ids for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import transformers as tf

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GATED: dict[str, Any] = {**SIZES, "intermediate_size": 48}
GROUPED: dict[str, Any] = {**GATED, "num_key_value_heads": 2}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**GATED),
    "llama-grouped": lambda: tf.LlamaConfig(**GROUPED),
    "qwen2": lambda: tf.Qwen2Config(**GROUPED),
    "gemma": lambda: tf.GemmaConfig(**GROUPED, head_dim=8),
    "gemma2": lambda: tf.Gemma2Config(**GROUPED, head_dim=8),
    "opt": lambda: tf.OPTConfig(**SIZES, ffn_dim=48),
    "gpt2": lambda: tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64),
    "mixtral": lambda: tf.MixtralConfig(**GROUPED, num_local_experts=4),
    "qwen2_moe": lambda: tf.Qwen2MoeConfig(
        **GROUPED,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
    ),
}


def build(name: str) -> Any:
    """The float32 model of that name, always the same."""
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.dim() == 1 and ("norm" in key or "ln_" in key):
                value.add_(torch.randn_like(value).abs())  # loud and quiet channels
            elif value.dim() >= 2:
                value.mul_(3.0)
    return model


@pytest.fixture
def make_model() -> Callable[[str], Any]:
    """Builds the tiny model of a name."""
    return build


@pytest.fixture
def tokens() -> torch.Tensor:
    """Token ids [8, 24]."""
    return torch.randint(3, 64, (8, 24), generator=torch.Generator().manual_seed(1))
