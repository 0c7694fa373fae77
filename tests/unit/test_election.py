"""Elections rule by rule: single machines fed by hand, and small cohorts whose messages a test may hold back."""

import math
from collections import deque
from dataclasses import fields
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.election import (
    Accepted,
    Aggregated,
    Alive,
    BecomeLeader,
    Change,
    Commit,
    Durable,
    Election,
    Entry,
    Fetch,
    Fetched,
    Heartbeat,
    PeerMessage,
    Persist,
    PreVote,
    PreVoteRequest,
    Proposal,
    Received,
    Role,
    Rotate,
    Send,
    SetTimer,
    Stale,
    Stamp,
    Start,
    StepAside,
    StepDown,
    Tick,
    Timing,
    Unavailable,
    Vote,
    VoteRequest,
    Warn,
    by_rank,
    pack,
    rotating,
    score,
    sortition,
    unpack,
)
from node.election.entry import is_majority
from node.errors import ConfigError, ProtocolError

T = 10.0
TIMING = Timing(timeout_s=T)


def entry(term=0, round=-1, epoch=0, digest="", members=(0, 1, 2), beacon=""):
    return Entry(term, round, epoch, digest, members, beacon)


def started(me=0, members=(0, 1, 2), now=0.0, preference=None, timing=TIMING, **saved):
    """A machine that has just begun, with what it had kept."""
    election = Election(
        me, Durable.first(members)._replace(**saved), timing, np.random.default_rng([7, me]), preference
    )
    election.step(Start(), now)
    return election


def tell(election, sender, message, now=0.0):
    return election.step(Received(sender, message), now)


def said(actions, kind=object):
    """The messages among some actions, with whom they go to."""
    return (
        [(action.to, action.message) for action in actions if isinstance(action, Send)]
        if kind is object
        else [action.message for action in actions if isinstance(action, Send) and isinstance(action.message, kind)]
    )


def of(actions, kind):
    return [action for action in actions if isinstance(action, kind)]


class Cohort:
    """Machines whose messages arrive at once and in order, unless somebody is down or cut off."""

    def __init__(self, members=(0, 1, 2), preference=None, joiners=()):
        self.preference = preference or by_rank(members)
        self.kept = {node: Durable.first(members) for node in members} | {node: Durable.first(()) for node in joiners}
        self.models = {node: set() for node in self.kept}
        self.now, self.queue, self.muted = 0.0, deque(), ()
        self.up, self.history, self.steps = {}, [], 0
        for node in self.kept:
            self.start(node)

    def start(self, node):
        self.up[node] = Election(
            node, self.kept[node], TIMING, np.random.default_rng([3, node, self.steps]), self.preference
        )
        self.feed(node, Start())

    def kill(self, node):
        del self.up[node]

    def feed(self, node, event):
        """One step of one node; what it says waits in the queue."""
        self.steps += 1
        for action in self.up[node].step(event, self.now):
            self.history.append((node, action))
            if isinstance(action, Persist):
                self.kept[node] = action.state
                self.models[node].update(action.state.digests)
            elif isinstance(action, Send):
                self.queue.extend((node, to, action.message) for to in action.to)
            elif isinstance(action, Fetch):
                found = any(holder in self.up and action.digest in self.models[holder] for holder in action.holders)
                self.feed(node, (Fetched if found else Unavailable)(action.digest))

    def settle(self, lose=()):
        """Deliver all that is said; ``lose``: kinds of messages that do not arrive."""
        while self.queue:
            sender, to, message = self.queue.popleft()
            if to in self.up and not {sender, to} & set(self.muted) and not isinstance(message, lose):
                self.feed(to, Received(sender, message))

    def run(self, seconds):
        """Let time pass, in steps of a tenth of a heartbeat."""
        for _ in range(math.ceil(seconds / (TIMING.heartbeat_s / 10))):
            self.now += TIMING.heartbeat_s / 10
            for node in sorted(self.up):
                self.feed(node, Tick())
                self.settle()

    def leaders(self):
        return [node for node, election in self.up.items() if election.role is Role.LEADER]

    def elect(self):
        self.run(2.5 * T)
        (leader,) = self.leaders()
        return leader

    def aggregate(self, leader, digest, *, settle=True):
        election = self.up[leader]
        self.feed(leader, Aggregated(election.term, election.durable.accepted.round + 1, digest))
        if settle:
            self.settle()

    def done(self, kind, node=None):
        return [action for who, action in self.history if isinstance(action, kind) and node in (None, who)]


# Time


