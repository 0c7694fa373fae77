"""Runs in words and numbers: key figures, side by side, for the report and the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from node.cli.runs import Run
from node.cli.summary import AtDistance, Network, Privacy, Spread, Summary


class Figure(NamedTuple):
    """One key figure: its text and, where runs can be compared by it, its number."""

    text: str
    number: float | None = None
    relative: bool = True
    """Whether a difference is told in per cent, not in the figure's own unit."""


Rows = list[tuple[str, list[Figure]]]
"""Figures by name, with every run's own."""


def comparison_table(runs: Sequence[Run]) -> Table:
    """The key figures for the terminal: a row each, runs side by side."""
    table = Table(title="Runs" if len(runs) > 1 else None)
    table.add_column("")
    for label in labels(runs):
        table.add_column(Text(_printable(label)))
    for name, figures in compared(runs, key_figures):
        table.add_row(Text(_printable(name)), *(Text(_printable(figure.text)) for figure in figures))
    return table


def labels(runs: Sequence[Run]) -> list[str]:
    """What tells the runs apart: the name if that is enough, else with the clock, else with the folder."""
    names = [run.summary.name for run in runs]
    clocks = [f"{run.summary.name} ({run.summary.clock})" for run in runs]
    folders = [f"{run.summary.name} ({run.folder.name})" for run in runs]
    paths = [str(run.folder) for run in runs]
    return next((told for told in (names, clocks, folders) if len(set(told)) == len(runs)), paths)


def compared(runs: Sequence[Run], figures_of: Callable[[Summary], dict[str, Figure]]) -> Rows:
    """Each figure that any run has, with every run's own."""
    every = [figures_of(run.summary) for run in runs]
    widest = max(every, key=len, default={})
    names = [*widest, *(name for figures in every for name in figures if name not in widest)]
    return [(name, [figures.get(name, Figure("–")) for figures in every]) for name in dict.fromkeys(names)]


def difference(figure: Figure, base: Figure) -> str:
    """By how much a figure differs from another run's; empty where that cannot be said."""
    if figure.number is None or base.number is None or figure.number == base.number:
        return ""
    if not figure.relative:
        return f"{figure.number - base.number:+.3g}"
    return f"{figure.number / base.number - 1:+.1%}" if base.number else ""


def key_figures(summary: Summary) -> dict[str, Figure]:
    """What a run was, what it reached, and what that took."""
    names = sorted(summary.metrics, key=lambda name: (name != "accuracy", name))
    return {
        "name": Figure(summary.name),
        "clock": Figure(summary.clock),
        "protocol": Figure(summary.protocol),
        "status": Figure(summary.status),
        "seed": Figure(str(summary.seed)),
        "nodes": Figure(f"{summary.nodes:,}", summary.nodes),
        "rounds": Figure(f"{summary.rounds:,}", summary.rounds),
        **{
            _meant(name, summary): Figure(_spread(summary.metrics[name]), summary.metrics[name].mean, False)
            for name in names
        },
        "time": Figure(duration(summary.time_s), summary.time_s),
        "wall time": Figure(duration(summary.wall_s), summary.wall_s),
        "messages": Figure(f"{summary.messages:,}", summary.messages),
        "bytes sent": Figure(size(summary.bytes_sent), summary.bytes_sent),
        **usage_figures(summary),
        "events": Figure(f"{summary.events:,}", summary.events),
        "tasks": Figure(f"{summary.tasks:,}", summary.tasks),
        "peak memory": Figure(size(summary.peak_rss_bytes), summary.peak_rss_bytes),
    }


def usage_figures(summary: Summary) -> dict[str, Figure]:
    """What the devices were busy with; nothing where nobody watched."""
    usage = summary.usage
    if usage is None:
        return {}
    hours, busy = usage.device_hours, usage.utilisation
    wasted = f"{hours.lost:.4g} lost, {hours.discarded:.4g} discarded"
    return {
        "device hours": Figure(f"{hours.total:.4g} ({wasted})", hours.total),
        "online hours": Figure(f"{usage.online_hours:.4g}", usage.online_hours),
        "utilisation": Figure(f"{busy.mean:.1%} ({busy.min:.1%} to {busy.max:.1%})", busy.mean, False),
    }


def fairness_figures(summary: Summary) -> dict[str, Figure]:
    """How far apart groups of nodes are, and nodes; nothing where their data do not differ."""
    fairness = summary.fairness
    if fairness is None:
        return {}
    numbers = {
        "gap between groups": fairness.accuracy_gap,
        "fair accuracy": fairness.fair_accuracy,
        "demographic parity, sum": fairness.demographic_parity.sum,
        "demographic parity, max": fairness.demographic_parity.max,
        "equalized odds, sum": fairness.equalized_odds.sum,
        "equalized odds, max": fairness.equalized_odds.max,
        "recall, sum": fairness.equalized_odds.recall,
        "standard deviation over nodes": fairness.std,
        "Jain index over nodes": fairness.jain,
        "worst tenth of the nodes": fairness.worst_decile,
    }
    known = {name: number for name, number in numbers.items() if number is not None}
    return {name: Figure(f"{number:.4f}", number, False) for name, number in known.items()}


