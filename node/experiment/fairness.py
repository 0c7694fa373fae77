"""How evenly a run has served its nodes and the groups that they belong to.

Rates of a group are those of its nodes together; with more than two groups, a gap is the largest between any two. What
nobody can say (rates of a label that only one group has) is not a number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]

_ACCURACY_WEIGHT = 2 / 3


class Gap(NamedTuple):
    """By how much rates differ between groups: added up, and the largest single one."""

    sum: float
    max: float


class Odds(NamedTuple):
    """By how much rates within a label differ between groups."""

    sum: float
    max: float
    recall: float
    """The sum over labels of the differences in recall alone."""


# Over nodes or groups


def accuracy(confusion: ArrayLike) -> float:
    """Share of samples that are taken for what they are; ``confusion`` counts [label, taken for]."""
    counts = np.asarray(confusion, dtype=np.float64)
    return _ratio(float(np.trace(counts)), float(counts.sum()))


def jain(values: ArrayLike) -> float:
    """Jain's index: 1 where all values are equal, 1/n where one has all (Jain, Chiu, Hawe, DEC-TR-301, 1984)."""
    numbers = np.asarray(values, dtype=np.float64)
    return _ratio(float(numbers.sum()) ** 2, numbers.size * float((numbers**2).sum()))


def worst_decile(values: ArrayLike) -> float:
    """The value that the worst tenth does not exceed, interpolated linearly."""
    return float(np.quantile(np.asarray(values, dtype=np.float64), 0.1))


def gap(values: ArrayLike) -> float:
    """Between the largest and the smallest value."""
    return float(np.ptp(np.asarray(values, dtype=np.float64)))


def group_means(values: Mapping[int, float], groups: Mapping[int, int]) -> dict[int, float]:
    """The mean of any metric of nodes (an attack's AUC, an epsilon) over each group's nodes, by group.

    Args:
        values: by node.
        groups: each node's group; one below 0 belongs to none.
    """
    return {group: float(np.mean([values[i] for i in nodes])) for group, nodes in _members(values, groups).items()}


def group_gap(values: Mapping[int, float], groups: Mapping[int, int]) -> float:
    """By how much :func:`group_means` differ at most: how unfair privacy is, where the metric is one of privacy."""
    return gap(list(group_means(values, groups).values()))


def fair_accuracy(accuracies: ArrayLike, weight: float = _ACCURACY_WEIGHT) -> float:
    """``weight * mean + (1 - weight) * (1 - gap)`` of the groups' accuracies (Biswas et al., FACADE, SaTML 2025)."""
    values = np.asarray(accuracies, dtype=np.float64)
    return weight * float(values.mean()) + (1 - weight) * (1 - gap(values))


# Between groups


def demographic_parity(confusions: Sequence[ArrayLike]) -> Gap:
    """Between groups, how often each label is predicted at all; ``confusions`` by group, [label, taken for]."""
    rates = [counts.sum(axis=0) / _positive(counts.sum()) for counts in _counts(confusions)]
    pairs = [np.abs(one - other) for one, other in itertools.combinations(rates, 2)]
    return Gap(_largest(float(pair.sum()) for pair in pairs), _largest(float(pair.max()) for pair in pairs))


def equalized_odds(confusions: Sequence[ArrayLike]) -> Odds:
    """Between groups, how often samples of each label are taken for each label (Hardt et al., NeurIPS 2016).

    Labels that one of two groups has no samples of are left out.
    """
    rates = [counts / _positive(counts.sum(axis=1, keepdims=True)) for counts in _counts(confusions)]
    pairs = []
    for one, other in itertools.combinations(rates, 2):
        apart = np.abs(one - other)
        shared = ~np.isnan(apart).any(axis=1)
        if shared.any():
            pairs.append((apart[shared], apart.diagonal()[shared]))
    return Odds(
        _largest(float(apart.sum()) for apart, _ in pairs),
        _largest(float(apart.max()) for apart, _ in pairs),
        _largest(float(recall.sum()) for _, recall in pairs),
    )


# What the summary says


def over_nodes(values: Mapping[int, float]) -> dict[str, Any]:
    """How evenly some accuracies by node are spread: ``nodes``, ``std``, ``jain`` and ``worst_decile``."""
    numbers = [values[node] for node in sorted(values)]
    return {
        "nodes": len(numbers),
        "std": float(np.std(numbers)),
        "jain": _told(jain(numbers)),
        "worst_decile": worst_decile(numbers),
    }


def fairness(confusions: Mapping[int, ArrayLike], groups: Mapping[int, int]) -> dict[str, Any]:
    """All of it, for ``summary.json``: None for what is not a number; empty where no node belongs to a group.

    Args:
        confusions: by node, counts [label, taken for] of its model on test samples of its own distribution.
        groups: each node's group; one below 0 belongs to none.
    """
    members = _members(confusions, groups)
    if not members:
        return {}
    pooled = [reduce(np.add, (np.asarray(confusions[node]) for node in nodes)) for nodes in members.values()]
    accuracies = [accuracy(group) for group in pooled]
    return {
        "groups": {
            str(group): {"nodes": len(nodes), "accuracy": value}
            for (group, nodes), value in zip(members.items(), accuracies, strict=True)
        },
        "worst_group_accuracy": min(accuracies),
        "accuracy_gap": gap(accuracies),
        "fair_accuracy": fair_accuracy(accuracies),
        "demographic_parity": _all_told(demographic_parity(pooled)),
        "equalized_odds": _all_told(equalized_odds(pooled)),
        **over_nodes({node: accuracy(confusions[node]) for nodes in members.values() for node in nodes}),
    }


def _members(nodes: Iterable[int], groups: Mapping[int, int]) -> dict[int, list[int]]:
    """The nodes of each group that has some, all in order."""
    members: dict[int, list[int]] = {}
    for node in sorted(nodes, key=lambda node: (groups[node], node)):
        if groups[node] >= 0:
            members.setdefault(groups[node], []).append(node)
    return members


def _counts(confusions: Sequence[ArrayLike]) -> list[Floats]:
    return [np.asarray(confusion, dtype=np.float64) for confusion in confusions]


def _positive(total: Any) -> Floats:
    """A total to divide by; not a number where there is nothing to divide."""
    return np.where(np.asarray(total) > 0, total, np.nan)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def _largest(values: Iterable[float]) -> float:
    return max(values, default=math.nan)


def _told(value: float) -> float | None:
    return None if math.isnan(value) else value


def _all_told(figures: Gap | Odds) -> dict[str, float | None]:
    return {name: _told(value) for name, value in figures._asdict().items()}
