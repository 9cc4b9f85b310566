from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from modicum.errors import InvalidSetting, NotFinite, UnusableData
from modicum.evaluate import perplexity
from modicum.evaluate import windows as cutting

Tiny = Callable[..., LlamaForCausalLM]


def naive(model: LlamaForCausalLM, tokens: torch.Tensor, window: int, stride: int) -> float:
    """Token by token: the window that scores token i is the first that reaches it."""
    losses = []
    for target in range(1, len(tokens)):
        first = max(0, math.ceil((target - window) / stride)) * stride
        logits = model(tokens[None, first:target]).logits[0, -1].double()
        losses.append(F.cross_entropy(logits, tokens[target]).item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize(("window", "stride"), [(16, None), (16, 16), (16, 5), (16, 1), (25, 25), (64, 63)])
@pytest.mark.parametrize("batch", [1, 4])
@torch.no_grad()
def test_equals_scoring_token_by_token(
    tiny: Tiny, tokens: torch.Tensor, window: int, stride: int | None, batch: int
) -> None:
    model = tiny()
    result = perplexity(model, tokens, window, stride, batch)
    assert result.nll_per_token == pytest.approx(naive(model, tokens, window, stride or window), abs=1e-5)
    assert result.ppl == pytest.approx(math.exp(result.nll_per_token))
    assert result.tokens == len(tokens) - 1


def test_only_a_chunk_of_logits_is_widened_and_nothing_changes(
    tiny: Tiny, tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = perplexity(tiny(), tokens, 16)
    shapes: list[torch.Size] = []
    loss = F.cross_entropy

    def spy(logits: torch.Tensor, *rest: torch.Tensor, **settings: str) -> torch.Tensor:
        shapes.append(logits.shape)
        return loss(logits, *rest, **settings)

    monkeypatch.setattr(F, "cross_entropy", spy)
    monkeypatch.setattr(cutting, "FLOATS_AT_ONCE", 3 * 128)
    assert perplexity(tiny(), tokens, 16).nll_per_token == pytest.approx(whole.nll_per_token, abs=1e-9)
    assert max(rows for rows, _ in shapes) == 3
    assert sum(rows for rows, _ in shapes) == 100


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity(
    tiny: Tiny, tokens: torch.Tensor
) -> None:
    model = tiny()
    torch.nn.init.zeros_(model.lm_head.weight)
    assert perplexity(model, tokens, 16).ppl == pytest.approx(128, rel=1e-6)


def test_bits_per_byte_are_the_total_bits_over_the_bytes(tiny: Tiny, tokens: torch.Tensor) -> None:
    model = tiny()
    torch.nn.init.zeros_(model.lm_head.weight)  # 7 bits for each of 100 tokens
    assert perplexity(model, tokens, 16, text_bytes=350).bits_per_byte == pytest.approx(2.0, rel=1e-6)
    assert perplexity(model, tokens, 16).bits_per_byte is None


def test_the_model_keeps_its_training_flags_and_gets_no_gradients(tiny: Tiny, tokens: torch.Tensor) -> None:
    model = tiny(attention_dropout=0.5).train()
    model.model.norm.eval()
    assert perplexity(model, tokens, 16) == perplexity(model, tokens, 16)  # no dropout
    assert model.training
    assert not model.model.norm.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_progress_ends_with_all_windows_done(tiny: Tiny, tokens: torch.Tensor) -> None:
    calls: list[tuple[int, int]] = []
    result = perplexity(tiny(), tokens, 16, batch=4, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 7), (6, 7), (7, 7)]  # 6 whole windows and the tail
    assert result.windows == 7


def test_nan_weights_are_an_error_and_not_a_number(tiny: Tiny, tokens: torch.Tensor) -> None:
    model = tiny()
    model.lm_head.weight.data[3] = torch.nan
    with pytest.raises(NotFinite, match="window"):
        perplexity(model, tokens, 16)


def test_settings_the_model_cannot_take_are_refused(tiny: Tiny, tokens: torch.Tensor) -> None:
    with pytest.raises(InvalidSetting, match="64"):
        perplexity(tiny(), tokens, 65)
    with pytest.raises(InvalidSetting, match="batch"):
        perplexity(tiny(), tokens, 16, batch=0)
    with pytest.raises(InvalidSetting, match="text_bytes"):
        perplexity(tiny(), tokens, 16, text_bytes=0)
    with pytest.raises(UnusableData):
        perplexity(tiny(), tokens[:1], 16)
