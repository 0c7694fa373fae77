"""Cohort-parallel learning at many settings: a row for each run, a cell for those that differ in their seed alone.

Beside the cohorts stand what they have to be held against: one network that all nodes train, the same with as many
nodes a round as cohorts have, and learning without leaders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from node.cli.cohort_summary import Cohorts, Unifier
from node.cli.runs import Run
from node.experiment.comparison import Estimate, estimate
from node.experiment.loading import flat
from node.experiment.sweep import write_table
from node.unifiers import STUDENTS

CSV = "cohorts.csv"
PROTOCOL = "cpfl"
SHARE = 0.75
"""Of the cohorts: when these have converged, besides when all have."""
_BESIDE = ("name", "seed", "clock", "record", "executor")
"""Keys that make no other cell."""
_STOPPING = "protocol.stopping."
_SAID = ("cohorts", "sample", "forming", "sampling", "compare", "unify")
"""Options that a label says in words of its own, or not at all."""

RESULTS: Mapping[str, Sequence[str]] = {
    "ensemble": ("ensemble-label", "ensemble-uniform"),
    "average": ("average", "fisher"),
    "student": STUDENTS,
}
"""What several models become, and the unifiers that make it, of which the first that a run knows counts."""

Figures = dict[str, float | None]


@dataclass(frozen=True)
class Row:
    """What one run came to."""

    run: Run
    setting: str
    """In what it differs from others besides its protocol; may be empty."""
    method: str
    """Cohorts, how they form and whom they ask; or another protocol."""
    course: str
    """When it ends, where that differs."""
    figures: Figures
    """By the names of the columns; None where there is no such thing."""

    @property
    def cell(self) -> tuple[str, str, str]:
        """What it has in common with the runs of other seeds."""
        return self.setting, self.method, self.course

    @property
    def cohorts(self) -> int | None:
        """How many there are; None in other protocols."""
        return len(self.run.summary.cpfl.cohorts) if self.run.summary.cpfl else None

    @property
    def is_budgeted(self) -> bool:
        """Whether it ends after so many rounds, whatever its losses."""
        stopping = self.run.config.protocol.options.get("stopping", {})
        return self.cohorts is None or stopping.get("rule") == "budget"


@dataclass(frozen=True)
class Cell:
    """Runs that differ in their seed alone."""

    rows: tuple[Row, ...]

    @property
    def first(self) -> Row:
        """One of them, for what they have in common."""
        return self.rows[0]

    def estimate(self, figure: str) -> Estimate | None:
        """Mean and interval over the seeds that know a figure."""
        return estimate(value for row in self.rows if (value := row.figures.get(figure)) is not None)

    def mean(self, figure: str) -> float | None:
        """The mean alone."""
        found = self.estimate(figure)
        return None if found is None else found.mean


@dataclass(frozen=True)
class Study:
    """All rows, in the order of the runs."""

    rows: tuple[Row, ...]

    @cached_property
    def cells(self) -> list[Cell]:
        """Rows by what they have in common, in the order in which each first appears."""
        return [Cell(tuple(rows)) for rows in grouped(self.rows, lambda row: row.cell).values()]

    @property
    def converged(self) -> list[Cell]:
        """Cells that stop by a rule on their losses, and other protocols."""
        return [cell for cell in self.cells if cell.first.cohorts is None or not cell.first.is_budgeted]

    @property
    def settings(self) -> list[str]:
        """Each setting once."""
        return list(dict.fromkeys(row.setting for row in self.rows))

    def write(self, path: Path) -> None:
        """Write a row for each run as CSV."""
        words = ("setting", "method", "course")
        rows = [
            {name: getattr(row, name) for name in words} | {"seed": row.run.summary.seed} | row.figures
            for row in self.rows
        ]
        write_table(path, rows)


def study(runs: Sequence[Run]) -> Study | None:
    """Hold finished runs against each other; None where not two of them have different numbers of cohorts."""
    finished = [run for run in runs if run.summary.status == "finished"]
    counts = {len(run.summary.cpfl.cohorts) for run in finished if run.summary.cpfl}
    if len(counts) < 2:
        return None
    keys = [dict(flat(run.config.model_dump(mode="json"))) for run in finished]
    differing = _differing(keys)
    rows = [
        Row(run, _setting(own, differing), _method(run, own, differing), _course(own, differing), figures(run))
        for run, own in zip(finished, keys, strict=True)
    ]
    return Study(tuple(rows))


def grouped(rows: Sequence[Row], by: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows by what they have in common, in the order in which each first appears."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(by(row), []).append(row)
    return found


# Figures


def figures(run: Run) -> Figures:
    """What a run reached, and what that took: seconds, device hours, bytes. Training and unifying are told apart."""
    found = run.summary.cpfl
    if found is None:
        return _of_another_protocol(run)
    own = found.unified.get(found.unifier or "", Unifier())
    rounds = [cohort.rounds for cohort in found.cohorts if cohort.rounds is not None]
    return {
        "cohorts": len(found.cohorts),
        "participants": _sum([cohort.participants for cohort in found.cohorts]),
        "rounds": _mean(rounds),
        "most_rounds": max(rounds, default=None),
        **_unified(found),
        "converged_s": found.converged_s,
        "converged_share_s": _share_of_cohorts(found),
        "handing_s": max(0.0, (found.unify_s or 0.0) - (own.time_s or 0.0)),
        "train_hours": found.device_cpu_s / 3600 - (own.time_s or 0.0) / 3600,
        "up_bytes": found.bytes.up,
        "down_bytes": found.bytes.down,
        "control_bytes": found.bytes.control,
    }


def _unified(found: Cohorts) -> Figures:
    """Accuracies of the cohorts' models and of what becomes of them; one cohort has one model, which is the result."""
    if len(found.cohorts) == 1:
        return {"accuracy_cohort": found.mean_cohort_accuracy, "accuracy_one": found.mean_cohort_accuracy}
    told: Figures = {"accuracy_cohort": found.mean_cohort_accuracy}
    for result, names in RESULTS.items():
        name = next((name for name in names if name in found.unified), None)
        if name is not None:
            each = found.unified[name]
            told |= {f"accuracy_{result}": each.accuracy, f"{result}_s": each.time_s, f"{result}_bytes": each.bytes}
    return told


