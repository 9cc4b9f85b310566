"""What `observe` sees of a block equals what plain hooks on the whole model see."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import transformers as tf

from modicum.calibrate.block import CALL_TOKENS, CalibratedBlock, observe
from modicum.calibrate.statistics import KINDS, Statistics
from modicum.models import Anatomy, capture

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def causal(config: Any) -> Any:
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(3.0)
    return model


def llama() -> Any:
    return causal(tf.LlamaConfig(**SIZES))


def mixtral(experts: int = 4) -> Any:
    return causal(tf.MixtralConfig(**SIZES, num_local_experts=experts, num_experts_per_tok=2))


def shared_experts() -> Any:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return causal(tf.Qwen2MoeConfig(**SIZES, **sizes, shared_expert_intermediate_size=24))


def opt() -> Any:
    sizes = {
        key: value for key, value in SIZES.items() if key not in ("intermediate_size", "num_key_value_heads")
    }
    return causal(tf.OPTConfig(**sizes, ffn_dim=48))


def resnet(layer_type: str = "bottleneck") -> Any:
    torch.manual_seed(0)
    config = tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 1], layer_type=layer_type)
    return tf.ResNetForImageClassification(config).eval()


def batches(padded: bool = False) -> list[dict[str, Tensor]]:
    """Two batches of different size; `padded` hides the beginning of some sequences."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for size, length in ((3, 11), (2, 17)):
        batch = {"input_ids": torch.randint(3, 64, (size, length), generator=generator)}
        if padded:
            batch["attention_mask"] = torch.ones(size, length, dtype=torch.long)
            batch["attention_mask"][0, :4] = 0
        made.append(batch)
    return made


@torch.no_grad()
def observed(
    model: Any,
    data: list[dict[str, Tensor]],
    index: int = 0,
    wanted: frozenset[str] = KINDS,
    masked: bool = False,
) -> CalibratedBlock:
    anatomy = Anatomy.of(model)
    replay = capture(anatomy, data)
    hidden = list(replay.hidden)
    for block in anatomy.blocks[:index]:
        hidden = [replay.run_block(block, states, i) for i, states in enumerate(hidden)]
    block = anatomy.blocks[index]
    return observe(
        block,
        lambda i, states: replay.run_block(block, states, i),
        hidden,
        {layer.name: wanted for layer in block.layers},
        {fold.parent for fold in block.folds},
        [batch["attention_mask"].bool() for batch in data] if masked else (),
    )


