"""The pictures of a trade-off study: what is gained, what leaks, who pays for it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from node.cli import plots, tradeoff_formal
from node.cli.runs import Run
from node.cli.tradeoff import SIDES, Cell, Study, study
from node.cli.tradeoff_style import Picture, Style, drawn, known
from node.experiment.comparison import Point, hypervolume, pareto_front

_NOTE = (
    "Colour tells methods apart, shape and lightness how much noise there is. Dots are means over seeds, bars 95 % "
    "intervals (Student's t); one that is wider than all dots lie apart is left out."
)
_VIEW = "per record, final models (T4)"
_AUC = f"AUC of membership inference\n{_VIEW}"
_MOST_CURVES = 6
_FEW_SAMPLES = 0.01
"""False positive rates below this are of too few samples to be drawn."""


def section(runs: Sequence[Run]) -> str:
    """All that the runs allow, as part of a report; empty where they are no trade-off study."""
    found = study(runs)
    every = [] if found is None else pictures(found)
    figures = (
        f"<figure><h3>{escape(title)}</h3>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
        for title, svg, caption in every
    )
    return f'<div class="grid">{"".join(figures)}</div><p class="soft">{escape(_NOTE)}</p>' if every else ""


def pictures(study: Study) -> list[Picture]:
    """Every picture that the study has the figures for."""
    style = Style(study.cells)
    found = (
        *tradeoff_formal.by_epsilon(study, style),
        _utility_by_leakage(study, style),
        _gain_by_leakage(study, style),
        _sides(study, style, "accuracy", "accuracy"),
        _sides(study, style, "final_tpr_1pct", "TPR at 1 % FPR", f"\n{_VIEW}"),
        _unfairness(study, style),
        tradeoff_formal.by_distance(study, style),
        _roc(study),
        *tradeoff_formal.audits(study, style),
    )
    return [picture for picture in found if picture is not None]


# 2, 3: what leaks


def _utility_by_leakage(study: Study, style: Style) -> Picture | None:
    cells = known(study, "own_accuracy", "final_auc")
    if len(cells) < 2:
        return None

    def paint(axes: Any) -> None:
        for points in _by_setting(cells, "own_accuracy").values():
            _paint_front(axes, points)
        style.dots(axes, cells, "final_auc", "own_accuracy")
        axes.set(xlabel=_AUC, ylabel="own accuracy")

    caption = "The dashed lines are Pareto fronts, one for each setting: of its cells, nothing above it leaks less."
    return Picture("Utility against leakage", drawn(paint, style, cells), caption)


def _gain_by_leakage(study: Study, style: Style) -> Picture | None:
    """Cells that nothing protects formally; the values of one protocol's option are joined by a line."""
    cells = [cell for cell in known(study, "gain_over_dpsgd", "final_auc") if tradeoff_formal.is_bare(cell)]
    knobs = _knobs(cells)
    if len(cells) < 2 or not knobs:
        return None
    settings = _by_setting(cells, "gain_over_dpsgd")
    worst = Point(min(0.0, *(point.gain for points in settings.values() for point in points)), 1.0)

    def paint(axes: Any) -> None:
        for points in settings.values():
            _paint_front(axes, points)
        for knob in knobs:
            xs, ys = ([cell.mean(figure) for cell in knob] for figure in ("final_auc", "gain_over_dpsgd"))
            axes.plot(xs, ys, color=style.colour(knob[0]), linewidth=1.0, alpha=0.6)
        style.dots(axes, cells, "final_auc", "gain_over_dpsgd")
        axes.axhline(0, color=plots.INK, linewidth=0.6)
        axes.set(xlabel=_AUC, ylabel="own accuracy less D-PSGD's")

    areas = (f"{hypervolume(points, worst):.4f} {setting}".strip() for setting, points in settings.items())
    caption = (
        f"Dashed: Pareto front of each setting; hypervolume {', '.join(areas)}, from AUC 1 and gain {worst.gain:.3f}."
    )
    caption += " Lines: one option."
    return Picture("Gain of personalization against leakage", drawn(paint, style, cells), caption)


