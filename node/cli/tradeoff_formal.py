"""The pictures of a trade-off study with a formal axis: what epsilon costs, and what nodes can learn of each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from node.cli import plots
from node.cli.runs import Floats
from node.cli.tradeoff import Cell, Row, Study
from node.cli.tradeoff_style import Picture, Style, drawn, known

_TICKS = 8
"""On an axis, at most, so that their numbers have room."""
_MOST_VIOLINS = 6
_WIDTH = 0.8
"""Of the violins at one distance together."""


class _Epsilon(NamedTuple):
    """A formal axis."""

    figure: str
    worst: str
    """The figure that a bar reaches to."""
    title: str
    label: str
    meaning: Callable[[Row], str]
    """What it means nothing without; empty where a row has none."""

    def of(self, cell: Cell) -> float:
        """Where a cell stands; infinite where it has no such epsilon."""
        epsilon = self.mean(cell, self.figure)
        return epsilon if self.meaning(cell.first) else math.inf

    @staticmethod
    def mean(cell: Cell, figure: str) -> float:
        """A cell's mean, infinite where there is none."""
        found = cell.mean(figure)
        return math.inf if found is None else found


_OWN = _Epsilon(
    "epsilon_max",
    "epsilon_max",
    "Utility against formal privacy",
    "epsilon, largest of all nodes",
    lambda row: row.meaning,
)
_PAIRS = _Epsilon(
    "epsilon_pair_mean",
    "epsilon_pair_max",
    "Utility against what nodes may learn of each other",
    "epsilon, mean over pairs of nodes (bar: to the worst pair)",
    lambda row: row.pair_meaning,
)


def is_bare(cell: Cell) -> bool:
    """Whether no finite epsilon holds for it."""
    return not any(math.isfinite(axis.of(cell)) for axis in (_OWN, _PAIRS))


# 1: what epsilon costs


def by_epsilon(study: Study, style: Style) -> list[Picture]:
    """A picture for each kind of epsilon: those of another unit, view or delta are on no common axis."""
    return [
        _utility(study, style, axis, meaning, protected)
        for axis in (_OWN, _PAIRS)
        for meaning, protected in _protected(study, axis, "own_accuracy").items()
    ]


def _protected(study: Study, axis: _Epsilon, *figures: str) -> dict[str, list[Cell]]:
    """Cells with a finite epsilon above 0, and these figures, by what it means."""
    found: dict[str, list[Cell]] = {}
    for cell in known(study, *figures):
        if 0 < axis.of(cell) < math.inf:
            found.setdefault(axis.meaning(cell.first), []).append(cell)
    return found


def _utility(study: Study, style: Style, axis: _Epsilon, meaning: str, protected: Sequence[Cell]) -> Picture:
    """Lines over epsilon; what is not protected stands at the right end."""
    lines = {style.line(cell) for cell in protected}
    bare = [cell for cell in known(study, "own_accuracy") if is_bare(cell) and style.line(cell) in lines]
    cells = [*protected, *bare]
    none = 3 * max(axis.mean(cell, axis.worst) for cell in protected)

    def paint(axes: Any) -> None:
        for line in dict.fromkeys(style.line(cell) for cell in cells):
            group = sorted((cell for cell in cells if style.line(cell) == line), key=axis.of)
            xs = [min(axis.of(cell), none) for cell in group]
            ys = [cell.mean("own_accuracy") or 0.0 for cell in group]
            axes.plot(xs, ys, color=style.colour(group[0]), dashes=style.dashes(group[0]), linewidth=1.2)
            for cell, x, y in zip(group, xs, ys, strict=True):
                told, worst = cell.estimate("own_accuracy"), min(axis.mean(cell, axis.worst), none)
                axes.plot([x, worst], [y, y], color=style.colour(cell), alpha=0.5)
                style.dot(axes, cell, (x, y), up=told and told.half)
        axes.set(xlabel=f"{axis.label}\n{meaning}", ylabel="own accuracy", xscale="log")
        _tick(axes, sorted({axis.of(cell) for cell in protected}), none if bare else math.inf)

    return Picture(f"{axis.title}: {meaning.partition(',')[0]}", drawn(paint, style, cells), f"Epsilon {meaning}.")