@contextmanager
def recording(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[dict[str, list[Any]]]:
    """First positional arguments of every call of the modules of these kinds, by name."""
    seen: dict[str, list[Any]] = defaultdict(list)
    hooks = [
        module.register_forward_pre_hook(lambda m, args, name=name: seen[name].append(args))
        for name, module in model.named_modules()
        if isinstance(module, kinds)
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def assert_sums(found: Statistics, x: Tensor) -> None:
    """`found` holds the sums over the vectors x [tokens, in]."""
    assert found.tokens == len(x)
    scale = float(x.square().sum(0).max())
    torch.testing.assert_close(found.gram, x.T @ x, rtol=1e-4, atol=1e-5 * scale)
    torch.testing.assert_close(found.column_norm, x.norm(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.mean_abs, x.abs().mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.sample, x[:512], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [llama, opt, shared_experts])
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_linear_layers_see_what_the_model_feeds_them(make: Any, index: int, padded: bool) -> None:
    model, data = make(), batches(padded)
    calibrated = observed(model, data, index, masked=padded)
    with recording(model, (nn.Linear,)) as seen:
        for batch in data:
            model(**batch)
    masks = [batch["attention_mask"].bool().flatten() if padded else slice(None) for batch in data]
    dense = [layer for layer in calibrated.block.layers if layer.expert is None]
    assert len(dense) >= 6
    for layer in dense:
        inputs = [args[0].flatten(0, -2)[mask] for args, mask in zip(seen[layer.name], masks, strict=True)]
        assert_sums(calibrated.layer_statistics(layer), torch.cat(inputs))


@torch.no_grad()
def test_layers_with_one_input_share_one_accumulator() -> None:
    calibrated = observed(llama(), batches())
    by_role = {layer.role: calibrated.statistics[layer.name] for layer in calibrated.block.layers}
    assert by_role["q"] is by_role["k"] is by_role["v"]
    assert by_role["gate"] is by_role["up"]
    assert len({id(found) for found in by_role.values()}) == 4


@torch.no_grad()
def test_sharing_gives_every_layer_all_it_asked_for() -> None:
    model, data = llama(), batches()
    anatomy = Anatomy.of(model)
    replay, block = capture(anatomy, data), anatomy.blocks[0]
    asked = {"q": {"column_norm"}, "k": {"gram"}, "v": {"column_norm"}, "up": {"mean_abs"}}
    wanted = {layer.name: frozenset(asked[layer.role]) for layer in block.layers if layer.role in asked}
    calibrated = observe(block, lambda i, h: replay.run_block(block, h, i), replay.hidden, wanted)
    found = {layer.role: calibrated.statistics[layer.name] for layer in block.layers if layer.role in asked}
    torch.testing.assert_close(found["q"].column_norm, found["k"].column_norm)
    assert found["q"] is found["v"]
    assert found["up"].mean_abs.shape == (32,)
    assert {statistics.tokens for statistics in found.values()} == {3 * 11 + 2 * 17}
    unasked = next(layer for layer in block.layers if layer.role == "down")
    assert calibrated.layer_statistics(unasked).wanted == frozenset()


@pytest.mark.parametrize("make", [mixtral, shared_experts])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_every_expert_sees_its_own_tokens(make: Any, padded: bool) -> None:
    model, data = make(), batches(padded)
    calibrated = observed(model, data, 1, masked=padded)
    experts = calibrated.block.experts
    assert experts is not None
    with recording(model, (type(experts.module),)) as seen:
        for batch in data:
            model(**batch)
    masks = [batch["attention_mask"].bool().flatten() if padded else slice(None) for batch in data]
    for expert in range(experts.num_experts):
        routed, middle = [], []
        for (hidden, indices, *_), mask in zip(seen[experts.name], masks, strict=True):
            chosen = hidden[mask][(indices[mask] == expert).any(1)]
            routed.append(chosen)
            gate, up = (F.linear(chosen, layer[expert].weight) for layer in (experts.gate, experts.up))
            middle.append(F.silu(gate) * up)
        for layer, inputs in ((experts.gate, routed), (experts.up, routed), (experts.down, middle)):
            assert_sums(calibrated.layer_statistics(layer[expert]), torch.cat(inputs))
        assert (
            calibrated.statistics[experts.gate[expert].name] is calibrated.statistics[experts.up[expert].name]
        )


@torch.no_grad()
def test_an_expert_that_no_token_reaches_counts_as_white_noise() -> None:
    model = mixtral(experts=8)
    model.model.layers[0].mlp.gate.weight[5] = 0
    model.model.layers[0].mlp.gate.weight[:5] = model.model.layers[0].mlp.gate.weight[0]
    model.model.layers[0].mlp.gate.weight[6:] = -model.model.layers[0].mlp.gate.weight[0]
    calibrated = observed(model, batches())
    lonely = [layer for layer in calibrated.block.layers if layer.expert == 5]
    assert len(lonely) == 3
    for layer in lonely:
        found = calibrated.layer_statistics(layer)
        assert found.tokens == 0
        assert torch.equal(found.gram, torch.eye(layer.in_features))
        assert torch.equal(found.column_norm, torch.ones(layer.in_features))
    assert (
        sum(calibrated.layer_statistics(layer).tokens for layer in calibrated.block.layers if layer.expert)
        > 0
    )


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
@pytest.mark.parametrize("index", [0, 2])
@torch.no_grad()
def test_convolutions_see_a_patch_per_output_position(layer_type: str, index: int) -> None:
    model = resnet(layer_type)
    data = [
        {"pixel_values": torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(n))}
        for n in (2, 3)
    ]
    calibrated = observed(model, data, index)
    with recording(model, (nn.Conv2d,)) as seen:
        for batch in data:
            model(**batch)
    assert len(calibrated.block.layers) >= 2
    for layer in calibrated.block.layers:
        conv = layer.module
        assert isinstance(conv, nn.Conv2d)
        patches = torch.cat([_windows(args[0], conv) for args in seen[layer.name]])  # [positions, in]
        assert_sums(calibrated.layer_statistics(layer), patches)
        images = seen[layer.name][0][0]
        output = conv(images)
        dense = _windows(images, conv) @ layer.weight.T
        torch.testing.assert_close(dense, output.permute(0, 2, 3, 1).flatten(0, 2), rtol=1e-4, atol=1e-4)


def _windows(images: Tensor, conv: nn.Conv2d) -> Tensor:
    """The inputs under the kernel at each output position, by plain slicing: [positions, channels * kh * kw]."""
    (kh, kw), (sh, sw), (ph, pw) = conv.kernel_size, conv.stride, conv.padding
    padded = F.pad(images, (pw, pw, ph, ph))
    rows = range(0, padded.shape[2] - kh + 1, sh)
    columns = range(0, padded.shape[3] - kw + 1, sw)
    cut = [[padded[:, :, r : r + kh, c : c + kw].flatten(1) for c in columns] for r in rows]
    return torch.stack([torch.stack(row, 1) for row in cut], 1).flatten(0, 2)


@torch.no_grad()
def test_a_grouped_convolution_counts_every_group() -> None:
    from modicum.models import Block, Layer
    from modicum.models.storage import storage_of

    parent = nn.Module()
    parent.conv = nn.Conv2d(6, 4, 3, groups=2, padding=1, bias=False)
    storage = storage_of(parent.conv)
    assert storage is not None
    layer = Layer("b.conv", "conv1", 0, storage, parent, "conv")
    block = Block(0, "b", parent, (layer,), (), (), None, None, None)
    images = torch.randn(2, 6, 5, 5)
    found = observe(block, lambda i, h: parent.conv(h), [images], {"b.conv": KINDS}).layer_statistics(layer)
    halves = nn.Conv2d(3, 2, 3, padding=1)
    patches = torch.cat([_windows(images[:, :3], halves), _windows(images[:, 3:], halves)])
    torch.testing.assert_close(found.gram, patches.T @ patches, rtol=1e-4, atol=1e-4)
    assert found.tokens == len(patches) == 2 * 2 * 25


@torch.no_grad()
def test_padding_is_left_out() -> None:
    data = batches(padded=True)
    with_masks, without = observed(llama(), data, masked=True), observed(llama(), data)
    tokens = [c.layer_statistics(c.block.layers[0]).tokens for c in (with_masks, without)]
    assert tokens == [3 * 11 + 2 * 17 - 8, 3 * 11 + 2 * 17]


@torch.no_grad()
def test_replayed_parents_give_the_outputs_of_the_block() -> None:
    model, data = llama(), batches()
    calibrated = observed(model, data)
    for path in calibrated.calls:
        outputs: list[Tensor] = []
        module = model.get_submodule(path)
        hook = module.register_forward_hook(
            lambda m, args, out, kept=outputs: kept.append(out[0] if isinstance(out, tuple) else out)
        )
        for batch in data:
            model(**batch)
        hook.remove()
        for found, expected in zip(calibrated.replay(path), outputs, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_no_more_calls_are_kept_than_needed() -> None:
    data = [{"input_ids": torch.randint(3, 64, (8, 256))} for _ in range(4)]
    calibrated = observed(llama(), data, wanted=frozenset())
    for path, calls in calibrated.calls.items():
        assert len(calls) == CALL_TOKENS // (8 * 256), path


@torch.no_grad()
def test_observing_leaves_nothing_behind() -> None:
    model, data = mixtral(), batches()
    before = model(**data[0]).logits
    calibrated = observed(model, data)
    tokens = calibrated.layer_statistics(calibrated.block.layers[0]).tokens
    assert torch.equal(model(**data[0]).logits, before)
    assert calibrated.layer_statistics(calibrated.block.layers[0]).tokens == tokens
    assert not any(module._forward_pre_hooks for module in model.modules())
