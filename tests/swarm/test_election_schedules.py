"""Elections through random schedules of faults: no rule broken, and a leader soon after; planted bugs are found.

A failure names its seed: ``Schedule(seed).run()`` runs that one again.
"""

import numpy as np
import pytest
from election_schedules import FAULTS_S, TIMING, Planted, Schedule, T, Violation

from node.election import Election, Role, Timing

SCHEDULES, BATCH = 1000, 50
MOST = 1000
"""Schedules in which a planted bug must be found."""


@pytest.mark.parametrize("first", range(0, SCHEDULES, BATCH))
def test_no_schedule_breaks_a_rule_and_all_find_a_leader(first):
    outcomes = [Schedule(seed).run() for seed in range(first, first + BATCH)]
    leader_s = np.array([outcome.leader_s for outcome in outcomes])
    assert leader_s.max() <= 10 * T
    assert np.quantile(leader_s, 0.9) <= 3 * T
    assert sum(outcome.rounds for outcome in outcomes) > 2 * BATCH, "hardly a round was made: nothing was tested"
    assert sum(outcome.elections for outcome in outcomes) > 2 * BATCH


def test_a_schedule_follows_from_its_seed():
    assert Schedule(7).run() == Schedule(7).run()
    assert Schedule(7).run() != Schedule(8).run()


class Trace(Schedule):
    """Keeps what was delivered, and what happened around it."""

    def __init__(self, seed):
        super().__init__(seed)
        self.told, self.faults, self.lives = [], 0, 0

    def fault(self):
        self.faults += 1
        super().fault()

    def start(self, node):
        self.lives += self.members[node].election is None
        super().start(node)

    def deliver(self, sender, to, message):
        self.told.append((sender, to, message, self.now))
        return super().deliver(sender, to, message)


def test_the_scheduler_does_what_it_says():
    traces = [Trace(seed) for seed in range(20)]
    outcomes = [trace.run() for trace in traces]
    assert all(trace.faults > 1 for trace in traces)
    assert any(trace.lives > len(trace.members) for trace in traces), "no node has come back"
    assert any(len({id(message) for *_, message, _ in trace.told}) < len(trace.told) for trace in traces)
    assert all(0 <= outcome.leader_s <= trace.now - FAULTS_S for outcome, trace in zip(outcomes, traces, strict=True))
    assert any(trace.changes and trace.members[-1].kept.accepted.members for trace in traces), "nobody has joined"


# Planted bugs


def first_found(planted, most=MOST):
    """The first violation in a row of schedules."""
    for seed in range(most):
        try:
            Schedule(seed, planted).run()
        except Violation as violation:
            return violation
    return None


class VotesTwice(Election):
    """Forgets within a term that it has voted."""

    def _on_vote_request(self, sender, request):
        self.durable = self.durable._replace(voted_for=None)
        super()._on_vote_request(sender, request)


class CountsHolders(Election):
    """Has a recovered entry accepted under its old term, and counts who holds it: the classical mistake."""

    def _recover_from(self, newest):
        self._propose(newest)

    def _propose(self, entry):
        super()._propose(entry._replace(term=self.term) if self._reign.has_begun else entry)


class LongLease(Timing):
    """Longer than followers wait."""

    @property
    def lease_s(self):
        return 1.5 * self.timeout_s


def test_a_vote_that_is_not_kept_is_found():
    violation = first_found(Planted(keep=lambda state: state._replace(voted_for=None)))
    assert violation.rule == "one vote"


def test_two_votes_in_a_term_are_found():
    assert first_found(Planted(election=VotesTwice)).rule == "one vote"


def test_two_votes_in_a_term_make_two_leaders():
    assert first_found(Planted(election=VotesTwice, overlooked=("one vote",))).rule == "one leader"


def test_counting_holders_of_an_old_term_loses_a_committed_round():
    violation = first_found(Planted(election=CountsHolders, overlooked=("one sender",)))
    assert violation.rule == "lost round"


def test_a_lease_longer_than_the_timeout_is_found():
    timing = LongLease(TIMING.timeout_s, heartbeats=TIMING.heartbeats)
    assert first_found(Planted(timing=timing)).rule == "one lease"


def test_drift_beyond_its_bound_breaks_the_lease():
    assert first_found(Planted(drift=0.5)).rule == "one lease"


@pytest.mark.parametrize("first", [0, 40])
def test_drift_beyond_its_bound_breaks_nothing_else(first):
    planted = Planted(drift=0.5, overlooked=("one lease", "leader", "progress"))
    for seed in range(first, first + 40):
        Schedule(seed, planted).run()


def test_a_rule_that_is_broken_names_its_seed():
    schedule = Schedule(5)
    leader = schedule.planted.election(0, schedule.members[0].kept._replace(term=3), TIMING, schedule.rng)
    leader.role = Role.LEADER
    schedule.seen.leaders[3] = 1
    with pytest.raises(Violation, match=r"one leader: seed 5, at 0\.000 s: nodes 1 and 0 lead in term 3"):
        schedule.check_leader(0, leader)
