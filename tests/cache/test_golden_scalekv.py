"""Parity with the released ScaleKV code, over everything recorded named scalekv* below $MODICUM_GOLDEN."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modicum.allocate.cache_tokens import CacheBudget, scale_aware
from modicum.cache.eviction import EvictingCache, View
from modicum.cache.scalekv import ScaleKV, probe_grid
from modicum.models.infinity.positions import rotary_table, rotation
from modicum.models.infinity.schedules import Resolution
from modicum.models.next_scale import Queries, Schedule, SelfAttention, Step

ROOT = Path(os.environ.get("MODICUM_GOLDEN", Path(__file__).parents[1] / "golden"))
SETTINGS = {path.parent: json.loads(path.read_text()) for path in sorted(ROOT.glob("scalekv*/config.json"))}
SELECTIONS = [(folder, name) for folder, settings in SETTINGS.items() for name in settings.get("cases", ())]
WITHOUT_TIES = [
    (folder, name) for folder, name in SELECTIONS if SETTINGS[folder]["cases"][name]["kernel"] == 1
]
LAYERS = [(folder, layer) for folder, settings in SETTINGS.items() for layer in settings.get("layers", ())]
TIE = 1e-5

# model -> layers, drafters (layer, map) counted from 0, and share -> tokens, as released
PUBLISHED = {
    "8b": (40, [(layer, k) for layer in (0, 1, 2) for k in range(8, 13)]),
    "2b": (32, [(0, k) for k in range(8, 13)] + [(23, k) for k in range(8, 12)]),
}
UNIFORM = {"20%": 1300, "10%": 650, "4%": 265}


def computed(shape: tuple[int, ...], stream: int) -> Tensor:
    """The recipe of the inputs: splitmix64 of the element's number."""
    with np.errstate(over="ignore"):
        z = np.arange(1, np.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(stream) * np.uint64(0xD1B54A32D192ED03)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return torch.from_numpy(((z >> np.uint64(40)) / 2**23 - 1).astype(np.float32).reshape(shape))


def square(counts: list[int]) -> Schedule:
    schedule = Schedule.square(isqrt(count) for count in counts)
    assert list(schedule.tokens) == counts
    return schedule


@cache
def recorded(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "io.safetensors")


@dataclass(frozen=True)
class Selection:
    """One case of a fixture of computed queries, keys and values."""

    folder: Path
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        return SETTINGS[self.folder]

    @property
    def case(self) -> dict[str, Any]:
        return self.settings["cases"][self.name]

    @property
    def schedule(self) -> Schedule:
        return square(self.settings["scales"])

    @property
    def method(self) -> ScaleKV:
        return ScaleKV(window=self.settings["window_size"], kernel=self.case["kernel"])

    @property
    def budget(self) -> CacheBudget:
        row = list(self.schedule.offsets[:-1])
        for scale, tokens in self.case["budget_after_scale"].items():
            row[int(scale)] = tokens
        return CacheBudget.wanted(self.schedule, [row])

    def tensor(self, name: str, scale: int) -> Tensor:
        return tensor_of(self.folder, name, scale)

    def queries(self, scale: int) -> Queries:
        """Queries of a map that come out of a projection as they are."""
        q = self.tensor("q", scale)
        heads = q.shape[1]

        def project(x: Tensor) -> Tensor:
            return x.unflatten(-1, (heads, -1)).transpose(1, 2)

        return Queries(q.transpose(1, 2).flatten(2), project, q, 1.0)

    def out(self, name: str) -> Tensor:
        return recorded(self.folder)[f"out.{self.name}.{name}"]

    def recorded_scales(self) -> list[int]:
        """Maps (from 0) after which something was dropped."""
        prefix = f"out.{self.name}.kept."
        found = (name.removeprefix(prefix) for name in recorded(self.folder) if name.startswith(prefix))
        return sorted(int(number) - 1 for number in found)


@cache
def tensor_of(folder: Path, name: str, scale: int) -> Tensor:
    """q, k or v of a map; the first channel of v is the token's place in the sequence."""
    settings = SETTINGS[folder]
    schedule = square(settings["scales"])
    shape = (settings["rows"], settings["heads"], schedule.tokens[scale], settings["head_dim"])
    stream = settings["stream"] * 1000 + 100 * ("qkv".index(name) + 1) + scale
    values = computed(shape, stream)
    if name == "v":
        values[..., 0] = torch.arange(schedule.offsets[scale], schedule.offsets[scale + 1])
    return values


def every(cases: list[tuple[Path, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "selection", [Selection(*case) for case in cases], ids=lambda case: f"{case.folder.name}-{case.name}"
    )


def test_golden_scalekv_is_there() -> None:
    assert SELECTIONS, f"no selection below {ROOT}"
    assert LAYERS, f"no attention layer below {ROOT}"


@pytest.mark.parametrize("folder", sorted({folder for folder, _ in SELECTIONS}), ids=lambda f: f.name)
def test_golden_recipe(folder: Path) -> None:
    for name, want in recorded(folder).items():
        if name.startswith("out.check."):
            letter, scale = name.split(".")[2:]
            flat = tensor_of(folder, letter, int(scale.removeprefix("scale")) - 1).flatten()
            got = torch.cat((flat[:4], flat[-4:])) if len(flat) >= 8 else flat
            assert torch.equal(got, want.flatten()), name


@every(SELECTIONS)
def test_golden_lengths(selection: Selection) -> None:
    got = kept_over_all_maps(selection)
    assert [positions.shape[-1] for positions in got] == selection.out("lengths").tolist()


@every(WITHOUT_TIES)
def test_golden_kept_sets_over_all_maps(selection: Selection) -> None:
    got = kept_over_all_maps(selection)
    assert selection.recorded_scales()
    for scale in selection.recorded_scales():
        assert torch.equal(got[scale], selection.out(f"kept.{scale + 1}").long()), scale


@every(SELECTIONS)
def test_golden_kept_sets_map_by_map(selection: Selection) -> None:
    """From the recorded history at each map: whatever is above the threshold, and as many of the tied."""
    assert selection.recorded_scales()
    for scale in selection.recorded_scales():
        positions = history_of(selection, scale)  # [rows, heads, held]
        keys = torch.cat([selection.tensor("k", s) for s in range(scale + 1)], 2)
        keys = keys.gather(2, positions[..., None].expand(*positions.shape, keys.shape[-1]))
        want = selection.out(f"kept.{scale + 1}").long()
        view = View(keys, selection.queries(scale), selection.schedule.sizes[scale], want.shape[-1])
        index = selection.method.choose(view)
        assert index.shape == want.shape
        assert (index.diff(dim=-1) > 0).all()
        kept = torch.zeros_like(positions, dtype=torch.bool).scatter(-1, index, True)
        scores, window = released_scores(selection, view, scale)
        threshold = selection.out(f"threshold.{scale + 1}")[..., None]
        tied = ((scores - threshold).abs() <= TIE) & ~window
        assert torch.equal(tied.sum(-1), selection.out(f"tied.{scale + 1}"))
        assert kept[window].all()
        assert kept[(scores > threshold) & ~tied & ~window].all()
        assert not kept[(scores < threshold) & ~tied & ~window].any()
        assert torch.equal((kept & tied).sum(-1), selection.out(f"tied_kept.{scale + 1}"))
        chosen = torch.zeros(*want.shape[:2], selection.schedule.total, dtype=torch.bool)
        original = chosen.scatter(-1, want, True).gather(-1, positions)
        assert torch.equal(kept & ~tied, original & ~tied)


def kept_over_all_maps(selection: Selection) -> list[Tensor]:
    """Places in the sequence that are held after each map, int64 `[rows, heads, held]`."""
    budget = selection.budget
    keeping = EvictingCache(lambda schedule: budget, selection.method.choose, store_last=True)
    keeping.begin(selection.schedule)
    found = []
    for scale in range(len(selection.schedule)):
        keeping.extend(0, selection.tensor("k", scale), selection.tensor("v", scale))
        keeping.settle(0, scale, selection.queries(scale))
        found.append(keeping.held(0)[1][..., 0].long())
    return found


def history_of(selection: Selection, scale: int) -> Tensor:
    """What the original held when it chose after a map: its last choice, or everything, and the map."""
    schedule = selection.schedule
    new = torch.arange(schedule.offsets[scale], schedule.offsets[scale + 1])
    shape = (selection.settings["rows"], selection.settings["heads"], -1)
    if scale - 1 in selection.recorded_scales():
        before = selection.out(f"kept.{scale}").long()
    else:
        before = torch.arange(schedule.offsets[scale]).expand(shape)
    return torch.cat((before, new.expand(shape)), -1)


def released_scores(selection: Selection, view: View, scale: int) -> tuple[Tensor, Tensor]:
    """The scores, written out probe by probe, and which entries are probes."""
    side = isqrt(selection.settings["window_size"])
    height, width = view.size
    places = [
        (i * (height // side) + (height // side - 1) // 2) * width
        + j * (width // side)
        + (width // side - 1) // 2
        for i in range(side)
        for j in range(side)
    ]
    logits = selection.tensor("q", scale)[:, :, places] @ view.keys.mT / view.keys.shape[-1] ** 0.5
    window = torch.zeros(view.held, dtype=torch.bool)
    window[[view.start + place for place in places]] = True
    summed = logits.masked_fill(window, -torch.inf).sum(2)
    kernel = selection.case["kernel"]
    pooled = torch.nn.functional.max_pool1d(summed, kernel, 1, kernel // 2)
    return pooled.masked_fill(window, -torch.inf), window.expand_as(pooled)


class Noting(EvictingCache):
    """Notes which places in the sequence the layer 0 holds whenever it was cut."""

    def begin(self, schedule: Schedule) -> None:
        super().begin(schedule)
        self.kept: dict[int, Tensor] = {}

    def keep(self, layer: int, index: Tensor) -> None:
        scale = self._scale[layer]
        places = torch.arange(self.schedule.offsets[scale + 1]).expand(*index.shape[:2], -1)
        if self.kept:
            before = self.kept[scale - 1]
            places = torch.cat((before, places[..., self.schedule.span(scale)]), -1)
        self.kept[scale] = places.gather(-1, index)
        super().keep(layer, index)


@pytest.mark.parametrize(("folder", "layer"), LAYERS, ids=lambda value: getattr(value, "name", value))
@torch.no_grad()
def test_golden_attention_with_pruned_history(folder: Path, layer: int) -> None:
    settings, tensors = SETTINGS[folder], recorded(folder)
    schedule = square(settings["scales"])
    attention = SelfAttention(0, settings["embed_dim"], settings["num_heads"])
    weights, prefix = load_file(folder / "weights.safetensors"), f"layers.{layer}."
    attention.load_state_dict(
        {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    )
    model, share = settings["budget"].split("_")
    layers, drafters = PUBLISHED[model]
    split = scale_aware(schedule, layers, UNIFORM[share], drafters, window=settings["window_size"])
    budget = CacheBudget(schedule, (split.tokens[layer],))
    method = ScaleKV(window=settings["window_size"], kernel=settings["kernel_size"])
    keeping = Noting(lambda schedule: budget, method.choose, store_last=True)
    keeping.begin(schedule)
    table = rotary_table(
        Resolution(schedule, schedule.final),
        settings["embed_dim"] // settings["num_heads"],
        torch.device("cpu"),
    )
    for scale, count in enumerate(schedule.tokens):
        stream = settings["stream"] * 1000 + 100 * layer + scale
        x = computed((settings["rows"], count, settings["embed_dim"]), stream)
        got = attention(x, Step(scale, keeping, rotate=rotation(table[:, schedule.span(scale)])))
        want = tensors[f"out.layer{layer}.output.{scale + 1}"]
        if want.shape[1] < count:
            got = torch.cat((got[:, : want.shape[1] // 2], got[:, -(want.shape[1] // 2) :]), 1)
        close(got, want)
        assert keeping.length(0) == tensors[f"out.layer{layer}.lengths"][scale]
    pruned = {int(name.rpartition(".")[2]) for name in tensors if name.startswith(f"out.layer{layer}.kept.")}
    assert pruned == {scale + 1 for scale in keeping.kept} != set()
    for scale, positions in keeping.kept.items():
        assert torch.equal(positions, tensors[f"out.layer{layer}.kept.{scale + 1}"].long())
    for name, final in zip("kv", keeping.held(0), strict=True):
        want = tensors[f"out.layer{layer}.{name}_final.head_tail"]
        half = want.shape[2] // 2
        close(torch.cat((final[:, :, :half], final[:, :, -half:]), 2), want)


def close(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1e-4 * max(1.0, want.abs().max().item())


def test_probes_of_a_square_map() -> None:
    probes = probe_grid((20, 20), 4, torch.device("cpu"))
    assert probes.tolist() == [20 * row + column for row in (2, 7, 12, 17) for column in (2, 7, 12, 17)]
