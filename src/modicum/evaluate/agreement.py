"""Agreement: does the compressed model still say what the original says, token by token?

Perplexity can stay put while individual answers change, because improvements hide losses. Two measures that
cannot cancel, both against the original's own distribution p instead of the text:

    KL(p || q) = sum_v p(v) * (log p(v) - log q(v))          nats per token, 0 only if nothing changed
    overlap@k  = |top-k of p  ∩  top-k of q| / k             overlap@1: identical greedy choices
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modicum.errors import InvalidSetting, NotFinite, UnsupportedModel
from modicum.evaluate.inference import check_context, device_of, evaluating
from modicum.evaluate.perplexity import Progress
from modicum.evaluate.windows import batches, token_chunks, windows
from modicum.kernels.products import widened_products


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The result of `agreement`.

    Attributes:
        kl: mean KL(reference || candidate), nats per token, in float32 (resolution about 1e-7).
        overlap: for each k, mean share of the reference's k likeliest tokens that the candidate shares, 0..1.
        tokens: positions compared.
    """

    kl: float
    overlap: dict[int, float]
    tokens: int

    @property
    def top1(self) -> float | None:
        """Share of positions where both models choose the same token, 0..1; None without k = 1."""
        return self.overlap.get(1)


def agreement(
    reference: nn.Module,
    candidate: nn.Module,
    tokens: Tensor,
    window: int,
    k: Sequence[int] = (1, 5),
    batch: int = 8,
    progress: Progress | None = None,
) -> Agreement:
    """Compares the next-token distributions of two models at every position of the same windows.

    Args:
        reference: the original causal language model.
        candidate: the compressed one, over the same vocabulary.
        tokens: Tensor [n], the text; n - 1 positions are compared.
        window: positions fed at once; windows lie side by side.
        k: sizes of the top-k sets.
        batch: windows per forward pass; one batch of logits per model is held.
        progress: called after each batch.

    Raises:
        UnsupportedModel: the vocabularies differ in size.
        NotFinite: either model returned NaN.
        InvalidSetting: a k outside 1..vocabulary.
    """
    for model in (reference, candidate):
        check_context(model, min(window, len(tokens) - 1), "window")
    sums = torch.zeros(1 + len(k), dtype=torch.float64)
    count, done, scored = len(windows(len(tokens), window)), 0, 0
    with evaluating(reference, candidate):
        for inputs, _ in batches(tokens, window, None, batch):
            sums += _batch_sums(_logits(reference, inputs), _logits(candidate, inputs), k)
            done, scored = done + len(inputs), scored + inputs.numel()
            if progress:
                progress(done, count)
    kl, *overlap = (sums / scored).tolist()
    if kl != kl:
        raise NotFinite("One of the two models returned NaN.", "Look for NaN in its weights.")
    return Agreement(kl=max(kl, 0.0), overlap=dict(zip(k, overlap, strict=True)), tokens=scored)


def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    with widened_products():
        logits = model(input_ids=inputs.to(device_of(model)), use_cache=False).logits
    return logits.flatten(0, 1)  # [windows * positions, vocabulary]


def _batch_sums(p: Tensor, q: Tensor, k: Sequence[int]) -> Tensor:
    """KL and overlaps summed over positions, float64 [1 + len(k)]; `p`, `q` logits [positions, v]."""
    if p.shape != q.shape:
        raise UnsupportedModel(
            f"The models have vocabularies of {p.shape[-1]} and {q.shape[-1]} tokens.",
            "Compare two models that share a tokenizer.",
        )
    if not all(1 <= each <= p.shape[-1] for each in k):
        raise InvalidSetting(f"k={tuple(k)} is out of range.", f"Use 1 to {p.shape[-1]}.")
    sums = torch.zeros(1 + len(k), dtype=torch.float64)
    for part in token_chunks(*p.shape):
        p_part, q_part = p[part].float(), q[part].float().to(p.device)
        sums += torch.stack([_kl(p_part, q_part), *(_overlap(p_part, q_part, each) for each in k)]).cpu()
    return sums


def _kl(p: Tensor, q: Tensor) -> Tensor:
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    terms = torch.where(log_p == -torch.inf, 0.0, log_p.exp() * (log_p - log_q))  # 0 log 0 = 0
    return terms.double().sum()


def _overlap(p: Tensor, q: Tensor, k: int) -> Tensor:
    top_p, top_q = p.topk(k).indices, q.topk(k).indices  # [positions, k]
    return (top_p[:, :, None] == top_q[:, None, :]).double().sum() / k
