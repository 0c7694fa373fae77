"""Runs in words, tables and pictures: one self-contained HTML file, and a table for the terminal.

Everything that comes from a run's folder is data: it is escaped before it becomes part of the page, and the page
forbids scripts and anything from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from node import topology
from node.cli import plots
from node.cli.runs import POINTS, Course, Curve, Floats, Run, Spread, disagreement, same_experiment
from node.config import TopologySection
from node.errors import ConfigError

_TARGETS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
_PICTURES = 6  # topologies drawn in one report
_DRAWN_NODES = 400
_DRAWN_EDGES = 4000
_THROUGH_SERVER = frozenset({"fedavg"})  # protocols that use no topology: all traffic passes node 0

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark; --soft: #5b6570; --rule: #d5dae0; --bad: #b3261e }
@media (prefers-color-scheme: dark) { :root { --soft: #9aa5b1; --rule: #3a424c; --bad: #ff8a80 } }
body { font: 16px/1.5 system-ui, sans-serif; color: CanvasText; background: Canvas;
  max-width: 66rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.6rem; margin: .5rem 0 } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem }
h3 { font-size: 1rem; margin: 0 } figure { margin: 0; min-width: 0 }
.outcome { font-size: 1.1rem } .bad, .bad pre { color: var(--bad) }
.soft, figcaption { color: var(--soft); font-size: .85rem }
.grid { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)) }
.grid svg { width: 100%; height: auto } svg.swatch, .grid svg.swatch { width: 24px; height: 8px; margin-right: .4em }
.legend span { white-space: nowrap; margin-right: 1.2em }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid var(--rule); vertical-align: top }
th { font-weight: 600 } pre { overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere }
</style>
"""


class Figure(NamedTuple):
    """One key figure: its text and, where runs can be compared by it, its number."""

    text: str
    number: float | None = None
    relative: bool = True
    """Whether a difference is told in per cent, not in the figure's own unit."""


def write_report(runs: Sequence[Run], path: Path) -> None:
    """Write one HTML file about one run, or comparing several; the same runs give the same bytes.

    Raises ConfigError where there is no run, or a run's metrics cannot be read.
    """
    if not runs:
        raise ConfigError("report: no run is given; name at least one folder that 'starling run' wrote")
    title = ", ".join(dict.fromkeys(run.summary.name for run in runs))
    accuracy = [run.course("accuracy") for run in runs]
    sent = [course and run.sent_until(course.over_time.x) for run, course in zip(runs, accuracy, strict=True)]
    parts = [
        f"{_HEAD}<title>{escape(title)}</title></head><body><main><h1>{escape(title)}</h1>",
        *(_outcome(run, label) for run, label in zip(runs, _labels(runs), strict=True)),
        _section("Key figures" if len(runs) == 1 else "Comparison", _figures_table(runs)),
        _section("Real and simulated", *(_side_by_side(real, other) for real, other in _pairs(runs))),
        _section("Learning", _learning(runs, accuracy, sent)),
        _section("Time and bytes to accuracy", _reached(runs, accuracy, sent)),
        _section("Topology", _topologies(runs, accuracy)),
        _section("Configuration", _configurations(runs)),
        "</main></body></html>\n",
    ]
    path.write_text("\n".join(part for part in parts if part), encoding="utf-8", errors="xmlcharrefreplace")


def comparison_table(runs: Sequence[Run]) -> Table:
    """The key figures for the terminal: a row each, runs side by side."""
    table = Table(title="Runs" if len(runs) > 1 else None)
    table.add_column("")
    for label in _labels(runs):
        table.add_column(Text(_printable(label)))
    for name, figures in _rows(runs):
        table.add_row(Text(_printable(name)), *(Text(_printable(figure.text)) for figure in figures))
    return table


# Words and numbers


def _labels(runs: Sequence[Run]) -> list[str]:
    """What tells the runs apart: the name if that is enough, else with the clock, else with the folder."""
    names = [run.summary.name for run in runs]
    clocks = [f"{run.summary.name} ({run.summary.clock})" for run in runs]
    folders = [f"{run.summary.name} ({run.folder.name})" for run in runs]
    paths = [str(run.folder) for run in runs]
    return next((labels for labels in (names, clocks, folders) if len(set(labels)) == len(runs)), paths)


