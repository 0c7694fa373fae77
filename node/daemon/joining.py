"""How a node that starts alone comes to its peers: their cards first, then word from each of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import structlog

from node.daemon.cards import CardFolder
from node.errors import ConfigError
from node.identity import Card, Roster
from node.live.rendezvous import Rendezvous
from node.live.transport import Transport

_LOOK_S = 0.25
_FOLLOW_S = 2.0
_MOST_NAMED = 16


class Joining:
    """One node's way in. Cards are looked at until the end: a peer that starts again may have a new address."""

    def __init__(self, own: Card, nodes: int, cards: CardFolder, transport: Transport, rendezvous: Rendezvous) -> None:
        self.awaited: list[int] = [node for node in range(nodes) if node != own.node]
        """The nodes that are waited for."""
        self._own = own
        self._nodes = nodes
        self._cards = cards
        self._transport = transport
        self._rendezvous = rendezvous
        self._found: dict[int, Card] = {}
        self._roster: list[Card] = []
        self._following: asyncio.Task[None] | None = None

    @property
    def absent(self) -> list[int]:
        """The nodes that have not been heard yet, whether their cards are there or not."""
        return self._rendezvous.absent

    def addresses(self) -> dict[int, str]:
        """Where the nodes say that they listen, by node, as far as it is known."""
        return {node: card.address for node, card in self._found.items()}

    @property
    def refused(self) -> Counter[str]:
        """Nothing: what is wrong with a card is in the log."""
        return Counter()

    def sightings(self) -> dict[int, dict[str, Any]]:
        """Nothing beyond what the links tell."""
        return {}

    def vitals(self) -> dict[str, float]:
        """Nothing: nobody doubts anybody,"""
        return {}

    def tallies(self) -> dict[str, int]:
        """and nobody has to object to it."""
        return {}

    async def close(self) -> None:
        """Look at no more cards."""
        if self._following is not None:
            self._following.cancel()

    async def run(self, returning: bool = False) -> None:
        """Wait until this node and each of the others can reach one another.

        Raises:
            ConfigError: the cards do not go together.
        """
        said: tuple[str, Sequence[int]] = ("", ())
        while self.awaited or not self._roster:
            what = await self._look()
            if self.awaited and (what, self.awaited) != said:
                said = what, self.awaited
                named = self.awaited[:_MOST_NAMED]
                structlog.get_logger().info("waiting", what=what, of=named, missing=len(self.awaited))
            if self.awaited:
                await asyncio.sleep(_LOOK_S)
        self._following = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        """Go on looking: a peer that starts again may have a new address."""
        while True:
            await asyncio.sleep(_FOLLOW_S)
            try:
                await self._look()
            except ConfigError as error:
                structlog.get_logger().warning("cards refused", reason=str(error))

    async def _look(self) -> str:
        found = self._found = {**await asyncio.to_thread(self._cards.read), self._own.node: self._own}
        missing = [node for node in range(self._nodes) if node not in found]
        if missing:
            self.awaited = missing
            return "cards"
        roster = [found[node] for node in range(self._nodes)]
        if roster != self._roster:
            self._transport.admit(Roster(roster))
            self._roster = roster
        await self._rendezvous.greet()
        self.awaited = self._rendezvous.absent
        return "links"