def privacy_figures(summary: Summary) -> dict[str, Figure]:
    """What is protected, how well, and from what it is not; nothing where nothing is claimed."""
    privacy = summary.privacy
    if privacy is None:
        return {}
    told = {"protected": privacy.mechanism, "at most": privacy.guarantee}
    if privacy.epsilon is not None:
        told["mean over nodes of that epsilon"] = _epsilon(privacy.epsilon.mean)
        told["budget of that epsilon"] = "none" if privacy.budget is None else f"{privacy.budget:g}"
        told["noise over clipping norm"] = f"{privacy.sigma:g} over {privacy.clip:g}, {privacy.noise}"
        told["batches"] = privacy.sampling
    told |= {
        "public": ", ".join(privacy.public),
        "insecure": _insecure(privacy),
        "side channels": ", ".join(privacy.side_channels),
        "warnings": "; ".join(privacy.warnings),
    }
    if privacy.network is not None:
        told |= {f"nodes of each other: {name}": text for name, text in network_figures(privacy.network).items()}
    return {name: Figure(text) for name, text in told.items() if text}


def network_figures(network: Network) -> dict[str, str]:
    """What nodes have learned of each other, over all pairs of them and by distance."""
    if network.epsilon is None or network.mu is None:
        return {"not accounted": network.left_out}
    near = (f"{_hops(ring)} {_epsilon(ring.mu_mean)} (at most {_epsilon(ring.mu_max)})" for ring in network.distances)
    mean, most = _epsilon(network.epsilon.mean), _epsilon(network.epsilon.max)
    return {
        "epsilon": f"{most} for the worst pair, {mean} on average ({network.meaning})",
        "mu by hops": "; ".join(near),
        "no guarantee": "" if network.clipped else "updates are not clipped; mu is for those of norm 1",
        "missing": "; ".join(network.missing),
    }


def graph_figures(summary: Summary) -> dict[str, Figure]:
    """What the compute graph was, and what solving it took; counters that a run lacks are left out."""
    counters = summary.graph
    told = {
        "tasks recorded": ("recorded", _number),
        "tasks solved": ("solved", _number),
        "tasks never solved": ("skipped", _number),
        "updates discarded, never trained": ("discarded_trainings", _number),
        "batched calls": ("batched_calls", _number),
        "tasks in a batch": ("mean_batch", _number),
        "forced solves": ("forced_solves", _number),
        "time in forced solves": ("forced_s", duration),
        "values in memory, at most": ("peak_resident_bytes", size),
        "values written to disk": ("spilled_bytes", size),
        "values read back": ("unspilled_bytes", size),
    }
    figures = {}
    for name, (key, form) in told.items():
        number = counters.get(key)
        if isinstance(number, int | float):
            figures[name] = Figure(form(number), number)
    return {**figures, "kernel": Figure(str(counters["kernel"]))} if counters.get("kernel") else figures


# Words


def count(number: int, noun: str) -> str:
    """``1 node``, ``2,000 nodes``."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def duration(seconds: float) -> str:
    """A duration in a readable unit."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.1f} s"


def size(number: float) -> str:
    """An amount of bytes in a readable unit."""
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= length:
            return f"{number / length:.4g} {unit}"
    return f"{number:,.0f} B"


def _number(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:,.4g}"


def _spread(spread: Spread) -> str:
    if spread.mean is None and spread.min is None and spread.max is None:
        return "n/a"
    mean, std, low, high = ("–" if v is None else f"{v:.4g}" for v in (spread.mean, spread.std, spread.min, spread.max))
    return f"{mean} ± {std} ({low} to {high})"


def _insecure(privacy: Privacy) -> str:
    """What anybody can work out who knows the experiment's seed."""
    drawn = {"noise": privacy.insecure_noise, "keys": privacy.insecure_keys}
    insecure = " and ".join(name for name, is_insecure in drawn.items() if is_insecure)
    return f"{insecure}: whoever knows the seed can draw them again" if insecure else ""


def _hops(ring: AtDistance) -> str:
    return "never reached:" if ring.distance is None else f"{ring.distance:g}:"


def _epsilon(number: float | None) -> str:
    return "infinite" if number is None else f"{number:.4g}"


def _meant(metric: str, summary: Summary) -> str:
    """A metric's name; of an epsilon, with what it means nothing without."""
    privacy = summary.privacy
    if metric != "epsilon" or privacy is None:
        return metric
    return f"epsilon per {privacy.unit}, {privacy.adjacency.replace('_', '-')}, {privacy.view}"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "�" for char in text)