def _tick(axes: Any, epsilons: Sequence[float], none: float) -> None:
    """A number at each epsilon that has room for it; and where there is nothing to say."""
    widest = none if math.isfinite(none) else epsilons[-1]
    room = max(1.2, (widest / epsilons[0]) ** (1 / _TICKS))
    ticks: list[float] = []
    for epsilon in epsilons:
        if not ticks or epsilon > room * ticks[-1]:
            ticks.append(epsilon)
    labels = {epsilon: f"{epsilon:,.0f}" if epsilon >= 100 else f"{epsilon:.3g}" for epsilon in ticks}
    labels |= {none: "none"} if math.isfinite(none) else {}
    axes.set_xticks(list(labels), list(labels.values()))
    axes.minorticks_off()


# 8: what attacks have proven


def audits(study: Study, style: Style) -> list[Picture]:
    """For each kind of epsilon a dot for each run: what an attack has proven, over what was accounted."""
    return [_audit(style, meaning, cells) for meaning, cells in _protected(study, _OWN, "epsilon_at_least").items()]


def _audit(style: Style, meaning: str, cells: Sequence[Cell]) -> Picture:
    def paint(axes: Any) -> None:
        epsilons = [_OWN.of(cell) for cell in cells]
        line = np.geomspace(0.5 * min(epsilons), 1.5 * max(epsilons), 50)
        axes.plot(line, line, color=plots.INK, linewidth=0.8, dashes=(4, 2))
        for cell in cells:
            for row in cell.rows:
                figures = row.figures
                style.dot(axes, cell, (figures["epsilon_max"] or 0.0, figures["epsilon_at_least"] or 0.0))
        axes.set(xlabel=f"epsilon, accounted\n{meaning}", ylabel="epsilon, at least (final models, T4)", xscale="log")
        axes.set_yscale("symlog", linthresh=0.1)
        axes.set_ylim(bottom=-0.02)
        _tick(axes, sorted(epsilons), math.inf)
        plots.plain_numbers(axes.yaxis)

    caption = "Every run; the bound is of the attack on final models. Above the dashed line something is broken."
    title = f"Empirical against accounted epsilon: {meaning.partition(',')[0]}"
    return Picture(title, drawn(paint, style, cells), caption)


# 6: by distance


def by_distance(study: Study, style: Style) -> Picture | None:
    """mu of all pairs, of a run of each cell that has a log of who received what."""
    told = [(cell, mus) for cell in study.cells if (mus := next(filter(None, map(_mus, cell.rows)), None))]
    told = told[:_MOST_VIOLINS]
    if not told:
        return None
    distances = sorted({distance for _, mus in told for distance in mus})
    step = _WIDTH / len(told)

    def paint(axes: Any) -> None:
        for number, (cell, mus) in enumerate(told):
            at = [distance + (number - (len(told) - 1) / 2) * step for distance in mus]
            bodies = axes.violinplot(list(mus.values()), at, widths=0.9 * step, showmeans=True)
            for part in (*bodies.pop("bodies"), *bodies.values()):
                part.set_color(style.colour(cell))
                part.set_alpha(style.alpha(cell))
            style.dot(axes, cell, (at[0], float(mus[min(mus)].mean())))
        meaning = told[0][0].first.pair_meaning
        axes.set(
            xlabel=f"hops from victim to observer\n{meaning}", ylabel="mu of all that is observed", xticks=distances
        )
        axes.set_yscale("symlog", linthresh=0.1)
        axes.set_ylim(bottom=0)
        plots.plain_numbers(axes.yaxis)

    caption = "Every pair of nodes, in one run of each cell; where neighbours change, all may be one hop away."
    return Picture("What nodes learn of each other", drawn(paint, style, [cell for cell, _ in told]), caption)


def _mus(row: Row) -> dict[float, Floats]:
    """By distance, the mu of each pair, from the log of a run whose summary has accounted for it."""
    from node import provenance
    from node.experiment.exposure import ADJACENCY
    from node.experiment.folder import LINEAGE
    from node.privacy import exposure
    from node.privacy.from_run import told

    if not row.pair_meaning or not (row.run.folder / LINEAGE).is_dir():
        return {}
    happened = told(provenance.read(row.run.folder / LINEAGE, row.run.summary.nodes))
    mus: dict[float, list[float]] = {}
    for pair in exposure.of_each(happened, row.run.config.privacy.delta, ADJACENCY).pairs:
        if math.isfinite(pair.mu) and math.isfinite(pair.distance):
            mus.setdefault(pair.distance, []).append(round(pair.mu, 9))  # nothing is to be seen of rounding errors
    return {distance: np.array(mus[distance]) for distance in sorted(mus)}
