"""What every member of a cohort does: it keeps to terms, votes, stands for election, and follows."""

from __future__ import annotations

import abc
import enum
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from node.election.entry import Durable, Entry, Stamp, is_majority
from node.election.preference import Preference
from node.election.reign import Reign
from node.election.timing import Timing
from node.election.vocabulary import (
    Accepted,
    Action,
    Commit,
    PeerMessage,
    PreVoteRequest,
    Proposal,
    Send,
    StepDown,
    Vote,
    VoteRequest,
    Warn,
)

if TYPE_CHECKING:
    import numpy as np


class Role(enum.Enum):
    """What a node is to its cohort."""

    FOLLOWER = "follower"
    PRECANDIDATE = "precandidate"
    """Asks whether it would be elected."""
    CANDIDATE = "candidate"
    LEADER = "leader"


class Member(abc.ABC):
    """State and rules of a member; what a leader does besides is :class:`~node.election.machine.Election`'s."""

    def __init__(
        self, me: int, saved: Durable, timing: Timing, rng: np.random.Generator, preference: Preference | None = None
    ) -> None:
        """A node as it was when it last kept its state, or :meth:`Durable.first`.

        Without a ``preference`` all members are equal, and draw how long they wait from ``rng``; with one, the n-th of
        m members waits between ``T (1 + (n - 1) / m)`` and ``T (1 + n / m)``.
        """
        self.me = me
        self.durable = saved
        self.role = Role.FOLLOWER
        self.leader: int | None = None
        """Whom this node follows; itself, where it leads."""
        self.deadline_s = math.inf
        """When something is due on this node's clock."""
        self._timing = timing
        self._rng = rng
        self._preference = preference
        self._votes: dict[int, None] = {}
        self._contact_s = -math.inf
        """When a leader was last heard."""
        self._reign: Reign | None = None
        self._now = 0.0
        self._actions: list[Action] = []

    # What a caller may ask

    @property
    def term(self) -> int:
        """The newest term that this node knows of."""
        return self.durable.term

    @property
    def members(self) -> tuple[int, ...]:
        """The cohort, by the newest entry that this node has accepted, committed or not."""
        return self.durable.accepted.members

    @property
    def committed(self) -> Entry:
        """The newest entry that this node knows to be committed."""
        return self.durable.committed

    @property
    def is_handing_over(self) -> bool:
        """Whether this node leads, and is to step aside as soon as somebody can take its place."""
        return self._reign is not None and self._reign.rotates

    def admits(self, epoch: int, term: int) -> bool:
        """Whether what was sent in an epoch and a term still counts (fencing)."""
        return term >= self.term and epoch >= self.committed.epoch

    def has_lease(self, now: float) -> bool:
        """Whether this node leads, and nobody else can have been elected by now, as long as clocks keep to the drift.

        Whoever needs certainty waits for a commit instead.
        """
        reign = self._reign
        return reign is not None and reign.followed_s(self.members, now) + self._timing.lease_s > now

    # Time

    def _start(self) -> None:
        # It may have followed a leader just before it went down: until that one's lease is over, nobody gets a vote.
        self._contact_s = self._now if self.term else -math.inf
        self.deadline_s = self._now + self._patience()
        self._warn_if_fragile()

    def _patience(self) -> float:
        """How long to wait for a leader before standing for election."""
        members = self.members
        if not self._may_lead():
            return math.inf
        if members == (self.me,):  # at once, unless it has only just become so, beside a leader that was there before
            return max(0.0, self._contact_s + self._timing.timeout_s - self._now)
        share = self._rng.random()
        if self._preference is not None:
            order = [*self._preference(self.durable.accepted), self.me]
            share = (order.index(self.me) + share) / len(members)
        return self._timing.timeout_s * (1 + share)

    def _may_lead(self) -> bool:
        """Whether this node is a member, or is removed by an entry that may yet need it to be committed."""
        return self.me in self.members or self.me in self.durable.committed.members

    def _due(self) -> None:
        if self._reign is None:
            self._ask_first()
        elif self._now >= self._lease_end(self._reign):
            self._follow(None)
        else:
            self._beat()

    def _lease_end(self, reign: Reign) -> float:
        return max(reign.since_s, reign.followed_s(self.members, self._now)) + self._timing.lease_s

    # Terms

    def _disturbs(self, message: PeerMessage) -> bool:
        """Whether this is a candidate that has missed that there is a leader; not even its term is taken over."""
        match message:
            case PreVoteRequest() | VoteRequest(handed_over=False):
                if self._reign is not None:
                    return self._now < self._lease_end(self._reign)
                return self._now - self._contact_s < self._timing.timeout_s
        return False

    def _adopt(self, term: int) -> None:
        self.durable = self.durable._replace(term=term, voted_for=None)
        self.leader = None
        if self._reign is not None:
            self._follow(None)
        elif self.role is Role.CANDIDATE:
            self.role = Role.FOLLOWER

    def _follow(self, leader: int | None) -> None:
        """Be a follower of a leader just heard, or of nobody any longer."""
        if self._reign is not None:
            self._actions.append(StepDown(self._reign.term))
            self._reign = None
        self.role, self.leader = Role.FOLLOWER, leader
        if leader is not None:
            self._contact_s = self._now
        self.deadline_s = self._now + self._patience()

    # Candidates and voters

    def _ask_first(self) -> None:
        self._campaign(Role.PRECANDIDATE)
        self._send(self.members, PreVoteRequest(self.term, self.durable.accepted.stamp))
        self._count()

    def _stand(self, *, handed_over: bool = False) -> None:
        self.durable = self.durable._replace(term=self.term + 1, voted_for=self.me)
        self._campaign(Role.CANDIDATE)
        self._send(self.members, VoteRequest(self.term, self.durable.accepted.stamp, handed_over))
        self._count()

    def _campaign(self, role: Role) -> None:
        self.role, self.leader = role, None
        self._votes = {self.me: None}
        self.deadline_s = self._now + self._patience()

    def _on_vote_request(self, sender: int, request: VoteRequest) -> None:
        free = self.durable.voted_for in (None, sender)
        if free and request.accepted >= self.durable.accepted.stamp:
            self.durable = self.durable._replace(voted_for=sender)
            self.role = Role.FOLLOWER
            self.deadline_s = self._now + self._patience()
            self._send((sender,), Vote(self.term))

    def _on_vote(self, sender: int, role: Role) -> None:
        if self.role is role:
            self._votes[sender] = None
            self._count()

    def _count(self) -> None:
        if not is_majority(self._votes, self.members):
            return
        if self.role is Role.PRECANDIDATE:
            self._stand()
        else:
            self._lead()

    @abc.abstractmethod
    def _lead(self) -> None:
        """A majority has voted for this node."""

    @abc.abstractmethod
    def _beat(self) -> None:
        """It is time for a leader's heartbeat."""

    # Followers

    def _on_proposal(self, sender: int, proposal: Proposal) -> None:
        self._settle(proposal.committed)
        if proposal.entry > self.durable.accepted:
            self.durable = self.durable._replace(accepted=proposal.entry)
        self._follow(sender)
        if proposal.entry == self.durable.accepted:
            self._send((sender,), Accepted(self.term, proposal.entry.stamp))

    def _settle(self, committed: Stamp) -> None:
        """What this node has accepted is committed, if it is what the leader says."""
        if self.durable.committed.stamp < committed == self.durable.accepted.stamp:
            self._commit(self.durable.accepted)

    def _commit(self, entry: Entry) -> None:
        before = self.durable.committed
        self.durable = self.durable._replace(committed=entry)
        if entry.version != before.version:
            self._actions.append(Commit(entry))
        if entry.members != before.members:
            self._warn_if_fragile()

    def _warn_if_fragile(self) -> None:
        if len(self.members) == 2:
            first, second = self.members
            self._actions.append(
                Warn(f"a cohort of two, nodes {first} and {second}: when either is lost, it stops until both are back")
            )

    def _send(self, to: Sequence[int], message: PeerMessage) -> None:
        if peers := tuple([peer for peer in to if peer != self.me]):
            self._actions.append(Send(peers, message))
