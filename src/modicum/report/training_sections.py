"""The parts of a page that show trainings while they ran: how a choice was learned, how the losses fell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from modicum.evaluate.depth_comparison import Decision, DepthComparison, LossCurve, SearchCurve
from modicum.models.depth import spans
from modicum.report.curves import loss_curve, thinned
from modicum.report.parts import figure, section
from modicum.report.search_figures import blocks_of, confidence_curve, probability_map
from modicum.report.units import number, percent

MOST_NUMBERS = 6  # points of a table
WATCHED = (
    "A row is a block, and its colour how likely the block was to stay; groups are set apart, and what was chosen in "
    "the end stands behind. Every block begins with the probability of chance, the share of its group that stays. "
    "Probabilities are those of the moving average of the logits, which decides."
)
LOSSES = (
    "Means over the steps between two points. Under a learned choice, blocks are switched off at random while the loss "
    "is taken, so it lies above that of the model itself. Losses of different methods are sums of different terms: "
    "compare the shape, not the height."
)


def learning(comparison: DepthComparison) -> str:
    """How every learned choice came about, as pictures and as numbers."""
    parts = []
    for decision in comparison.decisions:
        if decision.history is not None:
            scale = '<span class="scale gain full">0 %<i></i>stays</span>'
            mean = '<span class="key"><i class="stored"></i>mean<i class="faint"></i>each group</span>'
            parts += [
                figure(
                    f"{decision.method}: probability that a block stays", probability_map(decision), scale
                ),
                figure("Probability of the likeliest choice", confidence_curve(decision), mean),
                _numbers(_search_table(decision, decision.history)),
            ]
    if not parts:
        return ""
    note = f'<p class="note">{escape(WATCHED)}</p>'
    return section("How the choice was learned", f'<div class="figures">{"".join(parts)}</div>{note}')


def losses(comparison: DepthComparison) -> str:
    """The loss of every training, each once."""
    curves = dict(_trainings(comparison))
    if not curves:
        return ""
    figures = "".join(
        figure(name, loss_curve(name, curve), f'<span class="key">{curve.step[-1]:,} steps</span>')
        for name, curve in curves.items()
    )
    tables = _numbers("".join(_loss_table(name, curve) for name, curve in curves.items()))
    note = f'<p class="note">{escape(LOSSES)}</p>'
    return section("How the losses fell", f'<div class="figures">{figures}{tables}</div>{note}')


def _trainings(comparison: DepthComparison) -> Iterator[tuple[str, LossCurve]]:
    """Name and curve; a method that trained several models differently is named with the model."""
    seen: dict[str, list[LossCurve]] = {}
    for entry in comparison.entries:
        for method, curve in entry.loss_curves.items():
            known = seen.setdefault(method, [])
            if curve not in known:
                known.append(curve)
                yield method if len(known) == 1 else f"{method}, {entry.name}", curve


def _search_table(decision: Decision, history: SearchCurve) -> str:
    points = thinned(len(history.step), MOST_NUMBERS)
    rows = []
    for place, span in enumerate(spans(decision.groups)):
        for block in span:
            values = [percent(history.kept_probability[point][block]) for point in points]
            rows.append((f"block {block}", [*values, "stays" if block in decision.kept else "removed"]))
        certain = [percent(history.confidence[point][place]) for point in points]
        rows.append((f"likeliest choice of {blocks_of(span)}", [*certain, ""]))
    return _table([f"{history.step[point]:,}" for point in points] + ["choice"], rows)


def _loss_table(name: str, curve: LossCurve) -> str:
    points = thinned(len(curve.step), MOST_NUMBERS)
    values = [curve.loss[point] for point in points]
    texts = ["never finite" if value is None else number(value, 4) for value in values]
    return _table([f"{curve.step[point]:,}" for point in points], [(name, texts)])


def _table(heads: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    cells = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{escape(value)}</td>" for value in values)}</tr>'
        for name, values in rows
    )
    head = f'<thead><tr><th scope="col">step</th>{cells}</tr></thead>'
    return f'<table class="layers">{head}<tbody>{body}</tbody></table>'


def _numbers(tables: str) -> str:
    return f'<details><summary>The same as numbers</summary><div class="scroll">{tables}</div></details>'
