"""What a page shows of trainings: probabilities of blocks over the steps, how sure the choice became, the losses."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modicum.evaluate import Spread
from modicum.evaluate.depth_comparison import Decision, DepthComparison, DepthEntry, LossCurve, SearchCurve
from modicum.report.curves import loss_curve, step_axis, thinned
from modicum.report.search_figures import confidence_curve, probability_map
from modicum.report.training_sections import learning, losses

ONE = Spread(1.0, 1.0, 1.0)


def search(points: int = 5, groups: tuple[tuple[int, int], ...] = ((1, 2), (2, 3))) -> SearchCurve:
    """Every group moves evenly from chance to keeping its first blocks."""
    starts = [[keep / of] * of for keep, of in groups]
    ends = [[1.0] * keep + [0.0] * (of - keep) for keep, of in groups]
    shares = [(point + 1) / points for point in range(points)]
    return SearchCurve(
        step=tuple(10 * (point + 1) for point in range(points)),
        loss=tuple(1 / (point + 1) for point in range(points)),
        kept_probability=tuple(
            tuple(
                a + share * (b - a)
                for start, end in zip(starts, ends, strict=True)
                for a, b in zip(start, end, strict=True)
            )
            for share in shares
        ),
        confidence=tuple(tuple(0.4 + 0.5 * share for _ in groups) for share in shares),
    )


def learned(groups: tuple[tuple[int, int], ...] = ((1, 2), (2, 3)), **changes: Any) -> Decision:
    kept, start = [], 0
    for keep, of in groups:
        kept += range(start, start + keep)
        start += of
    history = search(groups=groups)
    settings = {"kept": tuple(kept), "of": start, "groups": groups, "confidence": history.confidence[-1]}
    return Decision(**{"method": "diffusion.tinyfusion", "history": history, **settings, **changes})


def comparison(decision: Decision, *curves: dict[str, LossCurve]) -> DepthComparison:
    entries = tuple(
        DepthEntry(
            name=f"<model {place}>",
            blocks=4,
            parameters=1,
            disk_bytes=1,
            seconds=ONE,
            seconds_ratio=ONE,
            loss_curves=found,
        )
        for place, found in enumerate(curves)
    )
    return DepthComparison(entries=entries, decisions=(decision,), labels=(0,), seeds=(0,), at_once=1)


class TestProbabilityMap:
    def test_every_block_has_a_row_and_what_became_of_it(self) -> None:
        picture = probability_map(learned())
        for block, fate in enumerate(("stays", "removed", "stays", "stays", "removed")):
            assert f"block {block} {fate}: probability" in picture
        assert re.findall(r">(stays|removed)</text>", picture) == [
            "stays", "removed", "stays", "stays", "removed",
        ]  # fmt: skip
        assert picture.count("90 %</text>") == 2

    def test_the_likelier_is_the_stronger_and_every_row_is_filled(self) -> None:
        picture = probability_map(learned())
        shades = [
            (float(opacity), path)
            for opacity, path in re.findall(r'fill-opacity="([\d.]+)" d="([^"]+)"', picture)
        ]
        opacities = [opacity for opacity, _ in shades]
        assert opacities == sorted(set(opacities))
        widths: dict[str, int] = {}
        for _, path in shades:
            for start, top, end in re.findall(r"M(\d+) (\d+)H(\d+)", path):
                widths[top] = widths.get(top, 0) + int(end) - int(start)
        assert set(widths.values()) == {702 - 58}
        assert len(widths) == 5
        first = min(widths, key=int)
        assert re.search(rf"M\d+ {first}H702", shades[-1][1])  # block 0 ends surest

    def test_groups_are_set_apart(self) -> None:
        tops = sorted({int(top) for top in re.findall(r"M\d+ (\d+)H", probability_map(learned()))})
        gaps = [after - before for before, after in pairwise(tops)]
        assert gaps == [22, 29, 22, 22]

    def test_equal_neighbours_are_one_shape(self) -> None:
        still = learned(groups=((1, 2),) * 14)
        history = still.history
        assert history is not None
        flat = history.model_copy(update={"kept_probability": (history.kept_probability[0],) * 5})
        picture = probability_map(still.model_copy(update={"history": flat}))
        assert picture.count("M58 ") == 28 == len(re.findall(r"M\d+ \d+H", picture))

    @pytest.mark.parametrize("count", [1, 6, 14, 50])
    def test_it_stays_small_and_on_the_page(self, count: int) -> None:
        for picture in (
            probability_map(learned(((1, 2),) * count)),
            confidence_curve(learned(((1, 2),) * count)),
        ):
            width, height = map(int, re.search(r'width="(\d+)" height="(\d+)"', picture).groups())
            assert width == 836
            assert height < 1200
            assert 'role="img" aria-label="' in picture


class TestCurves:
    def test_a_screen_reader_hears_beginning_and_end(self) -> None:
        assert "Loss of m over 30 steps: 1.00 at step 10, 0.333 at step 30" in loss_curve("m", search(3))
        assert "mean of 2 groups: 50.0 % at step 10, 90.0 % at step 50" in confidence_curve(learned())

    def test_a_smaller_loss_lies_lower(self) -> None:
        points = re.search(r'points="([^"]+)"', loss_curve("m", search(4))).group(1)
        heights = [float(point.split(",")[1]) for point in points.split()]
        assert heights == sorted(heights)
        assert heights[0] == 20.0

    def test_points_without_a_loss_are_passed_over(self) -> None:
        curve = LossCurve(step=(1, 2, 3), loss=(None, 2.0, 1.0))
        assert "2.00 at step 2" in loss_curve("m", curve)
        assert "never finite" in loss_curve("m", LossCurve(step=(1,), loss=(None,)))
        assert "0 at step 1" in loss_curve("m", LossCurve(step=(1,), loss=(0.0,)))

    @given(st.integers(1, 10**7), st.integers(1, 300))
    def test_thinning_keeps_the_end(self, count: int, most: int) -> None:
        count = count % 5000 + 1
        points = thinned(count, most)
        assert len(points) == min(count, most)
        assert points == sorted(set(points))
        assert points[-1] == count - 1
        assert 0 <= points[0] <= -(-count // most)

    @given(st.integers(1, 10**8))
    def test_the_axis_has_a_few_round_numbers(self, last: int) -> None:
        texts = re.findall(r">([\d,]+)(?: steps)?</text>", "".join(step_axis(last, 714)))
        steps = [int(text.replace(",", "")) for text in texts]
        assert steps[0] == 0
        assert sorted(steps) == sorted(set(steps))
        assert max(steps) == last
        assert len(steps) <= 9


class TestSections:
    def test_what_was_learned_is_shown_and_told_as_numbers(self) -> None:
        page = learning(comparison(learned(), {}))
        assert page.count("<svg") == 2
        assert "<details>" in page
        for text in ("block 4", "likeliest choice of blocks 2 to 4", "90 %", "removed"):
            assert text in page

    def test_nothing_is_said_of_what_nobody_wrote_down(self) -> None:
        page = comparison(learned(history=None), {})
        assert learning(page) == losses(page) == ""

    def test_a_training_that_made_two_models_is_shown_once(self) -> None:
        one, other = search(3), LossCurve(step=(1,), loss=(7.0,))
        page = losses(comparison(learned(), {"a": one}, {"a": one, "<b>": other}, {"a": other}))
        titles = re.findall(r"<figcaption>([^<]+)<", page)
        assert titles == ["a", "&lt;b&gt;", "a, &lt;model 2&gt;"]
        assert "<b>" not in page


class TestRecords:
    def test_they_are_saved_and_read_back(self, tmp_path: Path) -> None:
        made = comparison(learned(), {"a": LossCurve(step=(1, 2), loss=(None, 0.5))})
        assert DepthComparison.load(made.save(tmp_path / "report.json")) == made

    def test_what_was_saved_before_histories_is_read(self, tmp_path: Path) -> None:
        made = comparison(learned(history=None), {}).model_dump(mode="json")
        for entry in made["entries"]:
            del entry["loss_curves"]
        del made["decisions"][0]["history"]
        file = tmp_path / "old.json"
        file.write_text(DepthComparison.model_validate(made).model_dump_json(exclude_defaults=True))
        assert "history" not in file.read_text()
        old = DepthComparison.load(file)
        assert old.decisions[0].history is None
        assert old.entries[0].loss_curves == {}

    def test_histories_of_another_length_or_model_are_refused(self) -> None:
        with pytest.raises(ValidationError, match="loss has 1 points, step has 2"):
            LossCurve(step=(1, 2), loss=(1.0,))
        with pytest.raises(ValidationError, match="not that of 5 blocks in 2 groups"):
            learned(history=search(groups=((1, 2), (1, 2))))
