"""The pictures of a report: inline SVG that follows the page's light or dark colours and is the same every time.

Colours are those of Okabe and Ito ("Color Universal Design", 2008), without the two that vanish on white or black;
maps of values use cividis (Nunez, Anderton and Renslow, PLOS ONE 2018). Both are made for colour-blind readers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from node.cli.runs import Curve, Floats, Integers
from node.timeline import ACTIVITIES, TRAINING, Timeline

if TYPE_CHECKING:
    import networkx as nx

Edges = Sequence[tuple[int, int]] | Integers

COLOURS = ("#0f83c9", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9")
_DASHES = ((), (6.0, 3.0), (2.0, 2.0), (8.0, 2.0, 2.0, 2.0), (4.0, 4.0))  # so that equal lines show one another
INK = "#123456"
"""Stands for the page's text colour until the SVG is written."""
_PAPER = "#fedcba"  # stands for the page's background
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "starling",
    "text.parse_math": False,
    "font.size": 10.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
}
_ACTIVITIES = {"training": "#0f83c9", "sending": "#e69f00", "waiting": "#9aa5b13f", "offline": "#737373"}
_NAMED_ROWS = 24  # rows of a timeline up to which each one has its node's number
_BANDS = 3  # more bands than this hide one another
_DOTS = 64  # nodes up to which each one is a dot of its own
_POINTS_PER_UNIT = 110.0  # of a layout, which spans two units, in a picture of a network
_EXACT_LAYOUT = 80  # nodes up to which the slower, better layout is worth its time


def swatch(index: int) -> str:
    """The line of the ``index``-th run, as a small SVG for a legend."""
    dashes = " ".join(f"{length:g}" for length in dashes_of(index))
    return (
        f'<svg class="swatch" viewBox="0 0 24 8"><line x1="0" y1="4" x2="24" y2="4" stroke="{colour_of(index)}" '
        f'stroke-width="3" stroke-dasharray="{dashes}"/></svg>'
    )


def lines(curves: Sequence[Curve | None], x_label: str, y_label: str, x_unit: str = "") -> str:
    """One line per run: the mean over nodes; bands for a few runs, extremes for one; None draws nothing.

    With ``x_unit`` the x axis counts in thousands and millions of it.
    """
    drawn = [(index, curve) for index, curve in enumerate(curves) if curve is not None]

    def paint(axes: Any) -> None:
        for index, curve in drawn:
            colour = colour_of(index)
            if len(drawn) <= _BANDS:
                axes.fill_between(curve.x, curve.p10, curve.p90, color=colour, alpha=0.22, linewidth=0)
            if len(drawn) == 1:
                for extreme in (curve.min, curve.max):
                    axes.plot(curve.x, extreme, color=colour, alpha=0.55, linewidth=0.7)
            marker = "o" if curve.x.size == 1 else None
            axes.plot(curve.x, curve.mean, color=colour, dashes=dashes_of(index), marker=marker)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.margins(x=0.02)
        axes.grid(True)
        _count_x(axes, x_unit)

    return draw(paint)


def log_log(curves: Sequence[tuple[Floats, Floats] | None], x_label: str, y_label: str) -> str:
    """One line per run, [points] over [points], both axes logarithmic; the diagonal is dashed. None draws nothing."""

    def paint(axes: Any) -> None:
        drawn = [(index, curve) for index, curve in enumerate(curves) if curve is not None]
        lowest = min(float(x.min()) for _, (x, _) in drawn)
        axes.plot([lowest, 1], [lowest, 1], color=INK, linewidth=0.8, dashes=(4, 2))
        for index, (x, y) in drawn:
            axes.plot(x, y, color=colour_of(index), dashes=dashes_of(index))
        axes.set(xlabel=x_label, ylabel=y_label, xscale="log", yscale="log")
        plain_numbers(axes.xaxis, axes.yaxis)
        axes.grid(True)

    return draw(paint)