@pytest.mark.parametrize("members", [(0, 1), (0, 1, 2), tuple(range(9))])
def test_a_node_that_hears_nobody_stands_between_t_and_2t(members):
    waits = [Election(0, Durable.first(members), TIMING, np.random.default_rng(seed)) for seed in range(200)]
    at_s = [of(election.step(Start(), 5.0), SetTimer)[0].at_s - 5.0 for election in waits]
    assert T <= min(at_s) < 1.1 * T
    assert 1.9 * T < max(at_s) < 2 * T


def test_a_preference_orders_who_stands_without_leaving_t_to_2t():
    order = (2, 0, 1)
    for node in order:
        for seed in range(50):
            election = Election(node, Durable.first(order), TIMING, np.random.default_rng(seed), by_rank(order))
            (timer,) = of(election.step(Start(), 0.0), SetTimer)
            rank = order.index(node)
            assert T * (1 + rank / 3) <= timer.at_s < T * (1 + (rank + 1) / 3)


def test_a_tick_too_early_changes_nothing():
    election = started()
    before = election.durable
    assert election.step(Tick(), election.deadline_s - 1e-6) == []
    assert election.durable is before


def test_a_lease_ends_before_anybody_stands_whatever_clocks_do_within_the_drift():
    for drift in (0.0, 0.01, 0.1, 0.24):
        timing = Timing(timeout_s=T, drift=drift)
        assert timing.lease_s / (1 - drift) <= T / (1 + drift)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"timeout_s": 0}, "timeout_s: 0 is no election timeout; allowed: above 0"),
        ({"timeout_s": math.nan}, "timeout_s: nan"),
        ({"timeout_s": math.inf}, "timeout_s: inf"),
        ({"timeout_s": 1, "drift": 0.25}, r"drift: 0.25 is no drift rate of a clock; allowed: 0 to below 0.25"),
        ({"timeout_s": 1, "drift": -0.1}, "drift: -0.1"),
        ({"timeout_s": 1, "heartbeats": 4}, "heartbeats: 4 in an election timeout; allowed: 5 to 10"),
    ],
)
def test_times_out_of_range_are_refused(values, says):
    with pytest.raises(ConfigError, match=says):
        Timing(**values)


# Terms and votes


def candidate(me=0, members=(0, 1, 2)):
    """A machine that stands for election in term 1, and when it does."""
    election = started(me, members)
    now = election.deadline_s
    election.step(Tick(), now)
    for other in members:
        if other != me and election.role is Role.PRECANDIDATE:
            tell(election, other, PreVote(0), now)
    assert election.role is Role.CANDIDATE
    return election, now


def test_it_asks_before_it_stands_and_raises_no_term_until_a_majority_would_vote():
    election = started(members=(0, 1, 2, 3, 4))
    now = election.deadline_s
    actions = election.step(Tick(), now)
    assert said(actions) == [((1, 2, 3, 4), PreVoteRequest(0, Stamp(0, -1, 0)))]
    assert (election.role, election.term, of(actions, Persist)) == (Role.PRECANDIDATE, 0, [])
    assert tell(election, 1, PreVote(0), now) == []
    actions = tell(election, 2, PreVote(0), now)
    assert of(actions, Persist)[0].state[:2] == (1, 0)
    assert said(actions) == [((1, 2, 3, 4), VoteRequest(1, Stamp(0, -1, 0), False))]


def test_one_voice_counts_once():
    election, now = candidate(members=(0, 1, 2, 3, 4))
    for _ in range(3):
        tell(election, 1, Vote(1), now)
    assert election.role is Role.CANDIDATE
    tell(election, 4, Vote(1), now)
    assert election.role is Role.LEADER


def test_voices_of_strangers_and_of_other_terms_do_not_count():
    election, now = candidate()
    for sender, message in ((7, Vote(1)), (1, PreVote(1)), (1, Vote(0))):
        tell(election, sender, message, now)
    assert election.role is Role.CANDIDATE


def test_a_vote_is_kept_before_it_is_given_and_given_once_a_term():
    election = started(2)
    actions = tell(election, 0, VoteRequest(1, Stamp(0, -1, 0), False))
    assert [type(action) for action in actions] == [Persist, Send, SetTimer]
    assert actions[0].state[:2] == (1, 0)
    assert said(actions) == [((0,), Vote(1))]
    assert said(tell(election, 1, VoteRequest(1, Stamp(0, -1, 0), False))) == []
    assert said(tell(election, 0, VoteRequest(1, Stamp(0, -1, 0), False))) == [((0,), Vote(1))]
    assert said(tell(election, 1, VoteRequest(2, Stamp(0, -1, 0), False))) == [((1,), Vote(2))]


