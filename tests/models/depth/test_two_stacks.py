"""Depth of a model whose blocks are two stacks: MAR."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modicum.distill.states import pairs_of
from modicum.errors import InvalidSetting
from modicum.models import Anatomy
from modicum.models.depth import as_groups, gate, keep_blocks, split, ungate
from modicum.models.mar import MAR, MARConfig, load_mar, save
from modicum.trainer.diffusion_objectives import MaskedTokens
from modicum.trainer.objectives import objective_of
from modicum.trainer.questions import repeated

SIZES = MARConfig(
    img_size=8, vae_stride=2, vae_embed_dim=2, encoder_embed_dim=8, encoder_depth=4, encoder_num_heads=2,
    decoder_embed_dim=12, decoder_depth=2, decoder_num_heads=2, class_num=3, buffer_size=2, diffloss_d=1,
    diffloss_w=8,
)  # fmt: skip


@pytest.fixture
def mar() -> MAR:
    torch.manual_seed(0)
    model = MAR(SIZES).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def question(training: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    batch = {"x0": torch.randn(6, 2, 4, 4, generator=generator), "y": torch.arange(6) % 3}
    return dict(MaskedTokens(SIZES).ask(batch, generator, training))


@torch.no_grad()
def answer(model: MAR) -> Tensor:
    return objective_of(model).answer(model, question())


@pytest.mark.parametrize("kept", [[0, 4], [1, 3, 5], [0, 1, 2, 3, 4, 5]])
def test_blocks_left_out_equal_blocks_switched_off(mar: MAR, kept: list[int], tmp_path: Path) -> None:
    anatomy = Anatomy.of(mar)
    assert anatomy.stacks == (4, 2)
    for index, switch in enumerate(gate(anatomy)):
        switch.mask = torch.full((6,), float(index in kept))
    gated = answer(mar)
    ungate(anatomy)
    small = keep_blocks(anatomy, kept)
    torch.testing.assert_close(answer(mar), gated, atol=1e-5, rtol=1e-5)
    assert small.stacks == tuple(map(len, split(kept, (4, 2))))
    assert (mar.config.encoder_depth, mar.config.decoder_depth) == small.stacks
    again = load_mar(save(mar, tmp_path / "small"))
    assert again.config == mar.config
    assert torch.equal(answer(again), answer(mar))


@pytest.mark.parametrize(("kept", "empty"), [([0, 1], "decoder_blocks"), ([4, 5], "encoder_blocks")])
def test_every_stack_keeps_a_block(mar: MAR, kept: list[int], empty: str) -> None:
    before = answer(mar)
    with pytest.raises(InvalidSetting, match=f"no block of {empty}"):
        keep_blocks(Anatomy.of(mar), kept)
    assert torch.equal(answer(mar), before)


def test_groups_end_with_the_stacks() -> None:
    assert as_groups("1:2", 16, 16) == ((1, 2),) * 16
    assert as_groups("2:4", 4, 4) == ((2, 4), (2, 4))
    with pytest.raises(InvalidSetting, match="reaches over block 3"):
        as_groups(((1, 2), (1, 2)), 3, 1)
    with pytest.raises(InvalidSetting, match=r"cover 2 blocks; the model has 3 \+ 1"):
        as_groups("1:2", 3, 1)


def test_pairs_never_cross_the_seam() -> None:
    """The hidden states of encoder and decoder have different shapes."""
    assert list(pairs_of([2, 1], [4, 2], {})) == [(0, 1), (1, 3), (2, 5)]
    notes = {"prune.blocks": {"kept_blocks": [0, 1, 5], "of_blocks": 6}}
    assert list(pairs_of([2, 1], [4, 2], notes)) == [(0, 0), (1, 3), (2, 5)]
    grouped = {"kept_blocks": [1, 2, 4], "of_blocks": 6, "groups": [[1, 2], [1, 2], [1, 2]]}
    assert list(pairs_of([2, 1], [4, 2], {"diffusion.tinyfusion": grouped})) == [(0, 1), (1, 3), (2, 5)]


class TestObjective:
    def test_samples_are_the_first_axis_of_everything(self, mar: MAR) -> None:
        asked, objective = question(), objective_of(mar)
        assert {len(value) for value in asked.values()} == {6}
        losses = objective.loss(objective.answer(mar, asked), asked)
        many = repeated(asked, 2)
        twice = objective.loss(objective.answer(mar, many), many)
        torch.testing.assert_close(twice, losses.repeat_interleave(2), atol=1e-4, rtol=1e-4)

    def test_a_teacher_agrees_with_itself_about_everything_but_the_data(self, mar: MAR) -> None:
        asked, objective = question(), objective_of(mar)
        asked["t"] = asked["t"].clamp_min(
            1
        )  # at step 0 the likelihood of the data takes the divergence's place
        output = objective.answer(mar, asked)
        apart = objective.divergence(output, output.detach(), asked)
        torch.testing.assert_close(apart, torch.zeros(6), atol=1e-4, rtol=0)
        assert (objective.divergence(output + 0.5, output.detach(), asked) > 0.1).all()

    def test_dropped_labels_belong_to_the_question(self, mar: MAR) -> None:
        assert (question()["y"] >= 0).all()
        generator = torch.Generator().manual_seed(0)
        batch = {"x0": torch.zeros(2000, 2, 4, 4), "y": torch.ones(2000, dtype=torch.long)}
        dropped = objective_of(mar).ask(batch, generator, training=True)["y"] == -1
        assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.03)
        with torch.no_grad():
            blank: Any = mar.condition(torch.tensor([-1, 2]))
        assert torch.equal(blank[0], mar.fake_latent[0])
        assert torch.equal(blank[1], mar.class_emb.weight[2])
