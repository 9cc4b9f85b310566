from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from modicum.errors import InvalidSetting, UnsupportedModel, UnusableData
from modicum.evaluate import Spread, paired_speed
from modicum.evaluate import speed as timing

Tiny = Callable[..., LlamaForCausalLM]


class Recording(nn.Module):
    """A model that notes its name and how many tokens it was fed."""

    def __init__(self, name: str, calls: list[tuple[str, int]], cache: object = "cache") -> None:
        super().__init__()
        self.name, self.calls, self.cache = name, calls, cache

    def forward(self, input_ids: torch.Tensor, past_key_values: object, use_cache: bool) -> SimpleNamespace:
        assert use_cache
        self.calls.append((self.name, input_ids.shape[1]))
        return SimpleNamespace(logits=torch.zeros(1, input_ids.shape[1], 9), past_key_values=self.cache)


def test_models_take_turns_and_each_prompt_is_read_once(tokens: torch.Tensor) -> None:
    calls: list[tuple[str, int]] = []
    paired_speed({name: Recording(name, calls) for name in "AB"}, tokens, 10, 2, rounds=3)
    turn = [("A", 10), ("A", 1), ("A", 1), ("B", 10), ("B", 1), ("B", 1)]
    assert calls == turn * 4  # one round to warm up


def test_rates_are_tokens_over_seconds_and_the_warm_up_does_not_count(
    tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = [(1.0, 2.0), (0.5, 4.0), (4.0, 1.0), (1.0, 1.0), (2.0, 4.0), (2.0, 2.0)]  # A, B, A, B, A, B
    seconds = iter([(99.0, 99.0), (99.0, 99.0), *rounds])
    monkeypatch.setattr(timing, "timed_generation", lambda *_: next(seconds))
    speeds = paired_speed({name: Recording(name, []) for name in "AB"}, tokens, 8, 4, rounds=3)
    assert speeds["A"].prefill == Spread(4.0, 2.0, 8.0)
    assert speeds["B"].prefill == Spread(8.0, 4.0, 16.0)
    assert speeds["B"].prefill_ratio == Spread(2.0, 1.0, 4.0)  # 16/8, 8/2, 4/4
    assert speeds["B"].decode_ratio == Spread(1.0, 0.5, 2.0)  # 1/2, 4/4, 2/1
    assert speeds["A"].decode_ratio == Spread(1.0, 1.0, 1.0)


def test_a_real_model_has_positive_speeds(tiny: Tiny, tokens: torch.Tensor) -> None:
    speeds = paired_speed({"one": tiny(0), "other": tiny(1)}, tokens, 20, 3, rounds=2)
    for speed in speeds.values():
        for spread in (speed.prefill, speed.decode, speed.prefill_ratio):
            assert 0 < spread.lowest <= spread.median <= spread.highest


def test_what_cannot_be_timed_is_refused(tiny: Tiny, tokens: torch.Tensor) -> None:
    with pytest.raises(InvalidSetting, match="rounds=0"):
        paired_speed({"a": tiny()}, tokens, 8, 2, rounds=0)
    with pytest.raises(InvalidSetting, match="Nothing to time"):
        paired_speed({}, tokens, 8, 2)
    with pytest.raises(UnusableData, match="101"):
        paired_speed({"a": tiny(max_position_embeddings=512)}, tokens, 200, 2)
    with pytest.raises(InvalidSetting, match="64"):
        paired_speed({"a": tiny()}, tokens, 63, 2)
    with pytest.raises(UnsupportedModel, match="cache"):
        paired_speed({"a": Recording("A", [], cache=None)}, tokens, 8, 2)
