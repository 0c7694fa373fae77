"""Runs in words, tables and pictures: one self-contained HTML file.

Everything that comes from a run's folder is data: it is escaped before it becomes part of the page, and the page
forbids scripts and anything from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np

from node import topology
from node.cli import cohort_plots, cohorts, figures, leaks, plots, tradeoff_plots
from node.cli.figures import Figure, count, difference, duration, labels, size
from node.cli.runs import Course, Floats, Run, disagreement, same_experiment
from node.cli.summary import Summary
from node.config import TopologySection
from node.errors import ConfigError
from node.experiment.loading import flat

_PICTURES = 6  # topologies, and timelines, drawn in one report
_COLUMNS = 6  # runs up to which each one is a column of a table, and not a row
_DRAWN_NODES = 400
_DRAWN_EDGES = 4000
_THROUGH_SERVER = frozenset({"fedavg"})  # protocols that use no topology: all traffic passes node 0

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
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
        *(_outcome(run, label) for run, label in zip(runs, labels(runs), strict=True)),
        _section("Key figures" if len(runs) == 1 else "Comparison", _key_figures(runs)),
        _section("Real and simulated", *(_side_by_side(real, other) for real, other in _pairs(runs))),
        _section("Trade-off", tradeoff_plots.section(runs)),
        _section("How many cohorts", cohort_plots.section(runs, _table)),
        _section("Cohorts", cohorts.section(runs, _table)),
        _section("Fairness", _fairness(runs)),
        _section("Privacy", _figures_table(runs, figures.privacy_figures)),
        _section("Attacks", leaks.attacks(runs)),
        _section("Learning", _learning(runs, accuracy, sent)),
        _section("Time and bytes to accuracy", _reached(runs)),
        _section("What nodes did when", _timelines(runs)),
        _section("Computation", _figures_table(runs, figures.graph_figures)),
        _section("Topology", _topologies(runs, accuracy)),
        _section("Configuration", _configurations(runs)),
        "</main></body></html>\n",
    ]
    path.write_text("\n".join(part for part in parts if part), encoding="utf-8", errors="xmlcharrefreplace")


def _outcome(run: Run, label: str) -> str:
    summary = run.summary
    who = count(summary.nodes, "real process" if summary.clock == "real" else "simulated node")
    took = duration(summary.time_s) + (" of virtual time" if summary.clock == "virtual" else "")
    accuracy = summary.metrics.get("accuracy")
    mean = accuracy.mean if accuracy else None
    if summary.status == "finished":
        reached = f"reached {mean:.3f} mean test accuracy in" if mean is not None else "finished"
        text = f"{who} {reached} {count(summary.rounds, 'round')}, {took}."
        return f'<p class="outcome"><b>{escape(label)}</b>: {escape(text)}</p>'
    what = "failed" if summary.status == "failed" else "was interrupted"
    until = f" Mean test accuracy until then: {mean:.3f}." if mean is not None else ""
    text = f"The run of {who} {what} after {took}.{until} What was measured so far is below."
    why = f"<pre>{escape(summary.error)}</pre>" if summary.error else ""
    return f'<div class="outcome bad"><b>{escape(label)}</b>: {escape(text)}{why}</div>'


# Sections


def _section(title: str, *bodies: str) -> str:
    body = "\n".join(body for body in bodies if body)
    return f"<section><h2>{escape(title)}</h2>\n{body}</section>" if body else ""


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text; every cell is escaped."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def _key_figures(runs: Sequence[Run]) -> str:
    note = '<p class="soft">Metrics: mean ± standard deviation (smallest to largest) over nodes.'
    note += " In brackets behind a figure: the difference from the first run.</p>" if len(runs) > 1 else "</p>"
    return _figures_table(runs, figures.key_figures) + note


def _figures_table(runs: Sequence[Run], figures_of: Callable[[Summary], dict[str, Figure]]) -> str:
    """Figures of all runs; many runs are rows, because a page has room for those."""

    def cells(told: list[Figure]) -> list[str]:
        differences = [difference(figure, told[0]) for figure in told]
        return [f.text + (f" ({d})" if d else "") for f, d in zip(told, differences, strict=True)]

    rows = [[name, *cells(told)] for name, told in figures.compared(runs, figures_of)]
    return _runs_table("", runs, rows) if rows else ""


def _runs_table(corner: str, runs: Sequence[Run], rows: Sequence[Sequence[str]]) -> str:
    """A table with a column for each run, or turned around where there are many."""
    table: list[Sequence[str]] = [[corner, *labels(runs)], *rows]
    if len(runs) > _COLUMNS:
        table = list(zip(*table, strict=True))
    return _table(table[0], table[1:])


def _pairs(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Every real run with every simulation of the same experiment."""
    reals = [run for run in runs if run.summary.clock == "real"]
    virtuals = [run for run in runs if run.summary.clock == "virtual"]
    return [(real, other) for real in reals for other in virtuals if same_experiment(real, other)]


def _side_by_side(real: Run, simulated: Run) -> str:
    shown = ("accuracy", "rounds", "messages", "bytes sent", "time")
    rows = [row for row in figures.compared([real, simulated], figures.key_figures) if row[0] in shown]
    cells = [(name, one.text, two.text, difference(two, one)) for name, (one, two) in rows]
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


