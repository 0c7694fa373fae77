"""A study of cohorts in words and tables, for the terminal and for the report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, NamedTuple

from node.cli.cohort_budget import Budget, advice
from node.cli.cohort_literature import SOURCES, Against, comparable, ours
from node.cli.cohort_study import SHARE, Cell, Study
from node.cli.cohort_targets import Reached, Target, target
from node.cli.figures import duration, size
from node.cohorts import predicted_rounds

if TYPE_CHECKING:
    from node.experiment.comparison import Estimate
    from node.experiment.noise_scale import NoiseScale

UNKNOWN = "–"
_ACCURACIES = {
    "cohort": "cohort",
    "one": "one model",
    "ensemble": "ensemble",
    "average": "average",
    "student": "student",
}
_BYTES = {"up_bytes": "up", "down_bytes": "down", "student_bytes": "+ student"}
_WIDTH = 120
_NOTES = (
    "±: 95 % interval over seeds (Student's t). nodes: that train in a round, of all cohorts. cohort: mean accuracy of "
    "the cohorts' models; one model: of the only cohort, or mean over nodes without leaders.",
    f"converged: when all cohorts have stopped, and when {SHARE:.0%} of them have. CPU: hours in which devices train; "
    "+ student: what distilling adds, in time, CPU hours and bytes. up: from members to leaders (or all that is sent).",
)


class Part(NamedTuple):
    """A table with a title."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def parts(study: Study, scales: Mapping[str, NoiseScale]) -> list[Part]:
    """All tables that the runs allow: accuracy, cost, what one accuracy takes, and the literature beside it."""
    head = ("", "seeds", "nodes", "rounds", *_ACCURACIES.values())
    found = [
        Part("Accuracy", head, [_reached(cell) for cell in study.cells]),
        Part("Cost", ("", "converged, s", f"{SHARE:.0%}, s", "+ student, s", "CPU h", "+ student", *_BYTES.values()),
             [_spent(cell) for cell in study.cells]),
    ]  # fmt: skip
    found += [
        _to_target(setting, reached, scales.get(setting))
        for setting in study.settings
        if (reached := target(study, setting)) is not None
    ]
    if known := comparable(study):
        head = (
            "",
            "alpha",
            "K",
            "time",
            "+ student",
            "CPU",
            "bytes",
            *list(_ACCURACIES.values())[:1],
            *list(_ACCURACIES.values())[2:],
        )
        found.append(
            Part("Against one network: costs fall by a factor, accuracy changes", head, list(map(_against, known)))
        )
    return found


def lines(study: Study, scales: Mapping[str, NoiseScale], limit: Budget | None = None) -> Iterator[str]:
    """The tables, then what they show, and what is recommended."""
    for part in parts(study, scales):
        yield part.title
        yield from _aligned([part.head, *part.rows])
        yield ""
    told = (*_NOTES, *(f"{name}: {source}" for name, source in SOURCES.items()), "", *findings(study, scales, limit))
    for line in told:
        yield from wrap(line, _WIDTH) or [""]


def findings(study: Study, scales: Mapping[str, NoiseScale], limit: Budget | None = None) -> Iterator[str]:
    """Plain sentences: both views, and how many cohorts are recommended.

    Args:
        scales: gradient noise by setting, as far as somebody has measured it.
        limit: the budget of the recommendation; None: three quarters of the device hours of one network.
    """
    for each in ours(study):
        yield _under_stopping_rule(each)
    for setting in study.settings:
        if (reached := target(study, setting)) is not None:
            yield from _at_equal_participants(setting, reached)
        if setting in scales:
            scale = scales[setting]
            yield (
                f"Gradient noise scale{_where(setting)}: {scale.participants:.3g} nodes in a round do as well as "
                f"more; side by side there is room for K = {scale.advised_cohorts}."
            )
        yield from advice(study, setting, limit)


# Rows


def _reached(cell: Cell) -> list[str]:
    accuracies = [_told(cell, f"accuracy_{name}") for name in _ACCURACIES]
    return [
        label(cell),
        str(len(cell.rows)),
        _number(cell.mean("participants")),
        _number(cell.mean("rounds")),
        *accuracies,
    ]


def _spent(cell: Cell) -> list[str]:
    times = [_with_interval(cell, name) for name in ("converged_s", "converged_share_s", "student_s")]
    student_s = cell.mean("student_s")
    hours = [_with_interval(cell, "train_hours"), _hours(None if student_s is None else student_s / 3600)]
    sizes = [UNKNOWN if (sent := cell.mean(name)) is None else size(sent) for name in _BYTES]
    return [label(cell), *times, *hours, *sizes]


