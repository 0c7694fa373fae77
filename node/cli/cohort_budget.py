"""Which number of cohorts reaches most within a budget of time, device hours or bytes, by what a study has measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from node.cli.cohort_study import RESULTS, Cell, Study, study
from node.cli.figures import duration, size
from node.cli.runs import Run
from node.errors import ConfigError

COSTS = {"time_s": "time", "device_hours": "device hours", "bytes": "bytes sent"}
"""What a budget can be of, and its name in a sentence."""


_SHARE = 0.75
"""Of what one network takes: the budget where none is given."""


class Outcome(NamedTuple):
    """What the runs of a cell come to in one way, and all that it takes; means over seeds."""

    cell: Cell
    result: str
    """``one`` model that needs no unifying, or one of :data:`node.cli.cohort_study.RESULTS`."""
    accuracy: float
    time_s: float
    device_hours: float
    bytes: float

    def cost(self, of: str) -> float:
        """One of :data:`COSTS`."""
        return float(getattr(self, of))

    @property
    def label(self) -> str:
        """In words."""
        course = self.cell.first.course
        return ", ".join(part for part in (self.cell.first.method, course) if part) + (
            "" if self.result == "one" else f": {self.result}"
        )


class Budget(NamedTuple):
    """What there is to spend."""

    of: str
    """One of :data:`COSTS`."""
    amount: float

    def __str__(self) -> str:
        return told(self.of, self.amount)


def told(of: str, amount: float) -> str:
    """An amount of one of :data:`COSTS`, with its unit."""
    match of:
        case "time_s":
            return duration(amount)
        case "bytes":
            return size(amount)
        case _:
            return f"{amount:.3g} device hours"


def budget(text: str) -> Budget:
    """What ``KEY=AMOUNT`` says. Raises ConfigError for another key, or an amount that is not above 0."""
    key, _, number = text.partition("=")
    try:
        amount = float(number)
    except ValueError:
        amount = math.nan
    if key not in COSTS or not 0 < amount < math.inf:
        raise ConfigError(f"--budget {text}: allowed: {', '.join(f'{name}=NUMBER' for name in COSTS)}, above 0")
    return Budget(key, amount)


def outcomes(cells: Sequence[Cell]) -> list[Outcome]:
    """Everything that the cells come to; of several cohorts an ensemble, an average and a student, as far as known."""
    found = []
    for cell in cells:
        for result in ("one", *RESULTS):
            accuracy, trained_s = cell.mean(f"accuracy_{result}"), cell.mean("converged_s")
            if accuracy is None or trained_s is None:
                continue
            extra_s = cell.mean(f"{result}_s") or 0.0
            sent = math.fsum(cell.mean(f"{part}_bytes") or 0.0 for part in ("up", "down", "control", result))
            time_s = trained_s + (cell.mean("handing_s") or 0.0) + extra_s
            hours = (cell.mean("train_hours") or 0.0) + extra_s / 3600
            found.append(Outcome(cell, result, accuracy, time_s, hours, sent))
    return found


def default(study: Study, setting: str) -> Budget | None:
    """Three quarters of the device hours that one network takes until it stops; None where there is no such run."""
    cells = [cell for cell in study.converged if cell.first.setting == setting and cell.first.cohorts == 1]
    hours = max((hours for cell in cells if (hours := cell.mean("train_hours"))), default=None)
    return None if hours is None else Budget("device_hours", _SHARE * hours)


def within(found: Sequence[Outcome], limit: Budget) -> Outcome | None:
    """The most accurate outcome that costs no more, the cheaper of equal ones; None where everything costs more."""
    affordable = [each for each in found if each.cost(limit.of) <= limit.amount]
    return min(affordable, key=lambda each: (-each.accuracy, each.cost(limit.of)), default=None)


def advice(study: Study, setting: str, limit: Budget | None = None) -> list[str]:
    """Sentences: the best number of cohorts within a budget, and whether anything else does better.

    Args:
        limit: what there is to spend; None: :func:`default`.
    """
    limit = limit or default(study, setting)
    if limit is None:
        return []
    every = outcomes([cell for cell in study.cells if cell.first.setting == setting])
    stopped = [each for each in every if each.cell in study.converged and each.cell.first.cohorts]
    place, best, any_way = f" ({setting})" if setting else "", within(stopped, limit), within(every, limit)
    if best is None:
        least = min((each.cost(limit.of) for each in stopped), default=None)
        rest = "" if least is None else f"; the least is {told(limit.of, least)}"
        said = [f"Within {limit}{place}, no number of cohorts trains until it stops{rest}."]
    else:
        cohorts = best.cell.first.cohorts
        said = [
            f"Within {limit}{place}: K = {cohorts} is recommended ({best.label}): accuracy {best.accuracy:.3f} for "
            f"{told(limit.of, best.cost(limit.of))}."
        ]
    if any_way is not None and (best is None or any_way.accuracy > best.accuracy):
        said.append(
            f"Stopping earlier does better: {any_way.label} reaches {any_way.accuracy:.3f} for "
            f"{told(limit.of, any_way.cost(limit.of))}."
        )
    return said


def advised(runs: Sequence[Run], text: str) -> list[str]:
    """:func:`advice` for every setting of some runs, within the budget that ``KEY=NUMBER`` says.

    Raises ConfigError for a wrong budget, or where not two of the runs have different numbers of cohorts.
    """
    limit, found = budget(text), study(runs)
    if found is None:
        raise ConfigError(f"--budget {text}: needs runs of cpfl with different numbers of cohorts, and there are none")
    return [line for setting in found.settings for line in advice(found, setting, limit)]
