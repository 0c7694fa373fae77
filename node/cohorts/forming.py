"""Which node belongs to which cohort, where nodes reveal nothing, or no more than how fast they are."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from node.election.preference import score
from node.errors import ConfigError

Cohorts: TypeAlias = tuple[tuple[int, ...], ...]
"""The members of each cohort, sorted; a cohort that has been dissolved keeps its number, and has none."""


def sizes(nodes: int, cohorts: int) -> list[int]:
    """Members of each cohort: the first ``nodes mod cohorts`` have one more than the others.

    Raises ConfigError where there are not as many nodes as cohorts.
    """
    if not 1 <= cohorts <= nodes:
        raise ConfigError(f"protocol.cohorts: {cohorts} for {nodes} nodes; allowed: 1 to {nodes}")
    least, more = divmod(nodes, cohorts)
    return [least + (cohort < more) for cohort in range(cohorts)]


def at_random(nodes: Sequence[int], cohorts: int, rng: np.random.Generator) -> Cohorts:
    """A shuffle of the nodes, cut into runs of equal length, to within one."""
    return _cut(rng.permutation(sorted(nodes)).tolist(), cohorts)


def by_speed(round_times_s: Mapping[int, float], cohorts: int) -> Cohorts:
    """Tiers of nodes that need about equally long for a round, the fastest first.

    Chai et al.: TiFL, HPDC 2020. The slowest tier decides when the last cohort stops.
    """
    return _cut(sorted(round_times_s, key=lambda node: (round_times_s[node], node)), cohorts)


def round_time_s(
    steps: int, batch_size: int, inference_s: float, model_bytes: int, bandwidth_bytes_per_s: float
) -> float:
    """What a round takes a node: training, forward and backward, of each sample, and the model there and back."""
    return 3 * steps * batch_size * inference_s + 2 * model_bytes / bandwidth_bytes_per_s


def by_rendezvous(nodes: Sequence[int], cohorts: int, beacon: str, capacity: int | None = None) -> Cohorts:
    """Each node to the cohort that draws it highest (Thaler and Ravishankar, IEEE/ACM ToN 1998).

    Whoever knows the beacon finds its cohort alone, and who comes or goes moves nobody else. With a ``capacity``, a
    full cohort keeps those that it draws highest, and the others go to their next best one (deferred acceptance: Gale
    and Shapley, American Mathematical Monthly 1962): again whatever the order in which nodes are looked at.

    Raises ConfigError where there are fewer nodes than cohorts, or more than they hold.
    """
    sizes(len(nodes), cohorts)
    most = len(nodes) if capacity is None else capacity
    if most * cohorts < len(nodes):
        raise ConfigError(
            f"protocol.capacity: {cohorts} cohorts of {most} do not hold {len(nodes)} nodes; "
            f"allowed: {-(-len(nodes) // cohorts)} or more"
        )
    held: list[list[tuple[int, int]]] = [[] for _ in range(cohorts)]
    choices = {node: iter(preferred(beacon, node, cohorts)) for node in nodes}
    homeless = sorted(nodes)
    while homeless:
        node = homeless.pop()
        cohort = next(choices[node])
        heapq.heappush(held[cohort], (score(beacon, name_of(cohort), node), node))
        if len(held[cohort]) > most:
            homeless.append(heapq.heappop(held[cohort])[1])
    return tuple(tuple(sorted(node for _, node in members)) for members in held)


def preferred(beacon: str, node: int, cohorts: int) -> list[int]:
    """The numbers of the cohorts in a node's rendezvous order, best first."""
    return sorted(range(cohorts), key=lambda cohort: score(beacon, name_of(cohort), node), reverse=True)


def name_of(cohort: int) -> str:
    """What a cohort is called where it is hashed."""
    return f"cohort-{cohort}"


def _cut(order: Sequence[int], cohorts: int) -> Cohorts:
    ends = list(itertools.accumulate(sizes(len(order), cohorts), initial=0))
    return tuple(tuple(sorted(order[start:end])) for start, end in itertools.pairwise(ends))