def test_a_vote_outlasts_a_crash():
    before = started(2)
    (kept,) = of(tell(before, 0, VoteRequest(1, Stamp(0, -1, 0), False)), Persist)
    after = Election(2, Durable.from_text(kept.state.to_text()), TIMING, np.random.default_rng(0))
    after.step(Start(), 0.0)
    assert said(tell(after, 1, VoteRequest(1, Stamp(0, -1, 0), False), 3 * T)) == []
    assert said(tell(after, 0, VoteRequest(1, Stamp(0, -1, 0), False), 3 * T)) == [((0,), Vote(1))]


@given(st.tuples(*[st.integers(0, 2)] * 3), st.tuples(*[st.integers(0, 2)] * 3))
def test_nobody_votes_for_one_that_has_accepted_less(own, theirs):
    election = started(accepted=entry(*own), term=3)
    votes = said(tell(election, 1, VoteRequest(4, Stamp(*theirs), False), T))
    assert bool(votes) == (theirs >= own)
    assert election.term == 4


def test_no_vote_while_a_leader_was_heard_and_not_even_its_term():
    election = started()
    tell(election, 1, Heartbeat(3, 0.0, Stamp(0, -1, 0)), 5.0)
    for message in (VoteRequest(9, Stamp(8, 8, 8), False), PreVoteRequest(9, Stamp(8, 8, 8))):
        assert tell(election, 2, message, 5.0 + T - 1e-6) == []
    assert (election.term, election.leader) == (3, 1)
    assert said(tell(election, 2, VoteRequest(9, Stamp(8, 8, 8), False), 5.0 + T), Vote) == [Vote(9)]


def test_who_comes_back_gives_no_vote_for_t_as_it_may_have_followed_somebody():
    election = started(term=3, now=100.0)
    assert tell(election, 1, VoteRequest(4, Stamp(0, -1, 0), False), 100.0 + T - 1e-6) == []
    assert said(tell(election, 1, VoteRequest(4, Stamp(0, -1, 0), False), 100.0 + T), Vote) == [Vote(4)]


def test_a_prevote_changes_nothing_and_tells_a_lower_term_the_newer_one():
    election = started(term=5)
    before = election.durable
    assert said(tell(election, 1, PreVoteRequest(2, Stamp(0, -1, 0)), T)) == [((1,), PreVote(5))]
    assert election.durable is before
    asking = started(1)
    asking.step(Tick(), 2 * T)
    actions = tell(asking, 0, PreVote(5), 2 * T)
    assert said(actions, VoteRequest) == [VoteRequest(6, Stamp(0, -1, 0), False)]


@pytest.mark.parametrize(
    "message",
    [
        Heartbeat(2, 0.0, Stamp(0, -1, 0)),
        Proposal(2, entry(2, 0), Stamp(0, -1, 0)),
        VoteRequest(2, Stamp(9, 9, 9), False),
        StepAside(2),
        Accepted(2, Stamp(2, 0, 0)),
    ],
)
def test_what_is_of_an_older_term_is_answered_with_the_own_and_otherwise_ignored(message):
    election = started(term=5)
    before = election.durable
    assert tell(election, 1, message, T) == [Send((1,), Stale(5))]
    assert election.durable is before


def test_stale_is_not_answered():
    assert tell(started(term=5), 1, Stale(2), T) == []


@pytest.mark.parametrize("role", [Role.CANDIDATE, Role.LEADER])
def test_a_newer_term_makes_a_follower(role):
    election, now = candidate()
    if role is Role.LEADER:
        tell(election, 1, Vote(1), now)
    assert election.role is role
    actions = tell(election, 2, Stale(8), now)
    assert (election.role, election.durable[:2]) == (Role.FOLLOWER, (8, None))
    assert of(actions, StepDown) == ([StepDown(1)] if role is Role.LEADER else [])


# The leader


def test_the_best_member_leads_and_begins_once_a_majority_has_accepted_its_beginning():
    cohort = Cohort(preference=by_rank([1, 0, 2]))
    assert cohort.elect() == 1
    assert [election.leader for election in cohort.up.values()] == [1, 1, 1]
    (begun,) = cohort.done(BecomeLeader)
    assert begun == BecomeLeader(1, entry(term=1))
    cohort.run(20 * T)
    assert cohort.leaders() == [1]
    assert [election.term for election in cohort.up.values()] == [1, 1, 1]
    assert len(cohort.done(BecomeLeader)) == 1


def test_a_round_is_committed_by_a_majority_and_everybody_hears_of_it():
    cohort = Cohort(tuple(range(5)))
    leader = cohort.elect()
    cohort.muted = (3, 4)
    cohort.aggregate(leader, "m0")
    assert [cohort.kept[node].committed.digest for node in range(5)] == ["m0", "m0", "m0", "", ""]
    cohort.muted = ()
    cohort.run(0.5 * T)
    assert [cohort.kept[node].committed.digest for node in range(5)] == ["m0"] * 5
    assert [commit.entry.round for commit in cohort.done(Commit, 4)] == [0]


