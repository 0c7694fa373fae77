"""The state machine of one member of a cohort."""

from __future__ import annotations

import math

from node.election.entry import Entry, Stamp
from node.election.member import Member, Role
from node.election.preference import rotating
from node.election.reign import Reign, following
from node.election.vocabulary import (
    Accepted,
    Action,
    Aggregated,
    Alive,
    BecomeLeader,
    Change,
    Fetch,
    Fetched,
    Heartbeat,
    Input,
    PeerMessage,
    Persist,
    PreVote,
    PreVoteRequest,
    Proposal,
    Received,
    Rotate,
    SetTimer,
    Stale,
    Start,
    StepAside,
    Tick,
    Unavailable,
    Vote,
    VoteRequest,
    Wish,
)


class Election(Member):
    """One node's part in electing a leader and committing what it makes.

    ``step`` is all there is: it changes the state, and gives what the caller has to do, in order. Strangers' messages
    are the caller's to keep out.
    """

    def step(self, event: Input, now: float) -> list[Action]:
        """Take in what has happened at a time of the node's own clock, in s; gives what is to be done."""
        self._now, self._actions = now, []
        before, deadline_s = self.durable, self.deadline_s
        match event:
            case Received(sender=sender, message=message):
                self._receive(sender, message)
            case Tick():
                if now >= self.deadline_s:
                    self._due()
            case Aggregated() | Change() | Rotate():
                self._want(event)
            case Fetched(digest=digest):
                self._on_fetched(digest, found=True)
            case Unavailable(digest=digest):
                self._on_fetched(digest, found=False)
            case Start():
                self._start()
        if self.durable is not before:
            self._actions.insert(0, Persist(self.durable))
        if self.deadline_s != deadline_s and self.deadline_s < math.inf:
            self._actions.append(SetTimer(self.deadline_s))
        return self._actions

    # Messages

    def _receive(self, sender: int, message: PeerMessage) -> None:
        if self._disturbs(message):
            return
        if message.term > self.term:
            self._adopt(message.term)
        elif message.term < self.term and not isinstance(message, PreVoteRequest):
            if not isinstance(message, Stale):
                self._send((sender,), Stale(self.term))
            return
        match message:
            case Heartbeat():
                self._settle(message.committed)
                self._follow(sender)
                self._send((sender,), Alive(self.term, message.sent_s, self.durable.accepted))
            case Alive():
                self._on_alive(sender, message)
            case Proposal():
                self._on_proposal(sender, message)
            case Accepted():
                self._on_accepted(sender, message.stamp)
            case PreVoteRequest():
                if message.accepted >= self.durable.accepted.stamp:
                    self._send((sender,), PreVote(self.term))
            case PreVote():
                self._on_vote(sender, Role.PRECANDIDATE)
            case VoteRequest():
                self._on_vote_request(sender, message)
            case Vote():
                self._on_vote(sender, Role.CANDIDATE)
            case StepAside():
                if self._may_lead():
                    self._stand(handed_over=True)
            case Stale():
                pass  # its term was what it had to say

    # The leader

    def _lead(self) -> None:
        self.role, self.leader = Role.LEADER, self.me
        self._reign = Reign(self.me, self.term, self.durable.accepted, self._now)
        self._beat()
        self._recover()

    def _beat(self) -> None:
        assert self._reign is not None
        if self._reign.rotates and not self._reign.is_pending:
            self._step_aside(self._reign, anyhow=True)
        if self._reign is not None:
            self._send(self._audience(), Heartbeat(self.term, self._now, self.durable.committed.stamp))
            self.deadline_s = min(self._now + self._timing.heartbeat_s, self._lease_end(self._reign))

    def _audience(self) -> tuple[int, ...]:
        """All that are members, or are about to be or not to be."""
        return tuple(dict.fromkeys((*self.durable.committed.members, *self.members)))

    def _on_alive(self, sender: int, alive: Alive) -> None:
        if (reign := self._reign) is None:
            return
        reign.hear(sender, min(alive.sent_s, self._now), alive.accepted)
        if reign.proposed is None:
            self._recover()
        elif alive.accepted == reign.proposed:
            self._on_accepted(sender, alive.accepted.stamp)
        elif alive.sent_s > reign.proposed_s:
            self._send((sender,), Proposal(self.term, reign.proposed, self.durable.committed.stamp))

    def _recover(self) -> None:
        """Find the newest entry of a majority, whose model this node must hold to go on from it."""
        reign = self._reign
        if reign is None or reign.fetching is not None or (newest := reign.newest(self.members)) is None:
            return
        if not newest.digest or newest.digest in self.durable.digests:
            self._recover_from(newest)
        else:
            reign.fetching = newest
            self._actions.append(Fetch(newest.digest, reign.holders_of(newest.digest)))

    def _on_fetched(self, digest: str, *, found: bool) -> None:
        reign = self._reign
        if reign is None or reign.fetching is None or reign.fetching.digest != digest:
            return
        if found:
            self._recover_from(reign.fetching)
        else:
            reign.lose(digest)
            self._recover()

    def _recover_from(self, newest: Entry) -> None:
        # Under this term: how many hold an entry of an older one says nothing, as a holder of a newer one may be away.
        self._propose(newest._replace(term=self.term))

    def _want(self, wish: Wish) -> None:
        reign = self._reign
        if reign is None or (isinstance(wish, Aggregated) and wish.term != self.term):
            return
        reign.wishes.append(wish)
        self._fulfil()

    def _fulfil(self) -> None:
        """Propose what was wished for next, unless something is still to be committed."""
        while (
            (reign := self._reign) and reign.has_begun and not reign.is_pending and not reign.rotates and reign.wishes
        ):
            wish = reign.wishes.popleft()
            if (entry := following(self.durable.accepted, wish)) is not None:
                reign.rotates = isinstance(wish, Rotate)
                self._propose(entry)

    def _propose(self, entry: Entry) -> None:
        assert self._reign is not None
        if entry.members != self.members:
            self._reign.since_s = self._now  # a new majority has not been asked yet
        self.durable = self.durable._replace(accepted=entry)
        self._reign.propose(entry, self._now)
        self._send(self._audience(), Proposal(self.term, entry, self.durable.committed.stamp))
        self._conclude()

    def _on_accepted(self, sender: int, stamp: Stamp) -> None:
        if self._reign is not None:
            self._reign.accepted(sender, stamp)
            self._conclude()

    def _conclude(self) -> None:
        """Commit what is proposed, once a majority has accepted it."""
        reign = self._reign
        if reign is None:
            return
        if reign.is_accepted():
            self._commit_proposed(reign)
        if self.me not in self.members and not reign.is_pending:
            self._follow(None)
        elif reign.rotates and not reign.is_pending:
            self._step_aside(reign, anyhow=False)
        self._fulfil()

    def _commit_proposed(self, reign: Reign) -> None:
        audience, reign.is_pending = self._audience(), False
        self._commit(self.durable.accepted)
        self._send(audience, Heartbeat(self.term, self._now, self.durable.committed.stamp))
        if not reign.has_begun:
            reign.has_begun = True
            self._actions.append(BecomeLeader(self.term, self.durable.committed))

    def _step_aside(self, reign: Reign, *, anyhow: bool) -> None:
        """Hand over to whom the preference puts first, or ``anyhow`` to the first that has accepted what is committed.

        Nobody else would win, and who has accepted has been there just now.
        """
        order = (self._preference or rotating)(self.durable.accepted)
        successor = reign.first_holder(order if anyhow else order[:1])
        if successor != self.me:
            self._follow(None)  # before it says so: no lease outlives a hand-over
            self._send((successor,), StepAside(self.term))
        elif anyhow or order[0] == self.me:
            reign.rotates = False
            self._fulfil()
