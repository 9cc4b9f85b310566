"""The parts of the page of a CacheComparison, each a function to escaped HTML; "" leaves the part out."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from torch import Tensor

from modicum.evaluate.cache_comparison import CacheComparison, CacheEntry
from modicum.report.cache_figures import selectivity_map, staircase
from modicum.report.cache_rows import Column, best_at_budget, champion, columns, decibel, left_out
from modicum.report.parts import cell, facts, figure, section, tile
from modicum.report.pictures import enlarged, grid, to_png
from modicum.report.units import percent, ratio

MOST_SHOWN = 12  # images of a row
SHOWN_SIDE = 96  # least pixels of an image on the page; small ones are enlarged
WHY = {
    "LPIPS": "the package lpips or its network is not installed",
    "Frechet": "there is no feature space for these images, or a single image",
    "SSIM": "the images are smaller than its window",
}


def lead(comparison: CacheComparison) -> str:
    """What was drawn, in one line under the headline."""
    captions = list(dict.fromkeys(comparison.captions))
    shown = ", ".join(captions[:4]) + (f" and {len(captions) - 4} more" if len(captions) > 4 else "")
    images = f"{comparison.images} images under {len(comparison.entries)} policies"
    found = [images, f"of {shown}" if shown else "", str(comparison.environment.get("date", ""))[:10]]
    return "&nbsp;&middot; ".join(escape(fact) for fact in found if fact)


def tiles(comparison: CacheComparison) -> str:
    """The numbers of the entry that the headline names."""
    best, full = champion(comparison), comparison.entries[0]
    if best is None:
        return ""
    time = best.seconds_ratio
    noise = time.lowest <= 1 <= time.highest
    found = [
        tile(percent(best.carried_bytes / full.carried_bytes), "of the cache between maps"),
        tile(percent(best.peak_bytes / full.peak_bytes), "of the cache at its peak"),
        tile(decibel(best.psnr), "to the full cache's images"),
    ]
    if best.ssim is not None:
        found.append(tile(f"{best.ssim:.3f}", "structural similarity"))
    found.append(
        tile(ratio(time.median), "the time" + (", within noise" if noise else ""), "soft" if noise else "")
    )
    return "".join(found)


def table(comparison: CacheComparison) -> str:
    """One row per policy and budget."""
    shown = columns(comparison)
    heads = "".join(
        f'<th scope="col">{escape(column.title)}<small>{escape(column.unit)}</small></th>' for column in shown
    )
    before = (None, *comparison.entries)
    rows = "".join(
        _row(comparison, shown, entry, previous is not None and entry.budget != previous.budget)
        for entry, previous in zip(comparison.entries, before, strict=False)
    )
    missing = "".join(
        f" {name} was not measured: {WHY.get(name, 'nothing to compare')}." for name in left_out(comparison)
    )
    return (
        f'<div class="scroll"><table class="policies"><thead><tr><td></td>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        '<p class="note">Same seeds, same batches, images of the full cache as the reference. Bytes are those of the '
        f"keys and values of a batch of {comparison.at_once}: kept between two maps, and at most while one is drawn. "
        "Policies take turns in every batch; times are medians, "
        f"with the lowest and the highest ratio below. The best of a budget is coloured.{escape(missing)}</p>"
    )


def _row(comparison: CacheComparison, shown: list[Column], entry: CacheEntry, new_group: bool) -> str:
    cells = "".join(
        f'<td class="{"better" if best_at_budget(comparison, column, entry) else ""}">'
        f"{cell(column.read(entry, comparison.entries[0]))}</td>"
        for column in shown
    )
    budget = f" <small>{escape(entry.budget)}</small>" if entry.budget else ""
    kind = ' class="group"' if new_group else ""
    return f'<tr{kind}><th scope="row">{escape(entry.policy)}{budget}</th>{cells}</tr>'


def pictures(comparison: CacheComparison, images: Sequence[Tensor]) -> str:
    """One row of images per entry; the same seed in every column."""
    rows = []
    for entry, drawn in zip(comparison.entries, images, strict=True):
        some = enlarged(drawn[:MOST_SHOWN], SHOWN_SIDE)
        strip = grid(some, columns=len(some))
        data = base64.b64encode(to_png(strip)).decode()
        note = "reference" if entry is comparison.entries[0] else decibel(entry.psnr)
        rows.append(
            f'<div class="strip"><p>{escape(entry.label)}<small>{escape(note)}</small></p>'
            f'<img alt="{escape(entry.label)}: {len(some)} images" src="data:image/png;base64,{data}"></div>'
        )
    shown = min(MOST_SHOWN, comparison.images)
    captions = f"Seeds {comparison.seeds[0]} to {comparison.seeds[shown - 1]}, one per column."
    return section("What it draws", "".join(rows) + f'<p class="note">{escape(captions)}</p>')


def budgets(comparison: CacheComparison) -> str:
    """Selectivity of the layers, and what ScaleKV lets each carry at each budget."""
    split = [entry for entry in comparison.entries if "drafters" in entry.settings and entry.tokens]
    figures = []
    if comparison.selectivity is not None:
        pairs = {pair for entry in split for pair in entry.drafters}
        scale = '<span class="scale gain">selective<i></i>not</span>'
        figures.append(
            figure("Attention by layer and map", selectivity_map(comparison.selectivity, pairs), scale)
        )
    for entry in split:
        figures.append(_steps(entry, comparison))
    if not figures:
        return ""
    framed = (
        "Framed: the drafters of any budget, the least selective, which keep most of the history. All others are "
        "refiners and share the rest."
        if any(entry.drafters for entry in split)
        else "No layer is a drafter at these budgets, so all of them keep the same."
    )
    note = "A selective layer attends to the map that it draws and to a few tokens of the past. " + framed
    return section(
        "Who keeps what", f'<div class="figures narrow">{"".join(figures)}</div><p class="note">{note}</p>'
    )


def made(comparison: CacheComparison) -> str:
    """The command that repeats it."""
    if comparison.command is None:
        return ""
    return section("How it was made", f"<p>Repeat it with</p><pre>{escape(comparison.command)}</pre>")


def measurement(comparison: CacheComparison) -> str:
    """Protocol and environment as two lists."""
    protocol: dict[str, Any] = {
        "images": comparison.images,
        "at once": comparison.at_once,
        "rounds": comparison.rounds,
        "token maps": " ".join(f"{height}×{width}" for height, width in comparison.sizes),
        "Frechet distance in": comparison.feature_space or "not measured",
        **comparison.sampling,
        **{f"{entry.policy} settings": _settings(entry) for entry in comparison.entries},
    }
    return facts("Protocol", protocol) + facts("Environment", comparison.environment)


def _settings(entry: CacheEntry) -> str:
    told = {key: value for key, value in entry.settings.items() if key not in ("budget", "rows")}
    return ", ".join(f"{key} {value}" for key, value in told.items() if value is not None)


def _steps(entry: CacheEntry, comparison: CacheComparison) -> str:
    key = '<span class="key"><i class="stored"></i>refiner<i class="draft"></i>drafter<i class="dense"></i>all</span>'
    assert entry.tokens is not None
    return figure(
        f"Tokens carried, {entry.label}", staircase(entry.tokens, comparison.sizes, entry.drafters), key
    )
