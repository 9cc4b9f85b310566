from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from modicum.errors import InvalidSetting, UnusableData
from modicum.evaluate import continue_text
from modicum.evaluate.generation import next_token

Tiny = Callable[..., LlamaForCausalLM]


def test_greedy_equals_the_model_run_without_a_cache(tiny: Tiny, tokenizer: Any) -> None:
    model, text = tiny(), "ab"
    for _ in range(12):
        text += tokenizer.decode(model(torch.tensor([tokenizer(text).input_ids])).logits[0, -1].argmax())
    assert continue_text(model, tokenizer, "ab", 12) == text[2:]


def test_the_seed_decides(tiny: Tiny, tokenizer: Any) -> None:
    texts = [continue_text(tiny(), tokenizer, "ab", 20, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_global_randomness_is_left_alone(tiny: Tiny, tokenizer: Any) -> None:
    model = tiny()
    state = torch.get_rng_state()
    continue_text(model, tokenizer, "ab", 5, temperature=1.0)
    assert torch.equal(torch.get_rng_state(), state)


def test_stops_before_the_end_token(tiny: Tiny, tokenizer: Any) -> None:
    model = tiny()
    free = continue_text(model, tokenizer, "ab", 12)
    model.generation_config.eos_token_id = [5, tokenizer(free[4]).input_ids[0]]
    assert continue_text(model, tokenizer, "ab", 12) == free[: free.index(free[4])]


def test_a_small_nucleus_is_greedy(tiny: Tiny, tokenizer: Any) -> None:
    greedy = continue_text(tiny(), tokenizer, "ab", 12)
    assert continue_text(tiny(), tokenizer, "ab", 12, temperature=1.0, top_p=1e-6) == greedy


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=20), st.floats(0.05, 1), st.integers(0, 1000))
@settings(deadline=None, max_examples=60)
def test_sampling_stays_in_the_smallest_set_that_holds_top_p(
    logits: list[float], top_p: float, seed: int
) -> None:
    scores = torch.tensor(logits)
    chosen = next_token(scores, 1.0, top_p, torch.Generator().manual_seed(seed))
    mass = scores.softmax(-1)
    likelier = mass[mass > mass[chosen]].sum().item()
    assert likelier < top_p + 1e-6


def test_settings_out_of_range_are_refused(tiny: Tiny, tokenizer: Any) -> None:
    for wrong in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}, {"tokens": 0}, {"tokens": 63}):
        with pytest.raises(InvalidSetting):
            continue_text(tiny(), tokenizer, "ab", **({"tokens": 5} | wrong))


def test_an_empty_prompt_needs_a_first_token(tiny: Tiny, tokenizer: Any) -> None:
    with pytest.raises(UnusableData, match="empty"):
        continue_text(tiny(), tokenizer, "", 5)
    tokenizer.bos_token = "a"
    assert continue_text(tiny(), tokenizer, "", 5) == continue_text(tiny(), tokenizer, "a", 5)
