"""The pictures of a trade-off study: what is gained, what leaks, who pays for it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from node.cli import plots
from node.cli.runs import Floats, Run
from node.cli.tradeoff import SIDES, Cell, Row, Study, study
from node.cli.tradeoff_style import Style, drawn
from node.experiment.comparison import Point, hypervolume, pareto_front

_NOTE = (
    "Colour tells methods apart, shape and lightness how much noise there is. Dots are means over seeds, bars 95 % "
    "intervals (Student's t); one that is wider than all dots lie apart is left out."
)
_MOST_CURVES = 6
_ROOM = 1.2
_FEW_SAMPLES = 0.01
"""False positive rates below this are of too few samples to be drawn."""


class Picture(NamedTuple):
    """One picture, and what to know of it."""

    title: str
    svg: str
    caption: str = ""


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
        _utility_by_epsilon(study, style),
        _utility_by_leakage(study, style),
        _gain_by_leakage(study, style),
        _sides(study, style, "accuracy", "accuracy"),
        _sides(study, style, "final_tpr_1pct", "TPR at 1 % FPR"),
        _unfairness(study, style),
        _by_distance(study),
        _roc(study),
        _audit(study, style),
    )
    return [picture for picture in found if picture is not None]


def _known(study: Study, *figures: str) -> list[Cell]:
    """Cells whose figures are all finite numbers."""
    return [
        cell
        for cell in study.cells
        if all((mean := cell.mean(figure)) is not None and math.isfinite(mean) for figure in figures)
    ]


# 1, 8: formal privacy


def _utility_by_epsilon(study: Study, style: Style) -> Picture | None:
    """Lines over epsilon; what is not protected stands at the right end."""
    protected = [cell for cell in _known(study, "own_accuracy") if _is_protected(cell)]
    if not protected:
        return None
    meaning = Counter(cell.first.meaning for cell in protected).most_common(1)[0][0]
    finite = [cell for cell in protected if cell.first.meaning == meaning]
    lines = {style.line(cell) for cell in finite}
    bare = [cell for cell in _known(study, "own_accuracy") if not cell.first.meaning and style.line(cell) in lines]
    cells = [*finite, *bare]
    epsilons = [cell.mean("epsilon_max") or 0.0 for cell in finite]
    none = 3 * max(epsilons)

    def paint(axes: Any) -> None:
        for line in dict.fromkeys(style.line(cell) for cell in cells):
            group = sorted((cell for cell in cells if style.line(cell) == line), key=lambda cell: _at(cell, none))
            found = [cell.estimate("own_accuracy") for cell in group]
            means = [told.mean for told in found if told is not None]
            xs = [_at(cell, none) for cell in group]
            axes.plot(xs, means, color=style.colour(group[0]), dashes=style.dashes(group[0]), linewidth=1.2)
            for cell, x, told in zip(group, xs, found, strict=True):
                if told is not None:
                    style.dot(axes, cell, (x, told.mean), up=told.half)
        axes.set(xlabel="epsilon, largest of all nodes", ylabel="own accuracy", xscale="log")
        _tick(axes, sorted({*np.round(epsilons, 2)}), none)

    return Picture("Utility against formal privacy", drawn(paint, style, cells), f"Epsilon {meaning}.")


def _is_protected(cell: Cell) -> bool:
    epsilon = cell.mean("epsilon_max")
    return bool(cell.first.meaning) and epsilon is not None and math.isfinite(epsilon) and epsilon > 0


def _at(cell: Cell, none: float) -> float:
    epsilon = cell.mean("epsilon_max")
    return epsilon if epsilon is not None and math.isfinite(epsilon) else none


def _tick(axes: Any, epsilons: Sequence[float], none: float) -> None:
    """A number at each epsilon that has room for it."""
    ticks: list[float] = []
    for epsilon in epsilons:
        if not ticks or epsilon > _ROOM * ticks[-1]:
            ticks.append(epsilon)
    axes.set_xticks([*ticks, none], [*(f"{epsilon:.3g}" for epsilon in ticks), "none"])
    axes.minorticks_off()


def _audit(study: Study, style: Style) -> Picture | None:
    """A dot for each run: what an attack has proven, over what was accounted."""
    cells = [cell for cell in _known(study, "epsilon_at_least") if _is_protected(cell)]
    if not cells:
        return None

    def paint(axes: Any) -> None:
        largest = max(cell.mean("epsilon_max") or 0.0 for cell in cells)
        line = np.geomspace(0.5 * min(cell.mean("epsilon_max") or 0.0 for cell in cells), 1.5 * largest, 50)
        axes.plot(line, line, color=plots.INK, linewidth=0.8, dashes=(4, 2))
        for cell in cells:
            for row in cell.rows:
                figures = row.figures
                style.dot(axes, cell, (figures["epsilon_max"] or 0.0, figures["epsilon_at_least"] or 0.0))
        axes.set(xlabel="epsilon, accounted", ylabel="epsilon, at least", xscale="log")
        axes.set_yscale("symlog", linthresh=0.1)
        axes.set_ylim(bottom=-0.02)
        plots.plain_numbers(axes.xaxis, axes.yaxis)

    caption = "Every run; the bound is of the attack on final models. Above the dashed line something is broken."
    return Picture("Empirical against accounted epsilon", drawn(paint, style, cells), caption)


# 2, 3: what leaks


def _utility_by_leakage(study: Study, style: Style) -> Picture | None:
    cells = _known(study, "own_accuracy", "final_auc")
    if len(cells) < 2:
        return None
    points = [Point(cell.mean("own_accuracy") or 0.0, cell.mean("final_auc") or 0.0) for cell in cells]

    def paint(axes: Any) -> None:
        _paint_front(axes, points)
        style.dots(axes, cells, "final_auc", "own_accuracy")
        axes.set(xlabel="AUC of membership inference, final models", ylabel="own accuracy")

    caption = "The dashed line is the Pareto front: nothing above it leaks less."
    return Picture("Utility against leakage", drawn(paint, style, cells), caption)


def _gain_by_leakage(study: Study, style: Style) -> Picture | None:
    """Cells without differential privacy; the values of one protocol's option are joined by a line."""
    cells = [cell for cell in _known(study, "gain_over_dpsgd", "final_auc") if not cell.first.meaning]
    knobs = _knobs(cells)
    if len(cells) < 2 or not knobs:
        return None
    points = [Point(cell.mean("gain_over_dpsgd") or 0.0, cell.mean("final_auc") or 0.0) for cell in cells]
    worst = Point(min(0.0, *(point.gain for point in points)), 1.0)

    def paint(axes: Any) -> None:
        _paint_front(axes, points)
        for knob in knobs:
            xs, ys = ([cell.mean(figure) for cell in knob] for figure in ("final_auc", "gain_over_dpsgd"))
            axes.plot(xs, ys, color=style.colour(knob[0]), linewidth=1.0, alpha=0.6)
        style.dots(axes, cells, "final_auc", "gain_over_dpsgd")
        axes.axhline(0, color=plots.INK, linewidth=0.6)
        axes.set(xlabel="AUC of membership inference, final models", ylabel="own accuracy less D-PSGD's")

    area = hypervolume(points, worst)
    caption = f"Dashed: Pareto front; hypervolume {area:.4f}, from AUC 1 and gain {worst.gain:.3f}. Lines: one option."
    return Picture("Gain of personalization against leakage", drawn(paint, style, cells), caption)


