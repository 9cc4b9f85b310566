from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch

from modicum.errors import InvalidSetting, UnknownName
from modicum.models.dit import DiT, DiTConfig, Transformer
from modicum.models.dit.config import PRESETS
from modicum.models.dit.embeddings import positions, time_features

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("DiT-S/2", 32_963_360),
        ("DiT-B/2", 130_512_416),
        ("DiT-L/2", 458_102_816),
        ("DiT-XL/2", 675_129_632),
        ("SiT-XL/2", 675_129_632),
        ("TinyDiT-D19", 459_983_264),
        ("TinyDiT-D14", 340_457_504),
        ("TinyDiT-D7", 173_121_440),
    ],
)
def test_published_parameter_counts(preset: str, parameters: int) -> None:
    with torch.device("meta"):
        model = Transformer(DiTConfig.preset(preset))
    assert sum(p.numel() for p in model.parameters()) == parameters
    if model.config.hidden_size == 1152:
        assert sum(p.numel() for p in model.blocks[0].parameters()) == 23_905_152


@pytest.mark.parametrize(
    ("preset", "at_256", "at_512"),
    [
        ("DiT-S/2", 6.06, 31.4),
        ("DiT-B/2", 23.01, 106.4),
        ("DiT-L/2", 80.71, 361),
        ("DiT-XL/2", 118.64, 524.6),
    ],
)
def test_published_multiplications(preset: str, at_256: float, at_512: float) -> None:
    for pixels, published in ((256, at_256), (512, at_512)):
        assert DiTConfig.preset(preset, pixels=pixels).macs() / 1e9 == pytest.approx(published, rel=2e-3)


@pytest.mark.parametrize(("width", "side"), [(24, 4), (96, 8), (1152, 16)])
def test_positions_are_those_of_diffusers(width: int, side: int) -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    theirs = embeddings.PatchEmbed(side, side, 1, 4, width).pos_embed
    assert torch.equal(positions(width, side), theirs)


def test_cosines_come_first_and_are_spaced_by_128() -> None:
    features = time_features(torch.tensor([0.0, 0.5, 999.0]))
    assert torch.equal(features[0], torch.cat((torch.ones(128), torch.zeros(128))))
    frequency = 10_000 ** (-torch.arange(128, dtype=torch.float64) / 128)
    torch.testing.assert_close(features[1, :128].double(), (0.5 * frequency).cos(), atol=1e-6, rtol=0)
    torch.testing.assert_close(features[2, 128:].double(), (999 * frequency).sin(), atol=2e-4, rtol=0)


def test_every_block_starts_as_the_identity_and_the_output_as_zero(any_dit: DiT, batch: Make) -> None:
    fresh = DiT(any_dit.config).eval()
    x, t, y = batch(fresh)
    tokens, c = fresh.embed(x), fresh.condition(t, y)
    assert all(torch.equal(block(tokens, c), tokens) for block in fresh.blocks)
    assert fresh(x, t, y).abs().max() == 0


def test_patches_are_read_and_put_back_in_place(any_dit: DiT, batch: Make) -> None:
    """Without blocks, a change of one patch changes this patch of the output and no other."""
    config = any_dit.config
    x, t, y = batch(any_dit, 1)
    any_dit.blocks = torch.nn.ModuleList()
    before = any_dit(x, t, y)
    assert before.shape == (
        1, config.in_channels if config.kind == "sit" else config.out_channels, config.input_size, config.input_size
    )  # fmt: skip
    p = config.patch_size
    for row, column in product(range(config.grid), repeat=2):
        changed = x.clone()
        changed[..., row * p : (row + 1) * p, column * p : (column + 1) * p] += 1
        difference = (any_dit(changed, t, y) - before).abs().amax(dim=(0, 1)) > 1e-7
        inside = difference[row * p : (row + 1) * p, column * p : (column + 1) * p]
        assert inside.any()
        assert inside.sum() == difference.sum()


