"""How the cells of a trade-off study look, in all pictures alike, which of them a picture can show, and its legend."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from node.cli import plots
from node.cli.tradeoff import Cell, Study

_SHAPES = ("o", "s", "^", "D", "v", "P", "X")
_FILLS = ("full", "none", "left", "top", "right", "bottom")
_ROW = 0.17
"""Height of a legend's row in inches."""


class Picture(NamedTuple):
    """One picture, and what to know of it."""

    title: str
    svg: str
    caption: str = ""


def known(study: Study, *figures: str) -> list[Cell]:
    """Cells whose figures are all finite numbers."""
    return [cell for cell in study.cells if all(is_finite(cell, figure) for figure in figures)]


def is_finite(cell: Cell, figure: str) -> bool:
    """Whether a cell's mean is a finite number."""
    mean = cell.mean(figure)
    return mean is not None and math.isfinite(mean)


def drawn(paint: Callable[[Any], None], style: Style, cells: Sequence[Cell]) -> str:
    """A picture of some cells with its legend below, as SVG."""

    def with_legend(axes: Any) -> None:
        paint(axes)
        axes.grid(True)
        axes.figure.legend(handles=style.legend(cells), loc="outside lower center", ncols=2, frameon=False, fontsize=8)

    return plots.draw(with_legend, height=3.2 + _ROW * math.ceil(len(style.legend(cells)) / 2))


class Style:
    """How each cell looks: the same in all pictures."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._lines = list(dict.fromkeys(self.line(cell) for cell in cells))
        levels = {cell.first.privacy: _epsilon(cell) for cell in cells}
        self._levels = sorted(levels, key=lambda level: (-levels[level], level != "no DP", level))

    def line(self, cell: Cell) -> str:
        """What one line is made of: cells that differ in their noise alone."""
        return ", ".join(part for part in (cell.first.method, cell.first.setting) if part)

    def _number(self, cell: Cell) -> int:
        return self._lines.index(self.line(cell))

    def colour(self, cell: Cell) -> str:
        """Of its line."""
        return plots.colour_of(self._number(cell))

    def dashes(self, cell: Cell) -> tuple[float, ...]:
        """Of its line; others where colours begin anew."""
        return plots.dashes_of(self._number(cell) // len(plots.COLOURS))

    def shape(self, cell: Cell) -> str:
        """Of its noise."""
        return _SHAPES[self._levels.index(cell.first.privacy) % len(_SHAPES)]

    def alpha(self, cell: Cell) -> float:
        """The more noise, the lighter."""
        rank = self._levels.index(cell.first.privacy)
        return 1.0 - 0.6 * rank / max(1, len(self._levels) - 1)

    def legend(self, cells: Sequence[Cell]) -> list[Any]:
        """Handles: first what tells lines apart, then the levels of noise."""
        from matplotlib.lines import Line2D

        shown = {self.line(cell): cell for cell in cells}
        handles = [Line2D([], [], **self.look(shown[line], "o"), label=line) for line in self._lines if line in shown]
        levels = {cell.first.privacy: cell for cell in cells if cell.first.privacy}
        if len(levels) > 1:
            known = [(level, levels[level]) for level in self._levels if level in levels]
            look: dict[str, Any] = {"color": plots.INK, "linestyle": ""}
            for level, cell in known:
                handles.append(Line2D([], [], marker=self.shape(cell), alpha=self.alpha(cell), label=level, **look))
        return handles

    def look(self, cell: Cell, marker: str) -> dict[str, Any]:
        """Options of a marker; filled otherwise where colours begin anew."""
        fill = _FILLS[self._number(cell) // len(plots.COLOURS) % len(_FILLS)]
        return {"color": self.colour(cell), "marker": marker, "fillstyle": fill, "linestyle": ""}

    def dots(self, axes: Any, cells: Sequence[Cell], x: str, y: str) -> None:
        """The cells with their intervals, as far as these say anything: what is wider than all of them does not."""
        spans = [_frame(set_limits, cells, figure) for figure, set_limits in ((x, axes.set_xlim), (y, axes.set_ylim))]
        for cell in cells:
            across, up = cell.estimate(x), cell.estimate(y)
            if across is not None and up is not None:
                halves = [told.half for told in (across, up)]
                shown = [half if half and 2 * half < span else None for half, span in zip(halves, spans, strict=True)]
                self.dot(axes, cell, (across.mean, up.mean), *shown)

    def dot(
        self, axes: Any, cell: Cell, at: tuple[float, float], across: float | None = None, up: float | None = None
    ) -> None:
        """One cell, with faint bars of these half lengths."""
        from matplotlib.colors import to_rgba

        look = self.look(cell, self.shape(cell)) | {
            "ecolor": to_rgba(self.colour(cell), 0.4),
            "alpha": self.alpha(cell),
        }
        axes.errorbar(*at, xerr=across, yerr=up, markersize=6.5, elinewidth=0.8, **look)


def _epsilon(cell: Cell) -> float:
    """The smallest that says anything of it, whatever it is for: only to put levels in an order."""
    told = (cell.mean("epsilon_max"), cell.mean("epsilon_pair_mean"))
    return min((epsilon for epsilon in told if epsilon is not None), default=0.0)


def _frame(set_limits: Callable[[float, float], Any], cells: Sequence[Cell], figure: str) -> float:
    """Leave no more room than the means need; gives how much that is."""
    means = [mean for cell in cells if (mean := cell.mean(figure)) is not None]
    margin = 0.12 * (max(means) - min(means)) or 0.05
    set_limits(min(means) - margin, max(means) + margin)
    return max(means) - min(means) + 2 * margin