def side_by_side(above: Floats, below: Floats, labels: tuple[str, str]) -> str:
    """Two rows of grey images [images, height, width] with values from 0 to 1."""

    def paint(axes: Any, other: Any) -> None:
        for place, images, label in ((axes, above, labels[0]), (other, below, labels[1])):
            framed = np.pad(images, ((0, 0), (0, 0), (0, 1)), constant_values=np.nan)
            place.imshow(np.hstack(list(framed)), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            place.set(xticks=[], yticks=[], ylabel=label)

    return draw(paint, height=2.4, panels=(1.0, 1.0))


def histogram(values: Floats, x_label: str) -> str:
    """How many nodes ended where, with a line at the median."""

    def paint(axes: Any) -> None:
        bins = min(30, max(5, 2 * int(np.sqrt(values.size))))
        axes.hist(values, bins=bins, color=colour_of(0), alpha=0.75, rwidth=0.92)
        axes.axvline(float(np.median(values)), color=INK, linewidth=1.2, dashes=(4, 2))
        axes.set(xlabel=x_label, ylabel="nodes")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.grid(True, axis="y")

    return draw(paint, height=2.6)


def strips(groups: Sequence[Floats | None], x_label: str) -> str:
    """One row per run: all nodes (thin), the 10th to 90th percentile (thick), the median (dot), each of a few nodes."""
    drawn = [(index, values) for index, values in enumerate(groups) if values is not None]

    def paint(axes: Any) -> None:
        for row, (index, values) in enumerate(drawn):
            colour = colour_of(index)
            low, p10, median, p90, high = np.percentile(values, (0, 10, 50, 90, 100))
            axes.plot((low, high), (row, row), color=colour, linewidth=1.0)
            axes.plot((p10, p90), (row, row), color=colour, linewidth=7.0, alpha=0.45, solid_capstyle="butt")
            if values.size <= _DOTS:
                axes.plot(values, np.full(values.size, row + 0.28), ".", color=colour, markersize=3.5, alpha=0.8)
            axes.plot(median, row, "o", color=colour, markersize=6.0)
        axes.set(xlabel=x_label, yticks=[], ylim=(len(drawn) - 0.4, -0.6))
        axes.spines["left"].set_visible(False)
        axes.grid(True, axis="x")

    return draw(paint, height=1.0 + 0.4 * len(drawn))


def network(kind: str, nodes: int, edges: Edges, values: Mapping[int, float], label: str, *, directed: bool) -> str:
    """The topology: a dot per node, coloured by its value, hollow where it has none; directed edges are arrows."""
    at = _layout(kind, nodes, edges)
    known = np.array([node for node in range(nodes) if node in values], dtype=np.int64)
    unknown = np.array([node for node in range(nodes) if node not in values], dtype=np.int64)
    area = float(np.clip(6000 / nodes, 14, 220))

    def paint(axes: Any) -> None:
        _paint_edges(axes, at, edges, area if directed else None)
        axes.scatter(*at[unknown].T, s=area, facecolor=_PAPER, edgecolor=INK, linewidth=0.8, zorder=2)
        if known.size:
            colours = [values[int(node)] for node in known]
            dots = axes.scatter(*at[known].T, s=area, c=colours, cmap=_map(), edgecolor=INK, linewidth=0.5, zorder=2)
            if np.ptp(colours) > 0:
                axes.figure.colorbar(dots, ax=axes, shrink=0.7, label=label).outline.set_visible(False)
        axes.set_aspect("equal")
        axes.margins(0.08)
        axes.set_axis_off()

    return draw(paint, height=4.0)


def activities(timeline: Timeline) -> str:
    """What nodes did when: shares of all of them over time, and below what most nodes of each row did.

    The busiest row is on top. The raster is one small image, so that the size depends on neither nodes nor events.
    """
    order = np.argsort(-timeline.shares[:, :, TRAINING] @ np.diff(timeline.edges_s), kind="stable")
    shares = np.average(timeline.shares, axis=0, weights=timeline.nodes)
    palette = np.array([_rgba(_ACTIVITIES[name]) for name in ACTIVITIES], dtype=np.uint8)
    rows, end_s = order.size, timeline.edges_s[-1]

    def paint(above: Any, below: Any) -> None:
        middle_s = (timeline.edges_s[:-1] + timeline.edges_s[1:]) / 2
        stacked = [shares[:, ACTIVITIES.index(name)] for name in _ACTIVITIES]
        layers = above.stackplot(middle_s, stacked, colors=list(_ACTIVITIES.values()), linewidth=0)
        above.legend(layers, list(_ACTIVITIES), ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
        above.set(ylim=(0, 1), ylabel="share", yticks=(0, 0.5, 1))
        image = palette[timeline.shares[order].argmax(axis=2)]
        below.imshow(image, aspect="auto", interpolation="none", extent=(0, end_s, rows, 0))
        below.set(xlim=(0, end_s), xlabel="virtual time (s)", ylabel=_row_label(timeline), yticks=[])
        if rows <= _NAMED_ROWS and timeline.nodes.max() == 1:
            below.set_yticks(np.arange(rows) + 0.5, [str(node) for node in order])
            below.tick_params(axis="y", length=0)

    return draw(paint, height=4.4, panels=(1.0, 2.6))


def _row_label(timeline: Timeline) -> str:
    groups, nodes = timeline.nodes.size, int(timeline.nodes.sum())
    return "node" if groups == nodes else f"{nodes:,} nodes in {groups} groups"


def _rgba(colour: str) -> list[int]:
    return [int(part, 16) for part in re.findall("..", colour.removeprefix("#").ljust(8, "f"))]


def plain_numbers(*axis: Any) -> None:
    """Numbers as people write them, also on logarithmic axes: powers of ten are formulas, which are not drawn."""
    from matplotlib.ticker import NullFormatter

    for one in axis:
        one.set_major_formatter(lambda value, _: f"{value:g}")
        one.set_minor_formatter(NullFormatter())


def colour_of(index: int) -> str:
    """The colour of the ``index``-th of several things."""
    return COLOURS[index % len(COLOURS)]


def dashes_of(index: int) -> tuple[float, ...]:
    """The dashes of the ``index``-th of several lines, so that equal ones show one another."""
    return _DASHES[index % len(_DASHES)]


def _map() -> Any:
    from matplotlib import colormaps

    return colormaps["cividis"].resampled(24)


def _count_x(axes: Any, unit: str) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=5 if unit else 8, steps=[1, 2, 5, 10]))
    if unit:
        axes.xaxis.set_major_formatter(EngFormatter(unit=unit))


