"""What has been published, and measured before, of cohorts against one network: figures to lay beside one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from node.cli.cohort_study import Cell, Study

SOURCES: Mapping[str, str] = {
    "published": "Dhasade et al., EuroMLSys 2025, abstract: CIFAR-10, 200 nodes of which 50 train a round in one "
    "network, and all 200 in cohorts; 'CPU' is what the paper calls resources",
    "measured": "once, one seed: 5,000 MNIST digits, 100 nodes that all train, MLP, random cohorts, student on public "
    "digits of the same kind",
}


class Against(NamedTuple):
    """Some cohorts against one network: by what factor time, CPU and bytes fall, and what accuracy changes by."""

    source: str
    alpha: float | None
    """Dirichlet concentration; None: skewed, no more is said."""
    cohorts: int
    time: float | None
    cpu: float | None
    bytes: float | None
    cohort: float | None = None
    ensemble: float | None = None
    average: float | None = None
    student: float | None = None


KNOWN = (
    Against("published", None, 4, 1.9, 1.3, None),
    Against("measured", 0.1, 2, 924 / 319, 7869 / 2629, 28.5 / 9.5, -0.031, -0.008, -0.014, -0.015),
    Against("measured", 0.1, 4, 924 / 135, 7869 / 1156, 28.5 / 4.4, -0.079, -0.022, -0.035, -0.016),
    Against("measured", 0.1, 16, 924 / 49, 7869 / 613, 28.5 / 2.6, -0.315, -0.046, -0.119, -0.080),
    Against("measured", 1.0, 2, 189 / 70, 2510 / 1061, 10.4 / 4.5, -0.021, -0.004, -0.005, -0.009),
    Against("measured", 1.0, 4, 189 / 50, 2510 / 758, 10.4 / 3.3, -0.041, -0.007, -0.014, -0.014),
    Against("measured", 1.0, 16, 189 / 40, 2510 / 539, 10.4 / 2.4, -0.121, -0.038, -0.057, -0.051),
)


def ours(study: Study) -> Iterator[Against]:
    """Cohorts formed at random, all of whose nodes train, against one network whose nodes all do, by setting.

    Times and CPU are of training alone, as in :data:`KNOWN`.
    """
    plain = [cell for cell in study.converged if cell.first.cohorts and "," not in cell.first.method]
    for cell in plain:
        base = next((each for each in plain if each.first.cohorts == 1 and _place(each) == _place(cell)), None)
        if base is not None and cell.first.cohorts != 1:
            yield against(cell, base)


def against(cell: Cell, base: Cell) -> Against:
    """One cell against another; a factor above 1 is a saving."""
    costs = [_ratio(_cost(base, name), _cost(cell, name)) for name in ("converged_s", "train_hours", "bytes")]
    reference = base.mean("accuracy_one")
    gains = [
        None if reference is None or (mean := cell.mean(f"accuracy_{name}")) is None else mean - reference
        for name in ("cohort", "ensemble", "average", "student")
    ]
    data = cell.first.run.config.data
    alpha = data.alpha if data.partition == "dirichlet" else None
    return Against("here", alpha, cell.first.cohorts or 0, *costs, *gains)


def comparable(study: Study) -> list[Against]:
    """What is known of settings like the study's, and the study's own beside it, ordered by setting and cohorts."""
    own = list(ours(study))
    like = {(each.alpha, each.cohorts) for each in own}
    counts = {each.cohorts for each in own}
    known = [
        each for each in KNOWN if (each.alpha, each.cohorts) in like or (each.alpha is None and each.cohorts in counts)
    ]
    return sorted([*own, *known], key=lambda each: (each.alpha or 0.0, each.cohorts, each.source))


def _place(cell: Cell) -> tuple[str, str]:
    return cell.first.setting, cell.first.course


def _cost(cell: Cell, name: str) -> float | None:
    if name != "bytes":
        return cell.mean(name)
    parts = [cell.mean(f"{part}_bytes") for part in ("up", "down")]
    return None if None in parts else sum(part for part in parts if part is not None)


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above and below else None
