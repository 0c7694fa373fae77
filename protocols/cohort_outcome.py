"""What a run of cohort-parallel learning says of itself: its ``cpfl`` block in ``summary.json``.

It is made of recorded metrics, most of them of the whole run and named ``cpfl/…``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from node import Row

WHOLE_RUN = 0
"""The round under which metrics of the whole run are recorded: it is always kept."""

_UP = ("cpfl/update/1", "cpfl/partial/1", "cpfl/masked/1")
_DOWN = ("cpfl/version/1", "cpfl/assignment/1")
_UNIFYING = ("cpfl/extract/1", "cpfl/examined/1", "cpfl/taught/1", "cpfl/result/1")
_COUNTED = ("elections", "failovers", "repeated_rounds")


def outcome(rows: Iterable[Row], traffic: Mapping[str, int]) -> dict[str, Any]:
    """The block; empty where no cohort has come to an end.

    ``device_cpu_s`` are the seconds in which members that are there at the end have trained, and the node that unifies
    has worked for the result; what it took to compare unifiers is told with each of them.
    """
    own = [row for row in rows if row.metric.startswith("cpfl/") or row.metric == "members"]
    records = _records(own)
    cohorts = [_cohort(number, records) for number in sorted({number for record in records for number in _of(record)})]
    if not cohorts:
        return {}
    unified = _unified(own)
    chosen = next(iter(unified), None)
    trained_s = math.fsum(row.value for row in own if row.metric == "cpfl/training_s")
    unified_s = math.fsum(row.value for row in own if row.metric == f"cpfl/unified/{chosen}.time_s")
    whole = {name: _latest(own, f"cpfl/{name}") for name in ("converged_s", "unify_s", "folded_s")}
    participants = [row.value for row in own if row.metric == "members"]
    return {
        "cohorts": cohorts,
        **{name: value for name, value in whole.items() if value is not None},
        "device_cpu_s": trained_s + unified_s,
        "bytes": _bytes(traffic),
        "participants": _spread(participants),
        **{name: sum(cohort[name] for cohort in cohorts) for name in _COUNTED},
        "lost_cohorts": sum(cohort["lost"] is not None for cohort in cohorts),
        "mean_cohort_accuracy": _mean([cohort["accuracy"] for cohort in cohorts if cohort["accuracy"] is not None]),
        "unifier": chosen,
        "unified": unified,
    }


def _latest(own: Iterable[Row], metric: str) -> float | None:
    """What came last, which with several nodes is of the slowest; None where nothing came."""
    by_time = {row.time_s: row.value for row in own if row.metric == metric}
    return by_time[max(by_time)] if by_time else None


def _records(own: Iterable[Row]) -> list[dict[str, float]]:
    """What nodes have recorded, all metrics of one moment together, with the ``node``."""
    records: dict[tuple[float, int, int], dict[str, float]] = {}
    for row in own:
        record = records.setdefault((row.time_s, row.node, row.round), {"node": row.node})
        record[row.metric.removeprefix("cpfl/")] = row.value
    return list(records.values())


def _of(record: Mapping[str, float]) -> list[int]:
    """The cohort that a record is of, if it is of one."""
    names = ("round.cohort", "cohort.number", "election.cohort", "member.cohort", "lost.cohort")
    return [int(record[name]) for name in names if name in record]


def _cohort(number: int, records: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    """One cohort; None for what it has not come to.

    One that was not waited for to the end is ``lost``: ``dissolved`` by its members, or ``gone`` with all of them.
    """
    its = [record for record in records if number in _of(record)]
    rounds = [record for record in its if "round.cohort" in record]
    elections = [record for record in its if "election.cohort" in record]
    stopped = next((record for record in its if "cohort.number" in record), {})
    lost = next((record for record in its if "lost.cohort" in record), None)
    return {
        "cohort": number,
        "members": _whole(stopped.get("cohort.size")),
        "samples": _whole(stopped.get("cohort.samples")),
        "leaders": list(dict.fromkeys(int(record["node"]) for record in elections or rounds)),
        "rounds": _whole(stopped.get("cohort.rounds")),
        "stopped_s": stopped.get("cohort.stopped_s"),
        "accuracy": _finite(stopped.get("cohort.accuracy")),
        "loss": _finite(stopped.get("cohort.loss")),
        "participants": _mean([record.get("members") for record in rounds]),
        "elections": len(elections),
        "failovers": int(sum(record.get("election.failover", 0) for record in elections)),
        "repeated_rounds": int(sum(record.get("election.repeated_rounds", 0) for record in elections)),
        "lost": None if lost is None else "dissolved" if lost["lost.is_dissolved"] else "gone",
    }


def _unified(own: Iterable[Row]) -> dict[str, dict[str, float | None]]:
    """Each unifier's figures, that of the run first.

    A student that goes on is told as it ends; its time and its FLOPs add up. Where many nodes have a student, these are
    the mean accuracy, loss and agreement, the longest time, and the sums of FLOPs and bytes.
    """
    told: dict[str, dict[str, dict[int, float]]] = {}
    for row in own:
        if row.metric.startswith("cpfl/unified/"):
            name, _, figure = row.metric.removeprefix("cpfl/unified/").rpartition(".")
            by_node = told.setdefault(name, {}).setdefault(figure, {})
            before = by_node.get(row.node, 0.0) if figure in ("time_s", "flops") else 0.0
            by_node[row.node] = before + row.value
    return {
        name: {figure: _over_nodes(figure, list(values.values())) for figure, values in figures.items()}
        for name, figures in told.items()
    }


def _over_nodes(figure: str, values: Sequence[float]) -> float | None:
    match figure:
        case "time_s":
            return max(values)
        case "flops" | "bytes":
            return math.fsum(values)
        case _:
            return _finite(_mean(values))


def _bytes(traffic: Mapping[str, int]) -> dict[str, int]:
    """What was sent: models to leaders and from them, what unifying took, and all else."""
    sums = {
        name: sum(traffic.get(kind, 0) for kind in kinds)
        for name, kinds in (("up", _UP), ("down", _DOWN), ("unifying", _UNIFYING))
    }
    return {**sums, "control": sum(traffic.values()) - sum(sums.values())}


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": _mean(values), "min": min(values, default=None), "max": max(values, default=None)}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
