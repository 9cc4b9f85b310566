from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlamaForCausalLM

from modicum.errors import InvalidSetting, NotFinite, UnsupportedModel
from modicum.evaluate import agreement

Tiny = Callable[..., LlamaForCausalLM]


def test_a_model_agrees_with_itself_completely(tiny: Tiny, tokens: torch.Tensor) -> None:
    result = agreement(tiny(), tiny(), tokens, 16)
    assert result.kl == 0.0
    assert result.overlap == {1: 1.0, 5: 1.0}
    assert result.top1 == 1.0
    assert result.tokens == 100


@torch.no_grad()
def test_equals_the_definition(tiny: Tiny, tokens: torch.Tensor) -> None:
    reference, candidate = tiny(0), tiny(1)
    p, q = (model(tokens[None, :32]).logits[0].double().softmax(-1) for model in (reference, candidate))
    kl = (p * (p / q).log()).sum(-1).mean().item()
    same = (p.argmax(-1) == q.argmax(-1)).double().mean().item()
    shared = [len({*a.tolist()} & {*b.tolist()}) / 5 for a, b in zip(p.topk(5)[1], q.topk(5)[1], strict=True)]
    result = agreement(reference, candidate, tokens[:33], 32)
    assert result.kl == pytest.approx(kl, rel=1e-5)
    assert result.overlap == pytest.approx({1: same, 5: sum(shared) / 32})
    assert 0 < result.overlap[5] < 1  # the models differ, so the comparison is no formality


def test_kl_is_of_the_reference_and_not_of_the_candidate(tiny: Tiny, tokens: torch.Tensor) -> None:
    one, other = tiny(0), tiny(1)
    other.lm_head.weight.data *= 0.1
    assert agreement(one, other, tokens, 16).kl != pytest.approx(
        agreement(other, one, tokens, 16).kl, rel=1e-2
    )


def test_the_batch_does_not_matter(tiny: Tiny, tokens: torch.Tensor) -> None:
    one = agreement(tiny(0), tiny(1), tokens, 16, batch=1)
    assert agreement(tiny(0), tiny(1), tokens, 16, batch=5).kl == pytest.approx(one.kl, rel=1e-6)


def test_without_k_1_there_is_no_top1(tiny: Tiny, tokens: torch.Tensor) -> None:
    assert agreement(tiny(), tiny(), tokens, 16, k=(3,)).top1 is None


def test_models_that_cannot_be_compared_are_refused(tiny: Tiny, tokens: torch.Tensor) -> None:
    with pytest.raises(UnsupportedModel, match="160"):
        agreement(tiny(), tiny(vocab_size=160), tokens, 16)
    with pytest.raises(InvalidSetting, match="k="):
        agreement(tiny(), tiny(), tokens, 16, k=(129,))
    broken = tiny()
    broken.lm_head.weight.data[0] = torch.nan
    with pytest.raises(NotFinite):
        agreement(tiny(), broken, tokens, 16)
