"""What has been published, and measured before, of cohorts against one network: figures to lay beside one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from node.cli.cohort_study import Cell, Row, Study
from node.experiment.comparison import Estimate, estimate

SOURCES: Mapping[str, str] = {
    "published": "Dhasade et al., EuroMLSys 2025, abstract: CIFAR-10, 200 nodes of which 50 train a round in one "
    "network, and all 200 in cohorts; 'CPU' is what the paper calls resources",
    "measured": "once, one seed: 5,000 MNIST digits, 100 nodes that all train, MLP, random cohorts, student on public "
    "digits of the same kind",
}


class Against(NamedTuple):
    """Some cohorts against one network: by what factor time, CPU and bytes fall, and what accuracy changes by.

    Each is a mean over seeds, with its interval; what is known of one run alone has none.
    """

    source: str
    alpha: float | None
    """Dirichlet concentration; None: skewed, no more is said."""
    cohorts: int
    time: Estimate | None
    cpu: Estimate | None
    bytes: Estimate | None
    cohort: Estimate | None = None
    ensemble: Estimate | None = None
    average: Estimate | None = None
    student: Estimate | None = None
    whole_time: Estimate | None = None
    """By what factor time falls with handing models in and distilling included."""


_COSTS = {"time": "converged_s", "cpu": "train_hours", "bytes": "bytes", "whole_time": "whole_s"}
"""What falls, by field, and what it is called here."""

_SUMS = {"bytes": ("up_bytes", "down_bytes"), "whole_s": ("converged_s", "handing_s", "student_s")}
"""What is a sum of figures; one network needs no student."""

_GAINS = ("cohort", "ensemble", "average", "student")
"""What changes."""


def _known(source: str, alpha: float | None, cohorts: int, *figures: float | None) -> Against:
    """What one run, or one sentence, has told; figures in the order of the fields."""
    told = [None if figure is None else Estimate(figure, None, 1) for figure in figures]
    return Against(source, alpha, cohorts, *told)


KNOWN = (
    _known("published", None, 4, 1.9, 1.3, None),
    _known("measured", 0.1, 2, 924 / 319, 7869 / 2629, 28.5 / 9.5, -0.031, -0.008, -0.014, -0.015),
    _known("measured", 0.1, 4, 924 / 135, 7869 / 1156, 28.5 / 4.4, -0.079, -0.022, -0.035, -0.016),
    _known("measured", 0.1, 16, 924 / 49, 7869 / 613, 28.5 / 2.6, -0.315, -0.046, -0.119, -0.080),
    _known("measured", 1.0, 2, 189 / 70, 2510 / 1061, 10.4 / 4.5, -0.021, -0.004, -0.005, -0.009),
    _known("measured", 1.0, 4, 189 / 50, 2510 / 758, 10.4 / 3.3, -0.041, -0.007, -0.014, -0.014),
    _known("measured", 1.0, 16, 189 / 40, 2510 / 539, 10.4 / 2.4, -0.121, -0.038, -0.057, -0.051),
)


def ours(study: Study) -> Iterator[Against]:
    """Cohorts formed at random, all of whose nodes train, against one network whose nodes all do, by setting.

    Times and CPU are of training alone, as in :data:`KNOWN`; ``whole_time`` tells what a student adds.
    """
    plain = [cell for cell in study.converged if cell.first.cohorts and "," not in cell.first.method]
    for cell in plain:
        base = next((each for each in plain if each.first.cohorts == 1 and _place(each) == _place(cell)), None)
        if base is not None and cell.first.cohorts != 1:
            yield against(cell, base)


def against(cell: Cell, base: Cell) -> Against:
    """One cell against another, seed by seed, over the seeds that both have; a factor above 1 is a saving."""
    of_seed = {row.run.summary.seed: row for row in base.rows}
    pairs = [(of_seed[row.run.summary.seed], row) for row in cell.rows if row.run.summary.seed in of_seed]

    def over_seeds(compared: Callable[[Row, Row, str], float | None], name: str) -> Estimate | None:
        found = [compared(one, several, name) for one, several in pairs]
        return estimate(value for value in found if value is not None)

    told = {field: over_seeds(_saving, name) for field, name in _COSTS.items()}
    told |= {name: over_seeds(_gain, name) for name in _GAINS}
    data = cell.first.run.config.data
    alpha = data.alpha if data.partition == "dirichlet" else None
    return Against("here", alpha, cell.first.cohorts or 0, **told)


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


def _saving(one: Row, several: Row, name: str) -> float | None:
    above, below = _cost(one, name), _cost(several, name)
    return above / below if above and below else None


def _cost(row: Row, name: str) -> float | None:
    parts = [row.figures.get(part) for part in _SUMS.get(name, (name,)) if part != "student_s" or row.cohorts != 1]
    return None if None in parts else sum(part for part in parts if part is not None)


def _gain(one: Row, several: Row, name: str) -> float | None:
    reference, reached = one.figures.get("accuracy_one"), several.figures.get(f"accuracy_{name}")
    return None if reference is None or reached is None else reached - reference
