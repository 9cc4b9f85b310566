"""How layers share a sparsity: OWL's formula, and tables with their order of precedence."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modicum.allocate.sparsity import MOST, Owl, Table, brief, parse_allocation
from modicum.errors import UnknownName
from modicum.kernels import chunks

BLOCKS = {
    "model.layers.0": ["model.layers.0.q", "model.layers.0.down"],
    "model.layers.1": ["model.layers.1.q", "model.layers.1.down"],
    "model.layers.10": ["model.layers.10.q", "model.layers.10.down"],
}


class TestOwl:
    def test_a_case_by_hand(self) -> None:
        found = Owl(5, 0.08).sparsities([0.01, 0.03, 0.02], [10, 10, 10], 0.7)
        assert found == pytest.approx([0.78, 0.62, 0.70])

    def test_large_blocks_weigh_more(self) -> None:
        found = Owl(5, 0.1).sparsities([0.0, 1.0], [30, 10], 0.5)
        assert found == pytest.approx([0.55, 0.35])  # (3 * 0.55 + 0.35) / 4 = 0.5

    @pytest.mark.parametrize("outliers", [[0.0], [0.02], [0.3, 0.3, 0.3]])
    def test_blocks_that_are_alike_are_uniform(self, outliers: list[float]) -> None:
        assert Owl().sparsities(outliers, [7] * len(outliers), 0.6) == [0.6] * len(outliers)

    @settings(deadline=None, max_examples=100)
    @given(
        blocks=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 10**9)), min_size=1, max_size=12),
        sparsity=st.floats(0, 0.9999),
        strength=st.floats(0.001, 0.49),
    )
    def test_the_mean_is_what_was_asked_for_and_outliers_are_spared(
        self, blocks: list[tuple[float, int]], sparsity: float, strength: float
    ) -> None:
        outliers, sizes = zip(*blocks, strict=True)
        found = Owl(5, strength).sparsities(outliers, sizes, sparsity)
        assert abs(np.average(found, weights=sizes) - sparsity) < 1e-6
        assert min(found) >= 0
        assert max(found) <= max(MOST, sparsity) < 1
        assert max(found) - min(found) <= 2 * strength + 1e-9
        by_outliers = [found[i] for i in np.argsort(outliers, kind="stable")]
        assert all(less >= more - 1e-12 for less, more in pairwise(by_outliers))

    def test_outliers_are_counted_over_all_layers_of_a_block(self) -> None:
        small, large = torch.ones(2, 10), torch.ones(4, 5)
        small[0, 0], large[1, 2] = -50.0, 8.0
        norm = torch.ones(10)
        norm[9] = 7.0  # both weights of that channel
        # sum = 17 + 50 + 2 * 7 + 19 + 8 = 108, mean 2.7: above 5 means lies 50, above 2.5 means also 7, 7, 8
        matrices = [(small, norm), (large, torch.ones(5))]
        assert Owl(5, 0.1).outliers(matrices) == 1 / 40
        assert Owl(2.5, 0.1).outliers(matrices) == 4 / 40

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_few_rows_at_a_time_make_no_difference(
        self, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(33, 70, generator=generator).pow(3).to(dtype)
        norm = torch.rand(70, generator=generator)
        scores = (weight.double().abs() * norm.double()).numpy()
        monkeypatch.setattr(chunks, "CHUNK_BYTES", 1000)
        assert Owl().outliers([(weight, norm)]) == (scores > 5 * scores.mean()).mean()


class TestTables:
    def test_names_come_before_patterns_and_layers_before_blocks(self) -> None:
        table = {
            "model.layers.0": 0.1,
            "model.layers.0.down": 0.2,
            "*": 0.3,
            "*.down": 0.4,
            "model.layers.1*": 0.5,
        }
        expected = {layer: 0.5 for layers in BLOCKS.values() for layer in layers}
        expected |= {"model.layers.0.q": 0.1, "model.layers.0.down": 0.2}
        for order in (sorted(table), sorted(table, reverse=True)):
            parsed = parse_allocation({key: table[key] for key in order})
            assert isinstance(parsed, Table)
            assert parsed.shares(BLOCKS) == expected

    def test_a_name_is_no_prefix_and_what_is_not_named_is_left_out(self) -> None:
        shares = Table((("model.layers.1", 0.4),)).shares(BLOCKS)
        assert shares == {"model.layers.1.q": 0.4, "model.layers.1.down": 0.4}

    def test_a_name_that_is_not_there_brings_the_nearest(self) -> None:
        with pytest.raises(UnknownName, match=r"'model.layer.1', which is no block") as caught:
            Table((("model.layer.1", 0.4),)).shares(BLOCKS)
        assert "model.layers.1" in caught.value.hint
        with pytest.raises(UnknownName, match=r"nearest are model\.layers\.0"):
            Table((("§*", 0.4),)).shares(BLOCKS)

    @settings(deadline=None, max_examples=60)
    @given(values=st.lists(st.sampled_from([0.1, 0.2, 0.3, None]), min_size=6, max_size=6))
    def test_the_brief_table_says_the_same(self, values: list[float | None]) -> None:
        layers = [layer for names in BLOCKS.values() for layer in names]
        shares = {layer: v for layer, v in zip(layers, values, strict=True) if v is not None}
        table = brief(shares, BLOCKS)
        assert (Table(tuple(table.items())).shares(BLOCKS) if table else {}) == shares
        assert len(table) <= len(shares)
        if len({*values}) == 1 and values[0]:
            assert table == dict.fromkeys(BLOCKS, values[0])


class TestWritten:
    @pytest.mark.parametrize("name", ["table.json", "table.yaml"])
    def test_a_file_is_read(self, name: str, tmp_path: Path) -> None:
        file = tmp_path / name
        file.write_text(json.dumps({"model.layers.0": 0.25, "*.q": 1e-05, "*.k": 0}))
        if name.endswith("yaml"):
            file.write_text("model.layers.0: 0.25\n'*.q': 0.00001\n'*.k': 0\n")
        parsed = parse_allocation(str(file))
        assert isinstance(parsed, Table)
        assert parsed.to_dict() == {"model.layers.0": 0.25, "*.q": 1e-05, "*.k": 0.0}

    @pytest.mark.parametrize(
        ("text", "owl"), [("owl", Owl()), ("owl:5:0.08", Owl()), ("owl:3:.15", Owl(3, 0.15))]
    )
    def test_owl_with_and_without_numbers(self, text: str, owl: Owl) -> None:
        assert parse_allocation(text) == owl
        assert parse_allocation(str(owl)) == owl

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            ("owls", "there is no file 'owls'"),
            (None, "there is no file"),
            ("owl:5", "owl:M:LAMBDA"),
            ("owl:0:0.08", "M above 0"),
            ("owl:5:0.5", "within 0 to 0.5"),
            ("owl:5:nan", "owl:M:LAMBDA"),
            ({}, "must look like"),
            ({"a": 1.0}, "'a' must be a number from 0 to below 1, not 1.0"),
            ({"a": -0.1}, "not -0.1"),
            ({"a": float("nan")}, "not nan"),
            ({"a": True}, "not True"),
            ({"a": "0.5"}, "not '0.5'"),
            ({1: 0.5}, "sparsity of 1"),
        ],
    )
    def test_what_is_no_allocation_is_refused(self, value: Any, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            parse_allocation(value)

    @pytest.mark.parametrize("content", ["{", "[1, 2]", "", "a: {b: 1}", "\x00", "\ud800"])
    def test_damaged_files_are_refused(self, content: str, tmp_path: Path) -> None:
        for name in ("table.json", "table.yaml"):
            (tmp_path / name).write_bytes(content.encode("utf-8", "surrogatepass"))
            with pytest.raises(ValueError, match=r"table|sparsity"):
                parse_allocation(str(tmp_path / name))