def _to_target(setting: str, reached: Target, scale: NoiseScale | None) -> Part:
    head = ("", "nodes", "rounds", "predicted", "time", "CPU h", "bytes")
    base = next((way for way in reached.ways if way.cohorts == 1), None)
    rows = []
    for way in reached.ways:
        costs = way.costs
        rows.append([
            way.method, _number(way.participants), str_of(costs["rounds"].mean, costs["rounds"].half),
            _number(_predicted(way, base, scale)), _time(costs["converged_s"].mean),
            _hours(costs["train_hours"].mean), size(costs["bytes"].mean),
        ])  # fmt: skip
    return Part(f"To accuracy {reached.accuracy:.2f} of the ensemble, or the one model{_where(setting)}", head, rows)


def _predicted(way: Reached, base: Reached | None, scale: NoiseScale | None) -> float | None:
    """By the participants of each cohort, from what one network needs."""
    if base is None or scale is None or way.cohorts is None or math.isinf(scale.participants):
        return None
    others = max(1, round(way.participants / way.cohorts))
    return predicted_rounds(base.rounds, round(base.participants), scale.participants, others)


def _against(each: Against) -> list[str]:
    factors = [_factor(factor) for factor in (each.time, each.whole_time, each.cpu, each.bytes)]
    gains = [each.cohort, each.ensemble, each.average, each.student]
    alpha = "skewed" if each.alpha is None else f"{each.alpha:g}"
    return [each.source, alpha, str(each.cohorts), *factors, *(_points(gain) for gain in gains)]


# Sentences


def _under_stopping_rule(each: Against) -> str:
    place = "" if each.alpha is None else f", alpha {each.alpha:g}"
    factors = ((each.time, "time"), (each.cpu, "CPU"), (each.bytes, "bytes"))
    costs = ", ".join(f"{1 / factor.mean:.2f} times the {name}" for factor, name in factors if factor)
    gains = (
        ("mean cohort model", each.cohort),
        ("ensemble", each.ensemble),
        ("average", each.average),
        ("student", each.student),
    )
    changes = ", ".join(f"{name} {_points(gain)}" for name, gain in gains if gain is not None)
    return f"Until they stop{place}: {each.cohorts} cohorts take {costs} of one network; points of accuracy: {changes}."


def _at_equal_participants(setting: str, reached: Target) -> Iterator[str]:
    """Each way with cohorts against the one network that trains as many nodes a round."""
    for way in reached.ways:
        like = [
            each
            for each in reached.ways
            if each.cohorts == 1 and math.isclose(each.participants, way.participants, rel_tol=0.1)
        ]
        if not like or way.cohorts in (None, 1):
            continue
        names = {"converged_s": "time", "train_hours": "CPU", "bytes": "bytes"}
        costs = ", ".join(
            f"{way.costs[key].mean / like[0].costs[key].mean:.2f} times the {name}" for key, name in names.items()
        )
        yield (
            f"To accuracy {reached.accuracy:.2f}{_where(setting)}, {_number(way.participants)} nodes a round: "
            f"{way.method} take {costs} of {like[0].method}."
        )


# Words


def label(cell: Cell) -> str:
    """What its runs have in common."""
    first = cell.first
    return ", ".join(part for part in (first.method, first.course, first.setting) if part)


def str_of(mean: float, half: float | None) -> str:
    """A number of rounds with its interval."""
    return f"{mean:.0f}" + ("" if half is None else f"±{half:.0f}")


def _where(setting: str) -> str:
    return f" ({setting})" if setting else ""


def _told(cell: Cell, figure: str) -> str:
    found = cell.estimate(figure)
    return UNKNOWN if found is None else str(found)


def _with_interval(cell: Cell, figure: str) -> str:
    """Mean and interval, three digits of small ones."""
    found = cell.estimate(figure)
    if found is None:
        return UNKNOWN
    digits = ",.0f" if found.mean >= 10 else ".3g"
    return f"{found.mean:{digits}}" + ("" if found.half is None else f"±{found.half:{digits}}")


def _factor(saving: Estimate | None) -> str:
    if saving is None:
        return UNKNOWN
    return f"{saving.mean:.2f}" + ("x" if saving.half is None else f"±{saving.half:.2f}x")


def _points(gain: Estimate | None) -> str:
    if gain is None:
        return UNKNOWN
    return f"{100 * gain.mean:+.1f}" + ("" if gain.half is None else f"±{100 * gain.half:.1f}")


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def _hours(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3g}"


def _time(value: float | None) -> str:
    return UNKNOWN if value is None else duration(value)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *rest in rows:
        yield "  ".join(
            [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        )
