"""Comparing cache policies: the full cache equals itself, less cache costs more, and everything is read back."""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch

from modicum.api.images import compare_kv
from modicum.api.inputs import request
from modicum.errors import InvalidSetting, UnknownName, UnsupportedModel, UnusableData
from modicum.evaluate import Spread
from modicum.evaluate.cache_comparison import CacheComparison
from modicum.evaluate.compare_caches import Candidate, compare_caches
from modicum.models.next_scale import FullCache, NextScaleModel, Queries
from modicum.models.var import load_var

WANTED: dict[str, Any] = {"labels": [0, 1, 2], "count": 4, "seed": 7, "at_once": 3, "rounds": 1}


@pytest.fixture(scope="module")
def compared(tiny_var: Path) -> tuple[CacheComparison, list[torch.Tensor]]:
    settings = {"window": 4, "snapkv.kernel": 3, "drafters": 1}
    return compare_kv(
        tiny_var,
        ["scalekv", "full", "snapkv"],
        ["39", "10"],
        settings=settings,
        features=lambda images: images.flatten(1)[:, :8],
        **WANTED,
    )


def test_the_full_cache_comes_first_and_budgets_in_their_order(
    compared: tuple[CacheComparison, list[torch.Tensor]],
) -> None:
    comparison, images = compared
    labels = [entry.label for entry in comparison.entries]
    assert labels == ["full", "scalekv 39", "snapkv 39", "scalekv 10", "snapkv 10"]
    assert [drawn.shape for drawn in images] == [(4, 3, 16, 16)] * 5
    assert comparison.captions == ("0", "1", "2", "0")
    assert comparison.seeds == (7, 8, 9, 10)
    assert (comparison.images, comparison.at_once) == (4, 3)
    assert comparison.entries[2].settings["kernel"] == 3
    assert comparison.entries[1].settings["kernel"] == 5
    assert {entry.settings["window"] for entry in comparison.entries[1:]} == {4}


def test_a_budget_of_everything_changes_no_bit(compared: tuple[CacheComparison, list[torch.Tensor]]) -> None:
    comparison, images = compared
    full = comparison.entries[0]
    assert full.psnr is None
    for entry, drawn in zip(comparison.entries[1:3], images[1:3], strict=True):
        assert torch.equal(drawn, images[0])
        assert (entry.psnr, entry.identical) == (math.inf, 4)
        assert entry.ssim == pytest.approx(1)
        assert entry.frechet == pytest.approx(0, abs=1e-6)
        assert entry.carried == full.carried


def test_a_small_budget_saves_bytes_and_changes_images(
    compared: tuple[CacheComparison, list[torch.Tensor]],
) -> None:
    comparison, images = compared
    full = comparison.entries[0]
    for entry, drawn in zip(comparison.entries[3:], images[3:], strict=True):
        assert not torch.equal(drawn, images[0])
        assert entry.psnr is not None
        assert 0 < entry.psnr < 100
        assert entry.ssim is not None
        assert entry.ssim < 1
        assert entry.frechet is not None
        assert entry.frechet > 0
        assert entry.lpips is None  # its package is no part of the tests
        # at every map the whole batch holds what the table says: rows * heads * head_dim * two tensors * 4 bytes
        assert entry.tokens is not None
        held = [sum(row[k] for row in entry.tokens) * 6 * 24 * 2 * 4 for k in range(1, 5)]
        assert list(entry.carried) == held
        assert entry.carried_bytes < full.carried_bytes


def test_only_scalekv_measures_selectivity(compared: tuple[CacheComparison, list[torch.Tensor]]) -> None:
    comparison, _ = compared
    assert comparison.selectivity is not None
    assert [len(row) for row in comparison.selectivity] == [5, 5]
    assert len(comparison.entries[3].drafters) == 1
    assert all(not entry.drafters for entry in comparison.entries if entry.policy != "scalekv")


def test_it_is_read_back_as_it_was_with_infinite_numbers(
    compared: tuple[CacheComparison, list[torch.Tensor]], tmp_path: Path
) -> None:
    comparison, _ = compared
    file = comparison.save(tmp_path / "comparison.json")
    assert json.loads(file.read_text())["entries"][1]["psnr"] == "Infinity"
    assert CacheComparison.load(file) == comparison


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2, "name": "x"}', "\xff"])
def test_files_that_are_no_comparison(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UnusableData, match=r"x\.json"):
        CacheComparison.load(tmp_path / "x.json")
    with pytest.raises(UnusableData, match="Cannot read"):
        CacheComparison.load(tmp_path / "none.json")


def test_what_cannot_be_compared(tiny_var: Path, tiny_llama: Path) -> None:
    with pytest.raises(UnknownName, match="scalekw"):
        compare_kv(tiny_var, ["scalekw"])
    with pytest.raises(UnknownName, match="windo"):
        compare_kv(tiny_var, ["scalekv"], settings={"windo": 4})
    with pytest.raises(UnknownName, match="kernel"):
        compare_kv(tiny_var, ["scalekv", "streaming"], settings={"streaming.kernel": 4})
    with pytest.raises(InvalidSetting, match="below the window"):
        compare_kv(tiny_var, ["scalekv"], ["10"])
    with pytest.raises(InvalidSetting, match="nothing to compare"):
        compare_kv(tiny_var, ["streaming"], ["10"], rounds=0)
    with pytest.raises(UnsupportedModel, match="does not draw"):
        compare_kv(tiny_llama)
    with pytest.raises(InvalidSetting, match="0 policies"):
        compare_caches(load_var(tiny_var), [], None, rounds=1)  # type: ignore[arg-type]


def test_a_slower_policy_has_a_ratio_above_one(tiny_var: Path) -> None:
    class Slow(FullCache):
        def settle(self, layer: int, scale: int, queries: Queries) -> None:
            sleep(0.05)

    class Policy:
        def __init__(self, cache: type[FullCache]) -> None:
            self.cache = cache

        def attach(self, model: NextScaleModel) -> AbstractContextManager[NextScaleModel]:
            return model.caching(self.cache)

    model = load_var(tiny_var)
    wanted = request(model, labels=[0, 1], at_once=1)
    candidates = [Candidate(Policy(cache), {"policy": cache.__name__}) for cache in (FullCache, Slow)]
    told: list[tuple[int, int]] = []
    entries, _ = compare_caches(model, candidates, wanted, rounds=2, progress=lambda *step: told.append(step))
    assert entries[0].seconds_ratio == Spread(1.0, 1.0, 1.0)
    assert entries[1].seconds.lowest > 0.5  # two layers, five maps
    assert entries[1].seconds_ratio.median > 1
    assert told == [(step, 8) for step in range(1, 9)]  # two batches, two policies, two rounds
