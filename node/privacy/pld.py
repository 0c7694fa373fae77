"""Privacy loss distributions: the tightest epsilon for random batches. Needs the optional extra ``[privacy]``.

Meiser, Mohammadi: Tight on Budget?, CCS 2018; the numbers are dp-accounting's, rounded so that they never flatter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from typing import Any, Literal, NamedTuple

from node.errors import ConfigError
from node.privacy.gaussian import check_delta

Adjacency = Literal["add_remove", "replace_one"]

INTERVAL = 1e-4
"""Width of the bins that privacy losses are rounded up to."""
MOST_BINS = 1 << 24
"""Of a distribution, about: more take minutes, and gigabytes."""
_FIRST_COSTS = 4
"""What a bin of one step's distribution takes, over one of a sum."""
_DEVIATIONS = 12.0
"""Of the normal distribution, to either side: what is beyond weighs less than any delta."""


class Steps(NamedTuple):
    """Steps of one kind: noise over the add/remove sensitivity, sampling rate, and how many."""

    sigma: float
    q: float
    n: int


def epsilon_of(
    steps: Iterable[Steps], delta: float, adjacency: Adjacency = "add_remove", interval: float = INTERVAL
) -> float:
    """The epsilon of all steps together, on batches by Poisson sampling.

    Raises:
        ConfigError: the extra is not installed, delta is no probability, or there is so little noise that losses are
            spread over too many bins.
    """
    check_delta(delta)
    taken = [step for step in steps if step.n and step.q]
    if any(step.sigma == 0 for step in taken):
        return math.inf
    _check_size(taken, adjacency, interval)
    whole = None
    for step in taken:
        part = _single(step.sigma, step.q, adjacency, interval).self_compose(step.n)
        whole = whole.compose(part) if whole else part
    return float(whole.get_epsilon_for_delta(delta)) if whole else 0.0


def _check_size(steps: Iterable[Steps], adjacency: Adjacency, interval: float) -> None:
    """Refuse steps whose losses, added up, lie too far apart: one has a normal loss, now and then where q < 1."""
    width = variance = 0.0
    for step in steps:
        mu = (1.0 if adjacency == "add_remove" else 2.0) / step.sigma
        # Of the one step, whole; and of all of them together, as far as sums of so many scatter.
        width = max(width, mu * (mu / 2 + 2 * _DEVIATIONS))
        variance += step.n * (mu**2 if step.q == 1 else step.q * mu**2 * (1 + mu**2 / 4))
    bins = max(_FIRST_COSTS * width, 2 * _DEVIATIONS * math.sqrt(variance)) / interval
    if bins > MOST_BINS:
        raise ConfigError(
            f"method: pld would need {bins:.1g} bins of privacy loss for so little noise; allowed: up to"
            f" {MOST_BINS:.1g}; take rdp, or more noise"
        )


@lru_cache(64)
def _single(sigma: float, q: float, adjacency: Adjacency, interval: float) -> Any:
    distributions = _library("dp_accounting.pld.privacy_loss_distribution")
    relations = _library("dp_accounting.privacy_accountant").NeighboringRelation
    relation = relations.ADD_OR_REMOVE_ONE if adjacency == "add_remove" else relations.REPLACE_ONE
    return distributions.from_gaussian_mechanism(
        standard_deviation=sigma,
        sampling_prob=q,
        value_discretization_interval=interval,
        neighboring_relation=relation,
    )


def _library(module: str) -> Any:
    # Imported here: it is optional, and slow to load.
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(
            "method: pld needs dp-accounting, which is not installed; pip install 'starling-node[privacy]', or choose"
            " rdp"
        ) from error