def test_guidance_of_one_is_the_conditional_prediction(dit: DiT, batch: Make) -> None:
    x, t, y = batch(dit)
    out = dit.forward_with_cfg(x.repeat(2, 1, 1, 1), t.repeat(2), torch.cat((y, y * 0 + dit.null_label)), 1.0)
    torch.testing.assert_close(out[:3], dit(x, t, y), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("channels", [3, 4])
def test_guidance_touches_the_first_channels_only(dit: DiT, channels: int, batch: Make) -> None:
    x, t, y = batch(dit)
    null = torch.full_like(y, dit.null_label)
    out = dit.forward_with_cfg(x.repeat(2, 1, 1, 1), t.repeat(2), torch.cat((y, null)), 4.0, channels)
    conditional, unconditional = dit(x, t, y), dit(x, t, null)
    guided = unconditional + 4 * (conditional - unconditional)
    torch.testing.assert_close(out[:3, :channels], guided[:, :channels], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out[3:, :channels], guided[:, :channels], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out[:3, channels:], conditional[:, channels:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out[3:, channels:], unconditional[:, channels:], atol=1e-5, rtol=1e-5)


def test_dropped_labels_are_no_labels(dit: DiT, batch: Make) -> None:
    x, t, y = batch(dit)
    drop = torch.tensor([0, 1, 0])
    labels = torch.where(drop == 1, dit.null_label, y)
    assert torch.equal(dit(x, t, y, drop), dit(x, t, labels))
    assert torch.equal(dit.train()(x, t, y, drop.bool()), dit.eval()(x, t, labels))


def test_labels_are_dropped_in_training_only(dit: DiT, tiny_dit: Make) -> None:
    t, y = torch.zeros(2000), torch.full((2000,), 2)
    with torch.no_grad():
        want = dit.condition(t, y)
        assert torch.equal(want[0], want[-1])
        dropped = (dit.train().condition(t, y) - want).abs().amax(1) > 0
    assert 120 < dropped.sum() < 280  # of 2000, at a rate of 0.1: four and a half standard deviations
    sure = tiny_dit("no-null-label").train()
    assert torch.equal(sure.condition(t, y), sure.eval().condition(t, y))


def test_a_model_of_fewer_blocks_is_the_model_without_the_others(batch: Make, tiny_dit: Make) -> None:
    whole = tiny_dit(depth=3)
    x, t, y = batch(whole)
    pruned = DiT(whole.config.model_copy(update={"depth": 2})).eval()
    state = {n: v for n, v in whole.state_dict().items() if not n.startswith("blocks.1.")}
    pruned.load_state_dict({n.replace("blocks.2.", "blocks.1."): v for n, v in state.items()})
    c = whole.condition(t, y)
    tokens = whole.blocks[2](whole.blocks[0](whole.embed(x), c), c)
    assert torch.equal(pruned(x, t, y), whole.head(tokens, c))


def test_half_precision_stays_close(any_dit: DiT, batch: Make) -> None:
    x, t, y = batch(any_dit)
    with torch.no_grad():
        want = any_dit(x, t, y)
        got = any_dit.bfloat16()(x, t, y)
    assert got.dtype == torch.bfloat16
    assert (got - want).abs().mean() < 0.05 * want.std()


@pytest.mark.parametrize(
    "setting",
    [
        {"depht": 2},
        {"input_size": 9},
        {"hidden_size": 100, "num_heads": 3},
        {"hidden_size": 30, "num_heads": 3},
        {"class_dropout_prob": 1.5},
        {"kind": "mar"},
    ],
)
def test_unusable_sizes(setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting, match="configuration"):
        DiTConfig.from_dict(setting)


def test_presets_and_their_dictionaries() -> None:
    assert len(PRESETS) == 2 * 4 * 3 + 3
    for config in PRESETS.values():
        assert DiTConfig.from_dict(config.to_dict()) == config
    assert DiTConfig.preset("DiT-B/4", pixels=512).tokens == 256
    assert DiTConfig.from_dict({"model": {"depth": 3}, "steps": "10"}).depth == 3
    with pytest.raises(UnknownName, match="DiT-XL/2"):
        DiTConfig.preset("DiT-XL2")
