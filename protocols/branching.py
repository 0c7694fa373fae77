"""Big cohorts: some members add up what others have trained, so that the leader hears a few sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from protocols.cohort_round import Assignment


def branches(assignment: Assignment, shares: Mapping[int, float], size: int) -> dict[int, Assignment]:
    """What to tell each member of a round.

    Those of neighbouring numbers make a branch of ``size`` (0: none do, and all answer to the leader). One of it adds
    up, another one each round.

    Args:
        shares: how much of the round each member is.
    """
    if not size:
        return dict.fromkeys(shares, assignment)
    members, told = sorted(shares), {}
    for first in range(0, len(members), size):
        branch = members[first : first + size]
        head = branch[assignment.round % len(branch)]
        for member in branch:
            told[member] = replace(assignment, to=head)
        told[head] = replace(told[head], shares=tuple((member, shares[member]) for member in branch))
    return told