def _outcome(run: Run, label: str) -> str:
    summary = run.summary
    who = _count(summary.nodes, "real process" if summary.clock == "real" else "simulated node")
    took = _seconds(summary.time_s) + (" of virtual time" if summary.clock == "virtual" else "")
    accuracy = summary.metrics.get("accuracy")
    mean = accuracy.mean if accuracy else None
    if summary.status == "finished":
        reached = f"reached {mean:.3f} mean test accuracy in" if mean is not None else "finished"
        text = f"{who} {reached} {_count(summary.rounds, 'round')}, {took}."
        return f'<p class="outcome"><b>{escape(label)}</b>: {escape(text)}</p>'
    what = "failed" if summary.status == "failed" else "was interrupted"
    until = f" Mean test accuracy until then: {mean:.3f}." if mean is not None else ""
    text = f"The run of {who} {what} after {took}.{until} What was measured so far is below."
    why = f"<pre>{escape(summary.error)}</pre>" if summary.error else ""
    return f'<div class="outcome bad"><b>{escape(label)}</b>: {escape(text)}{why}</div>'


def _count(number: int, noun: str) -> str:
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def _seconds(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.1f} s"


def _bytes(number: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:,.0f} B"


def _spread(spread: Spread) -> str:
    mean, std, low, high = ("–" if v is None else f"{v:.4g}" for v in (spread.mean, spread.std, spread.min, spread.max))
    return f"{mean} ± {std} ({low} to {high})"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "�" for char in text)


def _figures(run: Run) -> dict[str, Figure]:
    summary = run.summary
    first = {
        "name": Figure(summary.name),
        "clock": Figure(summary.clock),
        "protocol": Figure(summary.protocol),
        "status": Figure(summary.status),
        "seed": Figure(str(summary.seed)),
        "nodes": Figure(f"{summary.nodes:,}", summary.nodes),
        "rounds": Figure(f"{summary.rounds:,}", summary.rounds),
    }
    names = sorted(summary.metrics, key=lambda name: (name != "accuracy", name))
    metrics = {name: Figure(_spread(summary.metrics[name]), summary.metrics[name].mean, False) for name in names}
    last = {
        "time": Figure(_seconds(summary.time_s), summary.time_s),
        "wall time": Figure(_seconds(summary.wall_s), summary.wall_s),
        "messages": Figure(f"{summary.messages:,}", summary.messages),
        "bytes sent": Figure(_bytes(summary.bytes_sent), summary.bytes_sent),
        "events": Figure(f"{summary.events:,}", summary.events),
        "tasks": Figure(f"{summary.tasks:,}", summary.tasks),
        "peak memory": Figure(_bytes(summary.peak_rss_bytes), summary.peak_rss_bytes),
    }
    return {**first, **metrics, **last}


def _rows(runs: Sequence[Run]) -> list[tuple[str, list[Figure]]]:
    """Each key figure that any run has, with every run's own."""
    every = [_figures(run) for run in runs]
    widest = max(every, key=len, default={})
    names = [*widest, *(name for figures in every for name in figures if name not in widest)]
    return [(name, [figures.get(name, Figure("–")) for figures in every]) for name in dict.fromkeys(names)]


def _difference(figure: Figure, base: Figure) -> str:
    if figure.number is None or base.number is None or figure.number == base.number:
        return ""
    if not figure.relative:
        return f"{figure.number - base.number:+.3g}"
    return f"{figure.number / base.number - 1:+.1%}" if base.number else ""


# Sections


def _section(title: str, *bodies: str) -> str:
    body = "\n".join(body for body in bodies if body)
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>" if body else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text; every cell is escaped."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def _figures_table(runs: Sequence[Run]) -> str:
    def cells(figures: list[Figure]) -> list[str]:
        differences = [_difference(figure, figures[0]) for figure in figures]
        return [f.text + (f" ({d})" if d else "") for f, d in zip(figures, differences, strict=True)]

    note = '<p class="soft">Metrics: mean ± standard deviation (smallest to largest) over nodes.'
    note += " In brackets behind a figure: the difference from the first run.</p>" if len(runs) > 1 else "</p>"
    return _table(["", *_labels(runs)], ([name, *cells(figures)] for name, figures in _rows(runs))) + note


