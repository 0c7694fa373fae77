"""Robust membership inference: is a sample more typical of the target than points of the population are?

Zarifzadeh, Liu and Shokri, "Low-cost high-power membership inference attacks", ICML 2024. A score is the share of
population points z with ``r(x)/r(z) > gamma``, where ``r(x) = p_target(x)/P(x)``. Scores are multiples of 1/|z|: a
small population ties the highest of them, and the true positive rate at low false positive rates collapses (2,500 or
more points are advised).

``p`` is the probability of a sample's own label: ``label_probability`` of :mod:`node.attack.scores`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from node.attack.metrics import auc
from node.attack.references import without_pair
from node.errors import ConfigError

DEFAULT_A = 0.3
"""How well a model's probability for a sample it never saw stands for the average, if nothing is tuned."""
CANDIDATES_A = tuple(tenths / 10 for tenths in range(11))


class Population(NamedTuple):
    """Samples that nobody was trained on."""

    target: np.ndarray
    """p under the target, [points]."""
    references: np.ndarray
    """p under the reference models, [models, points]."""


def offline_marginal(p_out: np.ndarray, a: float) -> np.ndarray:
    """``P(x) = ((1+a) P_out(x) + (1-a)) / 2``, from models that were not trained on x."""
    return ((1 + a) * p_out + (1 - a)) / 2


def online(
    target: np.ndarray, references: np.ndarray, inside: np.ndarray, population: Population, *, gamma: float = 1.0
) -> np.ndarray:
    """Scores [samples], from p under the target [samples] and under references [models, samples].

    ``P`` is the mean of p over references that were trained on a sample, and that were not, each half as heavy.
    """
    marginal = (_mean("in", references, inside) + _mean("out", references, ~inside)) / 2
    return _share_above(target / marginal, population.target / population.references.mean(0), gamma)


def offline(
    target: np.ndarray,
    references: np.ndarray,
    inside: np.ndarray,
    population: Population,
    *,
    a: float = DEFAULT_A,
    gamma: float = 1.0,
) -> np.ndarray:
    """Scores [samples], from references that were not trained on a sample only."""
    marginal = offline_marginal(_mean("out", references, ~inside), a)
    of_population = offline_marginal(population.references.mean(0), a)
    return _share_above(target / marginal, population.target / of_population, gamma)


def tuned_a(references: np.ndarray, inside: np.ndarray, of_population: np.ndarray, *, gamma: float = 1.0) -> float:
    """The ``a`` that attacks a reference model best (by AUC; the smallest of equals): its members are known.

    The first reference plays the target, and its pair, the second, is left out, as for the real one. ``references``
    [models, samples] and ``of_population`` [models, points] are p under the references.
    """
    if len(references) < 4:
        raise ConfigError(f"references: {len(references)} models; tuning needs a pair to attack and a pair beside it")
    others = without_pair(len(references), 0)
    stand_in = Population(of_population[0], of_population[others])

    def quality(a: float) -> float:
        return auc(offline(references[0], references[others], inside[others], stand_in, a=a, gamma=gamma), inside[0])

    return max(CANDIDATES_A, key=quality)


def _share_above(ratios: np.ndarray, of_population: np.ndarray, gamma: float) -> np.ndarray:
    """For each ratio, the share of the population's that it exceeds gamma times."""
    return np.searchsorted(np.sort(of_population), ratios / gamma, side="left") / len(of_population)


def _mean(side: str, references: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    without = np.flatnonzero(~chosen.any(axis=0))
    if len(without):
        raise ConfigError(f"inside: sample {without[0]} has no '{side}' model among {len(chosen)} references")
    return np.asarray(np.mean(references, axis=0, where=chosen))
