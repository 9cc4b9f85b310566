"""TinyFusion: what is drawn, what is learned, what is left of the model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modicum.diffusion.gates import GatedNetwork, Gates
from modicum.diffusion.tinyfusion import TinyFusion, linear
from modicum.errors import CheckpointError, InvalidSetting, NotFinite, UnusableData
from modicum.method import Context, build
from modicum.models import Anatomy
from modicum.models.depth import as_groups, keep_blocks, ungate
from modicum.models.dit import DiT, DiTConfig
from modicum.trainer import Moment, lora, objective_of

QUICK: dict[str, Any] = {"batch": 64, "average": 0.99}
GROUP = st.integers(1, 5).flatmap(lambda of: st.tuples(st.integers(1, of), st.just(of)))


def seeded(value: int) -> torch.Generator:
    return torch.Generator().manual_seed(value)


class TestMasks:
    @settings(deadline=None, max_examples=30)
    @given(groups=st.lists(GROUP, min_size=1, max_size=4), seed=st.integers(0, 999))
    def test_every_group_keeps_exactly_n(self, groups: list[tuple[int, int]], seed: int) -> None:
        gates = Gates(tuple(groups))
        gates.generator = seeded(seed)
        masks = gates.masks(gates.draw(17)).detach()
        assert masks.shape == (17, sum(of for _, of in groups))
        assert set(masks.unique().tolist()) <= {0.0, 1.0}
        for part, (keep, of) in zip(masks.split([of for _, of in groups], dim=1), groups, strict=True):
            assert part.shape[1] == of
            assert part.sum(1).eq(keep).all()

    @pytest.mark.parametrize("tau", [4.0, 0.1])
    def test_tau_does_not_change_what_is_drawn(self, tau: float) -> None:
        gates = Gates(((1, 2),))
        gates.logits[0].data.copy_(torch.tensor([[0.0, 1.0]]))
        gates.tau, gates.generator = tau, seeded(0)
        share = gates.masks(gates.draw(40_000))[:, 1].mean().item()
        assert share == pytest.approx(1 / (1 + math.exp(-1)), abs=0.007)  # 3 standard errors

    def test_samples_of_a_batch_have_masks_of_their_own(self) -> None:
        gates = Gates(((1, 2),) * 8)
        gates.generator = seeded(0)
        assert len(gates.masks(gates.draw(32)).detach().unique(dim=0)) > 20

    def test_the_likeliest_is_kept_and_the_first_of_equals(self) -> None:
        gates = Gates(((1, 2), (2, 3)))
        assert gates.kept() == [0, 2, 3]
        assert gates.confidence().tolist() == pytest.approx([1 / 2, 1 / 3])
        gates.logits[1].data[0, 2], gates.scaling = 0.05, 100.0
        assert gates.kept() == [0, 3, 4]
        assert gates.confidence()[1].item() == pytest.approx(1 / (1 + 2 * math.exp(-3)))

    @settings(deadline=None, max_examples=30)
    @given(groups=st.lists(GROUP, min_size=1, max_size=3), seed=st.integers(0, 999))
    def test_the_probability_of_a_block_is_how_often_it_is_drawn(
        self, groups: list[tuple[int, int]], seed: int
    ) -> None:
        gates = Gates(tuple(groups))
        gates.generator = seeded(seed)
        for logits in gates.logits:
            logits.data.normal_(generator=gates.generator)
        often = gates.masks(gates.draw(4000)).detach().mean(0)
        torch.testing.assert_close(gates.kept_probability(), often, atol=0.05, rtol=0)  # 6 standard errors

    def test_schedules_are_linear_and_reach_their_ends(self) -> None:
        assert [linear((4.0, 0.1), Moment(s, 5, seeded(0)).progress) for s in (0, 2, 4)] == pytest.approx(
            [4.0, 2.05, 0.1]
        )


class TestGatedNetwork:
    def ask(self, bench: Any, model: DiT) -> tuple[Tensor, ...]:
        batch = bench.dit_data().batches(8, 0)(0)
        question = objective_of(model).ask(batch, seeded(3))
        return question["x"], question["t"], question["y"]

    def test_groups_that_keep_all_are_the_model_to_the_bit(self, bench: Any) -> None:
        model = bench.small_dit()
        inputs = self.ask(bench, model)
        dense = model(*inputs)
        network = GatedNetwork(Anatomy.of(model), Gates(as_groups("2:2", 4)))
        assert torch.equal(network(*inputs), dense)

    def test_a_forced_mask_is_the_pruned_model(self, bench: Any) -> None:
        model = bench.small_dit()
        inputs, anatomy = self.ask(bench, model), Anatomy.of(model)
        network = GatedNetwork(anatomy, Gates(as_groups("1:2", 4)))
        network.switch(torch.tensor([[0.0, 1, 1, 0]]).expand(8, 4))
        gated = model(*inputs)
        ungate(anatomy)
        keep_blocks(anatomy, [1, 2])
        torch.testing.assert_close(model(*inputs), gated, rtol=0, atol=1e-5)

    def test_gradients_reach_logits_and_only_blocks_that_are_on(self, bench: Any) -> None:
        model = bench.small_dit()
        inputs = self.ask(bench, model)
        gates = Gates(as_groups("1:2", 4))
        gates.scaling = 1000.0
        gates.logits[0].data[0, 0] = 1.0  # block 1 is never drawn
        network = GatedNetwork(Anatomy.of(model), gates)
        network(*inputs).square().mean().backward()
        assert all(g.grad is not None and bool(torch.isfinite(g.grad).all()) for g in gates.logits)
        assert gates.logits[1].grad is not None
        assert gates.logits[1].grad.abs().max() > 0
        off, on = model.blocks[1].block, model.blocks[0].block  # type: ignore[union-attr]
        assert all(p.grad is not None and p.grad.abs().max() == 0 for p in off.parameters())
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in on.parameters())

    def test_recomputing_changes_no_gradient(self, bench: Any) -> None:
        gradients = []
        for recompute in (False, True):
            model, gates = bench.small_dit(), Gates(as_groups("2:4", 4))
            gates.generator = seeded(1)
            GatedNetwork(Anatomy.of(model), gates, recompute)(
                *self.ask(bench, model)
            ).square().mean().backward()
            gradients.append([p.grad for p in (*gates.parameters(), *model.blocks.parameters())])
        torch.testing.assert_close(gradients[0], gradients[1])


class TestLora:
    def test_it_begins_without_effect_and_leaves_no_trace(self, bench: Any) -> None:
        model = bench.small_dit()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        learning = [name for name, p in model.named_parameters() if p.requires_grad]
        inputs = TestGatedNetwork().ask(bench, model)
        dense = model(*inputs)
        with lora(model, 2, 4, seed=0) as weights:
            assert torch.equal(model(*inputs), dense)
            assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in weights}
            for weight in weights:
                weight.data.add_(1.0)
            assert not torch.equal(model(*inputs), dense)
        assert torch.equal(model(*inputs), dense)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert [name for name, p in model.named_parameters() if p.requires_grad] == learning

    def test_published_counts(self) -> None:
        with torch.device("meta"):
            model = DiT(DiTConfig.preset("DiT-XL/2"))
            total = sum(p.numel() for p in model.parameters())
            with lora(model, 8, 16, seed=0) as weights:
                added = sum(p.numel() for p in weights)
        assert (total, added) == (675_129_632, 6_001_920)
        assert added / total == pytest.approx(0.0089, abs=5e-5)
        for depth, count in ((19, 459_983_264), (14, 340_457_504), (7, 173_121_440)):
            with torch.device("meta"):
                small = DiT(DiTConfig.preset("DiT-XL/2"))
                keep_blocks(Anatomy.of(small), list(range(depth)))
            assert sum(p.numel() for p in small.parameters()) == count


class TestPlantedRedundancy:
    @pytest.mark.parametrize("seed", range(5))
    def test_one_of_two(self, seed: int, bench: Any) -> None:
        self.find(bench, "1:2", ((1, 2),) * 4, seed)

    @pytest.mark.parametrize("seed", range(3))
    def test_two_of_four(self, seed: int, bench: Any) -> None:
        self.find(bench, "2:4", ((2, 4),) * 2, seed)

    @pytest.mark.parametrize("seed", range(3))
    def test_mixed(self, seed: int, bench: Any) -> None:
        self.find(bench, ["1:2", "2:3", "3:4"], ((1, 2), (2, 3), (3, 4)), seed)

    def find(self, bench: Any, setting: Any, groups: Any, seed: int) -> None:
        puzzle = bench.puzzle(groups, seed)
        method = TinyFusion(groups=setting, update="frozen", steps=220, **QUICK)
        method.transform(Anatomy.of(puzzle.model), puzzle.context)
        assert puzzle.context.notes["diffusion.tinyfusion"]["kept_blocks"] == puzzle.important


class TestTransform:
    @pytest.mark.parametrize("update", ["lora", "full", "frozen"])
    def test_what_is_kept_has_its_original_weights(self, update: Any, bench: Any) -> None:
        model = bench.small_dit()
        before, training = {n: v.clone() for n, v in model.state_dict().items()}, model.training
        context = Context(seeded(0), data=bench.dit_data())
        method = TinyFusion(groups="1:2", update=update, steps=3, batch=8, rank=2)
        anatomy = method.transform(Anatomy.of(model), context)
        notes = context.notes["diffusion.tinyfusion"]
        assert len(anatomy.blocks) == model.config.depth == 2
        assert notes["of_blocks"] == 4
        assert all(0.5 <= value <= 1 for value in notes["confidence"])
        assert model.training == training
        for new, old in enumerate(notes["kept_blocks"]):
            for name, value in anatomy.blocks[new].module.state_dict().items():
                assert torch.equal(value, before[f"blocks.{old}.{name}"])
        assert torch.equal(model.final_layer.linear.weight, before["final_layer.linear.weight"])
        assert all(p.requires_grad for n, p in model.named_parameters() if n != "pos_embed")

    def test_a_language_model_learns_from_its_own_loss(self, toolbox: Any) -> None:
        from modicum.data.samples import Windows

        model = toolbox.build("llama", num_hidden_layers=4)
        stream = torch.randint(3, 2048, (2000,), generator=seeded(0))
        context = Context(seeded(0), data=Windows(stream, 16))
        TinyFusion(groups="2:4", steps=2, batch=4).transform(Anatomy.of(model), context)
        assert model.config.num_hidden_layers == 2
        assert toolbox.logits_of(model).shape[-1] == 2048

    def test_a_killed_search_ends_as_if_it_had_not_been(
        self, bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        method, usual = TinyFusion(groups="1:2", update="frozen", steps=12, **QUICK), TinyFusion._schedule
        often = {"save_every": 5}
        monkeypatch.setattr(TinyFusion, "_schedule", lambda m, seed: usual(m, seed).model_copy(update=often))

        def learned(work: Path, stop: int | None = None) -> dict[str, Any]:
            puzzle = bench.puzzle(((1, 2),) * 2, 0, work_directory=work)

            def progress(line: str) -> None:
                if stop is not None and line.startswith(f"step {stop}/"):
                    raise KeyboardInterrupt

            puzzle.context.progress = progress
            method.transform(Anatomy.of(puzzle.model), puzzle.context)
            return puzzle.context.notes["diffusion.tinyfusion"]

        whole = learned(tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            learned(tmp_path / "killed", stop=12)  # the last line comes before the last checkpoint
        assert [path.name for path in (tmp_path / "killed").iterdir()] == ["step-00000010"]
        assert learned(tmp_path / "killed") == whole
        assert learned(tmp_path / "killed") == whole  # nothing is left to learn

    def test_the_history_begins_at_chance_and_ends_with_the_choice(self, bench: Any) -> None:
        puzzle = bench.puzzle(((1, 2), (2, 3)), 0)
        method = TinyFusion(groups=["1:2", "2:3"], update="frozen", steps=220, **QUICK)
        method.transform(Anatomy.of(puzzle.model), puzzle.context)
        notes = puzzle.context.notes["diffusion.tinyfusion"]
        history = notes["history"]
        assert history["step"] == list(range(2, 221, 2))
        assert {len(history[name]) for name in ("loss", "kept_probability", "confidence")} == {110}
        assert history["kept_probability"][0] == pytest.approx([1 / 2] * 2 + [2 / 3] * 3, abs=0.05)
        for row in history["kept_probability"]:
            assert [sum(row[:2]), sum(row[2:])] == pytest.approx([1, 2], abs=5e-4)
        assert history["confidence"][-1] == pytest.approx(notes["confidence"], abs=1e-4)
        likely = [block for block, value in enumerate(history["kept_probability"][-1]) if value > 0.5]
        assert likely == notes["kept_blocks"] == puzzle.important
        assert history["loss"][-1] < history["loss"][0]

    def test_a_search_of_another_recipe_is_not_taken_up(self, bench: Any, tmp_path: Path) -> None:
        puzzle = bench.puzzle(((1, 2),) * 2, 0, work_directory=tmp_path)
        TinyFusion(update="frozen", steps=2, batch=8).transform(Anatomy.of(puzzle.model), puzzle.context)
        again = bench.puzzle(((1, 2),) * 2, 0, work_directory=tmp_path)
        with pytest.raises(CheckpointError, match="gate_lr"):
            TinyFusion(update="frozen", steps=2, batch=8, gate_lr=0.1).transform(
                Anatomy.of(again.model), again.context
            )
        assert len(Anatomy.of(again.model).blocks) == 4
        assert not any(isinstance(m, GatedNetwork) for m in again.model.modules())


class TestRefusals:
    def test_groups_that_do_not_add_up(self, bench: Any) -> None:
        context = Context(seeded(0), data=bench.dit_data())
        with pytest.raises(InvalidSetting, match="cover 3 blocks; the model has 4"):
            TinyFusion(groups="1:3").transform(Anatomy.of(bench.small_dit()), context)

    @pytest.mark.parametrize("wrong", ["3:2", "two", [[2, 1]], 5])
    def test_groups_that_keep_more_than_they_have(self, wrong: Any) -> None:
        with pytest.raises(InvalidSetting, match="groups: "):
            build("diffusion.tinyfusion", {"groups": wrong})

    def test_no_data(self, bench: Any) -> None:
        model = bench.small_dit()
        with pytest.raises(UnusableData, match="needs data"):
            TinyFusion().transform(Anatomy.of(model), Context(seeded(0)))
        assert type(model.blocks[0]).__name__ == "Block"

    def test_a_loss_that_is_never_finite(self, bench: Any) -> None:
        puzzle = bench.puzzle(((1, 2),), 0)
        with torch.no_grad():
            puzzle.model.blocks[0].first.weight.fill_(math.nan)
        with pytest.raises(NotFinite, match="10 steps in a row"):
            TinyFusion(steps=50, **QUICK).transform(Anatomy.of(puzzle.model), puzzle.context)
        assert isinstance(puzzle.model.blocks[0].first, nn.Linear)
        assert not hasattr(puzzle.model.blocks[0].first, "lora_A")
