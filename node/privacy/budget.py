"""What a node has spent: every noisy step is entered before it is taken, and a step beyond the budget is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from node.config.privacy import LEAST_SIGMA, MOST_SIGMA
from node.errors import BudgetSpent, ConfigError
from node.privacy import gaussian, pld, rdp
from node.privacy.pld import Adjacency, Steps

Unit = Literal["record", "node"]
Method = Literal["rdp", "pld", "gdp", "zcdp"]
Sampling = Literal["poisson", "fixed_size"]
View = Literal["T1", "T2", "T3", "T4", "T5", "T6", "T7"]

VIEWS: Mapping[View, str] = {
    "T1": "honest-but-curious neighbour",
    "T2": "colluding honest-but-curious nodes",
    "T3": "eavesdropper on all links",
    "T4": "external observer of the final models",
    "T5": "active (Byzantine) neighbour",
    "T6": "Sybils around the victim",
    "T7": "honest-but-curious coordinator",
}
"""Threat models: who is meant to learn no more than the guarantee says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantee:
    """An (epsilon, delta) with all that it means nothing without.

    Raises:
        ConfigError: a field has no such value.
    """

    epsilon: float
    """Infinite where there is no differential privacy at all."""
    delta: float
    adjacency: Adjacency
    """Between which pairs of data sets the outputs are hard to tell apart."""
    unit: Unit
    """Whether these differ in a record or in all the data of a node."""
    view: View
    """The attacker's, by threat model."""
    adaptive: bool
    """Holds also where later inputs depend on earlier noise, as gradients do."""
    conversion: Method

    def __post_init__(self) -> None:
        if not self.epsilon >= 0:
            raise ConfigError(f"epsilon: {self.epsilon}; allowed: a number from 0, or infinity")
        gaussian.check_delta(self.delta)
        check_choice("adjacency", self.adjacency, Adjacency)
        check_choice("unit", self.unit, Unit)
        check_choice("view", self.view, View)
        check_choice("conversion", self.conversion, Method)
        if not isinstance(self.adaptive, bool):
            raise ConfigError(f"adaptive: {self.adaptive!r}; allowed: true, false")

    def __str__(self) -> str:
        """One line for a report."""
        if math.isinf(self.epsilon):
            return "no differential privacy"
        return (
            f"({self.epsilon:.4g}, {self.delta:.2g})-DP per {self.unit}, {self.adjacency.replace('_', '-')}, against"
            f" {self.view} ({VIEWS[self.view]}), {'adaptive' if self.adaptive else 'non-adaptive'}, by"
            f" {self.conversion.upper()}"
        )


class Budget(NamedTuple):
    """The most that a node may spend, and how it is counted."""

    epsilon: float
    delta: float
    method: Method = "rdp"