@pytest.mark.parametrize(
    "wish", [Aggregated(1, 3, "x"), Aggregated(1, -1, "x"), Aggregated(2, 0, "x"), Aggregated(0, 0, "x")]
)
def test_only_the_next_round_of_the_own_term_is_proposed(wish):
    cohort = Cohort()
    leader = cohort.elect()
    before = cohort.kept[leader]
    cohort.feed(leader, wish)
    assert cohort.kept[leader] is before


def test_a_follower_proposes_nothing():
    cohort = Cohort()
    cohort.elect()
    for wish in (Aggregated(1, 0, "x"), Change(9, True), Rotate()):
        assert cohort.up[2].step(wish, cohort.now) == []


def test_a_leader_without_answers_of_a_majority_steps_down_by_itself_within_its_lease():
    cohort = Cohort()
    leader = cohort.elect()
    heard_s = cohort.now
    cohort.muted = (leader,)
    assert cohort.up[leader].has_lease(heard_s)
    cohort.run(TIMING.lease_s)
    assert cohort.up[leader].role is Role.FOLLOWER
    assert cohort.done(StepDown, leader) == [StepDown(1)]
    assert not cohort.up[leader].has_lease(cohort.now)


def test_a_lease_counts_from_when_the_answered_heartbeat_was_sent():
    election, now = candidate()
    tell(election, 1, Vote(1), now)
    assert not election.has_lease(now), "nobody has followed it yet"
    tell(election, 1, Alive(1, now, entry()), now + 4.0)
    assert election.has_lease(now + TIMING.lease_s - 1e-6)
    assert not election.has_lease(now + TIMING.lease_s)
    tell(election, 1, Alive(1, now - 1.0, entry()), now + 4.5)
    assert election.has_lease(now + TIMING.lease_s - 1e-6), "an older answer has come later"
    tell(election, 2, Alive(1, now + 1e9, entry()), now + 5.0)
    assert not election.has_lease(now + 5.0 + TIMING.lease_s), "an answer to a heartbeat of the future"


def test_a_proposal_is_said_again_to_who_answers_without_it_and_a_lost_answer_does_not_matter():
    cohort = Cohort()
    leader = cohort.elect()
    cohort.aggregate(leader, "m0", settle=False)
    cohort.settle(lose=(Proposal,))
    assert cohort.kept[leader].committed.round == -1
    cohort.run(0.3 * T)
    assert {state.committed.digest for state in cohort.kept.values()} == {"m0"}
    cohort.aggregate(leader, "m1", settle=False)
    cohort.settle(lose=(Accepted,))
    before = len(cohort.history)
    cohort.run(0.3 * T)
    assert {state.committed.digest for state in cohort.kept.values()} == {"m1"}
    assert said([action for _, action in cohort.history[before:]], Proposal) == [], "heartbeats' answers tell it, too"


def test_an_answer_from_before_a_proposal_does_not_have_it_said_again():
    election, now = candidate()
    tell(election, 1, Vote(1), now)
    actions = tell(election, 1, Alive(1, now, entry()), now + 0.1)
    assert said(actions, Proposal) == [Proposal(1, entry(1), Stamp(0, -1, 0))]
    assert said(tell(election, 2, Alive(1, now, entry()), now + 0.2)) == []
    assert said(tell(election, 2, Alive(1, now + 0.3, entry()), now + 0.4), Proposal) != []


def test_what_is_heard_again_is_not_kept_again():
    election = started()
    tell(election, 1, Proposal(2, entry(2, 0, digest="m"), Stamp(0, -1, 0)))
    actions = tell(election, 1, Heartbeat(2, 0.0, Stamp(2, 0, 0)))
    assert [type(action) for action in actions[:2]] == [Persist, Commit]
    for message in (Heartbeat(2, 1.0, Stamp(2, 0, 0)), Proposal(2, entry(2, 0, digest="m"), Stamp(2, 0, 0))):
        assert of(tell(election, 1, message, 1.0), Persist | Commit) == []


def test_an_older_proposal_that_comes_late_is_not_accepted():
    election = started()
    for late in (entry(2, 1, digest="new"), entry(2, 0, digest="old")):
        actions = tell(election, 1, Proposal(2, late, Stamp(0, -1, 0)))
    assert election.durable.accepted.digest == "new"
    assert said(actions) == []


