"""In which order the members of a cohort stand for election.

A preference gives the members of an entry, best first. It changes how soon who stands, and nothing else: voters do not
look at it, so that members that see it differently, or a best one that is dead, cost time and never safety.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

from node.election.entry import Entry

Preference: TypeAlias = Callable[[Entry], Sequence[int]]
"""The members of an entry, each once, best first."""


def by_rank(order: Sequence[int]) -> Preference:
    """A fixed order, of bandwidth or speed for example; members that it does not name come last."""
    rank = {node: position for position, node in enumerate(order)}

    def prefer(entry: Entry) -> Sequence[int]:
        return sorted(entry.members, key=lambda node: (rank.get(node, len(rank)), node))

    return prefer


def rotating(entry: Entry) -> Sequence[int]:
    """In turn: with every epoch the next member comes first."""
    start = entry.epoch % len(entry.members)
    return entry.members[start:] + entry.members[:start]


def sortition(cohort: str) -> Preference:
    """Highest random weight (Thaler and Ravishankar, IEEE/ACM ToN 1998), drawn anew with the beacon of each epoch.

    The highest member alive leads, the next ones are its successors, and nobody knows the draw before the last epoch
    has ended. Alone, without majorities, both sides of a partition would have such a leader; so it is a preference
    here. It is no verifiable random function: the order is public as soon as the beacon is, and who may choose its
    number in the cohort, or the last model of an epoch, can try several and so bias the draw.
    """

    @functools.lru_cache(maxsize=4)
    def draw(beacon: str, members: tuple[int, ...]) -> Sequence[int]:
        return sorted(members, key=lambda node: score(beacon, cohort, node), reverse=True)

    return lambda entry: draw(entry.beacon, entry.members)


def score(beacon: str, cohort: str, node: int | str) -> int:
    """A node's weight in a cohort: the first 8 bytes, big endian, of SHA-256 of ``beacon|cohort|node``."""
    return int.from_bytes(hashlib.sha256(f"{beacon}|{cohort}|{node}".encode()).digest()[:8], "big")
