"""The state machine of a member that knows only a few others.

HyParView (Leitão, Pereira and Rodrigues, DSN 2007): a small active view of symmetric links to talk over, and a larger
passive one to mend it from. Who can no longer be reached, the caller's links tell (:class:`~node.membership.Lost`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from node.membership.overlay import (
    Disconnect,
    ForwardJoin,
    Join,
    Neighbour,
    NeighbourAnswer,
    OverlayMessage,
    Shuffle,
    ShuffleAnswer,
    Sizes,
)
from node.membership.passive import Entry, Group, PassiveView
from node.membership.statement import Signatures, State, Statement, Unsigned
from node.membership.view import Sighting
from node.membership.vocabulary import (
    Action,
    Changed,
    Describe,
    Input,
    Introduce,
    Leave,
    Lost,
    Message,
    Persist,
    Received,
    Send,
    SetTimer,
    Start,
    Tick,
)

if TYPE_CHECKING:
    import numpy as np


class HyParView:
    """Partial membership: :meth:`peers` are this node's neighbours, and it is theirs.

    ``step`` is all there is, as with :class:`~node.membership.Swim`.
    """

    def __init__(
        self,
        me: int,
        incarnation: int,
        record: bytes,
        sizes: Sizes,
        rng: np.random.Generator,
        signatures: Signatures | None = None,
        group: Group = lambda word: "",
    ) -> None:
        """A node that has kept ``incarnation`` last (0: none yet), and shows ``record`` of itself."""
        self.me = me
        self.incarnation = incarnation
        self.deadline_s = math.inf
        """When something is due on this node's clock."""
        self._record = record
        self._sizes = sizes
        self._rng = rng
        self._signatures = signatures or Unsigned()
        self._active: dict[int, tuple[Statement, float]] = {}
        """Words of the neighbours, and since when they are."""
        self._passive = PassiveView(sizes.passive, sizes.most_alike, group, rng)
        self._seeds: tuple[int, ...] = ()
        self._word: Statement | None = None
        self._asked: tuple[int, float] | None = None
        """Who has been asked to be a neighbour, and until when it may answer."""
        self._refused: set[int] = set()
        """Who would not, since the last shuffle."""
        self._shuffled: list[int] = []
        self._shuffle_s = math.inf
        self._now = 0.0
        self._actions: list[Action] = []

    # What a caller may ask

    def peers(self) -> tuple[int, ...]:
        """The neighbours, sorted."""
        return tuple(sorted(self._active))

    def known(self) -> tuple[Sighting, ...]:
        """Neighbours, which are ALIVE, and those known by hearsay, which are PASSIVE; sorted by peer."""
        seen = [Sighting(p, State.ALIVE, w.incarnation, s, w.record, None) for p, (w, s) in self._active.items()]
        for peer, (word, _, heard_s) in self._passive.entries.items():
            seen.append(Sighting(peer, State.PASSIVE, word.incarnation, heard_s, word.record, None))
        return tuple(sorted(seen, key=lambda sighting: sighting.peer))

    def step(self, event: Input, now: float) -> list[Action]:
        """Take in what has happened at a time of the node's own clock, in s; gives what is to be done."""
        self._now, self._actions = now, []
        before = self.deadline_s
        match event:
            case Received(sender=sender, message=message):
                self._receive(sender, message)
            case Lost(peer=peer):
                self._on_lost(peer)
            case Tick():
                self._due()
            case Start():
                self._start(event)
            case Describe(record=record):
                self._record = record
                self._speak()
            case Leave():
                self._leave()
        self.deadline_s = math.inf if self._word is None else min(self._shuffle_s, self._asked_until_s())
        if self.deadline_s != before and self.deadline_s < math.inf:
            self._actions.append(SetTimer(self.deadline_s))
        return self._actions

    def _start(self, start: Start) -> None:
        self._speak()
        self._seeds = tuple([seed for seed in dict.fromkeys(start.seeds) if seed != self.me])
        self._integrate(self.me, start.remembered)
        self._join()
        self._set_shuffle()

    def _speak(self, state: State = State.ALIVE) -> None:
        self.incarnation += 1
        self._actions.append(Persist(self.incarnation))
        word = Statement(state, self.me, self.incarnation, self.me, self._record)
        self._word = word._replace(signature=self._signatures.sign(word.signed_bytes))

    def _leave(self) -> None:
        self._speak(State.LEFT)
        for peer in self._active:
            self._send(peer, Disconnect(self._word))
        self._active.clear()
        self._word = None

    # Time

    def _asked_until_s(self) -> float:
        return self._asked[1] if self._asked else math.inf

    def _set_shuffle(self) -> None:
        # A node alone asks again soon; no two nodes at the same time for ever.
        interval_s = self._sizes.shuffle_interval_s if self._active else self._sizes.answer_timeout_s
        self._shuffle_s = self._now + interval_s * (0.75 + 0.5 * self._rng.random())

    def _due(self) -> None:
        if self._asked is not None and self._asked[1] <= self._now:
            self._on_lost(self._asked[0])
        if self._shuffle_s <= self._now:
            self._passive.forget_before(self._now - self._sizes.forget_s)
            self._refused.clear()
            if self._active:
                self._shuffle()
            else:
                self._join()
            self._mend()
            self._set_shuffle()

    def _join(self) -> None:
        if self._seeds and not self._active:
            self._send(self._seeds[int(self._rng.random() * len(self._seeds))], Join(self._my_word()))

    # Messages

    def _receive(self, sender: int, message: Message) -> None:
        if self._word is None:
            return
        match message:
            case Join(word=word):
                if self._is_genuine(word) and word.peer == sender:
                    self._on_join(word)
            case ForwardJoin(word=word, hops=hops):
                if self._is_link(sender) and self._is_genuine(word):
                    self._on_forward_join(sender, word, hops)
            case Neighbour(word=word, is_urgent=is_urgent):
                if self._is_genuine(word) and word.peer == sender:
                    self._on_neighbour(word, is_urgent)
            case NeighbourAnswer(word=word, is_accepted=is_accepted):
                if self._is_genuine(word) and word.peer == sender:
                    self._on_answer(word, is_accepted)
            case Disconnect(farewell=farewell):
                self._on_disconnect(sender, farewell)
            case Shuffle():
                if self._is_link(sender) and self._is_genuine(message.word):
                    self._on_shuffle(sender, message)
            case ShuffleAnswer(words=words):
                self._integrate(sender, words)

    def _is_genuine(self, word: Statement) -> bool:
        about_other = word.peer != self.me and word.state is State.ALIVE and word.is_well_formed
        return about_other and self._signatures.verify(word)

    def _is_link(self, sender: int) -> bool:
        """Whether a sender is a neighbour; who is not, but thinks so, is told."""
        if sender not in self._active:
            self._send(sender, Disconnect())
        return sender in self._active

    def _on_join(self, word: Statement) -> None:
        others = [peer for peer in self._active if peer != word.peer]
        self._add(word)
        self._send(word.peer, NeighbourAnswer(self._my_word(), True))
        for peer in others:
            self._send(peer, ForwardJoin(word, self._sizes.active_walk))

    def _on_forward_join(self, sender: int, word: Statement, hops: int) -> None:
        onward = [peer for peer in self._active if peer not in (sender, word.peer)]
        if hops == 0 or not onward:
            if word.peer not in self._active:
                self._add(word)
                self._send(word.peer, Neighbour(self._my_word(), True))
            return
        if hops == self._sizes.passive_walk:
            self._remember(word, sender)
        self._send(self._pick(onward), ForwardJoin(word, hops - 1))

    def _on_neighbour(self, word: Statement, is_urgent: bool) -> None:
        accepts = is_urgent or word.peer in self._active or len(self._active) < self._sizes.active
        if accepts:
            self._add(word)
        self._send(word.peer, NeighbourAnswer(self._my_word(), accepts))

    def _on_answer(self, word: Statement, is_accepted: bool) -> None:
        if self._asked is not None and self._asked[0] == word.peer:
            self._asked = None
        if not is_accepted:
            self._refused.add(word.peer)
        elif len(self._active) < self._sizes.active or word.peer in self._active:
            self._add(word)
        else:
            self._send(word.peer, Disconnect())
        self._mend()

    def _on_disconnect(self, sender: int, farewell: Statement | None) -> None:
        word = self._drop(sender)
        if farewell is None and word is not None:
            self._remember(word, sender)
            self._actions.append(Changed(sender, State.PASSIVE))
            self._refused.add(sender)
        elif word is not None:
            self._actions.append(Changed(sender, State.LEFT))
        if farewell is not None:
            self._passive.entries.pop(sender, None)
        self._mend()

    def _on_lost(self, peer: int) -> None:
        if self._asked is not None and self._asked[0] == peer:
            self._asked = None
        self._passive.entries.pop(peer, None)
        if self._drop(peer) is not None:
            self._actions.append(Changed(peer, None))
        self._mend()

    # Views

    def _add(self, word: Statement) -> None:
        """Have a neighbour, in place of a random one where there are enough."""
        peer = word.peer
        if peer in self._active:
            self._active[peer] = (word, self._active[peer][1])
            return
        if len(self._active) >= self._sizes.active:
            other = self._pick(list(self._active))
            dropped = self._drop(other)
            assert dropped is not None
            self._send(other, Disconnect())
            self._remember(dropped, other)
            self._actions.append(Changed(other, State.PASSIVE))
        self._passive.entries.pop(peer, None)
        self._active[peer] = (word, self._now)
        self._actions += (Introduce(word), Changed(peer, State.ALIVE))

    def _drop(self, peer: int) -> Statement | None:
        word, _ = self._active.pop(peer, (None, 0.0))
        return word

    def _mend(self) -> None:
        """Ask a passive peer to be a neighbour while there are too few, one after the other."""
        if self._asked is not None or len(self._active) >= self._sizes.active:
            return
        if (word := self._passive.take(self._refused)) is not None:
            self._asked = (word.peer, self._now + self._sizes.answer_timeout_s)
            self._actions.append(Introduce(word))
            self._send(word.peer, Neighbour(self._my_word(), not self._active))

    def _remember(self, word: Statement, introducer: int, expendable: Iterable[int] = ()) -> None:
        if word.peer != self.me and word.peer not in self._active:
            self._passive.put(Entry(word, introducer, self._now), list(expendable))

    def _integrate(self, introducer: int, words: Iterable[Statement]) -> None:
        for word in words:
            if self._is_genuine(word):
                self._remember(word, introducer, self._shuffled)
        self._mend()

    def _shuffle(self) -> None:
        active = list(self._active)
        some = [
            active.pop(int(self._rng.random() * len(active)))
            for _ in range(min(len(active), 1 + self._sizes.shuffled_active))
        ]
        to, others = some[0], [self._active[peer][0] for peer in some[1:]]
        passive = self._passive.sample(self._sizes.shuffled_passive)
        self._shuffled = [word.peer for word in passive]
        self._send(to, Shuffle(self._my_word(), self._sizes.active_walk, (*others, *passive)))

    def _on_shuffle(self, sender: int, shuffle: Shuffle) -> None:
        origin = shuffle.word.peer
        onward = [peer for peer in self._active if peer not in (sender, origin)]
        if shuffle.hops > 0 and onward:
            self._send(self._pick(onward), Shuffle(shuffle.word, shuffle.hops - 1, shuffle.words))
            return
        mine = self._passive.sample(len(shuffle.words) + 1)
        self._actions.append(Introduce(shuffle.word))
        self._send(origin, ShuffleAnswer(tuple(mine)))
        self._shuffled = [word.peer for word in mine]
        self._integrate(origin, (shuffle.word, *shuffle.words))

    def _pick(self, peers: list[int]) -> int:
        return peers[int(self._rng.random() * len(peers))]

    def _my_word(self) -> Statement:
        assert self._word is not None
        return self._word

    def _send(self, to: int, message: OverlayMessage) -> None:
        self._actions.append(Send((to,), message))
