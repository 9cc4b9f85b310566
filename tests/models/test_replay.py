"""Blocks run one at a time give exactly what the model gives."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from modicum.errors import UnsupportedModel, UnusableData
from modicum.models import Anatomy, Family, capture, release


@torch.no_grad()
def block_outputs(tiny, batch) -> list[torch.Tensor]:
    """What each block returns inside the model, seen by hooks."""
    seen: list[torch.Tensor] = []
    hooks = [
        block.module.register_forward_hook(lambda module, inputs, output: seen.append(output))
        for block in Anatomy.of(tiny.model).blocks
    ]
    tiny.model(**batch)
    for hook in hooks:
        hook.remove()
    return seen


def test_every_block_equals_the_model(tiny) -> None:
    batches = [tiny.batch(3, 7), tiny.batch(2, 11, padded=True), tiny.batch(1, 7)]
    anatomy = Anatomy.of(tiny.model)
    replay = capture(anatomy, batches)
    assert len(replay) == 3
    for index, batch in enumerate(batches):
        expected, hidden = block_outputs(tiny, batch), replay.hidden[index]
        assert len(expected) == len(anatomy.blocks)
        for block, after in zip(anatomy.blocks, expected, strict=True):
            with torch.no_grad():
                hidden = replay.run_block(block, hidden, index)
            assert torch.equal(hidden, after)


def test_token_tensors_are_batches(make_tiny) -> None:
    tiny = make_tiny("qwen2")
    tokens = tiny.batch()["input_ids"]
    anatomy = Anatomy.of(tiny.model)
    bare, named = capture(anatomy, [tokens]), capture(anatomy, [{"input_ids": tokens}])
    assert torch.equal(bare.hidden[0], named.hidden[0])


def test_the_model_is_left_as_it_was(tiny) -> None:
    before, modules = tiny.logits(), list(tiny.model.modules())
    tiny.model.train()
    tiny.model.base_model.eval()
    modes = [module.training for module in modules]
    capture(Anatomy.of(tiny.model), [tiny.batch()])
    assert all(a is b for a, b in zip(tiny.model.modules(), modules, strict=True))
    assert [module.training for module in modules] == modes
    assert torch.equal(tiny.model.eval() and tiny.logits(), before)


def test_a_failing_batch_leaves_the_model_whole(make_tiny) -> None:
    tiny = make_tiny("llama")
    before = tiny.logits()
    with pytest.raises(IndexError):
        capture(Anatomy.of(tiny.model), [torch.tensor([[10_000]])])
    assert torch.equal(tiny.logits(), before)


def test_blocks_may_hold_no_weights(tiny) -> None:
    anatomy = Anatomy.of(tiny.model)
    full = capture(anatomy, [tiny.batch()])
    for block in anatomy.blocks:
        release(block.module)
    bare = capture(anatomy, [tiny.batch()])
    assert torch.equal(bare.hidden[0], full.hidden[0])


def test_heads_are_never_run(make_tiny) -> None:
    tiny = make_tiny("llama")
    release(tiny.model.lm_head)
    release(tiny.model.model.norm)
    assert capture(Anatomy.of(tiny.model), [tiny.batch()]).hidden[0].shape == (2, 9, 32)


def test_equal_arguments_are_kept_once(make_tiny) -> None:
    tiny = make_tiny("gemma3")
    replay = capture(Anatomy.of(tiny.model), [tiny.batch(2, 9), tiny.batch(3, 9)])
    rotary = [call.kwargs["position_embeddings"][0] for calls in replay.calls for call in calls]
    masks = [call.kwargs["attention_mask"] for calls in replay.calls for call in calls]
    assert len({id(tensor) for tensor in rotary}) < len(rotary)
    assert len({tensor.data_ptr() for tensor in rotary}) == 1
    assert all(mask is None or mask.shape[-1] == 9 for mask in masks)


def test_sliding_and_full_blocks_get_their_own_mask(make_tiny) -> None:
    tiny = make_tiny("qwen2-sliding")
    calls = capture(Anatomy.of(tiny.model), [tiny.batch(2, 9, padded=True)]).calls[0]
    full, sliding = calls[0].kwargs["attention_mask"], calls[1].kwargs["attention_mask"]
    assert not torch.equal(full, sliding)
    assert calls[2].kwargs["attention_mask"] is sliding


def test_gradients_flow_through_a_block(make_tiny) -> None:
    tiny = make_tiny("llama")
    anatomy = Anatomy.of(tiny.model)
    replay = capture(anatomy, [tiny.batch()])
    replay.run_block(anatomy.blocks[0], replay.hidden[0], 0).sum().backward()
    assert anatomy.blocks[0].layers[0].weight.grad is not None


def test_no_batch_is_an_error(make_tiny) -> None:
    with pytest.raises(UnusableData):
        capture(Anatomy.of(make_tiny("llama").model), [])


class Pair(nn.Module):
    """A block that returns (hidden, something else) and takes its hidden states by name."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden_states: torch.Tensor, shift: float) -> tuple[torch.Tensor, str]:
        return self.linear(hidden_states) + shift, "attention"


class Stack(nn.Module):
    """Two such blocks, called in the given order."""

    def __init__(self, order: tuple[int, ...] = (0, 1)) -> None:
        super().__init__()
        self.layers, self.order = nn.ModuleList([Pair(), Pair()]), order

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for position in self.order:
            x, _ = self.layers[position](hidden_states=x, shift=position + 0.5)
        return x


PAIRS = Family("pairs", ("pairs",), ("layers",), {"linear": "fc1"}, tuple_output=2)


def test_blocks_that_return_tuples_and_name_their_input() -> None:
    model, x = Stack(), torch.randn(2, 4)
    anatomy = Anatomy.of(model, PAIRS)
    replay = capture(anatomy, [{"x": x}])
    hidden = replay.hidden[0]
    for block in anatomy.blocks:
        hidden = replay.run_block(block, hidden, 0)
    assert torch.equal(hidden, model(x))
    assert [call.kwargs for call in replay.calls[0]] == [{"shift": 0.5}, {"shift": 1.5}]


@pytest.mark.parametrize("order", [(1, 0), (0, 0, 1), (0,), (1,)])
def test_a_model_with_another_order_is_refused(order: tuple[int, ...]) -> None:
    anatomy = Anatomy.of(Stack(order), replace(PAIRS))
    with pytest.raises(UnsupportedModel, match="in order"):
        capture(anatomy, [{"x": torch.randn(2, 4)}])
