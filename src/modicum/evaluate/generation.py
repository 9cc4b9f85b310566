"""Continuing a text: the loop of `modicum generate`, of a report's samples and of the speed measurement."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from modicum.errors import InvalidSetting, UnsupportedModel, UnusableData
from modicum.evaluate.inference import check_context, device_of, evaluating


def forward_step(model: nn.Module, inputs: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
    """Feeds `inputs` [1, positions] after what `cache` holds; returns the last logits [v] and the cache.

    Raises:
        UnsupportedModel: the model returned no cache, so the next step could not know what came before.
    """
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
    output = model(input_ids=inputs, past_key_values=cache, use_cache=True, **last_only)
    if getattr(output, "past_key_values", None) is None:
        raise UnsupportedModel(
            f"{type(model).__name__} returned no key-value cache.",
            "Only models that decode with one can generate.",
        )
    return output.logits[0, -1], output.past_key_values


def continue_text(
    model: nn.Module,
    tokenizer: Any,
    prompt: str,
    tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """Continues `prompt` by up to `tokens` tokens or to the end-of-text token; returns only what was added.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        prompt: the text to continue; an empty one starts from the tokenizer's beginning-of-text token.
        tokens: the most tokens to add.
        temperature: 0 takes the likeliest token each time; 1 samples the model's own distribution.
        top_p: samples from the smallest set of likeliest tokens that holds this much probability, 0 < top_p
            <= 1.
        seed: of the sampling; the same seed gives the same text.

    Raises:
        InvalidSetting: a setting out of range, or more tokens than the model's context takes.
        UnusableData: an empty prompt where the tokenizer has no beginning-of-text token.
    """
    if temperature < 0 or not 0 < top_p <= 1 or tokens < 1:
        raise InvalidSetting(
            f"temperature={temperature}, top_p={top_p}, tokens={tokens} is out of range.",
            "Use temperature >= 0, 0 < top_p <= 1 and at least one token.",
        )
    ids = _prompt_ids(tokenizer, prompt)
    check_context(model, len(ids) + tokens, "prompt and continuation")
    generator = torch.Generator().manual_seed(seed)
    ends = _end_tokens(model, tokenizer)
    added: list[int] = []
    with evaluating(model):
        inputs, cache = torch.tensor([ids], device=device_of(model)), None
        while len(added) < tokens:
            logits, cache = forward_step(model, inputs, cache)
            token = next_token(logits, temperature, top_p, generator)
            if token in ends:
                break
            added.append(token)
            inputs = torch.tensor([[token]], device=inputs.device)
    return _added_text(tokenizer, ids, added)


def next_token(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Chooses from `logits` [vocabulary]: greedily at temperature 0, else by nucleus sampling on the CPU."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities, order = (logits.float().cpu() / temperature).softmax(-1).sort(descending=True, stable=True)
    before = (
        probabilities.cumsum(-1) - probabilities
    )  # the mass of likelier tokens; 0 for the first, which stays
    kept = torch.where(before < top_p, probabilities, 0.0)
    return int(order[torch.multinomial(kept, 1, generator=generator)])


def _prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    ids = list(tokenizer(prompt).input_ids)
    if not ids and tokenizer.bos_token_id is None:
        raise UnusableData(
            "The prompt is empty.", "This tokenizer has no beginning-of-text token; give some text."
        )
    return ids or [tokenizer.bos_token_id]


def _end_tokens(model: nn.Module, tokenizer: Any) -> set[int]:
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = set(stated) if isinstance(stated, (list, tuple)) else {stated}
    return {int(end) for end in ends | {tokenizer.eos_token_id} if end is not None}


def _added_text(tokenizer: Any, ids: list[int], added: list[int]) -> str:
    # Decoded together, because many tokenizers drop the space before the first token that they decode.
    start = tokenizer.decode(ids, skip_special_tokens=True)
    whole = tokenizer.decode(ids + added, skip_special_tokens=True)
    if whole.startswith(start):
        return whole[len(start) :]
    return tokenizer.decode(added, skip_special_tokens=True)
