"""Blocks removed and blocks switched off: the same function, on every architecture that has one stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modicum.errors import InvalidSetting, UnsupportedModel
from modicum.models import Anatomy
from modicum.models.depth import gate, keep_blocks, ungate
from modicum.models.dit import DiT, DiTConfig, load_dit
from modicum.models.dit import save as save_dit
from modicum.models.var import VAR, VAEConfig, VARConfig

ARCHITECTURES = ("llama", "qwen3", "gpt2", "opt", "phi3", "qwen2_moe", "mamba", "bert", "vit")
SIZES = DiTConfig(input_size=4, patch_size=2, hidden_size=32, depth=4, num_heads=2, num_classes=3)


def small_dit() -> DiT:
    torch.manual_seed(0)
    model = DiT(SIZES).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def dit_inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, 4, 4, generator=generator), torch.tensor([5, 500, 999]), torch.tensor([0, 2, 1])


def forced(anatomy: Anatomy, kept: list[int], batch: int) -> None:
    for index, switch in enumerate(gate(anatomy)):
        switch.mask = torch.full((batch,), float(index in kept))


@pytest.mark.parametrize("name", ARCHITECTURES)
class TestTransformers:
    def test_a_model_without_blocks_equals_one_whose_blocks_are_off(self, name: str, toolbox: Any) -> None:
        model = toolbox.build(name)
        anatomy = Anatomy.of(model)
        forced(anatomy, [0, 2], 2)
        gated = toolbox.logits_of(model)
        ungate(anatomy)
        whole = toolbox.logits_of(model)
        keep_blocks(anatomy, [0, 2])
        torch.testing.assert_close(toolbox.logits_of(model), gated, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(whole, gated)

    def test_all_blocks_on_is_the_model_to_the_bit(self, name: str, toolbox: Any) -> None:
        model = toolbox.build(name)
        whole, anatomy = toolbox.logits_of(model), Anatomy.of(model)
        forced(anatomy, [0, 1, 2], 2)
        assert torch.equal(toolbox.logits_of(model), whole)
        ungate(anatomy)
        assert torch.equal(toolbox.logits_of(model), whole)

    def test_from_pretrained_opens_the_smaller_model(self, name: str, toolbox: Any, tmp_path: Path) -> None:
        model = toolbox.build(name)
        smaller = keep_blocks(Anatomy.of(model), [1, 2])
        assert len(smaller.blocks) == 2
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path).eval()
        assert torch.equal(toolbox.logits_of(again), toolbox.logits_of(model))
        assert len(Anatomy.of(again).blocks) == 2


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "opt", "mamba"])
def test_the_smaller_model_generates_with_its_cache(name: str, toolbox: Any) -> None:
    model = toolbox.build(name)
    keep_blocks(Anatomy.of(model), [0, 2])
    ids = toolbox.inputs_of(model)["input_ids"]
    cached = model.generate(ids, max_new_tokens=5, do_sample=False, use_cache=True)
    assert torch.equal(cached, model.generate(ids, max_new_tokens=5, do_sample=False, use_cache=False))


def test_lists_of_the_config_follow(toolbox: Any) -> None:
    model = toolbox.build("qwen2_moe")  # block 1 is dense
    keep_blocks(Anatomy.of(model), [1, 2])
    assert model.config.mlp_only_layers == [0]
    assert len(model.config.layer_types) == 2


class TestImageModels:
    def test_dit(self, tmp_path: Path) -> None:
        model = small_dit()
        anatomy = Anatomy.of(model)
        forced(anatomy, [1, 2], 3)
        gated = model(*dit_inputs())
        ungate(anatomy)
        keep_blocks(anatomy, [1, 2])
        assert torch.equal(model(*dit_inputs()), gated)
        assert model.config.depth == 2
        save_dit(model, tmp_path / "small")
        assert torch.equal(load_dit(tmp_path / "small")(*dit_inputs()), gated)

    def test_masks_differ_from_sample_to_sample(self) -> None:
        model, inputs = small_dit(), dit_inputs()
        anatomy = Anatomy.of(model)
        switches = gate(anatomy)
        masks = torch.tensor([[1.0, 0, 1, 1], [0, 0, 1, 0], [1, 1, 1, 1]])  # [batch, blocks]
        for switch, mask in zip(switches, masks.T, strict=True):
            switch.mask = mask
        together = model(*inputs)
        for row, mask in enumerate(masks):
            for switch, value in zip(switches, mask, strict=True):
                switch.mask = value[None]
            alone = model(*(value[row : row + 1] for value in inputs))
            torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-6)

    def test_recomputing_gives_the_same_gradients(self) -> None:
        gradients = []
        for recompute in (False, True):
            model = small_dit()
            for switch in gate(Anatomy.of(model), recompute):
                switch.mask = torch.tensor([1.0, 0.0, 1.0])
            model(*dit_inputs()).square().mean().backward()
            gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
        torch.testing.assert_close(gradients[0], gradients[1])

    def test_var_draws_with_fewer_blocks(self) -> None:
        vae = VAEConfig(
            vocab_size=8, z_channels=4, ch=8, ch_mult=(1, 2), num_res_blocks=1, groupnorm_groups=4
        )
        torch.manual_seed(0)
        config = VARConfig(num_classes=2, depth=3, embed_dim=16, num_heads=2, patch_nums=(1, 2, 4), vae=vae)
        model = VAR(config).eval()
        keep_blocks(Anatomy.of(model), [0, 2])
        assert (model.config.depth, model.shape.layers, model.transformer.config.depth) == (2, 2, 2)
        assert model.generate([0, 1], seed=3, top_k=0, top_p=0).shape == (2, 3, 8, 8)


class TestRefusals:
    @pytest.mark.parametrize("kept", [[], [0, 0], [2, 1], [0, 4], [-1, 2]])
    def test_what_is_no_choice(self, kept: list[int]) -> None:
        model = small_dit()
        with pytest.raises(InvalidSetting, match=r"no choice of blocks of a model that has 4"):
            keep_blocks(Anatomy.of(model), kept)
        assert len(model.blocks) == 4

    def test_blocks_of_several_widths(self, toolbox: Any) -> None:
        with pytest.raises(UnsupportedModel, match="not one list"):
            keep_blocks(Anatomy.of(toolbox.build("resnet")), [0])
