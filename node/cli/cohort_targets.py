"""What it takes to reach one accuracy: the view that a stopping rule hides, because it stops sooner at less.

Runs that end after so many rounds are the rungs of a ladder for each way to train. Between two rungs costs are
interpolated, seed by seed; below the first one, its own count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from node.cli.cohort_study import Row, Study, grouped
from node.experiment.comparison import Estimate, estimate

COSTS = ("rounds", "converged_s", "train_hours", "bytes")


class Reached(NamedTuple):
    """One way to train, and what it took to the target."""

    method: str
    cohorts: int | None
    """None in other protocols."""
    participants: float
    """Nodes that train in a round, of all cohorts."""
    costs: dict[str, Estimate]
    """By the names of :data:`COSTS`."""
    predicted_rounds: float | None = None
    """By the gradient noise scale, from the rounds of one network."""

    @property
    def rounds(self) -> float:
        """Mean over seeds."""
        return self.costs["rounds"].mean


class Target(NamedTuple):
    """One accuracy that every way reaches with every seed."""

    accuracy: float
    ways: list[Reached]


def target(study: Study, setting: str) -> Target | None:
    """The highest accuracy, in whole points, that all ways of a setting reach; None where no two have a ladder."""
    rows = [row for row in study.rows if row.setting == setting and row.is_budgeted]
    ladders = {
        method: [_ladder(of_seed) for of_seed in grouped(its, lambda row: row.run.summary.seed).values()]
        for method, its in grouped(rows, lambda row: row.method).items()
    }
    ladders = {method: seeds for method, seeds in ladders.items() if min(map(len, seeds)) > 1}
    if len(ladders) < 2:
        return None
    highest = min(max(rung.accuracy for rung in ladder) for seeds in ladders.values() for ladder in seeds)
    accuracy = math.floor(highest * 100) / 100
    return Target(accuracy, [_reached(method, seeds, accuracy) for method, seeds in ladders.items()])


class _Rung(NamedTuple):
    row: Row
    accuracy: float
    """Of the ensemble, or of the only model."""
    costs: tuple[float, ...]


def _ladder(rows: Sequence[Row]) -> list[_Rung]:
    """Runs of one seed that know their accuracy, the shortest first."""
    rungs = []
    for row in rows:
        told = row.figures
        accuracy = told.get("accuracy_ensemble", told.get("accuracy_one"))
        sent = math.fsum(told.get(f"{part}_bytes") or 0.0 for part in ("up", "down", "control"))
        costs = [told.get(name) for name in COSTS[:-1]]
        if accuracy is not None and None not in costs:
            rungs.append(_Rung(row, accuracy, (*(cost or 0.0 for cost in costs), sent)))
    return sorted(rungs, key=lambda rung: rung.costs[0])


def _reached(method: str, ladders: Sequence[Sequence[_Rung]], accuracy: float) -> Reached:
    first = ladders[0][0].row
    costs = np.array([_costs(ladder, accuracy) for ladder in ladders])
    told = {name: found for name, column in zip(COSTS, costs.T, strict=True) if (found := estimate(column.tolist()))}
    return Reached(method, first.cohorts, first.figures["participants"] or 0.0, told)


def _costs(ladder: Sequence[_Rung], accuracy: float) -> list[float]:
    """Each cost where the best accuracy so far first comes to the target."""
    best = np.maximum.accumulate([rung.accuracy for rung in ladder])
    after = int(np.flatnonzero(best >= accuracy)[0])
    if not after:
        return list(ladder[0].costs)
    share = (accuracy - best[after - 1]) / (best[after] - best[after - 1])
    before, then = np.array(ladder[after - 1].costs), np.array(ladder[after].costs)
    return [float(cost) for cost in before + share * (then - before)]
