"""What a leader knows of its followers while it leads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from node.election.entry import Entry, Stamp, is_majority
from node.election.vocabulary import Aggregated, Change, Rotate, Wish


class Reign:
    """One node's leadership in one term: first it recovers the newest entry, then it proposes one after the other."""

    def __init__(self, me: int, term: int, accepted: Entry, now: float) -> None:
        self.me = me
        self.term = term
        self.since_s = now
        """Since when a majority has had time to answer."""
        self.wishes: deque[Wish] = deque()
        self.rotates = False
        """This node is to step aside, once what is proposed is committed."""
        self.has_begun = False
        """The recovered entry is committed: rounds go on."""
        self.proposed: Entry | None = None
        """What followers are asked to accept; None while the leader still asks what they have."""
        self.proposed_s = now
        """When: an answer to an older heartbeat does not tell that the proposal was lost."""
        self.is_pending = False
        """What is proposed is not committed yet."""
        self.fetching: Entry | None = None
        """The newest reported entry, whose model this node lacks."""
        self._holders: dict[int, None] = {}
        self._heard_s: dict[int, float] = {}
        self._reports: dict[int, Entry] = {me: accepted}
        self._lost: list[str] = []

    def hear(self, follower: int, sent_s: float, accepted: Entry) -> None:
        """A follower has answered the heartbeat sent at that time."""
        self._heard_s[follower] = max(sent_s, self._heard_s.get(follower, sent_s))
        self._reports[follower] = accepted

    def followed_s(self, members: Sequence[int], now: float) -> float:
        """The latest time since when a majority is known to have followed; -inf: there is none."""
        heard = sorted([now if m == self.me else self._heard_s.get(m, -float("inf")) for m in members], reverse=True)
        return heard[len(members) // 2]

    # Recovery

    def newest(self, members: Sequence[int]) -> Entry | None:
        """The newest entry that a majority of members has reported, without those whose model nobody gives.

        Every committed entry is among those of any majority. The leader's own is never left out: a majority has found
        it no older than theirs when it voted, so that it may take the place of a newer one that is lost.
        """
        reports = {member: self._reports[member] for member in members if member in self._reports}
        if not is_majority(reports, members):
            return None
        own = self._reports[self.me]
        return max([own, *[entry for entry in reports.values() if entry.digest not in self._lost]])

    def holders_of(self, digest: str) -> tuple[int, ...]:
        """Who has reported an entry with that model, sorted."""
        return tuple(sorted([node for node, entry in self._reports.items() if entry.digest == digest]))

    def lose(self, digest: str) -> None:
        """Nobody gives that model."""
        self._lost.append(digest)
        self.fetching = None

    # Proposals

    def propose(self, entry: Entry, now: float) -> None:
        """Begin with an entry, which this node has accepted."""
        self.proposed, self.proposed_s, self.is_pending, self.fetching = entry, now, True, None
        self._holders = {self.me: None}

    def accepted(self, follower: int, stamp: Stamp) -> None:
        """A follower has accepted an entry."""
        if self.proposed is not None and stamp == self.proposed.stamp:
            self._holders[follower] = None

    def is_accepted(self) -> bool:
        """Whether a majority of its members has accepted what is proposed and not committed yet."""
        return self.is_pending and self.proposed is not None and is_majority(self._holders, self.proposed.members)

    def first_holder(self, order: Iterable[int]) -> int:
        """The first of some nodes that has accepted what is proposed; this node where there is none."""
        return next((node for node in order if node in self._holders), self.me)


def following(latest: Entry, wish: Wish) -> Entry | None:
    """The entry after ``latest`` that a wish asks for; None where it asks for nothing, or for what cannot be."""
    match wish:
        case Aggregated(round=round, digest=digest):
            return latest.next_round(round, digest) if round == latest.round + 1 else None
        case Change(node=node, joins=joins):
            members = [*latest.members, node] if joins else [other for other in latest.members if other != node]
            return latest.next_epoch(members) if members and joins != (node in latest.members) else None
        case Rotate():
            return latest.next_epoch(latest.members)
