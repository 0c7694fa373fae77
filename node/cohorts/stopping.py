"""When a cohort has converged, from the validation losses of its rounds.

The loss of a round is that of the model which entered it, so the checkpoint to keep is the model before the round with
the best smoothed loss. A new leader that feeds the rounds so far to a :class:`Stopping` of its own is where the last
one was.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from node.config.section import NotNegative, Positive, Section


class StoppingSection(Section):
    """When to stop: by one rule on the losses, or when a budget is spent, whichever comes first."""

    rule: Literal["patience", "exponential", "one-standard-error", "slope", "page-hinkley", "budget"] = "patience"
    """Patience with the moving average, with the exponential one, or with the moving one that must fall by its standard
    error; least squares slope over the window; Page's and Hinkley's test on the changes of the loss; budgets alone."""
    window: int = Field(20, ge=1)
    """Losses that are averaged, or that a slope is fitted to; fewer in the first rounds."""
    patience: int = Field(100, ge=1)
    """Rounds without improvement before it stops."""
    min_delta: NotNegative = 0.0
    """By how much the average must fall to be an improvement."""
    warmup_rounds: int = Field(0, ge=0)
    """First losses that are neither the best nor without improvement: early averages of few are lucky."""
    decay: float = Field(0.9, gt=0, lt=1)
    """``exponential``: share of the last average in the next."""
    least_slope: NotNegative = 0.0
    """``slope``: fall of the loss in a round that is too little."""
    tolerance: NotNegative = 0.005
    """``page-hinkley``: rise of the mean change that is none yet (delta)."""
    threshold: Positive = 1.0
    """``page-hinkley``: sum of rises beyond which it stops (lambda)."""
    most_rounds: int = Field(0, ge=0)
    """Budget of rounds; 0: without end."""
    most_time_s: NotNegative = 0.0
    """Budget of time; 0: without end."""
    most_bytes: int = Field(0, ge=0)
    """Budget of traffic; 0: without end."""

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.rule == "budget" and not (self.most_rounds or self.most_time_s or self.most_bytes):
            raise ValueError("the rule 'budget' needs most_rounds, most_time_s or most_bytes")
        if self.rule == "slope" and self.window < 2:
            raise ValueError("the rule 'slope' needs a window of 2 or more")
        return self


class Round(NamedTuple):
    """What a round has shown."""

    loss: float | None
    """Mean validation loss of the model that entered it, by samples; None: nobody answered."""
    time_s: float = 0.0
    """Since the cohort began."""
    size_bytes: int = 0
    """Sent since then."""


class Stopping:
    """The stopping rule of one cohort; :meth:`step` once for each round, in order.

    A round in which nobody answered counts for budgets alone. A loss that is not finite is as bad as can be.
    """

    def __init__(self, section: StoppingSection) -> None:
        self._section = section
        self._rounds = 0
        self._heard = 0
        self._bad = 0
        self._losses: deque[float] = deque(maxlen=section.window)
        self._drift = Drift(section.tolerance)
        self.average = math.inf
        """The smoothed loss."""
        self.best = math.inf
        """The lowest so far."""
        self.best_round: int | None = None
        """Whose entering model is the one to keep."""
        self.is_stopped = False

    def step(self, seen: Round) -> bool:
        """Whether to stop after this round. If it is :attr:`best_round` then, its entering model is the one to keep."""
        if seen.loss is not None:
            self._hear(seen.loss if math.isfinite(seen.loss) else math.inf)
        self._rounds += 1
        self.is_stopped = self.is_stopped or self._bad >= self._section.patience or self._is_spent(seen)
        return self.is_stopped

    def _hear(self, loss: float) -> None:
        section = self._section
        if section.rule == "exponential" and self._heard:
            self.average = section.decay * self.average + (1 - section.decay) * loss
        self._losses.append(loss)
        self._heard += 1
        if section.rule != "exponential" or self._heard == 1:
            self.average = statistics.fmean(self._losses)
        drifted = self._drift.step(loss) if section.rule == "page-hinkley" else 0.0
        if self._heard <= section.warmup_rounds:
            return
        is_better = self.average < self.best - self._margin()
        if is_better:
            self.best, self.best_round = self.average, self._rounds
        match section.rule:
            case "budget":
                pass
            case "page-hinkley":
                self.is_stopped = self.is_stopped or drifted > section.threshold
            case _:
                is_falling = self._is_falling() if section.rule == "slope" else is_better
                self._bad = 0 if is_falling else self._bad + 1

    def _margin(self) -> float:
        if self._section.rule == "one-standard-error" and len(self._losses) > 1 and math.isfinite(self.average):
            return max(self._section.min_delta, statistics.stdev(self._losses) / math.sqrt(len(self._losses)))
        return self._section.min_delta

    def _is_falling(self) -> bool:
        """Whether the window is not full yet, or has a slope that is steep enough."""
        if len(self._losses) < self._section.window:
            return True
        return math.isfinite(self.average) and slope(list(self._losses)) < -self._section.least_slope

    def _is_spent(self, seen: Round) -> bool:
        section = self._section
        pairs = (
            (section.most_rounds, self._rounds),
            (section.most_time_s, seen.time_s),
            (section.most_bytes, seen.size_bytes),
        )
        return any(budget and used >= budget for budget, used in pairs)


class Drift:
    """The cumulative sum test for a rising mean (Page, Biometrika 1954; Hinkley, Biometrika 1971), on changes.

    Losses fall fast, then slowly: their changes rise towards 0, and that is what it finds.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._last: float | None = None
        self._count = 0
        self._mean = 0.0
        self._sum = 0.0
        self._least = 0.0

    def step(self, loss: float) -> float:
        """How far the changes have risen above their mean, after one more loss; infinitely for an infinite one."""
        if not math.isfinite(loss):
            return math.inf
        before, self._last = self._last, loss
        if before is None:
            return 0.0
        change = loss - before
        self._count += 1
        self._mean += (change - self._mean) / self._count
        self._sum += change - self._mean - self._tolerance
        self._least = min(self._least, self._sum)
        return self._sum - self._least


def slope(values: list[float]) -> float:
    """Least squares slope of values at 0, 1, 2, ..., two or more of them."""
    centre = (len(values) - 1) / 2
    moments = math.fsum((place - centre) * value for place, value in enumerate(values))
    return moments / math.fsum((place - centre) ** 2 for place in range(len(values)))