def test_what_is_accepted_is_kept_before_it_is_said():
    actions = tell(started(), 1, Proposal(2, entry(2, 0, digest="m"), Stamp(0, -1, 0)))
    assert isinstance(actions[0], Persist)
    assert actions[0].state.digests == ("m",)
    assert said(actions) == [((1,), Accepted(2, Stamp(2, 0, 0)))]


# A leader that is lost, in each phase


def lost_leader(phase):
    """Kill the leader of a cohort of five at some point of round 1; gives the cohort and the next leader."""
    cohort = Cohort(tuple(range(5)))
    first = cohort.elect()
    cohort.aggregate(first, "m0")
    if phase == "alone":
        cohort.aggregate(first, "m1", settle=False)
        cohort.queue.clear()
    elif phase == "proposed":
        cohort.aggregate(first, "m1", settle=False)
        cohort.settle(lose=(Accepted, Alive))
    elif phase == "proposed to one":
        cohort.muted = (1, 2, 4)
        cohort.aggregate(first, "m1")
        cohort.muted = ()
    elif phase == "committed":
        cohort.aggregate(first, "m1", settle=False)
        cohort.settle(lose=(Heartbeat,))
    cohort.kill(first)
    return cohort, first, cohort.elect()


@pytest.mark.parametrize(
    ("phase", "digest"), [("before", "m0"), ("alone", "m0"), ("proposed", "m1"), ("committed", "m1")]
)
def test_a_new_leader_goes_on_from_what_may_have_been_committed(phase, digest):
    cohort, first, second = lost_leader(phase)
    begun = cohort.done(BecomeLeader, second)[-1]
    assert (begun.term, begun.entry.digest, begun.entry.term) == (2, digest, 2)
    cohort.start(first)
    cohort.run(T)
    cohort.aggregate(second, "next")
    cohort.run(0.5 * T)
    assert {state.committed.digest for state in cohort.kept.values()} == {"next"}
    assert {election.leader for election in cohort.up.values()} == {second}


def test_a_committed_round_is_the_same_as_if_nobody_had_been_lost():
    cohort, *_ = lost_leader("committed")
    rounds = {}
    for commit in cohort.done(Commit):
        assert rounds.setdefault(commit.entry.round, commit.entry.digest) == commit.entry.digest
    assert rounds == {0: "m0", 1: "m1"}


def test_a_round_that_one_follower_has_accepted_is_fetched_from_it():
    cohort, _, second = lost_leader("proposed to one")
    assert cohort.done(Fetch, second) == [Fetch("m1", (3,))]
    assert cohort.done(BecomeLeader, second)[-1].entry.digest == "m1"
    assert {election.committed.digest for election in cohort.up.values()} == {"m1"}


def elected(reports, **saved):
    """A leader of term 4 that has heard what others have accepted; its last actions."""
    election = started(term=3, members=(0, 1, 2, 3, 4), **saved)
    now = election.deadline_s
    election.step(Tick(), now)
    for message in (PreVote(3), Vote(4)):
        for voter in (1, 2):
            tell(election, voter, message, now)
    assert election.role is Role.LEADER
    for follower, accepted in reports.items():
        actions = tell(election, follower, Alive(4, now, accepted), now)
    return election, now, actions


FIVE = (0, 1, 2, 3, 4)
NEWER = entry(3, 6, digest="newer", members=FIVE)
OLDER = entry(2, 5, digest="older", members=FIVE)


def test_a_new_leader_fetches_the_newest_of_a_majority_and_has_it_accepted_in_its_own_term():
    election, now, actions = elected({1: OLDER, 3: NEWER}, accepted=OLDER)
    assert actions == [Fetch("newer", (3,))]
    assert election.step(Fetched("another"), now) == []
    actions = election.step(Fetched("newer"), now)
    assert said(actions, Proposal)[0].entry == NEWER._replace(term=4)
    for follower in (1, 2):
        assert election.committed.term == 0
        actions = tell(election, follower, Accepted(4, Stamp(4, 6, 0)), now)
    assert of(actions, BecomeLeader) == [BecomeLeader(4, NEWER._replace(term=4))]


def test_a_round_that_nobody_gives_was_not_committed_and_is_made_again():
    election, now, _ = elected({1: OLDER, 3: NEWER}, accepted=OLDER)
    actions = election.step(Unavailable("newer"), now)
    assert said(actions, Proposal)[0].entry == OLDER._replace(term=4)


def test_an_entry_of_an_old_term_is_not_committed_by_counting_its_holders():
    election, _, actions = elected({1: OLDER, 2: OLDER, 3: OLDER}, accepted=OLDER)
    assert of(actions, Commit) == of(actions, BecomeLeader) == []
    assert election.committed.round == -1
    assert election.durable.accepted == OLDER._replace(term=4)


