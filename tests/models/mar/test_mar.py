from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modicum.errors import CheckpointError, InvalidSetting, OutputExists, UnknownName
from modicum.models import Anatomy
from modicum.models.depth.gating import gate
from modicum.models.mar import MAR, Block, MARConfig, Transformer, convert, load_mar, save
from modicum.models.mar.model import hidden_counts
from modicum.models.mar.training import hidden_share
from modicum.trainer.objectives import objective_of

LABELS = [0, 3]


def _tiny(seed: int = 0, **changes: Any) -> MAR:
    """A model whose every parameter matters."""
    sizes: dict[str, Any] = {
        "img_size": 16,
        "vae_stride": 4,
        "vae_embed_dim": 3,
        "encoder_embed_dim": 12,
        "encoder_depth": 2,
        "encoder_num_heads": 2,
        "decoder_embed_dim": 16,
        "decoder_depth": 1,
        "decoder_num_heads": 4,
        "class_num": 5,
        "buffer_size": 3,
        "diffloss_d": 2,
        "diffloss_w": 8,
    }
    torch.manual_seed(seed)
    model = MAR(MARConfig(**{**sizes, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture
def mar() -> MAR:
    return _tiny()


@pytest.mark.parametrize(("preset", "millions"), [("MAR-B", 208), ("MAR-L", 479), ("MAR-H", 943)])
def test_published_sizes(preset: str, millions: int) -> None:
    with torch.device("meta"):
        model = Transformer(MARConfig.preset(preset))
    assert math.ceil(sum(p.numel() for p in model.parameters()) / 1e6) == millions


def test_half_the_depth_of_the_large_model_is_the_published_small_one() -> None:
    with torch.device("meta"):
        model = Transformer(
            MARConfig.preset("MAR-L").model_copy(update={"encoder_depth": 8, "decoder_depth": 8})
        )
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == 277


def test_a_block_is_a_plain_pre_norm_block() -> None:
    torch.manual_seed(0)
    ours = Block(12, 3, 4.0)
    theirs = nn.TransformerEncoderLayer(
        12, 3, 48, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    names = {
        "self_attn.in_proj_": "attn.qkv.",
        "self_attn.out_proj.": "attn.proj.",
        "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.",
    }
    state = ours.state_dict()
    for name in theirs.state_dict():
        key = next((name.replace(a, b) for a, b in names.items() if a in name), name)
        theirs.get_parameter(name).data = state[key]
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(ours(x), theirs(x))


def test_hidden_tokens_are_not_read(mar: MAR) -> None:
    tokens, visible = torch.randn(2, 16, 3), torch.tensor([[0, 5, 9], [2, 3, 15]])
    classes = torch.tensor(LABELS)
    before = mar(tokens, visible, classes)
    assert before.shape == (2, 16, 16)
    hidden = torch.ones(2, 16).scatter(1, visible, 0)[..., None]
    torch.testing.assert_close(mar(tokens + 7 * hidden, visible, classes), before)
    seen = mar(tokens + 1 - hidden, visible, classes)
    assert (seen - before).abs().amax(dim=(1, 2)).min() > 1e-3


def test_the_order_of_what_is_visible_does_not_matter(mar: MAR) -> None:
    tokens, visible = torch.randn(1, 16, 3), torch.tensor([[0, 5, 9, 14]])
    classes = torch.tensor([-1])
    shuffled = visible[:, [2, 0, 3, 1]]
    torch.testing.assert_close(
        mar(tokens, visible, classes), mar(tokens, shuffled, classes), atol=1e-5, rtol=1e-5
    )


def test_all_tokens_or_none_can_be_visible(mar: MAR) -> None:
    tokens, classes = torch.randn(2, 16, 3), torch.tensor(LABELS)
    for visible in (torch.empty(2, 0, dtype=torch.long), torch.arange(16).expand(2, -1)):
        assert mar(tokens, visible, classes).isfinite().all()


@given(st.integers(1, 400), st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_fewer_tokens_are_hidden_in_every_round(total: int, iterations: int) -> None:
    counts = hidden_counts(total, iterations)
    assert counts[-1] == 0
    assert all(after < before for before, after in zip([total, *counts], counts, strict=False))
    assert len(counts) <= min(iterations, total)


def test_the_published_schedule() -> None:
    """256 tokens in 64 rounds: a cosine, which takes every round."""
    counts = hidden_counts(256, 64)
    assert counts[:-1] == [
        min(math.floor(256 * math.cos(math.pi / 2 * (i + 1) / 64)), 255 - i) for i in range(63)
    ]


def test_a_picture_depends_on_its_seed_alone(mar: MAR) -> None:
    options: dict[str, Any] = {"iterations": 4, "steps": 5, "cfg": 2.0}
    latents = mar.generate(LABELS, seed=[5, 6], **options)
    assert latents.shape == (2, 3, 4, 4)
    assert latents.isfinite().all()
    assert torch.equal(mar.generate(LABELS, seed=[5, 6], **options), latents)
    alone = mar.generate(LABELS[1], seed=[6], **options)
    torch.testing.assert_close(alone[0], latents[1], atol=1e-3, rtol=1e-3)
    assert (mar.generate(LABELS[1], seed=[7], **options) - alone).abs().max() > 0.01


def test_every_token_is_drawn_once_and_guidance_rises(mar: MAR, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, scales = [], []
    guided = mar._guided

    def watched(z: Tensor, places: Tensor, scale: float) -> Any:
        drawn.append(places)
        scales.append(scale)
        return guided(z, places, scale)

    monkeypatch.setattr(mar, "_guided", watched)
    told: list[float] = []
    mar.generate(LABELS, seed=0, iterations=5, steps=2, cfg=3.0, progress=told.append)
    assert torch.equal(torch.cat(drawn, dim=1).sort(dim=1).values, torch.arange(16).expand(2, -1))
    counts = hidden_counts(16, 5)
    assert scales == pytest.approx([1 + 2 * (16 - max(left, 1)) / 16 for left in counts])
    assert told == pytest.approx([1 - left / 16 for left in counts])
    scales.clear()
    mar.generate(LABELS, seed=0, iterations=3, steps=2, cfg=3.0, cfg_schedule="constant")
    assert scales == [3.0] * 3


def test_guidance_of_one_runs_no_unconditional_rows(mar: MAR, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    forward = mar.forward
    monkeypatch.setattr(mar, "forward", lambda t, v, c: rows.append(len(t)) or forward(t, v, c))
    plain = mar.generate(LABELS, seed=0, iterations=2, steps=2, cfg=1.0)
    near = mar.generate(LABELS, seed=0, iterations=2, steps=2, cfg=1 + 1e-7)
    assert rows == [2, 2, 4, 4]
    torch.testing.assert_close(plain, near, atol=1e-4, rtol=1e-4)


def test_without_temperature_only_the_start_is_random(mar: MAR) -> None:
    options: dict[str, Any] = {"iterations": 2, "steps": 20, "cfg": 1.0}
    cold, warm = (mar.generate([1], seed=0, temperature=t, **options) for t in (0.0, 1.0))
    assert (cold - warm).abs().max() > 1e-3
    assert torch.equal(cold, mar.generate([1], seed=0, temperature=0.0, **options))


def test_patches_of_several_positions() -> None:
    model = _tiny(patch_size=2)
    latent = torch.randn(2, 3, 4, 4)
    tokens = latent.view(2, 3, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, 4, 12)  # [B, S, C p p]
    assert torch.equal(model.unpatchify(tokens), latent)
    assert torch.equal(model.patchify(latent), tokens)
    assert model.generate([1], seed=0, iterations=2, steps=2).shape == (1, 3, 4, 4)


@pytest.mark.parametrize(
    "options",
    [
        {"labels": [5]},
        {"labels": [-1]},
        {"labels": []},
        {"labels": [1], "count": 0},
        {"labels": [1], "iterations": 0},
        {"labels": [1], "steps": "many"},
        {"labels": [1], "seed": [1, 2]},
    ],
)
def test_requests_that_are_refused(mar: MAR, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting):
        mar.generate(**options)


@pytest.mark.parametrize("key", ["model_ema", "model", None])
def test_originals_are_read(mar: MAR, key: str | None, tmp_path: Path) -> None:
    state = mar.state_dict()
    checkpoint = {key: state, "args": argparse.Namespace(lr=1e-4), "epoch": 400} if key else state
    if key == "model_ema":
        checkpoint["model"] = _tiny(1).state_dict()
    torch.save(checkpoint, tmp_path / "checkpoint-last.pth")
    loaded = load_mar(convert(tmp_path / "checkpoint-last.pth", tmp_path / "out", mar.config))
    assert loaded.config == mar.config
    assert list(loaded.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_original_names() -> None:
    names = set(_tiny().state_dict())
    assert {
        "class_emb.weight", "fake_latent", "z_proj.bias", "z_proj_ln.weight", "encoder_pos_embed_learned",
        "encoder_blocks.1.attn.qkv.bias", "encoder_blocks.0.norm2.weight", "encoder_norm.bias", "mask_token",
        "decoder_embed.weight", "decoder_pos_embed_learned", "decoder_blocks.0.mlp.fc2.weight",
        "decoder_norm.weight", "diffusion_pos_embed_learned", "diffloss.net.time_embed.mlp.2.weight",
        "diffloss.net.cond_embed.bias", "diffloss.net.input_proj.weight", "diffloss.net.res_blocks.1.in_ln.bias",
        "diffloss.net.res_blocks.0.mlp.2.weight", "diffloss.net.res_blocks.0.adaLN_modulation.1.bias",
        "diffloss.net.final_layer.linear.weight", "diffloss.net.final_layer.adaLN_modulation.1.weight",
    } <= names  # fmt: skip


def test_files_that_do_not_fit(mar: MAR, tmp_path: Path) -> None:
    out = save(mar, tmp_path / "out", half=True)
    assert load_mar(out, dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(OutputExists):
        save(mar, out)
    deeper = mar.config.model_copy(update={"decoder_depth": 2})
    with pytest.raises(CheckpointError, match=r"missing: decoder_blocks\.1"):
        convert(out / "model.safetensors", tmp_path / "other", deeper)
    with pytest.raises(UnknownName, match="MAR-B"):
        convert(out / "model.safetensors", tmp_path / "other", "MAR-XB")


@pytest.mark.parametrize(
    "setting", [{"encoder_num_heads": 7}, {"img_size": 250}, {"depth": 3}, {"diffloss_d": 0}]
)
def test_unusable_sizes(setting: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetting, match="configuration"):
        MARConfig.from_dict(setting)


def masked_loss(model: MAR, latents: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """The loss of a batch, `[B]`."""
    return objective_of(model)(model, {"x0": latents, "y": labels}, generator)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_loss_reaches_every_parameter(mar: MAR) -> None:
    latents, labels = torch.randn(8, 3, 4, 4, generator=_generator(1)), torch.arange(8) % 5
    loss = masked_loss(mar.train(), latents, labels, _generator(0))
    assert loss.shape == (8,)
    assert loss.isfinite().all()
    loss.mean().backward()
    still = [n for n, p in mar.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert still in ([], ["fake_latent"])  # which is read where a class is dropped
    again = masked_loss(mar, latents, labels, _generator(0))
    assert torch.equal(again, loss)


def test_training_learns_the_picture_of_a_class() -> None:
    torch.manual_seed(0)
    model = MAR(_tiny().config).train()
    pictures = torch.randn(5, 3, 4, 4).sign()
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=5e-3), []
    for step in range(120):
        labels = torch.randint(5, (16,), generator=_generator(step))
        loss = masked_loss(model, pictures[labels], labels, _generator(1000 + step)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > 1  # the output is zero, so the error of the noise is the noise
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])


def test_share_of_hidden_tokens_is_half_a_normal_distribution() -> None:
    generator = _generator()
    shares = torch.stack([hidden_share(generator) for _ in range(3000)])
    assert 0.7 <= shares.min() < 0.71
    assert 0.999 < shares.max() <= 1
    normal = torch.distributions.Normal(1.0, 0.25)
    lowest = normal.cdf(torch.tensor(0.7))
    for point in (0.75, 0.85, 0.95):
        want = (normal.cdf(torch.tensor(point)) - lowest) / (0.5 - lowest)
        assert (shares < point).float().mean().item() == pytest.approx(want.item(), abs=0.03)


def test_every_matrix_of_every_block_is_a_layer(mar: MAR) -> None:
    anatomy = Anatomy.of(mar)
    assert [block.name for block in anatomy.blocks] == [
        "encoder_blocks.0", "encoder_blocks.1", "decoder_blocks.0"
    ]  # fmt: skip
    for block in anatomy.blocks:
        assert [layer.role for layer in block.layers] == ["qkv", "o", "fc1", "fc2"]
        assert block.skipped == ()
        assert len(block.folds) == 2


def test_a_block_switched_off_is_a_block_left_out(mar: MAR) -> None:
    tokens, visible = torch.randn(2, 16, 3), torch.tensor([[0, 5, 9], [2, 3, 15]])
    classes = torch.tensor(LABELS)
    shallow = MAR(mar.config.model_copy(update={"encoder_depth": 1})).eval()
    state = {n: t for n, t in mar.state_dict().items() if not n.startswith("encoder_blocks.0.")}
    shallow.load_state_dict(
        {n.replace("encoder_blocks.1.", "encoder_blocks.0."): t for n, t in state.items()}
    )
    gate(Anatomy.of(mar))[0].mask = torch.zeros(2)
    torch.testing.assert_close(mar(tokens, visible, classes), shallow(tokens, visible, classes))
