"""The state machine of a member of a network too large to know everybody: neighbours, and a tree through them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from node.membership.hyparview import HyParView
from node.membership.overlay import Broadcast, Graft, IHave, Prune, Sizes
from node.membership.passive import Group
from node.membership.plumtree import Plumtree
from node.membership.statement import Signatures, State
from node.membership.view import Sighting
from node.membership.vocabulary import Action, Changed, Input, Received, SetTimer, Tell, Tick

if TYPE_CHECKING:
    import numpy as np

ROUND_TRIP_S = 0.1
"""To a neighbour, at most, as a rule: what does not come along the tree is asked for after ten of them."""


class Partial:
    """Partial membership: HyParView's active view are the :meth:`peers`, and Plumtree's broadcasts go over it.

    Driven like :class:`~node.membership.Swim`; :class:`~node.membership.Tell` reaches all that can be reached.
    """

    def __init__(
        self,
        me: int,
        incarnation: int,
        record: bytes,
        sizes: Sizes,
        rng: np.random.Generator,
        signatures: Signatures | None = None,
        *,
        group: Group = lambda word: "",
        accept: Callable[[bytes], bool] = lambda content: True,
    ) -> None:
        """A node that has kept ``incarnation`` last (0: none yet), and passes on the contents that it accepts."""
        self.me = me
        self.deadline_s = math.inf
        """When something is due on this node's clock."""
        self._views = HyParView(me, incarnation, record, sizes, rng, signatures, group)
        self._tree = Plumtree(ROUND_TRIP_S, accept)

    @property
    def incarnation(self) -> int:
        """The one that it has kept last."""
        return self._views.incarnation

    def peers(self) -> tuple[int, ...]:
        """The neighbours, sorted."""
        return self._views.peers()

    def known(self) -> tuple[Sighting, ...]:
        """Neighbours, which are ALIVE, and those known by hearsay, which are PASSIVE; sorted by peer."""
        return self._views.known()

    def step(self, event: Input, now: float) -> list[Action]:
        """Take in what has happened at a time of the node's own clock, in s; gives what is to be done.

        Raises:
            ProtocolError: what is to be told is longer than 64 KiB.
        """
        before, actions = self.deadline_s, self._actions(event, now)
        self.deadline_s = min(self._views.deadline_s, self._tree.deadline_s)
        if self.deadline_s != before and self.deadline_s < math.inf:
            actions.append(SetTimer(self.deadline_s))
        return actions

    def _actions(self, event: Input, now: float) -> list[Action]:
        match event:
            case Tell(content=content):
                return _untimed(self._tree.broadcast(content))
            case Received(sender=sender, message=Broadcast() | IHave() | Graft() | Prune() as message):
                return _untimed(self._tree.receive(sender, message, now))
            case Tick():
                return [*self._follow(self._views.step(event, now)), *_untimed(self._tree.tick(now))]
        return self._follow(self._views.step(event, now))

    def _follow(self, actions: Iterable[Action]) -> list[Action]:
        """Have the tree's links where the neighbours are."""
        done: list[Action] = []
        for action in _untimed(actions):
            done.append(action)
            if isinstance(action, Changed) and action.state is State.ALIVE:
                self._tree.up(action.peer)
            elif isinstance(action, Changed):
                done += _untimed(self._tree.down(action.peer))
        return done


def _untimed(actions: Iterable[Action]) -> list[Action]:
    """Without the timers of the two parts: the first of both is what counts."""
    return [action for action in actions if not isinstance(action, SetTimer)]