# Partitions and fencing


def test_only_the_larger_side_of_a_partition_commits_and_a_stale_leader_is_fenced():
    cohort = Cohort(tuple(range(6)))
    old = cohort.elect()
    cohort.aggregate(old, "m0")
    cohort.muted = (old, 5)
    cohort.aggregate(old, "of the smaller side")
    cohort.run(3 * T)
    (new,) = cohort.leaders()
    cohort.aggregate(new, "m1")
    assert cohort.kept[old].committed.digest == "m0"
    stale = Proposal(1, entry(1, 1, digest="of the smaller side", members=tuple(range(6))), Stamp(1, 0, 0))
    assert said(tell(cohort.up[new], old, stale, cohort.now)) == [((old,), Stale(2))]
    assert not cohort.up[new].admits(epoch=0, term=1)
    assert cohort.up[new].admits(epoch=0, term=2)
    cohort.muted = ()
    cohort.run(T)
    assert {state.committed.digest for state in cohort.kept.values()} == {"m1"}
    assert {election.leader for election in cohort.up.values()} == {new}


def test_a_half_is_no_majority():
    cohort = Cohort((0, 1, 2, 3))
    cohort.elect()
    for node in (0, 1):
        cohort.kill(node)
    cohort.run(10 * T)
    assert cohort.leaders() == []
    assert {election.term for election in cohort.up.values()} == {1}, "pre-votes have raised a term"


def test_a_node_that_was_cut_off_comes_back_without_disturbing():
    cohort = Cohort()
    leader = cohort.elect()
    cohort.muted = (2,)
    cohort.run(10 * T)
    assert cohort.up[2].role is Role.PRECANDIDATE
    cohort.muted = ()
    cohort.run(3 * T)
    assert cohort.leaders() == [leader]
    assert {election.term for election in cohort.up.values()} == {1}


# Membership


def test_a_cohort_of_one_elects_itself_at_once_and_commits_alone():
    election = Election(4, Durable.first([4]), TIMING, np.random.default_rng(0))
    assert of(election.step(Start(), 3.0), SetTimer) == [SetTimer(3.0)]
    actions = election.step(Tick(), 3.0)
    assert of(actions, BecomeLeader) == [BecomeLeader(1, entry(1, members=(4,)))]
    actions = election.step(Aggregated(1, 0, "m"), 3.5)
    assert of(actions, Commit)[0].entry.digest == "m"
    assert said(actions) == []


def test_a_cohort_of_two_says_what_that_means_in_one_line():
    (warning,) = of(Election(0, Durable.first([1, 0]), TIMING, np.random.default_rng(0)).step(Start(), 0.0), Warn)
    assert warning.line == "a cohort of two, nodes 0 and 1: when either is lost, it stops until both are back"
    cohort = Cohort((0, 1, 2))
    leader = cohort.elect()
    cohort.feed(leader, Change(2, joins=False))
    cohort.settle()
    assert len(cohort.done(Warn, leader)) == 1


def test_members_join_and_leave_one_at_a_time():
    cohort = Cohort((0, 1, 2), joiners=(3, 4))
    leader = cohort.elect()
    for node in (3, 4):
        cohort.feed(leader, Change(node, joins=True))
    assert cohort.up[leader].members == (0, 1, 2, 3), "the second waits for the first"
    cohort.settle()
    assert {election.members for election in cohort.up.values()} == {(0, 1, 2, 3, 4)}
    assert cohort.up[leader].committed.epoch == 2
    cohort.feed(leader, Change(1, joins=False))
    cohort.settle()
    assert cohort.kept[1].committed.members == (0, 2, 3, 4), "who is removed hears of it"
    assert cohort.up[1].deadline_s == math.inf, "and does not stand any more"
    assert cohort.up[2].admits(epoch=3, term=1)
    assert not cohort.up[2].admits(epoch=2, term=1)


def test_a_leader_gives_a_new_member_time_to_answer():
    cohort = Cohort((0,), joiners=(1,))
    leader = cohort.elect()
    cohort.run(5 * T)
    cohort.muted = (1,)
    cohort.feed(leader, Change(1, joins=True))
    cohort.settle()
    cohort.run(0.5 * T)
    assert cohort.leaders() == [leader]
    assert not cohort.up[leader].has_lease(cohort.now), "half of two have followed"
    cohort.run(T)
    assert cohort.leaders() == []


@pytest.mark.parametrize("change", [Change(1, joins=True), Change(9, joins=False)])
def test_a_change_that_changes_nothing_is_passed_over(change):
    cohort = Cohort()
    leader = cohort.elect()
    cohort.feed(leader, change)
    assert cohort.up[leader].durable.accepted.epoch == 0