def _knobs(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells of one protocol and setting that differ in the protocol's options, in the order of the experiment."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.first.run.config.protocol.use, cell.first.setting), []).append(cell)
    return [group for group in found.values() if len(group) > 1]


def _paint_front(axes: Any, points: Sequence[Point]) -> None:
    front = [points[i] for i in pareto_front(points)]
    xs, ys = [point.cost for point in front], [point.gain for point in front]
    xs, ys = [*xs, max(point.cost for point in points)], [*ys, ys[-1]]
    axes.plot(xs, ys, drawstyle="steps-post", color=plots.INK, linewidth=0.9, dashes=(4, 2), zorder=1)


# 4, 9: who pays


def _sides(study: Study, style: Style, figure: str, name: str) -> Picture | None:
    majority, minority = (f"{figure}_{side}" if figure != "accuracy" else f"{side}_accuracy" for side in SIDES)
    cells = _known(study, majority, minority)
    if not cells:
        return None

    def paint(axes: Any) -> None:
        ends = [cell.mean(side) or 0.0 for cell in cells for side in (majority, minority)]
        axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color=plots.INK, linewidth=0.8, dashes=(4, 2))
        style.dots(axes, cells, majority, minority)
        axes.set(xlabel=f"majority: {name}", ylabel=f"minority: {name}")

    return Picture(f"Minority against majority: {name}", drawn(paint, style, cells), "Dashed: equal for both.")


