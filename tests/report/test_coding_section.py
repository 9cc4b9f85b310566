"""What the page and the table say of weights that are coded without loss."""

from __future__ import annotations

import re
from typing import Any

import pytest

from modicum.evaluate import CodedGroupRecord, CodingRecord, Comparison, Measurements, Spread
from modicum.report import headline
from modicum.report.coding_figures import bits_chart, exponent_histogram, shown_values
from modicum.report.coding_section import coding
from modicum.report.rows import comparison_rows
from modicum.report.units import NOT_MEASURED

HOSTILE = "<script>alert(1)</script>&"


def counts(**known: int) -> tuple[int, ...]:
    """Numbers of weights by the value of the coded byte."""
    return tuple(known.get(f"v{value}", 0) for value in range(256))


def record(**changed: Any) -> CodingRecord:
    groups = (
        CodedGroupRecord(
            name=f"a{HOSTILE}", weights=600, nbytes=800, dense_nbytes=1200, bound=10.0, information=2.0
        ),
        CodedGroupRecord(name="b", weights=200, nbytes=280, dense_nbytes=400, bound=11.0, information=3.0),
    )
    known: dict[str, Any] = {
        "method": "lossless.dfloat11", "dtype": "bfloat16", "groups": groups,
        "raw": {"head": f"infinities {HOSTILE}"}, "parts": {"exponents": 260, "other bits": 800, "tables": 20},
        "counts": counts(v120=100, v121=300, v122=400), "tensors": 9, "decode": Spread(2e9, 1e9, 3e9),
    }  # fmt: skip
    return CodingRecord(**{**known, **changed})


def compared(**changed: Any) -> Comparison:
    sizes = Measurements(disk_bytes=1000, perplexity=7.0), Measurements(disk_bytes=680, perplexity=7.0)
    return Comparison(before=sizes[0], after=sizes[1], coding=record(**changed))


def drawn(picture: str, kind: str) -> list[tuple[float, ...]]:
    """x, y, width and height of all rectangles of a kind."""
    found = re.findall(
        rf'<rect class="{kind}" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', picture
    )
    return [tuple(map(float, numbers)) for numbers in found]


class TestRecord:
    def test_bits_are_means_over_weights(self) -> None:
        found = record()
        assert (found.weights, found.nbytes, found.dense_nbytes) == (800, 1080, 1600)
        assert found.bound == pytest.approx((600 * 10 + 200 * 11) / 800)
        assert found.information == pytest.approx((600 * 2 + 200 * 3) / 800)

    @pytest.mark.parametrize(
        ("changed", "identical"),
        [({}, True), ({"tensors": 0}, False), ({"difference": "w: [0] is 1 and 2"}, False)],
    )
    def test_only_what_was_compared_is_identical(self, changed: dict[str, Any], identical: bool) -> None:
        assert record(**changed).identical is identical

    def test_it_survives_the_file(self, tmp_path: Any) -> None:
        assert Comparison.load(compared().save(tmp_path / "report.json")) == compared()