def test_the_last_member_stays():
    cohort = Cohort((0,))
    cohort.feed(cohort.elect(), Change(0, joins=False))
    assert cohort.up[0].members == (0,)
    assert cohort.leaders() == [0]


def test_a_leader_that_leaves_leads_until_that_is_committed():
    cohort = Cohort()
    leader = cohort.elect()
    cohort.feed(leader, Change(leader, joins=False))
    assert cohort.leaders() == [leader]
    cohort.settle()
    assert cohort.leaders() == []
    cohort.run(3 * T)
    assert cohort.leaders()[0] != leader
    assert cohort.up[leader].deadline_s == math.inf


def test_one_that_leaves_and_alone_knows_of_it_leads_once_more():
    cohort = Cohort((0, 1))
    leader = cohort.elect()
    cohort.feed(leader, Change(leader, joins=False))
    cohort.queue.clear()
    cohort.kill(leader)
    cohort.start(leader)
    cohort.run(5 * T)
    assert cohort.kept[leader].committed.members == (1 - leader,)
    assert cohort.leaders() == [1 - leader]


def test_who_has_not_joined_yet_waits_to_be_asked():
    election = Election(5, Durable.first(()), TIMING, np.random.default_rng(0))
    assert election.step(Start(), 0.0) == []
    assert election.step(Tick(), 100.0) == []
    assert not is_majority((), ())


# Preferences and rotation


def test_rotation_goes_round_without_waiting_for_a_timeout():
    cohort = Cohort(preference=rotating)
    leaders = [cohort.elect()]
    for _ in range(4):
        before_s = cohort.now
        cohort.feed(leaders[-1], Rotate())
        cohort.settle()
        leaders += cohort.leaders()
        assert cohort.now == before_s
    assert leaders == [0, 1, 2, 0, 1]
    assert [cohort.done(StepDown, node) for node in range(3)] == [
        [StepDown(1), StepDown(4)],
        [StepDown(2)],
        [StepDown(3)],
    ]
    assert [cohort.up[node].committed.epoch for node in range(3)] == [4, 4, 4]


def test_nobody_steps_aside_for_one_that_has_not_accepted():
    cohort = Cohort(preference=rotating)
    leader = cohort.elect()
    cohort.kill(1)
    cohort.feed(leader, Rotate())
    cohort.feed(leader, Aggregated(1, 0, "after the rotation"))
    cohort.settle()
    assert cohort.leaders() == [leader], "the next one may only be slow"
    cohort.run(TIMING.heartbeat_s)
    assert cohort.leaders() == [2]
    assert cohort.kept[leader].committed.round == -1


def test_a_leader_that_steps_aside_gives_up_its_lease_first():
    cohort = Cohort(preference=rotating)
    leader = cohort.elect()
    cohort.feed(leader, Rotate())
    cohort.settle(lose=(StepAside,))
    own = [action for node, action in cohort.history if node == leader]
    assert own.index(StepDown(1)) < own.index(Send((1,), StepAside(1)))
    assert not cohort.up[leader].has_lease(cohort.now)


def test_members_are_ranked_whoever_is_named():
    assert list(by_rank([3, 1])(entry(members=(0, 1, 2, 3)))) == [3, 1, 0, 2]
    assert list(rotating(entry(epoch=4, members=(5, 6, 7)))) == [6, 7, 5]


def test_highest_random_weights_are_those_of_the_reference():
    ids = [f"n{i:02}" for i in range(8)]
    ordered = sorted(ids, key=lambda node: score("beacon-0", "cohort-0", node), reverse=True)
    assert ordered == ["n07", "n04", "n01", "n06", "n02", "n00", "n03", "n05"]


@given(st.sets(st.integers(0, 200), min_size=2, max_size=20), st.text(max_size=8))
def test_sortition_moves_nobody_when_somebody_leaves(members, beacon):
    members = tuple(sorted(members))
    order = list(sortition("c")(entry(members=members, beacon=beacon)))
    assert sorted(order) == list(members)
    left = tuple(node for node in members if node != order[0])
    assert list(sortition("c")(entry(members=left, beacon=beacon))) == order[1:]


