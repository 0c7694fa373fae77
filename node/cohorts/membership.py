"""Who comes into a cohort or leaves it after it was formed; nobody else moves.

A joiner goes to the cohort that it costs least, of those with room. What costs is said by how cohorts were formed:
:func:`rendezvous_costs`, :func:`stratified_costs`, :func:`similar_costs` (alike in labels), :func:`distance_costs` (in
speed), or :func:`near_costs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from node.cohorts.forming import Cohorts, name_of
from node.cohorts.labels import total_of
from node.election.preference import score
from node.errors import ProtocolError


def joined(cohorts: Cohorts, node: int, costs: Sequence[float], capacity: int | None = None) -> Cohorts:
    """The cohorts with one node more, in the cheapest that has room, the first of equals.

    ``capacity`` members are the most; None: as many as the largest has where all are balanced. A dissolved cohort stays
    so. Raises ProtocolError where the node is in a cohort already, or no cohort has room.
    """
    if any(node in members for members in cohorts):
        raise ProtocolError(f"node {node} joins a second cohort; it has to leave its own first")
    live = [number for number, members in enumerate(cohorts) if members]
    if capacity is None and live:
        capacity = -(-(sum(map(len, cohorts)) + 1) // len(live))
    room = [number for number in live if capacity is not None and len(cohorts[number]) < capacity]
    if not room:
        raise ProtocolError(f"node {node}: no cohort has room for it; form them anew, or allow them more members")
    best = min(room, key=lambda number: (costs[number], number))
    grown = tuple(sorted((*cohorts[best], node)))
    return (*cohorts[:best], grown, *cohorts[best + 1 :])


def without(cohorts: Cohorts, node: int) -> Cohorts:
    """The cohorts after a node has left."""
    return tuple(tuple(member for member in members if member != node) for members in cohorts)


def dissolved(cohorts: Cohorts, min_size: int, beacon: str) -> Cohorts:
    """The cohorts after all with fewer than ``min_size`` members have dissolved, the smallest first.

    The members of one go, in the order of their numbers, to the first in their rendezvous order that has room. The last
    cohort stays however small it is.
    """
    while True:
        first = smallest(cohorts)
        if first is None or sum(map(bool, cohorts)) == 1 or len(cohorts[first]) >= min_size:
            return cohorts
        homeless = cohorts[first]
        cohorts = (*cohorts[:first], (), *cohorts[first + 1 :])
        for node in homeless:
            cohorts = joined(cohorts, node, rendezvous_costs(beacon, node, len(cohorts)))


def smallest(cohorts: Sequence[Sequence[int]]) -> int | None:
    """The number of the cohort that dissolves first: the last of the smallest; None where none has members."""
    live = [number for number, members in enumerate(cohorts) if members]
    return min(live, key=lambda number: (len(cohorts[number]), -number), default=None)


def rendezvous_costs(beacon: str, node: int, cohorts: int) -> list[int]:
    """The higher a cohort draws a node, the less it costs."""
    return [-score(beacon, name_of(cohort), node) for cohort in range(cohorts)]


def stratified_costs(histograms: Mapping[int, ArrayLike], cohorts: Cohorts, joiner: ArrayLike) -> list[float]:
    """By how much a joiner's labels move each cohort away from its share of everybody's, in L1."""
    own = np.asarray(joiner, dtype=np.float64)
    counts = {node: np.asarray(row, dtype=np.float64) for node, row in histograms.items()}
    totals = [total_of(counts, members, like=own) for members in cohorts]
    target = (np.sum(totals, axis=0) + own) / sum(bool(members) for members in cohorts)
    return [float(np.abs(total + own - target).sum() - np.abs(total - target).sum()) for total in totals]


def distance_costs(features: Mapping[int, ArrayLike], cohorts: Cohorts, joiner: ArrayLike) -> list[float]:
    """How far a joiner is from the mean of each cohort; infinitely far from one without members."""
    rows = {node: np.asarray(row, dtype=np.float64) for node, row in features.items()}
    return [
        float(np.linalg.norm(np.mean([rows[node] for node in members], axis=0) - joiner)) if members else np.inf
        for members in cohorts
    ]


def similar_costs(features: Mapping[int, ArrayLike], cohorts: Cohorts, joiner: ArrayLike) -> list[float]:
    """The same among vectors that are brought to length 1: alike is what points the same way."""
    return distance_costs({node: _unit(row) for node, row in features.items()}, cohorts, _unit(joiner))


def near_costs(round_trips_s: Mapping[int, float], cohorts: Cohorts) -> list[float]:
    """The mean round trip to those members of each cohort that a joiner has measured; infinite where it has none."""
    measured = [[round_trips_s[node] for node in members if node in round_trips_s] for members in cohorts]
    return [float(np.mean(times_s)) if times_s else np.inf for times_s in measured]


def _unit(vector: ArrayLike) -> NDArray[np.float64]:
    row = np.asarray(vector, dtype=np.float64)
    length = float(np.linalg.norm(row))
    return row / length if length > 0 else row