class TestWords:
    def test_the_headline_says_that_every_bit_is_the_same_only_if_it_is(self) -> None:
        assert headline(compared()) == "68 % of the bytes, every bit the same"
        for changed in ({"difference": "w"}, {"tensors": 0, "changed_by": ("prune.wanda",)}):
            assert headline(compared(**changed)) == "68 % of the bytes for the same perplexity"

    def test_the_table_has_the_bits_and_their_bound(self) -> None:
        rows = {row.label: row for row in comparison_rows(compared())}
        assert rows["Bits per weight"].before.exact == 16
        assert rows["Bits per weight"].after.exact == pytest.approx(8 * 1080 / 800)
        assert rows["Bits per weight"].verdict == "better"
        assert rows["Bound"].after.exact == record().bound
        assert "Bound" not in {row.label for row in comparison_rows(Comparison())}

    def test_the_verdict(self) -> None:
        assert "Every bit is that of the original: 9 tensors compared" in coding(record())
        page = coding(record(difference=f"w{HOSTILE}"))
        assert "Not the original: w&lt;script&gt;" in page
        assert "Every bit is" not in page
        page = coding(record(tensors=0, changed_by=("prune.wanda", "prune.wanda", "quantize.rtn")))
        assert "Weights as prune.wanda, quantize.rtn left them, coded by lossless.dfloat11." in page
        assert "Every bit is" not in page

    def test_groups_stand_with_their_bits_and_those_that_stay_with_the_reason(self) -> None:
        page = coding(record())
        assert "<script>" not in page
        cells = re.findall(r"<td>([^<]*)</td>", page.partition('<th scope="row">b</th>')[2])[:6]
        assert cells == ["200", "400 B", "280 B", "70.0 %", "11.20", "11.00"]
        assert "as it is: infinities &lt;script&gt;" in page
        assert "2.00 GB of weights a second (1.00–3.00 over the groups)" in page

    def test_many_groups_fold(self) -> None:
        assert "<details open>" in coding(record())
        (group, _) = record().groups
        assert "<details>" in coding(record(groups=(group,) * 13))

    def test_codes_that_leave_repetitions_name_the_method_that_does_not(self) -> None:
        assert "lossless.byteplanes does not" not in coding(record())
        repeated = tuple(group.model_copy(update={"bound": 5.0}) for group in record().groups)
        assert "lossless.byteplanes does not" in coding(record(groups=repeated))
        assert "does not" not in coding(record(groups=repeated, method="lossless.byteplanes"))

    def test_nothing_is_said_where_nothing_is_coded(self) -> None:
        assert coding(None) == ""
        assert NOT_MEASURED not in coding(record(decode=None))


class TestHistogram:
    def test_columns_are_as_high_as_values_are_frequent(self) -> None:
        columns = drawn(exponent_histogram(record()), "stored")
        assert [round(height / columns[-1][3], 2) for *_, height in columns] == [0.25, 0.75, 1.0]
        assert all(
            y + height == pytest.approx(columns[0][1] + columns[0][3], abs=0.2) for _, y, _, height in columns
        )

    def test_zeros_stand_apart_at_the_left(self) -> None:
        picture = exponent_histogram(record(counts=counts(v0=400, v120=100, v122=300)))
        columns = drawn(picture, "stored")
        assert len(columns) == 4  # 121 occurs never, but has its place
        assert columns[0][3] == max(height for *_, height in columns)
        assert columns[0][0] + columns[0][2] < columns[1][0]
        assert "0 and the smallest values: 50.0 %" in picture

    def test_rare_values_at_the_ends_are_left_out(self) -> None:
        found = record(counts=counts(v3=1, v120=50_000, v122=49_999, v200=1))
        assert shown_values(found) == range(120, 123)
        assert "2 rare exponents are left out" in coding(record(counts=found.counts))

    def test_powers_of_two_are_named(self) -> None:
        picture = exponent_histogram(record())
        assert "2⁻⁷ to 2⁻⁶: 12.5 %" in picture  # an exponent of 120, less 127
        half = exponent_histogram(record(dtype="float16", counts=counts(v96=1, v100=3)))
        assert "1 to 1.125 times 2⁻³: 25.0 %" in half  # 96 is an exponent of 12, less 15, and no mantissa
        assert "1.5 to 1.625 times 2⁻³: 75.0 %" in half

    @pytest.mark.parametrize("used", [{"v0": 5}, {"v127": 1}, {f"v{value}": 1 for value in range(240)}])
    def test_any_distribution_is_drawn_within_the_picture(self, used: dict[str, int]) -> None:
        columns = drawn(exponent_histogram(record(counts=counts(**used))), "stored")
        assert columns
        assert all(0 <= x <= x + width <= 412 and y >= 0 for x, y, width, _ in columns)


class TestBits:
    def test_bars_have_one_scale(self) -> None:
        picture = bits_chart(record())
        exponents, others, tables = (drawn(picture, kind) for kind in ("stored", "dense", "cost"))
        scale = (exponents[0][2] + 1) / 8
        assert (others[0][2] + 1) / 8 == pytest.approx(scale, rel=0.01)
        assert (exponents[1][2] + 1) / scale == pytest.approx(8 * 260 / 800, abs=0.05)
        assert (exponents[2][2] + 1) / scale == pytest.approx(record().information, abs=0.05)
        assert len(tables) == 1
        assert "10.80 bits" in picture

    def test_planes_have_no_tables(self) -> None:
        page = coding(record(method="lossless.byteplanes", parts={"exponents": 280, "other bits": 800}))
        assert "tables" not in page.partition("<figure")[2].partition("</figure>")[0]