def _fairness(runs: Sequence[Run]) -> str:
    """How each group of nodes fared on test samples of its own kind, and how far apart groups and nodes are."""
    rows = [
        (label, name, f"{group.nodes:,}", f"{group.accuracy:.4f}")
        for label, run in zip(labels(runs), runs, strict=True)
        if run.summary.fairness
        for name, group in run.summary.fairness.groups.items()
    ]
    apart = _figures_table(runs, figures.fairness_figures)
    if not rows:
        return apart
    note = "Every final model is judged on test samples of its node's own kind. Parity and odds: differences between "
    note += "groups in how often labels are predicted, at all and for samples of each label; 0 is fair."
    groups = _table(("run", "group", "nodes", "accuracy of the final models"), rows)
    return f'{groups}{apart}<p class="soft">{note}</p>'


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
    drawn = "".join(f"<figure><h3>{title}</h3>{legend}{picture}</figure>" for title, picture in pictures)
    note = "Lines: mean over nodes. Bands: 10th to 90th percentile. Thin lines: lowest and highest node. "
    note += "Spread: the dashed line or large dot is the median."
    left_out = sum(course.left_out for course in (*accuracy, *loss) if course)
    note += f" {count(left_out, 'recorded value')} left out: infinite or not a number." if left_out else ""
    return f'<div class="grid">{drawn}</div><p class="soft">{note}</p>'


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
    entries = (f"<span>{plots.swatch(i)}{escape(label)}</span> " for i, label in enumerate(labels(runs)))
    return f'<div class="legend">{"".join(entries)}</div>'


def _reached(runs: Sequence[Run]) -> str:
    """When the mean over all nodes, and all but their worst tenth, first reached each target, and at what cost."""
    rows = [
        (label, target, *_costs(run.summary, target))
        for target in sorted({target for run in runs for target in run.summary.time_to_accuracy_s}, key=float)
        for label, run in zip(labels(runs), runs, strict=True)
        if target in run.summary.time_to_accuracy_s and "accuracy" in run.summary.metrics
    ]
    if not rows:
        return ""
    header = ("run", "accuracy", "mean over nodes", "sent by then", "all but the worst tenth", "sent by then")
    note = (
        "Looked up at every time at which a node recorded accuracy, not interpolated; counts once every node that "
        "records accuracy has done so. Bytes: of the nodes that record."
    )
    return _table(header, rows) + f'<p class="soft">{note}</p>'


def _costs(summary: Summary, target: str) -> Iterator[str]:
    for times, costs in (
        (summary.time_to_accuracy_s, summary.bytes_to_accuracy),
        (summary.time_to_accuracy_worst_decile_s, summary.bytes_to_accuracy_worst_decile),
    ):
        time_s, sent = times.get(target), costs.get(target)
        yield "not reached" if time_s is None else duration(time_s)
        yield "–" if sent is None else size(sent)


def _timelines(runs: Sequence[Run]) -> str:
    """What nodes did when, run by run, on one page with what share of their time it took."""
    known = [(label, run, run.timeline()) for label, run in zip(labels(runs), runs, strict=True)]
    watched = [(label, run, timeline) for label, run, timeline in known if timeline is not None]
    if not watched:
        return ""
    drawn = "".join(
        f"<figure><h3>{escape(label)}</h3>{plots.activities(timeline)}"
        f"<figcaption>{escape(_shares(run.summary))}</figcaption></figure>"
        for label, run, timeline in watched[:_PICTURES]
    )
    note = "Above: shares of all nodes. Below: a row for each node, or group of nodes, the busiest on top; "
    note += "the colour is what most of them did."
    note += f" The first {_PICTURES} runs are drawn." if len(watched) > _PICTURES else ""
    return f'<div class="grid">{drawn}</div><p class="soft">{note}</p>'


def _shares(summary: Summary) -> str:
    shares = summary.usage.shares if summary.usage else {}
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items())


def _topologies(runs: Sequence[Run], courses: Sequence[Course | None]) -> str:
    drawn = list(zip(runs, labels(runs), courses, strict=True))[:_PICTURES]
    pictures = (f"<figure><h3>{escape(label)}</h3>{_topology(run, course)}</figure>" for run, label, course in drawn)
    rest = len(runs) - len(drawn)
    note = f'<p class="soft">The first {_PICTURES} runs are drawn.</p>' if rest else ""
    return f'<div class="grid">{"".join(pictures)}</div>{note}'


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
    what = "All traffic passes the server, node 0." if served else f"{graph.kind}: {count(len(edges), 'edge')}."
    fresh = " This is round 0; the graph changes every round." if graph.fresh else ""
    hollow = " Hollow nodes recorded no accuracy." if len(values) < nodes else ""
    return f"{picture}<figcaption>{escape(what)}{fresh}{hollow}</figcaption>"


def _configurations(runs: Sequence[Run]) -> str:
    texts = zip(labels(runs), (run.toml for run in runs), strict=True)
    folded = (
        f"<details><summary>{escape(label)}</summary><pre>{escape(text)}</pre></details>" for label, text in texts
    )
    return _config_differences(runs) + "".join(folded)


def _config_differences(runs: Sequence[Run]) -> str:
    """The keys whose values are not the same in all runs."""
    configs = [dict(flat(run.config.model_dump())) for run in runs]
    keys = dict.fromkeys(key for values in configs for key in values)
    rows = [(key, *(str(values.get(key, "–")) for values in configs)) for key in keys]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    return _runs_table("differing key", runs, differing) if differing else ""