def _unfairness(study: Study, style: Style) -> Picture | None:
    cells = _known(study, "accuracy_gap", "final_auc_minority", "final_auc_majority")
    if not cells:
        return None

    def paint(axes: Any) -> None:
        style.dots(axes, cells, "accuracy_gap", "final_auc_gap")
        axes.axhline(0, color=plots.INK, linewidth=0.6)
        axes.set(xlabel="accuracy: gap between groups", ylabel="AUC: minority less majority")

    caption = "Above 0 the minority leaks more."
    return Picture("Fairness of privacy and of accuracy", drawn(paint, style, cells), caption)


# 6, 7: by distance, and curve by curve


def _by_distance(study: Study) -> Picture | None:
    """The first run that has a log of who received what."""
    for row in study.rows:
        mus = _mus(row)
        if mus:
            break
    else:
        return None

    def paint(axes: Any) -> None:
        distances = sorted(mus)
        bodies = axes.violinplot([mus[distance] for distance in distances], distances, showmeans=True)
        for part in bodies["bodies"]:
            part.set_facecolor(plots.colour_of(0))
        axes.set(xlabel="hops from victim to observer", ylabel="mu of all that is observed", xticks=distances)
        axes.grid(True, axis="y")

    caption = f"{', '.join(part for part in row.cell if part)}, seed {row.seed}: every pair of nodes, exact, T1."
    return Picture("What nodes learn of each other", plots.draw(paint), caption)


def _mus(row: Row) -> dict[float, Floats]:
    """By distance, the mu of each pair; empty where the run kept no whole log, or its noise is not in it."""
    from node import provenance
    from node.errors import ConfigError
    from node.experiment.folder import LINEAGE
    from node.privacy import exposure
    from node.privacy.from_run import told

    if not row.run.config.record.lineage or row.run.config.privacy.mechanism == "record":
        return {}
    try:
        missing: list[str] = []
        happened = told(provenance.read(row.run.folder / LINEAGE, row.run.summary.nodes, missing.append))
        if missing:
            return {}
        found = exposure.of_each(happened, 1e-5, "replace_one")
    except ConfigError:
        return {}  # ops that nobody has told as sums: `starling privacy network` says which
    mus: dict[float, list[float]] = {}
    for pair in found.pairs:
        if math.isfinite(pair.mu) and math.isfinite(pair.distance):
            mus.setdefault(pair.distance, []).append(pair.mu)
    return {distance: np.array(values) for distance, values in mus.items()}


def _roc(study: Study) -> Picture | None:
    """Mean over seeds at equal false positive rates, of the cells that are farthest from each other."""
    cells = [cell for cell in _known(study, "final_auc") if any(row.roc for row in cell.rows)]
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
        axes.set(xlabel="false positive rate", ylabel="true positive rate", xscale="log", yscale="log")
        plots.plain_numbers(axes.xaxis, axes.yaxis)
        axes.grid(True)
        axes.figure.legend(loc="outside lower center", frameon=False, fontsize=8)

    caption = "Final models; samples of all nodes together. Of many cells, some from the leakiest to the tightest."
    return Picture("ROC of membership inference", plots.draw(paint, height=3.2 + 0.17 * len(chosen)), caption)
