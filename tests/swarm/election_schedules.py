"""A cohort of election machines under a deterministic scheduler: virtual time, faults, and what must hold at all times.

Everything follows from the seed. Faults last for ``FAULTS_S``: nodes crash (also in the middle of what they do, and
lose what they have not kept), come back, are cut off from each other; messages are lost, doubled, overtaken; clocks run
fast or slow. Then the network heals, and a majority is up for good: there must be a leader, and a new round.
"""

import copy
import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from node.election import (
    Aggregated,
    BecomeLeader,
    Change,
    Commit,
    Durable,
    Election,
    Fetch,
    Fetched,
    Persist,
    Proposal,
    Received,
    Role,
    Rotate,
    Send,
    SetTimer,
    Start,
    StepDown,
    Tick,
    Timing,
    Unavailable,
    Vote,
    VoteRequest,
    by_rank,
    rotating,
    sortition,
)

T = 1.0
FAULTS_S = 16 * T
TIMING = Timing(timeout_s=T, heartbeats=5)
END_S = FAULTS_S + 12 * T
PREFERENCES = [None, None, None, by_rank([2, 0, 1]), rotating, sortition("cohort-0")]


class Violation(Exception):
    """A schedule has broken a rule."""

    def __init__(self, rule, seed, at_s, what):
        super().__init__(f"{rule}: seed {seed}, at {at_s:.3f} s: {what}")
        self.rule = rule


@dataclass(frozen=True)
class Planted:
    """What the scheduler runs: the real machine, unless a test plants a bug or breaks an assumption."""

    election: type = Election
    timing: Timing = TIMING
    keep: Callable[[Durable], Durable] = copy.copy
    """What becomes of a state that is to be kept."""
    drift: float = 0.01
    overlooked: tuple = ()
    """Rules that are not checked."""


@dataclass
class Outcome:
    """How a schedule went."""

    leader_s: float
    """From the last fault until the leader that made the next round was there."""
    elections: int
    rounds: int


@dataclass
class Member:
    """One node: its clock, what it has kept, and its machine while it is up."""

    rate: float
    offset_s: float
    kept: Durable
    election: Election | None = None
    life: int = 0
    timer: int = 0
    side: int = 0
    """Nodes of different sides do not hear each other."""


@dataclass
class Seen:
    """What has been said and done in a schedule, by all."""

    leaders: dict = field(default_factory=dict)
    votes: dict = field(default_factory=dict)
    senders: dict = field(default_factory=dict)
    digests: dict = field(default_factory=dict)
    """The committed digest of each round."""
    commits: list = field(default_factory=list)
    begun: dict = field(default_factory=dict)
    """When the leader of a term began, and with what."""


