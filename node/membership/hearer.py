"""What a member makes of what it is told: whom it believes there, whom it suspects, and how it defends itself."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from node.membership.credit import Credit
from node.membership.health import Health
from node.membership.ring import Ring
from node.membership.rumours import Rumours
from node.membership.statement import Signatures, State, Statement
from node.membership.suspicion import Suspicion
from node.membership.timing import Timing
from node.membership.view import Sighting, View
from node.membership.vocabulary import (
    PIGGYBACK_BYTES,
    Action,
    Changed,
    Gossip,
    PeerMessage,
    Persist,
    Send,
    Usurped,
    Warn,
)

if TYPE_CHECKING:
    import numpy as np


class Hearer:
    """View, rumours and suspicions of a member; when it asks whom is :class:`~node.membership.swim.Swim`'s."""

    def __init__(
        self,
        me: int,
        incarnation: int,
        record: bytes,
        timing: Timing,
        rng: np.random.Generator,
        signatures: Signatures,
        *,
        most_peers: int = 10_000,
    ) -> None:
        """A member that has kept ``incarnation`` last (0: none yet), and shows ``record`` of itself.

        Of more than ``most_peers`` peers it knows nothing, so that inventing peers costs it no memory.
        """
        self.me = me
        self.incarnation = incarnation
        self.deadline_s = math.inf
        """When something is due on this node's clock."""
        self.health = Health(timing.health_ceiling)
        self.refused = 0
        """Statements that were not their author's."""
        self.refutations = 0
        """How often this node has objected to being called gone."""
        self._record = record
        self._timing = timing
        self._rng = rng
        self._signatures = signatures
        self._view = View(most_peers)
        self._rumours = Rumours()
        self._ring = Ring(rng)
        self._rtts_s: dict[int, float] = {}
        self._lags_s: dict[int, float] = {}
        """What peers have said of their own."""
        self._fallen: deque[tuple[float, int]] = deque()
        """Who has been called dead, and when, while that is fresh."""
        self._credit = Credit()
        self._is_misjudged = False
        self._is_full = False
        self._now = 0.0
        self._actions: list[Action] = []

    # What a caller may ask

    def peers(self) -> tuple[int, ...]:
        """Those that are neither dead nor gone, without this node, sorted."""
        return tuple(sorted(self._ring))

    def known(self) -> tuple[Sighting, ...]:
        """All that are known, without this node, sorted by peer."""
        return tuple([self.sighting(peer) for peer in sorted(self._view.words) if peer != self.me])

    def sighting(self, peer: int) -> Sighting:
        """What is known of one peer. KeyError: nothing."""
        word, state = self._view.words[peer], self._view.state(peer)
        assert state is not None
        rtt_s = self._rtts_s.get(peer)
        return Sighting(peer, state, word.incarnation, self._view.since_s(peer), word.record, rtt_s)

    def statements(self) -> tuple[Statement, ...]:
        """The own words of all that are there: what to keep, and give to the next :class:`Start`."""
        words = self._view.words
        return tuple([words[peer] for peer in sorted(self._ring)])

    # Statements

    def _hear(self, statement: Statement, *, spreads: bool = True) -> bool:
        """Believe a statement of somebody else's, if it is news and really its author's; whether it was."""
        if statement.peer == self.me:
            self._hear_of_me(statement)
            return False
        if not statement.is_well_formed or not self._view.is_news(statement):
            return False
        if not statement.is_own_word and self._credit.is_spent(statement.author, statement.peer, self._now):
            return False
        if not self._view.can_take(statement.peer):
            self._warn_of_room()
            return False
        if not self._verified(statement):
            return False
        self._believe(statement, spreads=spreads)
        return True

    def _believe(self, statement: Statement, *, spreads: bool = True) -> None:
        if statement.is_own_word:
            self._take_word(statement)
        elif statement.state is State.DEAD:
            self._take_verdict(statement)
        else:
            self._take_accusation(statement)
        if spreads:
            self._rumours.add(statement, replaces=statement.state is not State.SUSPECT)
        elif statement.state is not State.SUSPECT:
            self._rumours.drop(statement.peer)

    def _take_word(self, word: Statement) -> None:
        was_live = self._view.is_live(word.peer)
        if not self._view.has_room_for(word.peer):
            self._forget(self._view.longest_gone())
        if word.state is State.ALIVE:
            for refuted in self._view.accusations(word.peer):
                self._credit.refuted(refuted.author, word.peer, self._now)
        self._view.put_word(word, self._now)
        if was_live and word.state is State.LEFT:
            self._ring.remove(word.peer)
        elif not was_live and word.state is State.ALIVE:
            self._ring.add(word.peer)
        self._actions.append(Changed(word.peer, word.state))

    def _forget(self, peer: int) -> None:
        """Know nothing any more of a peer that is gone."""
        self._view.forget(peer)
        self._rumours.drop(peer)
        self._rtts_s.pop(peer, None)
        self._lags_s.pop(peer, None)
        self._actions.append(Changed(peer, None))

    def _take_accusation(self, accusation: Statement) -> None:
        view, peer = self._view, accusation.peer
        if (suspicion := view.suspicions.get(peer)) is None:
            suspicion = Suspicion(self._now, self._timing.suspicion_s(view.live), self._timing.confirmations(view.live))
            view.put_suspicion(peer, suspicion, self._now)
            self._actions.append(Changed(peer, State.SUSPECT))
        suspicion.confirm(accusation)

    def _take_verdict(self, verdict: Statement) -> None:
        self._view.put_verdict(verdict, self._now)
        self._ring.remove(verdict.peer)
        self._fallen.append((self._now, verdict.peer))
        self._actions.append(Changed(verdict.peer, State.DEAD))

    def _hear_of_me(self, statement: Statement) -> None:
        mine = self._view.words[self.me]
        if not statement.is_well_formed:
            return
        if statement.is_own_word:
            if (statement.incarnation, statement.state) > (mine.incarnation, mine.state) and self._verified(statement):
                self._actions.append(Usurped(statement.incarnation))
        elif statement.incarnation < self.incarnation:
            self._is_misjudged = True
        elif statement.incarnation == self.incarnation and self._verified(statement):
            self._object_to(statement.author)

    def _object_to(self, accuser: int) -> None:
        """Say that this node is there. To one who is not believed any more only now and then, and without self-doubt.

        Those who do believe it suspect this node for longer than that, and tell it again.
        """
        least_s, _ = self._timing.suspicion_s(self._view.live)
        if not self._credit.is_spent(accuser, self.me, self._now):
            self.health.change(+1)
        elif self._credit.idle_s(accuser, self.me, self._now) < least_s / 2:
            return
        self._credit.refuted(accuser, self.me, self._now)
        self._is_misjudged = True
        self.refutations += 1
        self._raise_incarnation()

    def _verified(self, statement: Statement) -> bool:
        verified = self._signatures.verify(statement)
        self.refused += not verified
        return verified

    def _accuse(self, peer: int, state: State) -> None:
        """Say that a peer is suspect or dead, unless that is known well enough."""
        if (word := self._view.words.get(peer)) is not None:
            accusation = self._signed(state, peer, word.incarnation)
            if self._view.is_news(accusation):
                self._believe(accusation)

    def _raise_incarnation(self, state: State = State.ALIVE) -> None:
        """Say a new word of this node's own, which ends whatever was held against the one before."""
        self.incarnation += 1
        self._actions.append(Persist(self.incarnation))
        word = self._signed(state, self.me, self.incarnation, self._record)
        self._view.put_word(word, self._now)
        self._rumours.add(word, replaces=True)

    def _signed(self, state: State, peer: int, incarnation: int, record: bytes = b"") -> Statement:
        statement = Statement(state, peer, incarnation, self.me, record)
        return statement._replace(signature=self._signatures.sign(statement.signed_bytes))

    # What others are told

    def _updates_for(self, peer: int) -> tuple[Statement, ...]:
        """News for a peer: first what is held against itself, so that it can object before all others ask."""
        first = self._charges(peer)
        budget_bytes = PIGGYBACK_BYTES - sum([statement.size_bytes for statement in first])
        news = self._rumours.take(budget_bytes, self._timing.retransmits(self._view.live)) if self._rumours else []
        return (*first, *[statement for statement in news if statement not in first]) if first else tuple(news)

    def _charges(self, peer: int) -> list[Statement]:
        """The accusation that a peer has to answer; or its own farewell, where it seems to be back without a new word.

        Lifeguard's buddy system (arXiv 1707.00788, 2017).
        """
        word = self._view.words.get(peer)
        if word is not None and word.state is State.LEFT:
            return [word]
        return self._view.accusations(peer)[:1]

    def _defend_to(self, peer: int) -> None:
        """Tell who has just repeated an accusation what this node says to it."""
        if self._is_misjudged:
            self._send((peer,), Gossip((self._view.words[self.me],)))
        self._is_misjudged = False

    def _warn_of_room(self) -> None:
        if not self._is_full:
            self._is_full = True
            self._actions.append(Warn(f"membership: {len(self._view.words)} peers are known; no more are taken in"))

    def _send(self, to: Sequence[int], message: PeerMessage) -> None:
        if to:
            self._actions.append(Send(tuple(to), message))