def _of_another_protocol(run: Run) -> Figures:
    accuracy, usage = run.summary.metrics.get("accuracy"), run.summary.usage
    return {
        "participants": float(run.summary.nodes),
        "rounds": float(run.summary.rounds),
        "accuracy_one": accuracy.mean if accuracy else None,
        "converged_s": run.summary.time_s,
        "train_hours": usage.device_hours.total if usage else None,
        "up_bytes": run.summary.bytes_sent,
    }


def _share_of_cohorts(found: Cohorts) -> float | None:
    """When three quarters of the cohorts had converged."""
    stopped = sorted(cohort.stopped_s for cohort in found.cohorts if cohort.stopped_s is not None)
    wanted = math.ceil(SHARE * len(found.cohorts))
    return stopped[wanted - 1] if len(stopped) >= wanted else None


def _sum(values: Sequence[float | None]) -> float | None:
    return math.fsum(value for value in values if value is not None) if any(values) else None


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


# Words


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose values are not the same in all runs that have them: options are those of one protocol."""
    keys = dict.fromkeys(key for values in configs for key in values if key.partition(".")[0] not in _BESIDE)

    def differs(key: str) -> bool:
        alike = configs
        if key.startswith("protocol.") and key != "protocol.use":
            alike = [values for values in alike if values["protocol.use"] == PROTOCOL]
        if key.startswith(_STOPPING):  # of a rule on losses: a budget has no window
            alike = [values for values in alike if values.get(f"{_STOPPING}rule") != "budget"]
        return len({repr(values.get(key)) for values in alike}) > 1

    return [key for key in keys if differs(key)]


def _setting(keys: Mapping[str, Any], differing: Sequence[str]) -> str:
    rest = [key for key in differing if not key.startswith("protocol.") and key in keys]
    return ", ".join(_said(key.rpartition(".")[2], keys[key]) for key in rest)


def _method(run: Run, keys: Mapping[str, Any], differing: Sequence[str]) -> str:
    if run.summary.cpfl is None:
        return str(keys["protocol.use"])
    options, count = run.config.protocol.options, len(run.summary.cpfl.cohorts)
    words = [{1: "one network", run.summary.nodes: f"{count} nodes alone"}.get(count, f"{count} cohorts")]
    if count > 1 and options.get("forming", "random") != "random":
        words.append(str(options["forming"]))
    if options.get("sample"):
        words.append(f"{options['sample']} of each" if count > 1 else f"{options['sample']} a round")
    if options.get("sampling", "random") != "random":
        words.append(str(options["sampling"]))
    names = {key: key.removeprefix("protocol.") for key in differing if key.startswith("protocol.") and key in keys}
    rest = {key: name for key, name in names.items() if name not in (*_SAID, "use", "checkpoint")}
    return ", ".join([*words, *(_said(name, keys[key]) for key, name in rest.items() if "stopping." not in name)])


def _course(keys: Mapping[str, Any], differing: Sequence[str]) -> str:
    """After so many rounds, where nothing else ends it; otherwise, in what its stopping rule differs from others."""
    if keys["protocol.use"] != PROTOCOL:
        return f"{keys['protocol.rounds']} rounds" if "protocol.rounds" in keys else ""
    if keys.get(f"{_STOPPING}rule") == "budget":
        return f"{keys.get(f'{_STOPPING}most_rounds', 0)} rounds"
    rules = [key for key in differing if key.startswith(_STOPPING) and key in keys]
    return ", ".join(_said(key.removeprefix(_STOPPING), keys[key]) for key in rules)


def _said(key: str, value: Any) -> str:
    return f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