class NodeAccountant:
    """One node's privacy loss. A state machine: it draws no noise, and knows of no step that it is not told of.

    Args:
        unit: what one contribution is.
        adjacency: whether a contribution comes and goes or is replaced, which moves a clipped sum twice as far.
        sampling: how batches are drawn; a shuffled data set is neither.
        budget: the most that may be spent.

    Raises:
        ConfigError: an argument has no such value, or these have no known bound together.
    """

    __slots__ = ("_counts", "adjacency", "budget", "sampling", "unit")

    def __init__(
        self,
        *,
        unit: Unit = "record",
        adjacency: Adjacency = "add_remove",
        sampling: Sampling = "poisson",
        budget: Budget | None = None,
    ) -> None:
        check_choice("unit", unit, Unit)
        check_choice("adjacency", adjacency, Adjacency)
        check_choice("sampling", sampling, Sampling)
        if sampling == "fixed_size" and adjacency != "replace_one":
            raise ConfigError('adjacency: batches of a fixed size are accounted for with "replace_one" only')
        if budget is not None:
            gaussian.check_epsilon(budget.epsilon)
            gaussian.check_delta(budget.delta)
            check_choice("method", budget.method, Method)
        self.unit: Unit = unit
        self.adjacency: Adjacency = adjacency
        self.sampling: Sampling = sampling
        self.budget = budget
        self._counts: dict[tuple[float, float], int] = {}

    def step(self, sigma: float, q: float = 1.0, n: int = 1) -> None:
        """Enter n steps that are about to be taken, each on a share q of the records.

        Args:
            sigma: standard deviation of the noise over the norm that a contribution is clipped to.
            q: probability that a record is in the batch.
            n: how many such steps.

        Raises:
            BudgetSpent: they would exceed the budget; nothing was entered.
            ConfigError: an argument is out of range.
        """
        if self.budget and self.would_exceed(sigma, q, n):
            epsilon, delta, method = self.budget
            raise BudgetSpent(
                f"the budget of epsilon {epsilon:g} at delta {delta:g} does not allow {n} more steps with sigma"
                f" {sigma:g} and q {q:g}: {self.epsilon(delta, method):.4g} is spent; stop here, or allow more"
                " from the start"
            )
        self._counts = self._with(sigma, q, n)

    def would_exceed(self, sigma: float, q: float = 1.0, n: int = 1) -> bool:
        """Whether n more such steps would cost more than the budget; never without one.

        Raises:
            ConfigError: an argument is out of range.
        """
        counts = self._with(sigma, q, n)
        return self.budget is not None and (
            self._epsilon(counts, self.budget.delta, self.budget.method) > self.budget.epsilon
        )

    def epsilon(self, delta: float, method: Method = "rdp") -> float:
        """What is spent so far; infinite after a step without noise.

        Raises:
            ConfigError: the method is unknown, not installed, or has no bound for the steps taken.
        """
        return self._epsilon(self._counts, delta, method)

    def guarantee(self, delta: float, view: View, method: Method = "rdp") -> Guarantee:
        """What is spent so far, with all that belongs to it. All that a node sends after its noise is covered.

        Raises:
            ConfigError: as ``epsilon``, or there is no such view.
        """
        return Guarantee(
            epsilon=self.epsilon(delta, method),
            delta=delta,
            adjacency=self.adjacency,
            unit=self.unit,
            view=view,
            adaptive=True,
            conversion=method,
        )

    def state(self) -> dict[str, Any]:
        """Everything but the budget, as plain values."""
        steps = [[sigma, q, n] for (sigma, q), n in self._counts.items()]
        return {"unit": self.unit, "adjacency": self.adjacency, "sampling": self.sampling, "steps": steps}

    @classmethod
    def restored(cls, state: Mapping[str, Any], budget: Budget | None = None) -> NodeAccountant:
        """The accountant that was in this state. What was spent may exceed a budget that has been lowered since.

        Raises:
            ConfigError: this is no such state.
        """
        try:
            accountant = cls(**{key: state[key] for key in ("unit", "adjacency", "sampling")}, budget=budget)
            for sigma, q, n in state["steps"]:
                accountant._counts = accountant._with(sigma, q, n)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not the saved state of a privacy accountant: {error!r}") from error
        return accountant

    def _with(self, sigma: float, q: float, n: int) -> dict[tuple[float, float], int]:
        if not (LEAST_SIGMA <= sigma <= MOST_SIGMA or sigma in (0, math.inf)):
            raise ConfigError(
                f"sigma: {sigma}; allowed: a noise multiplier from {LEAST_SIGMA:g} to {MOST_SIGMA:g}, 0, or infinity"
            )
        if not 0 <= q <= 1:
            raise ConfigError(f"q: {q}; allowed: a sampling rate from 0 to 1")
        if n < 0:
            raise ConfigError(f"n: {n}; allowed: a number of steps from 0")
        return {**self._counts, (sigma, q): self._counts.get((sigma, q), 0) + n}

    def _epsilon(self, counts: Mapping[tuple[float, float], int], delta: float, method: Method) -> float:
        check_choice("method", method, Method)
        gaussian.check_delta(delta)
        steps = tuple(Steps(sigma, q, n) for (sigma, q), n in counts.items() if n and q and sigma < math.inf)
        return _epsilon_of(steps, delta, method, self.adjacency, self.sampling)


@lru_cache(1 << 14)
def _epsilon_of(
    steps: tuple[Steps, ...], delta: float, method: Method, adjacency: Adjacency, sampling: Sampling
) -> float:
    """Of steps that have finite noise or none, and a rate above 0; equal nodes share the work."""
    if any(step.sigma == 0 for step in steps):
        return math.inf
    sampled = any(step.q < 1 for step in steps)
    reach = 1.0 if adjacency == "add_remove" else 2.0  # how far a contribution moves a sum, in clipping norms

    def need(known: bool, instead: str) -> None:
        if not known:
            raise ConfigError(
                f"method: {method} has no bound for random batches with sampling {sampling} and adjacency {adjacency};"
                f" allowed here: {instead}"
            )

    if method == "pld":
        need(not (sampled and sampling == "fixed_size"), "rdp")
        return pld.epsilon_of(steps, delta, adjacency)
    if method == "rdp":
        need(not sampled or sampling == "fixed_size" or adjacency == "add_remove", "pld")
        few = sampled and sampling == "fixed_size"  # whose high orders cost digits beyond all patience
        orders = rdp.ORDERS if few else rdp.MANY_ORDERS
        curves = (step.n * _curve(step.sigma / reach, step.q, few) for step in steps)
        curve = sum(curves, np.zeros(len(orders)))
        return rdp.epsilon_of(curve, delta, orders)[0] if steps else 0.0
    need(not sampled, "rdp or pld")
    mu = gaussian.compose(reach / step.sigma * math.sqrt(step.n) for step in steps)
    return (gaussian.epsilon_of if method == "gdp" else gaussian.zcdp_epsilon_of)(mu, delta)


def check_choice(key: str, value: object, choices: Any) -> None:
    """Refuse what is not one of a Literal's values.

    Raises:
        ConfigError: with those values.
    """
    allowed: Sequence[str] = get_args(choices)
    if value not in allowed:
        raise ConfigError(f"{key}: {value!r}; allowed: {', '.join(allowed)}")


@lru_cache(1 << 12)
def _curve(sigma: float, q: float, has_fixed_size: bool) -> rdp.Curve:
    return rdp.without_replacement(sigma, q) if has_fixed_size else rdp.poisson(sigma, q, rdp.MANY_ORDERS)
