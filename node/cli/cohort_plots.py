"""The pictures of a study of cohorts: accuracy against what it takes, with their Pareto fronts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from node.cli import plots
from node.cli.cohort_budget import Outcome, outcomes
from node.cli.cohort_noise import scales
from node.cli.cohort_study import Cell, Study, study
from node.cli.cohort_table import findings, parts
from node.cli.runs import Run
from node.experiment.comparison import Point, pareto_front

Table = Callable[[Sequence[str], Iterable[Sequence[str]]], str]
"""Makes HTML of a header and rows of plain text."""

_AXES = {
    "time_s": "time to convergence and of unifying (s)",
    "device_hours": "CPU hours of devices",
    "bytes": "bytes sent, MB",
}
_SCALE = {"bytes": 1e-6}
_SHAPES = {"one": "o", "ensemble": "^", "average": "s", "student": "D"}
_ROW = 0.17
"""Height of a legend's row in inches."""
_NOTE = (
    "Dots are means over seeds; colour tells how many cohorts there are, and shape what becomes of their models. "
    "Hollow: baselines, which have one network or no leaders. Dashed: Pareto front, nothing above it costs less."
)


def section(runs: Sequence[Run], table: Table) -> str:
    """All that the runs allow, as part of a report; empty where they are no study of cohorts."""
    found = study(runs)
    if found is None:
        return ""
    noise = scales(found)
    said = "".join(f"<p>{escape(line)}</p>" for line in findings(found, noise))
    tables = "".join(f"<h3>{escape(part.title)}</h3>{table(part.head, part.rows)}" for part in parts(found, noise))
    drawn = "".join(
        f"<figure><h3>{escape(title)}</h3>{svg}</figure>"
        for setting in found.settings
        for title, svg in pictures(found, setting)
    )
    return f'{said}<div class="grid">{drawn}</div><p class="soft">{escape(_NOTE)}</p>{tables}'


def pictures(found: Study, setting: str) -> list[tuple[str, str]]:
    """Title and SVG of each cost's picture; none where there are not two outcomes to draw."""
    shown = outcomes([cell for cell in found.cells if cell.first.setting == setting])
    if len(shown) < 2:
        return []
    place = f" ({setting})" if setting else ""
    return [(f"Accuracy against {name}{place}", _draw(shown, of, name)) for of, name in _AXES.items()]


def _draw(shown: Sequence[Outcome], of: str, name: str) -> str:
    colours = {kind: plots.colour_of(i) for i, kind in enumerate(dict.fromkeys(_kind(each.cell) for each in shown))}
    points = [Point(each.accuracy, each.cost(of) * _SCALE.get(of, 1.0)) for each in shown]
    results = list(dict.fromkeys(each.result for each in shown))

    def paint(axes: Any) -> None:
        from matplotlib.lines import Line2D

        front = [points[i] for i in pareto_front(points)]
        xs, ys = [point.cost for point in front], [point.gain for point in front]
        axes.plot(xs, ys, drawstyle="steps-post", color=plots.INK, linewidth=0.9, dashes=(4, 2), zorder=1)
        for each, point in zip(shown, points, strict=True):
            look = {"color": colours[_kind(each.cell)], "marker": _SHAPES[each.result], "fillstyle": _fill(each)}
            axes.plot([point.cost], [point.gain], linestyle="", markersize=6.5, **look)
        axes.set(xlabel=name, ylabel="accuracy", xscale="log")
        plots.plain_numbers(axes.xaxis)
        axes.grid(True)
        handles = [
            Line2D([], [], color=colour, marker="o", linestyle="", label=kind) for kind, colour in colours.items()
        ]
        handles += [
            Line2D([], [], color=plots.INK, marker=_SHAPES[result], linestyle="", label=_NAMES[result])
            for result in results
        ]
        axes.figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)

    return plots.draw(paint, height=3.2 + _ROW * math.ceil((len(colours) + len(results)) / 2))


_NAMES = {"one": "one model", "ensemble": "ensemble", "average": "average", "student": "student"}


def _kind(cell: Cell) -> str:
    """What one colour is for."""
    cohorts = cell.first.cohorts
    return cell.first.method if cohorts is None else f"K = {cohorts}"


def _fill(each: Outcome) -> str:
    return "full" if (each.cell.first.cohorts or 1) > 1 else "none"
