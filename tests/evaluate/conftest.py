from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 128


@pytest.fixture
def tiny() -> Callable[..., LlamaForCausalLM]:
    """Makes a random two-layer Llama; the same seed gives the same model."""

    def make(seed: int = 0, **settings: object) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        config = {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
            "initializer_range": 0.3,
            "eos_token_id": None,
            "bos_token_id": None,
            "pad_token_id": None,
        }
        return LlamaForCausalLM(LlamaConfig(**(config | settings))).eval()

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(VOCABULARY, (101,), generator=torch.Generator().manual_seed(7))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes of ASCII, one token each; no special tokens."""
    vocabulary = {chr(code): code for code in range(VOCABULARY)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