def test_under_sortition_the_highest_alive_leads_and_each_epoch_draws_anew():
    members = tuple(range(7))
    prefer = sortition("cohort-0")
    cohort = Cohort(members, preference=prefer)
    leader = cohort.elect()
    beacons, leaders = [cohort.up[leader].committed.beacon], [leader]
    assert leader == prefer(cohort.up[leader].committed)[0]
    for round in range(6):
        cohort.aggregate(leader, f"m{round}")
        cohort.feed(leader, Rotate())
        cohort.settle()
        (leader,) = cohort.leaders()
        order = prefer(cohort.up[leader].committed)
        assert order.index(leader) <= 3, "no majority of acceptances holds one that is further down"
        beacons.append(cohort.up[leader].committed.beacon)
        leaders.append(leader)
    assert len(set(beacons)) == 7
    assert len(set(leaders)) > 1
    cohort.kill(leader)
    order = prefer(cohort.up[(leader + 1) % 7].committed)
    assert cohort.elect() == next(node for node in order if node != leader)


def test_a_beacon_depends_on_the_model_that_the_epoch_ended_with():
    start = entry(beacon="b")
    assert start.next_epoch((0, 1)).beacon == start._replace(term=9).next_epoch((2,)).beacon
    assert start.next_epoch((0,)).beacon != start.next_round(0, "model").next_epoch((0,)).beacon


# What travels, and what is kept

NUMBERS = st.integers(0, 2**62 - 1)
STAMPS = st.builds(Stamp, NUMBERS, st.integers(-1, 99), NUMBERS)
ENTRIES = st.builds(
    Entry,
    NUMBERS,
    st.integers(-1, 99),
    NUMBERS,
    st.text(max_size=64),
    st.lists(NUMBERS).map(tuple),
    st.text(max_size=9),
)
BY_NAME = {
    "term": NUMBERS,
    "accepted": STAMPS,
    "committed": STAMPS,
    "stamp": STAMPS,
    "entry": ENTRIES,
    "handed_over": st.booleans(),
    "sent_s": st.floats(0, 1e9),
}
MESSAGES = st.one_of(
    [
        st.builds(
            kind, **{f.name: BY_NAME[f.name] for f in fields(kind)} | ({"accepted": ENTRIES} if kind is Alive else {})
        )
        for kind in get_args(PeerMessage)
    ]
)


def as_lists(value):
    return [as_lists(item) for item in value] if isinstance(value, tuple) else value


@given(MESSAGES)
def test_messages_travel_as_plain_values(message):
    kind, values = pack(message)
    assert unpack(kind, values) == message
    again = unpack(kind, as_lists(values))
    assert again == message
    assert all(type(getattr(again, f.name)) is type(getattr(message, f.name)) for f in fields(message))


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        ("Coup", (1,), "no message is called 'Coup'; allowed: PreVoteRequest"),
        ("Vote", (), "Vote has the fields term; got 0 values"),
        ("Vote", (-1,), "Vote is malformed: Expected `int` >= 0 - at `\\$.term`"),
        ("Vote", ("1",), "Vote is malformed: Expected `int`, got `str`"),
        ("Vote", (2**80,), "Vote is malformed"),
        ("Accepted", (1, (1, 2)), "Accepted is malformed"),
        ("Alive", (1, 0.5, (1, 2, 3, "d" * 300, (), "")), "Alive is malformed"),
        ("VoteRequest", (1, (0, 0, 0), 1), "VoteRequest is malformed: Expected `bool`"),
    ],
)
def test_what_nobody_packed_is_refused_in_one_line(kind, values, says):
    with pytest.raises(ProtocolError, match=says) as caught:
        unpack(kind, values)
    assert "\n" not in str(caught.value)


@given(NUMBERS, st.none() | NUMBERS, ENTRIES, ENTRIES)
def test_what_is_kept_is_read_back_the_same(term, voted_for, accepted, committed):
    state = Durable(term, voted_for, accepted, committed)
    again = Durable.from_text(state.to_text())
    assert again == state
    assert isinstance(again.accepted, Entry)
    assert "\n" not in state.to_text()


@pytest.mark.parametrize("text", ["", "{}", "[1, 2]", "[-1, null, [], []]"])
def test_what_was_not_kept_by_a_node_is_refused(text):
    with pytest.raises(ProtocolError, match="this is not the state that a node has kept"):
        Durable.from_text(text)


def test_models_of_what_is_accepted_and_committed_are_to_be_kept():
    state = Durable(1, None, entry(1, 1, digest="b"), entry(1, 0, digest="a"))
    assert state.digests == ("b", "a")
    assert state._replace(committed=state.accepted).digests == ("b",)
    assert Durable.first((1, 0, 1)).accepted.members == (0, 1)
    assert Durable.first(()).digests == ()


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9), min_size=1))
def test_two_majorities_of_cohorts_that_differ_by_one_member_meet(nodes, members):
    other = members ^ {max(members)} or members
    rest = set(range(10)) - nodes
    assert not (is_majority(nodes, tuple(members)) and is_majority(rest, tuple(other)))
