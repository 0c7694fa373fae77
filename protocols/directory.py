"""Who stores which adapter, as far as this node knows: where it should be, and what holders announce."""

from __future__ import annotations

from node import Context, DeadlineExceeded, Unreachable
from node.errors import BadFrame
from node.placement.index import Index
from node.placement.rendezvous import equally, preference
from node.placement.scuttlebutt import decode_deltas, decode_digest, encode
from protocols.serving_messages import Heard, News
from protocols.serving_settings import ServingConfig


class Directory:
    """An index that spreads by gossip; before anything has been heard, hashes say where an adapter should be."""

    def __init__(self, ctx: Context, config: ServingConfig) -> None:
        self._ctx = ctx
        self._config = config
        self._stores = ctx.nodes[: config.storage]
        self._ranks: dict[str, list[int]] = {}
        self._ranked: tuple[int, ...] = ()
        self.index = Index(ctx.me, generation=1 + int(1000 * ctx.now), period_s=config.announce_s)

    @property
    def members(self) -> tuple[int, ...]:
        """The storage nodes that are there, this one too if it is one."""
        me = self._ctx.me
        return tuple([node for node in self._stores if node == me or self._ctx.alive((node,))])

    def ranked(self, adapter: str) -> list[int]:
        """The storage nodes that are there, in the order in which they should keep an adapter."""
        members = self.members
        if members != self._ranked:
            self._ranked = members
            self._ranks.clear()
        if adapter not in self._ranks:
            self._ranks[adapter] = preference(adapter, equally(list(members)))
        return self._ranks[adapter]

    def holders(self, adapter: str) -> list[int]:
        """Whom to ask for an adapter, without those who are gone or have not answered lately."""
        now_s = self._ctx.now
        announced = [each.node for each in self.index.holders(adapter, now_s)]
        known = announced or self.ranked(adapter)[: self._config.replicas]
        return [node for node in self._ctx.alive(known) if node != self._ctx.me]

    def unanswered(self, holder: int) -> None:
        """A holder did not answer."""
        self.index.unanswered(holder, self._ctx.now)

    def answered(self, holder: int) -> None:
        """A holder did."""
        self.index.answered(holder)

    async def gossip(self) -> None:
        """Ask somebody in every period what is new; periods are drawn, so that nodes do not go in step."""
        while True:
            await self._ctx.sleep(self._config.announce_s * float(self._ctx.rng.uniform(0.5, 1.0)))
            self.index.tick(self._ctx.now)
            for peer in self._ctx.sample(1, role=None):
                await self._ask(peer)

    async def _ask(self, peer: int) -> None:
        is_cut = True
        while is_cut:
            try:
                digest = encode(self.index.digest())
                news = await self._ctx.request(peer, Heard(digest=digest), self._config.announce_s)
                is_cut = self.index.merge(decode_deltas(news.deltas))
            except (Unreachable, DeadlineExceeded, BadFrame):
                return

    def answer(self, heard: Heard) -> News | None:
        """What somebody has not heard; nothing to who makes no sense."""
        try:
            return News(deltas=encode(self.index.newer(decode_digest(heard.digest))))
        except BadFrame:
            return None
