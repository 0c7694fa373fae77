"""Cohort-parallel learning as a section of a report, and in lines for the terminal: cohorts, and what unified them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from node.cli.cohort_summary import Cohort, Cohorts, Unifier
from node.cli.figures import count, duration, labels, size
from node.cli.runs import Run

Table = Callable[[Sequence[str], Iterable[Sequence[str]]], str]
"""Makes HTML of a header and rows of plain text."""

_WHOLE = (
    "cohorts",
    "converged after",
    "unified in",
    "time to convergence",
    "last folded in after",
    "training on devices",
    "up",
    "down",
    "unifying",
    "control",
)
_COHORT = (
    "cohort",
    "members",
    "leaders",
    "elections",
    "failovers",
    "rounds",
    "members a round",
    "stopped after",
    "accuracy of its model",
)
_UNIFIER = ("unifier", "accuracy", "loss", "agreement with its teacher", "time", "FLOPs", "tensors sent")


def section(runs: Sequence[Run], table: Table) -> str:
    """Every run's cohorts, and what their models have become by each unifier; empty where no run has any."""
    known = [(label, run.summary.cpfl) for label, run in zip(labels(runs), runs, strict=True) if run.summary.cpfl]
    if not known:
        return ""
    several = len(runs) > 1
    cohorts = [(label, *_cohort(each)) for label, found in known for each in found.cohorts]
    unified = [(label, *row) for label, found in known for row in _unified(found)]
    whole = [(label, *row) for label, found in known for row in [_whole(found)]]
    note = (
        "Accuracies are on the test set, which nobody has learned or chosen by. Time of a unifier: of the node that "
        "unifies, while it makes the model; tensors sent: what it takes from cohorts, and the result to everybody. "
        "Those that were compared were tried after the run had its result."
    )
    return "".join(
        (
            _table(table, several, _WHOLE, whole),
            _table(table, several, _COHORT, cohorts),
            _table(table, several, _UNIFIER, unified),
            f'<p class="soft">{note}</p>',
        )
    )


def lines(cohorts: Cohorts) -> Iterator[str]:
    """The same in a few lines of text."""
    rounds = [each.rounds for each in cohorts.cohorts if each.rounds is not None]
    few, most = min(rounds, default=0), max(rounds, default=0)
    lost = sum(each.lost is not None for each in cohorts.cohorts)
    yield (
        f"{count(len(cohorts.cohorts), 'cohort')}{f' ({lost} lost)' if lost else ''}, {few} to {most} rounds; "
        f"converged after "
        f"{_seconds(cohorts.converged_s)}, unified in {_seconds(cohorts.unify_s)}; "
        f"{cohorts.device_cpu_s:,.4g} s of training on devices"
    )
    sent = cohorts.bytes
    yield (
        f"sent {size(sent.up)} up, {size(sent.down)} down, {size(sent.unifying)} for unifying, "
        f"{size(sent.control)} for control"
    )
    told = [f"mean cohort model {_share(cohorts.mean_cohort_accuracy)}"]
    told += [f"{name} {_share(each.accuracy)}" for name, each in cohorts.unified.items()]
    yield f"accuracy: {', '.join(told)}"


def _whole(found: Cohorts) -> tuple[str, ...]:
    parts = (found.converged_s, found.unify_s)
    both = None if None in parts else sum(part for part in parts if part is not None)
    sent = found.bytes
    return (
        f"{len(found.cohorts)}",
        _seconds(found.converged_s),
        _seconds(found.unify_s),
        _seconds(both),
        _seconds(found.folded_s),
        _seconds(found.device_cpu_s),
        *(size(each) for each in (sent.up, sent.down, sent.unifying, sent.control)),
    )


def _cohort(each: Cohort) -> tuple[str, ...]:
    return (
        str(each.cohort),
        _number(each.members),
        ", ".join(map(str, each.leaders)) or "–",
        str(each.elections),
        str(each.failovers) + (f" ({each.repeated_rounds} repeated rounds)" if each.repeated_rounds else ""),
        _number(each.rounds),
        "–" if each.participants is None else f"{each.participants:.4g}",
        each.lost or _seconds(each.stopped_s),
        _share(each.accuracy),
    )


def _unified(found: Cohorts) -> Iterator[tuple[str, ...]]:
    """The mean cohort model first, then the run's own unifier, then those that it was compared with."""
    yield ("mean cohort model", _share(found.mean_cohort_accuracy), *["–"] * (len(_UNIFIER) - 2))
    for name, each in found.unified.items():
        yield (name + (" (the run's)" if name == found.unifier else " (compared)"), *_figures(each))


def _figures(each: Unifier) -> tuple[str, ...]:
    return (
        _share(each.accuracy),
        "–" if each.loss is None else f"{each.loss:.4f}",
        _share(each.agreement),
        _seconds(each.time_s),
        "–" if each.flops is None else f"{each.flops:.3g}",
        "–" if each.bytes is None else size(each.bytes),
    )


def _table(table: Table, several: bool, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """With a column that says which run it is, where there are several."""
    if several:
        return table(("run", *header), rows)
    return table(header, [row[1:] for row in rows])


def _seconds(value: float | None) -> str:
    return "–" if value is None else duration(value)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _number(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