def _paint_edges(axes: Any, at: Floats, edges: Edges, heads: float | None) -> None:
    """Lines, or with ``heads`` (the area of a node's dot) arrows that end at the rim of the dot."""
    from matplotlib.collections import LineCollection

    pairs = np.asarray(edges, dtype=np.int64).reshape(-1, 2)
    begin, end = at[pairs[:, 0]], at[pairs[:, 1]]
    if heads is None:
        axes.add_collection(
            LineCollection(list(np.stack([begin, end], axis=1)), colors=INK, alpha=0.35, linewidths=0.8)
        )
        return
    along = end - begin
    rim = (np.sqrt(heads) / 2 + 1.5) / _POINTS_PER_UNIT / np.linalg.norm(along, axis=1, keepdims=True)
    shape = {"angles": "xy", "scale_units": "xy", "scale": 1.0, "width": 0.004, "headwidth": 6.0}
    axes.quiver(*begin.T, *(along * np.maximum(1 - rim, 0.2)).T, color=INK, alpha=0.4, zorder=1, **shape)


def _layout(kind: str, nodes: int, edges: Edges) -> Floats:
    """Positions of shape (nodes, 2)."""
    import networkx as nx

    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(nodes))
    graph.add_edges_from(np.asarray(edges).reshape(-1, 2).tolist())
    if kind in ("ring", "exponential", "one-peer", "full"):
        places = nx.circular_layout(graph)
    elif kind == "star":
        places = nx.shell_layout(graph, [[0], list(range(1, nodes))])
    elif nodes <= _EXACT_LAYOUT and nx.is_connected(graph):
        places = nx.kamada_kawai_layout(graph)
    else:
        places = nx.spring_layout(graph, seed=0)
    return np.array([places[node] for node in range(nodes)], dtype=np.float64)


def draw(paint: Callable[..., None], height: float = 3.0, panels: Sequence[float] = (1.0,)) -> str:
    """What ``paint`` puts on axes 5 inches wide, as SVG for the inside of a page.

    With several ``panels`` (their relative heights) ``paint`` gets as many axes, one above the other.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    text = io.StringIO()
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(5.0, height), layout="constrained")
        paint(*figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=panels)[:, 0])
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return _inline(text.getvalue())


def _inline(document: str) -> str:
    """An SVG document as an element of a page: no prolog, no fixed size, and names that are hashes only."""
    body = document[document.index("<svg") :].strip().replace(INK, "currentColor").replace(_PAPER, "Canvas")
    _, box, rest = re.split(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', body, maxsplit=1)
    rest = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", rest, flags=re.DOTALL)
    rest = re.sub(r'<g id="[^"]*"', "<g", rest)
    rest = re.sub(r"font-family: [^;\"]*", "font-family: sans-serif", rest)
    return f'<svg viewBox="{box}" role="img">{rest}'
