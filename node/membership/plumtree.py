"""The state machine of a node that tells all others something, through its neighbours.

Plumtree (Epidemic Broadcast Trees; Leitão, Pereira and Rodrigues, SRDS 2007): the first broadcast finds a tree in the
overlay, later ones travel along it, and announcements over the other links mend it. For what is short and rare
(announcements, revocations, a leader's word), never for models.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import TypeAlias

from node.errors import ProtocolError
from node.membership.broadcast import Archive, Missing, Payload
from node.membership.overlay import CONTENT_BYTES, MOST_HOPS, Broadcast, Graft, IHave, Prune, TreeMessage
from node.membership.vocabulary import Deliver, Send, SetTimer

TREE_ROUND_TRIPS = 10
"""What is announced may take so many round trips to come along the tree, before it is asked for."""
ASK_ROUND_TRIPS = 3
"""And who was asked for it so many, before the next one is."""


TreeAction: TypeAlias = Send | Deliver | SetTimer


class Plumtree:
    """One node's part in broadcasting, over neighbours that the caller names as they come and go."""

    def __init__(self, round_trip_s: float, accept: Callable[[bytes], bool] = lambda content: True) -> None:
        """``accept`` says whether a content may be passed on at all (is signed by a member, say)."""
        self.round_trip_s = round_trip_s
        """To a neighbour, with the lag of both; the caller sets it anew as it measures it."""
        self.deadline_s = math.inf
        """When something is due on this node's clock."""
        self._accept = accept
        self._eager: dict[int, None] = {}
        """Neighbours over links of the tree."""
        self._lazy: dict[int, None] = {}
        self._archive = Archive()
        self._missing = Missing()

    @property
    def eager(self) -> tuple[int, ...]:
        """Neighbours that broadcasts are sent to at once, sorted."""
        return tuple(sorted(self._eager))

    def up(self, peer: int) -> None:
        """A neighbour has come."""
        if peer not in self._lazy:
            self._eager[peer] = None

    def down(self, peer: int) -> list[TreeAction]:
        """A neighbour has gone."""
        self._eager.pop(peer, None)
        self._lazy.pop(peer, None)
        self._missing.forget_peer(peer)
        return self._with_timer([])

    def broadcast(self, content: bytes) -> list[TreeAction]:
        """Tell everybody; nothing where that has been told before.

        Raises:
            ProtocolError: longer than 64 KiB.
        """
        if len(content) > CONTENT_BYTES:
            raise ProtocolError(f"broadcast: {len(content)} bytes; allowed: {CONTENT_BYTES}; send a digest of it")
        return self._pass_on(content, 0, None)

    def tick(self, now: float) -> list[TreeAction]:
        """Time has passed: the timer that was set has gone off."""
        actions: list[TreeAction] = []
        for id, peer in self._missing.due(now, now + ASK_ROUND_TRIPS * self.round_trip_s):
            self._make_eager(peer)
            actions.append(Send((peer,), Graft(id)))
        return self._with_timer(actions)

    def receive(self, sender: int, message: TreeMessage, now: float) -> list[TreeAction]:
        """A neighbour has sent something; from anybody else nothing is taken."""
        if sender not in self._eager and sender not in self._lazy:
            return []
        match message:
            case Broadcast(content=content, hop=hop):
                return self._on_broadcast(sender, content, hop)
            case IHave(id=id):
                if id not in self._archive:
                    self._missing.announce(id, sender, now + TREE_ROUND_TRIPS * self.round_trip_s)
            case Graft(id=id):
                self._make_eager(sender)
                if (payload := self._archive.get(id)) is not None:
                    return [Send((sender,), Broadcast(payload.content, min(payload.hop + 1, MOST_HOPS)))]
            case Prune():
                self._make_lazy(sender)
        return self._with_timer([])

    def _on_broadcast(self, sender: int, content: bytes, hop: int) -> list[TreeAction]:
        if _id_of(content) in self._archive:
            self._make_lazy(sender)
            return [Send((sender,), Prune())]
        if not self._accept(content):
            return []
        self._make_eager(sender)
        return self._pass_on(content, hop, sender)

    def _pass_on(self, content: bytes, hop: int, sender: int | None) -> list[TreeAction]:
        id = _id_of(content)
        if id in self._archive:
            return []
        self._archive.put(id, Payload(content, hop))
        self._missing.found(id)
        onward = Broadcast(content, min(hop + 1, MOST_HOPS))
        eager = [Send((peer,), onward) for peer in self._eager if peer != sender]
        return self._with_timer([Deliver(content, hop), *eager, *[Send((peer,), IHave(id)) for peer in self._lazy]])

    def _make_eager(self, peer: int) -> None:
        if peer in self._lazy:
            del self._lazy[peer]
            self._eager[peer] = None

    def _make_lazy(self, peer: int) -> None:
        if peer in self._eager:
            del self._eager[peer]
            self._lazy[peer] = None

    def _with_timer(self, actions: list[TreeAction]) -> list[TreeAction]:
        before, self.deadline_s = self.deadline_s, self._missing.deadline_s
        if before != self.deadline_s < math.inf:
            actions.append(SetTimer(self.deadline_s))
        return actions


def _id_of(content: bytes) -> bytes:
    """128 bits of its SHA-256: the receiver computes it, so that nobody can take a name from another's broadcast."""
    return hashlib.sha256(content).digest()[:16]