def _knobs(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells of one protocol and setting that differ in the protocol's options, in the order of the experiment."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.first.run.config.protocol.use, cell.first.setting), []).append(cell)
    return [group for group in found.values() if len(group) > 1]


def _by_setting(cells: Sequence[Cell], gain: str) -> dict[str, list[Point]]:
    """What was gained at which leakage: what differs in its data is no choice between methods."""
    found: dict[str, list[Point]] = {}
    for cell in cells:
        point = Point(cell.mean(gain) or 0.0, cell.mean("final_auc") or 0.0)
        found.setdefault(cell.first.setting, []).append(point)
    return found


def _paint_front(axes: Any, points: Sequence[Point]) -> None:
    front = [points[i] for i in pareto_front(points)]
    xs, ys = [point.cost for point in front], [point.gain for point in front]
    xs, ys = [*xs, max(point.cost for point in points)], [*ys, ys[-1]]
    axes.plot(xs, ys, drawstyle="steps-post", color=plots.INK, linewidth=0.9, dashes=(4, 2), zorder=1)


# 4, 9: who pays


def _sides(study: Study, style: Style, figure: str, name: str, view: str = "") -> Picture | None:
    majority, minority = (f"{figure}_{side}" if figure != "accuracy" else f"{side}_accuracy" for side in SIDES)
    cells = known(study, majority, minority)
    if not cells:
        return None

    def paint(axes: Any) -> None:
        ends = [cell.mean(side) or 0.0 for cell in cells for side in (majority, minority)]
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=plots.INK, linewidth=0.8, dashes=(4, 2))
        style.dots(axes, cells, majority, minority)
        axes.set(xlabel=f"majority: {name}{view}", ylabel=f"minority: {name}{view}")

    return Picture(f"Minority against majority: {name}", drawn(paint, style, cells), "Dashed: equal for both.")


def _unfairness(study: Study, style: Style) -> Picture | None:
    cells = known(study, "accuracy_gap", "final_auc_minority", "final_auc_majority")
    if not cells:
        return None

    def paint(axes: Any) -> None:
        style.dots(axes, cells, "accuracy_gap", "final_auc_gap")
        axes.axhline(0, color=plots.INK, linewidth=0.6)
        axes.set(xlabel="accuracy: gap between groups", ylabel="AUC (record, T4):\nminority less majority")

    caption = "Above 0 the minority leaks more."
    return Picture("Fairness of privacy and of accuracy", drawn(paint, style, cells), caption)


# 7: curve by curve


def _roc(study: Study) -> Picture | None:
    """Mean over seeds at equal false positive rates, of the cells that are farthest from each other."""
    cells = [cell for cell in known(study, "final_auc") if any(row.roc for row in cell.rows)]
    if not cells:
        return None
    cells = sorted(cells, key=lambda cell: -(cell.mean("final_auc") or 0.0))
    chosen = [cells[i] for i in np.unique(np.linspace(0, len(cells) - 1, min(len(cells), _MOST_CURVES)).astype(int))]
    fpr = np.geomspace(_FEW_SAMPLES / 10, 1, 60)

    def paint(axes: Any) -> None:
        axes.plot(fpr, fpr, color=plots.INK, linewidth=0.8, dashes=(4, 2))
        for index, cell in enumerate(chosen):
            curves = [np.interp(fpr, *row.roc) for row in cell.rows if row.roc]
            look = {"color": plots.colour_of(index), "dashes": plots.dashes_of(index)}
            axes.plot(fpr, np.mean(curves, axis=0), label=cell.label, **look)
        axes.set(xlabel=f"false positive rate\n{_VIEW}", ylabel="true positive rate", xscale="log", yscale="log")
        plots.plain_numbers(axes.xaxis, axes.yaxis)
        axes.grid(True)
        axes.figure.legend(loc="outside lower center", frameon=False, fontsize=8)

    caption = "Final models; samples of all nodes together. Of many cells, some from the leakiest to the tightest."
    return Picture("ROC of membership inference", plots.draw(paint, height=3.2 + 0.17 * len(chosen)), caption)
