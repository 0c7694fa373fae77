"""Cohorts of nodes that are alike: in their labels, updates or losses, or near to each other in the network.

SciPy is imported when it is first needed: nodes of other cohorts do without its 75 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from node.cohorts.forming import Cohorts, sizes
from node.errors import ConfigError

_ITERATIONS = 100
_LEAST_S = 1e-6
"""Of a round trip: SciPy takes what is near 0 for no way at all."""

T = TypeVar("T")
Costs: TypeAlias = Callable[[T], NDArray[np.float64]]
"""What it costs each row to belong to each of some centres, [rows, cohorts]."""
Moved: TypeAlias = Callable[[NDArray[np.int64], T], T]
"""The centres of the rows of each cohort; that of an empty one stays where it is."""


@dataclass(frozen=True, slots=True, eq=False)
class _Clustering(Generic[T]):
    cost: float
    of: NDArray[np.int64]
    """The cohort of each row."""
    centres: T


def similar(
    features: Mapping[int, NDArray[np.float64]], cohorts: int, rng: np.random.Generator, starts: int = 10
) -> Cohorts:
    """Specialists: nodes whose vectors point the same way; sizes differ by at most one.

    Balanced k-means (Malinen and Fränti, S+SSPR 2014) from several starts (k-means++: Arthur and Vassilvitskii, SODA
    2007), on rows of length 1, so that the cosine counts and not who has more. ``features`` are vectors of one length
    by node: label histograms, or updates (of the last layer, say) as in Briggs, Fan and Andras, IJCNN 2020.

    Raises ConfigError for a vector that is not finite, or for more cohorts than nodes.
    """
    nodes = sorted(features)
    rows = np.array([features[node] for node in nodes], dtype=np.float64).reshape(len(nodes), -1)
    _refuse_nonfinite("features", rows, nodes)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(lengths > 0, lengths, 1.0)
    wanted, apart = sizes(len(nodes), cohorts), _squares(rows, rows)

    def means(of: NDArray[np.int64], before: NDArray[np.float64]) -> NDArray[np.float64]:
        held = [rows[of == cohort] for cohort in range(cohorts)]
        return np.array([part.mean(axis=0) if len(part) else old for part, old in zip(held, before, strict=True)])

    first = [rows[_spread(apart, cohorts, rng)] for _ in range(starts)]
    best = _best(wanted, first, lambda centres: _squares(rows, centres), means)
    return _grouped(nodes, best.of, cohorts)


def by_latency(
    nodes: Sequence[int], rtt: NDArray[np.float64], cohorts: int, rng: np.random.Generator, starts: int = 10
) -> tuple[Cohorts, tuple[int, ...]]:
    """Cohorts of nodes that are near to each other, and the medoid of each, which may be its first leader.

    Balanced k-medoids, by turns (Park and Jun, Expert Systems with Applications 2009). ``rtt`` [nodes, nodes] are round
    trips in one unit, in the order of ``nodes``. They need not be symmetric: a pair is as far apart as both together
    say. Below 0 counts as 0.

    Raises ConfigError for round trips of another shape, or that are not finite.
    """
    if rtt.shape != (len(nodes), len(nodes)):
        raise ConfigError(f"rtt: shape {rtt.shape} for {len(nodes)} nodes; allowed: a row and a column for each node")
    _refuse_nonfinite("rtt", rtt, nodes)
    far = np.maximum(rtt, 0.0)
    far = far + far.T
    np.fill_diagonal(far, 0.0)
    wanted = sizes(len(nodes), cohorts)

    def medoids(of: NDArray[np.int64], before: list[int]) -> list[int]:
        held = [np.flatnonzero(of == cohort) for cohort in range(cohorts)]
        return [
            int(part[far[np.ix_(part, part)].sum(axis=0).argmin()]) if len(part) else old
            for part, old in zip(held, before, strict=True)
        ]

    first = [_spread(far, cohorts, rng) for _ in range(starts)]
    best = _best(wanted, first, lambda centres: far[:, centres], medoids)
    return _grouped(nodes, best.of, cohorts), tuple(nodes[medoid] for medoid in best.centres)


def completed(measured: Mapping[int, Mapping[int, float]]) -> NDArray[np.float64]:
    """Round trips of all pairs, [nodes, nodes], from those that nodes have ``measured`` to some of the others.

    A pair is as far apart as the shortest way over pairs that were measured, whichever of both has done it; where there
    is none, twice as far as any. Rows and columns are in the order of the nodes' numbers. What is said of strangers, or
    is no time, is passed over.
    """
    from scipy.sparse.csgraph import shortest_path  # type: ignore[import-untyped]

    nodes = sorted(measured)
    row = {node: i for i, node in enumerate(nodes)}
    direct = np.full((len(nodes), len(nodes)), np.inf)
    for node in nodes:
        for peer, time_s in measured[node].items():
            if peer in row and np.isfinite(time_s):
                direct[row[node], row[peer]] = max(time_s, _LEAST_S)
    ways: NDArray[np.float64] = shortest_path(direct, directed=False)
    known = ways[np.isfinite(ways)]
    return np.where(np.isfinite(ways), ways, 2 * known.max(initial=_LEAST_S))


def favourite(losses: Sequence[float]) -> int:
    """The number of the model that a node trains: the one of the lowest loss on its data, the first of equals.

    IFCA: Ghosh, Chung, Yin, Ramchandran, NeurIPS 2020. A loss that is not finite is as bad as can be.
    """
    return int(np.where(np.isfinite(losses), losses, np.inf).argmin())


def by_loss(losses: Mapping[int, Sequence[float]]) -> Cohorts:
    """The nodes that pick each model; as many cohorts as a node has losses, some perhaps without members."""
    cohorts = len(next(iter(losses.values())))
    picked = {node: favourite(losses[node]) for node in sorted(losses)}
    return tuple(tuple(node for node in picked if picked[node] == cohort) for cohort in range(cohorts))


def best_start(starts: Sequence[Mapping[int, Sequence[float]]]) -> int:
    """Which of several starts of IFCA to keep: the one whose nodes have the lowest mean loss under their favourites."""
    means = [np.mean([np.where(np.isfinite(row), row, np.inf).min() for row in start.values()]) for start in starts]
    return int(np.argmin(means))


def balanced(costs: NDArray[np.float64], wanted: Sequence[int]) -> NDArray[np.int64]:
    """The cohort of each row of ``costs`` [rows, cohorts], with the lowest sum of costs for cohorts of these sizes.

    Any of the cohorts become the larger ones. An assignment problem, solved exactly by SciPy (Crouse, IEEE TAES 2016).
    """
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    least, cohorts = min(wanted), costs.shape[1]
    costs = costs - costs.min()
    # A place that must be taken is cheaper than any sum of the others could be.
    must = np.tile(costs, least) - (costs.max() + 1.0) * len(costs)
    places = np.hstack([must, costs]) if max(wanted) > least else must
    rows, columns = linear_sum_assignment(places)
    of = np.empty(len(costs), dtype=np.int64)
    of[rows] = columns % cohorts
    return of


def _best(wanted: Sequence[int], starts: Sequence[T], costs: Costs[T], moved: Moved[T]) -> _Clustering[T]:
    """From the start that is best without bounds on sizes, which is cheap to find, to one of the ``wanted`` sizes."""
    runs = [_alternate(start, costs, moved, lambda costs: costs.argmin(axis=1)) for start in starts]
    best = min(runs, key=lambda run: run.cost)
    return _alternate(best.centres, costs, moved, lambda costs: balanced(costs, wanted))


def _alternate(
    centres: T, costs: Costs[T], moved: Moved[T], assign: Callable[[NDArray[np.float64]], NDArray[np.int64]]
) -> _Clustering[T]:
    """Assign rows to centres, and move the centres, by turns until no row changes."""
    found = costs(centres)
    of = assign(found)
    for _ in range(_ITERATIONS):
        centres = moved(of, centres)
        found = costs(centres)
        before, of = of, assign(found)
        if np.array_equal(of, before):
            break
    return _Clustering(float(found[np.arange(len(of)), of].sum()), of, centres)


def _spread(costs: NDArray[np.float64], count: int, rng: np.random.Generator) -> list[int]:
    """Different rows to start from, each drawn in proportion to its cost [rows, rows] to those before it."""
    chosen = [int(rng.integers(len(costs)))]
    while len(chosen) < count:
        weights = costs[:, chosen].min(axis=1)
        weights[chosen] = 0.0
        if not weights.any():
            weights[[i for i in range(len(costs)) if i not in chosen]] = 1.0
        chosen.append(int(rng.choice(len(costs), p=weights / weights.sum())))
    return chosen


def _squares(rows: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances [rows, centres]; not below 0, as rounding would have it."""
    products = rows @ centres.T
    lengths = (rows**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1)
    squares: NDArray[np.float64] = np.maximum(lengths - 2 * products, 0.0)
    return squares


def _grouped(nodes: Sequence[int], of: NDArray[np.int64], cohorts: int) -> Cohorts:
    return tuple(tuple(sorted(nodes[i] for i in np.flatnonzero(of == cohort).tolist())) for cohort in range(cohorts))


def _refuse_nonfinite(what: str, rows: NDArray[np.float64], nodes: Sequence[int]) -> None:
    wrong = ~np.isfinite(rows).all(axis=1)
    if wrong.any():
        node = nodes[int(wrong.argmax())]
        raise ConfigError(f"{what}: node {node} has a NaN or an infinity; allowed: finite numbers")
