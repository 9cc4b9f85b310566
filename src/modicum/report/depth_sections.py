"""The parts of the page of a DepthComparison, each a function to escaped HTML; "" leaves the part out."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from torch import Tensor

from modicum.evaluate.depth_comparison import DepthComparison, DepthEntry
from modicum.report.depth_figures import stack
from modicum.report.depth_rows import columns, number_of, size_share
from modicum.report.parts import cell, facts, figure, section, tile
from modicum.report.pictures import enlarged, grid, to_png
from modicum.report.units import number, percent, ratio

MOST_SHOWN = 12  # pictures of a row
SHOWN_SIDE = 64  # least pixels of a picture on the page; small ones are enlarged
UNJUDGED = " Accuracy and Frechet distance were not measured: no judge lies beside the original."


def lead(comparison: DepthComparison) -> str:
    """What was drawn, in one line under the headline."""
    drawn = f"{len(comparison.seeds)} images of {len(set(comparison.labels))} classes by each model"
    found = [drawn, str(comparison.environment.get("date", ""))[:10]]
    return "&nbsp;&middot; ".join(escape(fact) for fact in found if fact)


def tiles(comparison: DepthComparison) -> str:
    """The numbers of the last model, which the headline names."""
    first, last = comparison.entries[0], comparison.entries[-1]
    time, (share, what) = last.seconds_ratio, size_share(last, first)
    noise = time.lowest <= 1 <= time.highest
    found = [
        tile(f"{last.blocks} of {first.blocks}", "blocks"),
        tile(percent(share), what),
    ]
    if last.accuracy is not None:
        found.append(tile(percent(last.accuracy), "of its images recognised"))
    if last.frechet is not None:
        found.append(tile(number(last.frechet), f"Frechet distance, was {number_of(first.frechet)}"))
    label = "the time per image" + (", within noise" if noise else "")
    return "".join([*found, tile(ratio(time.median), label, "soft" if noise else "")])


def table(comparison: DepthComparison) -> str:
    """One row per model."""
    shown = columns(comparison)
    heads = "".join(
        f'<th scope="col">{escape(column.title)}<small>{escape(column.unit)}</small></th>' for column in shown
    )
    first = comparison.entries[0]
    rows = "".join(
        f'<tr><th scope="row">{escape(entry.name)}</th>'
        + "".join(f"<td>{cell(column.read(entry, first))}</td>" for column in shown)
        + "</tr>"
        for entry in comparison.entries
    )
    unjudged = UNJUDGED if first.frechet is None else ""
    return (
        f'<div class="scroll"><table class="policies"><thead><tr><td></td>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f'<p class="note">Same classes, same noise, {comparison.at_once} images at once. The models take turns in '
        "every batch; times are medians, the ratio with its lowest and its highest below. The Frechet distance is to "
        "real images, in the features of a judge that saw real ones only; it depends on the number of images, so "
        f"compare it within this table alone.{escape(unjudged)}</p>"
    )


def pictures(comparison: DepthComparison, images: Sequence[Tensor]) -> str:
    """One row of pictures per model; the same class and the same noise in every column."""
    rows = "".join(_strip(entry, drawn) for entry, drawn in zip(comparison.entries, images, strict=True))
    classes = ", ".join(map(str, comparison.labels[:MOST_SHOWN]))
    note = f"Equal noise in every column. Classes {classes}; seeds from {comparison.seeds[0]}."
    return section("What it draws", f'{rows}<p class="note">{escape(note)}</p>')


def _strip(entry: DepthEntry, drawn: Tensor) -> str:
    some = enlarged(drawn[:MOST_SHOWN], SHOWN_SIDE)
    data = base64.b64encode(to_png(grid(some, columns=len(some)))).decode()
    return (
        f'<div class="strip"><p>{escape(entry.name)}<small>{entry.blocks} blocks</small></p>'
        f'<img alt="{escape(entry.name)}: {len(some)} images" src="data:image/png;base64,{data}"></div>'
    )


def decisions(comparison: DepthComparison) -> str:
    """Which blocks every pruning kept, and how sure it was."""
    if not comparison.decisions:
        return ""
    figures = []
    for decision in comparison.decisions:
        key = '<span class="key"><i class="gain"></i>stays<i class="dense"></i>removed</span>'
        if decision.confidence:
            key = '<span class="scale gain">0 %<i></i>certain</span>'
        title = f"{decision.method}: {len(decision.kept)} of {decision.of} blocks"
        figures.append(figure(title, stack(decision), key))
    note = (
        "Below every group: the probability of its choice when the training ended. Near that of chance, the choice "
        "was hardly better than another one."
        if any(decision.confidence for decision in comparison.decisions)
        else ""
    )
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    return section("Which blocks stay", f'<div class="figures">{"".join(figures)}</div>{below}')


def made(comparison: DepthComparison) -> str:
    """The command that repeats it."""
    if comparison.command is None:
        return ""
    return section("How it was made", f"<p>Repeat it with</p><pre>{escape(comparison.command)}</pre>")


def measurement(comparison: DepthComparison) -> str:
    """Protocol and environment as two lists."""
    protocol = {
        "images": len(comparison.seeds),
        "at once": comparison.at_once,
        "rounds": -(-len(comparison.seeds) // comparison.at_once),
        **comparison.sampling,
        **{
            f"last loss of {method}, {entry.name}": number(loss, 4)
            for entry in comparison.entries
            for method, loss in entry.training_losses.items()
        },
    }
    return facts("Protocol", protocol) + facts("Environment", comparison.environment)