def _pairs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Every real run with every simulation of the same experiment."""
    reals = [run for run in runs if run.summary.clock == "real"]
    virtuals = [run for run in runs if run.summary.clock == "virtual"]
    return [(real, other) for real in reals for other in virtuals if same_experiment(real, other)]


def _side_by_side(real: Run, simulated: Run) -> str:
    shown = ("accuracy", "rounds", "messages", "bytes sent", "time")
    rows = [(name, figures) for name, figures in _rows([real, simulated]) if name in shown]
    cells = [(name, one.text, two.text, _difference(two, one)) for name, (one, two) in rows]
    sentences = " ".join(_agreement(real, simulated))
    table = _table(("", "real", "simulated", "difference"), cells)
    return f"<h3>{escape(real.summary.name)}</h3>{table}<p>{escape(sentences)}</p>"


def _agreement(real: Run, simulated: Run) -> list[str]:
    """Sentences on whether both runs ended with the same metrics, node by node and bit by bit."""
    names = sorted(real.summary.metrics.keys() & simulated.summary.metrics.keys() - {"bytes_sent"})
    differing = [text for text in (disagreement(name, real, simulated) for name in names) if text]
    if not names:
        return ["There are no final metrics that both runs have."]
    if not differing:
        return [f"Final metrics are equal to the last bit on every node: {', '.join(names)}."]
    sentences = ["Final metrics are not equal to the last bit:", f"{'; '.join(differing)}."]
    kinds = [run.config.executor.kind for run in (real, simulated)]
    if kinds[0] != kinds[1]:
        sentences.append(f"The executors differ ({kinds[0]} and {kinds[1]}), and promise equality to a tolerance only.")
    broken = [run.summary for run in (real, simulated) if run.summary.status != "finished"]
    sentences += [f"The {summary.clock} run did not finish ({summary.status})." for summary in broken]
    return sentences


def _learning(runs: Sequence[Run], accuracy: Sequence[Course | None], sent: Sequence[Floats | None]) -> str:
    time = "virtual time (s)" if all(run.summary.clock == "virtual" for run in runs) else "time (s)"
    loss = [run.course("loss") for run in runs]
    pictures = [
        *_over_rounds_and_time("accuracy", accuracy, time),
        *_over_rounds_and_time("loss", loss, time),
        *_over_bytes(accuracy, sent),
        *_over_nodes(accuracy),
    ]
    if not pictures:
        return "<p>No accuracy and no loss was recorded.</p>"
    legend = _legend(runs) if len(runs) > 1 else ""
    figures = "".join(f"<figure><h3>{title}</h3>{legend}{picture}</figure>" for title, picture in pictures)
    note = "Lines: mean over nodes. Bands: 10th to 90th percentile. Thin lines: lowest and highest node. "
    note += "Spread: the dashed line or large dot is the median."
    left_out = sum(course.left_out for course in (*accuracy, *loss) if course)
    note += f" {_count(left_out, 'recorded value')} left out: infinite or not a number." if left_out else ""
    return f'<div class="grid">{figures}</div><p class="soft">{note}</p>'


def _over_rounds_and_time(metric: str, courses: Sequence[Course | None], time: str) -> list[tuple[str, str]]:
    if not any(courses):
        return []
    rounds = plots.lines([course and course.by_round for course in courses], "round", metric)
    times = plots.lines([course and course.over_time for course in courses], time, metric)
    return [(f"{metric.title()} over rounds", rounds), (f"{metric.title()} over time", times)]


def _over_bytes(courses: Sequence[Course | None], sent: Sequence[Floats | None]) -> list[tuple[str, str]]:
    curves = [
        None if course is None or until is None else replace(course.over_time, x=until)
        for course, until in zip(courses, sent, strict=True)
    ]
    if not any(curves):
        return []
    return [("Accuracy over bytes", plots.lines(curves, "sent by all nodes", "accuracy", "B"))]


def _over_nodes(courses: Sequence[Course | None]) -> list[tuple[str, str]]:
    finals = [course.final if course and course.final.size > 1 else None for course in courses]
    known = [values for values in finals if values is not None]
    if not known or (len(courses) == 1 and np.ptp(known[0]) == 0):
        return []
    picture = (
        plots.histogram(known[0], "final accuracy") if len(courses) == 1 else plots.strips(finals, "final accuracy")
    )
    return [("Spread over nodes", picture)]


def _legend(runs: Sequence[Run]) -> str:
    labels = (f"<span>{plots.swatch(i)}{escape(label)}</span> " for i, label in enumerate(_labels(runs)))
    return f'<div class="legend">{"".join(labels)}</div>'


def _reached(runs: Sequence[Run], courses: Sequence[Course | None], sent: Sequence[Floats | None]) -> str:
    """When the mean over all nodes, and their worst tenth, first reached each target, and at what cost."""
    known = [(label, c.over_time, until) for label, c, until in zip(_labels(runs), courses, sent, strict=True) if c]
    targets = [t for t in _TARGETS if any(curve.first(t) is not None for _, curve, _ in known)][-4:]
    rows = [(label, f"{t:g}", *_costs(curve, until, t)) for t in targets for label, curve, until in known]
    if not rows:
        return ""
    header = ("run", "accuracy", "mean over nodes", "worst tenth of nodes", "bytes sent until the mean")
    note = (
        f"Looked up at every recorded time (at {POINTS} evenly spaced times where there are more), not interpolated; "
    )
    note += "a mean counts once every node that records accuracy has done so."
    return _table(header, rows) + f'<p class="soft">{note}</p>'


def _costs(curve: Curve, sent: Floats | None, target: float) -> tuple[str, str, str]:
    mean, worst = curve.first(target), curve.first(target, worst_decile=True)
    return (
        "not reached" if mean is None else _seconds(curve.x[mean]),
        "not reached" if worst is None else _seconds(curve.x[worst]),
        "–" if mean is None or sent is None else _bytes(sent[mean]),
    )


def _topologies(runs: Sequence[Run], courses: Sequence[Course | None]) -> str:
    drawn = list(zip(runs, _labels(runs), courses, strict=True))[:_PICTURES]
    figures = (f"<figure><h3>{escape(label)}</h3>{_topology(run, course)}</figure>" for run, label, course in drawn)
    rest = len(runs) - len(drawn)
    note = f'<p class="soft">The first {_PICTURES} runs are drawn.</p>' if rest else ""
    return f'<div class="grid">{"".join(figures)}</div>{note}'


def _topology(run: Run, course: Course | None) -> str:
    """A picture of who talks to whom, or a sentence that says why there is none."""
    nodes = run.summary.nodes
    if nodes > _DRAWN_NODES:
        return f"<p>Not drawn: {nodes:,} nodes are more than the {_DRAWN_NODES} that a picture can show.</p>"
    served = run.config.protocol.use in _THROUGH_SERVER
    section = TopologySection(kind="star") if served else run.config.topology
    try:
        graph = topology.build(section, nodes, run.config.seed)
        edges = graph.edges(0)
    except ConfigError as error:
        return f"<p>Not drawn: {escape(str(error))}</p>"
    if len(edges) > _DRAWN_EDGES:
        return f"<p>Not drawn: {len(edges):,} edges are more than the {_DRAWN_EDGES:,} that a picture can show.</p>"
    values = dict(zip(course.nodes.tolist(), course.final.tolist(), strict=True)) if course else {}
    picture = plots.network(graph.kind, nodes, edges, values, "final accuracy", directed=graph.directed)
    what = "All traffic passes the server, node 0." if served else f"{graph.kind}: {_count(len(edges), 'edge')}."
    fresh = " This is round 0; the graph changes every round." if graph.fresh else ""
    hollow = " Hollow nodes recorded no accuracy." if len(values) < nodes else ""
    return f"{picture}<figcaption>{escape(what)}{fresh}{hollow}</figcaption>"


def _configurations(runs: Sequence[Run]) -> str:
    texts = zip(_labels(runs), (run.toml for run in runs), strict=True)
    folded = (
        f"<details><summary>{escape(label)}</summary><pre>{escape(text)}</pre></details>" for label, text in texts
    )
    return _config_differences(runs) + "".join(folded)


def _config_differences(runs: Sequence[Run]) -> str:
    """The keys whose values are not the same in all runs."""
    flat = [dict(_flat(run.config.model_dump())) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = [(key, *(str(values.get(key, "–")) for values in flat)) for key in keys]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    return _table(("differing key", *_labels(runs)), differing) if differing else ""


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