class Schedule:
    """One seeded schedule; :meth:`run` gives its outcome, or raises a Violation."""

    def __init__(self, seed, planted=None):
        self.seed = seed
        self.planted = planted or Planted()
        self.rng = np.random.default_rng(seed)
        self.now, self.numbers, self.heap = 0.0, itertools.count(), []
        self.seen = Seen()
        draw = self.rng.random
        size = int(self.rng.choice([1, 2, 3, 4, 5, 7], p=[0.02, 0.06, 0.37, 0.1, 0.35, 0.1]))
        self.changes = draw() < 0.3
        self.spare = 2 if self.changes else 0
        self.loss, self.doubling, self.lateness = 0.3 * draw() ** 2, 0.2 * draw(), 0.5 * draw() ** 2
        self.crash, self.slowness = 0.2 * max(0.0, 2 * draw() - 1) ** 2, 12 * max(0.0, 2 * draw() - 1) ** 2
        self.calm_s = T * (0.5 + 3 * draw())
        self.preference = PREFERENCES[self.rng.integers(len(PREFERENCES))]
        members = range(size)
        self.members = [
            Member(
                rate=self.rate(),
                offset_s=1000 * draw(),
                kept=Durable.first(members if node < size else ()),
            )
            for node in range(size + self.spare)
        ]
        self.made = None
        """When the round was made that shows progress, and by whom, in which term."""

    # Time

    def post(self, delay_s, act, *args):
        heapq.heappush(self.heap, (self.now + delay_s, next(self.numbers), act, args))

    def local_s(self, node):
        member = self.members[node]
        return member.offset_s + member.rate * self.now

    def rate(self):
        """Of a clock: a third are as fast as may be, a third as slow."""
        return 1 + self.planted.drift * float(np.clip(6 * self.rng.random() - 3, -1, 1))

    def drift(self):
        """All clocks change their rates, and go on from the time that they show."""
        for node, member in enumerate(self.members):
            rate = self.rate()
            member.offset_s += (member.rate - rate) * self.now
            member.rate = rate
            if member.election is not None and member.election.deadline_s < np.inf:
                self.arm(node, member.election.deadline_s)

    def arm(self, node, at_s):
        member = self.members[node]
        member.timer = next(self.numbers)
        self.post(max(0.0, (at_s - self.local_s(node)) / member.rate) + 1e-9, self.tick, node, member.timer)

    def run(self):
        for node in range(len(self.members)):
            self.start(node)
        self.post(self.rng.exponential(self.calm_s), self.fault)
        self.post(FAULTS_S, self.heal)
        outcome = None
        while outcome is None:
            self.now, _, act, args = heapq.heappop(self.heap)
            if self.now > END_S:
                self.break_rule("progress", f"no new round {END_S - FAULTS_S:g} s after the last fault")
            outcome = act(*args)
        return outcome

    def break_rule(self, rule, what):
        raise Violation(rule, self.seed, self.now, what)

    def require(self, rule, holds, what):
        if not holds and rule not in self.planted.overlooked:
            self.break_rule(rule, what)

    # Faults

    def fault(self):
        if self.now >= FAULTS_S:
            return
        self.drift()
        kind, node = self.rng.random(), int(self.rng.integers(len(self.members)))
        leaders = [n for n, m in enumerate(self.members) if m.election and m.election.role is Role.LEADER]
        if leaders and self.rng.random() < 0.7:
            node = leaders[-1]
        if kind < 0.4:
            self.down(node)
            self.post(2 * T * self.rng.random() ** 2, self.start, node)
        else:
            for other, member in enumerate(self.members):
                member.side = int(other == node if kind < 0.8 else self.rng.integers(2))
            self.post(3 * T * self.rng.random(), self.mend)
        self.post(self.rng.exponential(self.calm_s), self.fault)

    def mend(self):
        if self.now < FAULTS_S:
            for member in self.members:
                member.side = 0

    def heal(self):
        """The last fault: some minority may be down, or cut off, for good."""
        self.loss = self.doubling = self.lateness = self.crash = self.slowness = 0.0
        for member in self.members:
            member.side = 0
        ending = 0 if self.changes else self.rng.integers(3)
        minority = self.rng.permutation(len(self.members))[: (len(self.members) - 1) // 2] if ending else []
        for node in minority:
            if ending == 1:
                self.down(node)
                self.members[node].life = -1
            else:
                self.members[node].side = 1
        for node in range(len(self.members)):
            self.start(node)

    def down(self, node):
        self.members[node].election = None

    def start(self, node):
        member, planted = self.members[node], self.planted
        if member.election is not None or member.life < 0:
            return
        member.life += 1
        rng = np.random.default_rng([self.seed, node, member.life])
        member.election = planted.election(node, member.kept, planted.timing, rng, self.preference)
        self.step(node, Start())

    # Steps

    def step(self, node, event):
        member = self.members[node]
        election = member.election
        before = election.durable
        actions = election.step(event, self.local_s(node))
        self.check_leader(node, election)
        self.require("monotone", election.committed.version >= before.committed.version, f"node {node} forgets a round")
        crash_at = self.crash_in(election, before, len(actions))
        for i, action in enumerate(actions):
            if i == crash_at:
                self.cut_short(node, action)
                return None
            outcome = self.perform(node, member, election, action)
            if outcome is not None:
                return outcome
        return None

    def crash_in(self, election, before, actions):
        """Before which action the node crashes, if it does: where something is kept, above all a vote or a proposal."""
        after = election.durable
        if after is before:
            return None
        voted = after.voted_for is not None and (after.term, after.voted_for) != (before.term, before.voted_for)
        proposed = election.role is Role.LEADER and after.accepted != before.accepted
        share = min(0.5, (8 if voted or proposed else 1) * self.crash)
        return int(self.rng.integers(actions)) if self.rng.random() < share else None

    def cut_short(self, node, action):
        """Crash in the middle of a broadcast, or of anything else."""
        if isinstance(action, Send) and (some := int(self.rng.integers(len(action.to) + 1))):
            self.send(node, Send(action.to[:some], action.message))
        self.down(node)
        self.post(T * self.rng.random() ** 2, self.start, node)

    def perform(self, node, member, election, action):
        match action:
            case Persist(state=state):
                member.kept = self.planted.keep(state)
            case Send():
                self.send(node, action)
            case SetTimer(at_s=at_s):
                self.arm(node, at_s)
            case BecomeLeader(term=term, entry=entry):
                self.seen.begun[term] = (self.now, entry)
                self.check_recovered(node, term, entry)
                self.work(node, member.life, term, entry.round + 1)
            case Commit(entry=entry):
                return self.on_commit(node, member, election, entry)
            case Fetch():
                self.post(0.03 * T * self.rng.random(), self.fetch, node, member.life, action)
            case StepDown():
                self.require("step down", election.role is not Role.LEADER, f"node {node} leads on")
        return None

    def tick(self, node, timer):
        if self.members[node].election is not None and self.members[node].timer == timer:
            return self.step(node, Tick())
        return None

    def fetch(self, node, life, fetch):
        """A model can be had from a holder that is up and within reach."""
        member = self.members[node]
        if member.election is None or member.life != life:
            return None
        reached = [self.members[other] for other in fetch.holders if self.members[other].side == member.side]
        found = any(other.election is not None and fetch.digest in other.kept.digests for other in reached)
        return self.step(node, (Fetched if found else Unavailable)(fetch.digest))

    def work(self, node, life, term, round):
        self.post(T * (0.05 + 0.3 * self.rng.random()), self.aggregate, node, life, term, round)

    def aggregate(self, node, life, term, round):
        member = self.members[node]
        if member.election is None or member.life != life:
            return None
        if self.now >= FAULTS_S and self.made is None:
            self.post(3 * T, setattr, self, "made", None)  # it may come to nothing yet
            self.made = (term, round)
        elif self.changes and self.now < FAULTS_S and self.rng.random() < 0.5:
            other = int(self.rng.integers(len(self.members)))
            wish = Rotate() if self.rng.random() < 0.4 else Change(other, other not in member.election.members)
            self.step(node, wish)
            if member.election is None:
                return None
        return self.step(node, Aggregated(term, round, f"{term}/{round}/{node}/{life}"))

    def on_commit(self, node, member, election, entry):
        self.check_commit(node, entry)
        if election.role is Role.LEADER and entry.term in self.seen.begun:
            if self.made == (entry.term, entry.round):
                begun_s = self.seen.begun[entry.term][0]
                leader_s = max(0.0, begun_s - FAULTS_S)
                self.require("leader", leader_s <= 10 * T, f"{leader_s:.2f} s without a leader")
                return Outcome(leader_s, len(self.seen.leaders), entry.round)
            self.work(node, member.life, entry.term, entry.round + 1)
        return None

    # The network

    def send(self, node, action):
        message = action.message
        match message:
            case Vote(term=term):
                self.check_vote(node, term, action.to[0])
            case VoteRequest(term=term):
                self.check_vote(node, term, node)
            case Proposal(entry=entry):
                first = self.seen.senders.setdefault(entry.term, node)
                self.require("one sender", first == node, f"nodes {first} and {node} propose in term {entry.term}")
        draw = self.rng.random
        for to in action.to:
            if draw() < self.loss or self.members[to].side != self.members[node].side:
                continue
            for _ in range(2 if draw() < self.doubling else 1):
                late_s = 2.5 * T * draw() if draw() < self.lateness else 0.03 * T * self.slowness * draw()
                delay_s = 0.03 * T * draw() + min(late_s, max(0.0, FAULTS_S - self.now))
                self.post(delay_s, self.deliver, node, to, message)

    def deliver(self, sender, to, message):
        member = self.members[to]
        if member.election is not None and member.side == self.members[sender].side:
            return self.step(to, Received(sender, message))
        return None

    # What must hold

    def check_leader(self, node, election):
        if election.role is not Role.LEADER:
            return
        first = self.seen.leaders.setdefault(election.term, node)
        self.require("one leader", first == node, f"nodes {first} and {node} lead in term {election.term}")
        if not election.has_lease(self.local_s(node)):
            return
        for other, member in enumerate(self.members):
            rival = member.election
            if other != node and rival is not None and rival.role is Role.LEADER:
                both = rival.has_lease(self.local_s(other))
                self.require("one lease", not both, f"nodes {node} and {other} both have a lease")

    def check_vote(self, node, term, candidate):
        first = self.seen.votes.setdefault((node, term), candidate)
        self.require("one vote", first == candidate, f"node {node} votes for {first} and {candidate} in term {term}")

    def check_commit(self, node, entry):
        first = self.seen.digests.setdefault(entry.round, entry.digest)
        self.require("lost round", first == entry.digest, f"round {entry.round} is {first} and {entry.digest}")
        self.seen.commits.append(entry)
        for term, (_, start) in self.seen.begun.items():
            known = term <= entry.term or start.version >= entry.version
            self.require("lost round", known, f"the leader of term {term} does not know of {entry}")

    def check_recovered(self, node, term, entry):
        for committed in self.seen.commits:
            known = term <= committed.term or entry.version >= committed.version
            self.require("lost round", known, f"node {node} leads term {term} and does not know of {committed}")
