"""A storage node: it keeps the adapters that are its own by their hashes, and more of what is popular.

Where adapters belong, nobody has to say (rendezvous hashing: Thaler and Ravishankar, IEEE/ACM Transactions on
Networking 1998). The first of an adapter's nodes judges its popularity by what it has itself sent of it, and asks
others to keep it, too, period after period: who is not asked any more lets it go. When a storage node is gone, the next
one in line fetches what it kept.
"""

from __future__ import annotations

from collections.abc import Iterable

from node import Context, Message
from node.errors import Missing
from node.inference import Inference
from node.placement.rendezvous import Key, equally
from node.placement.repair import Copy, Drop, Lost, Order, repair
from node.placement.replicas import Popularity, ReplicaRule
from node.streaming.layout import Layout
from protocols.directory import Directory
from protocols.fetching import Fetching
from protocols.serving_messages import Absent, Data, Describe, Described, Get, Want
from protocols.serving_settings import ServingConfig

_MEMORY_PERIODS = 6
"""For so many periods what was asked for still counts, mostly, as popularity."""
_LEASE_PERIODS = 3
"""For so many periods an adapter is kept that somebody asked to keep."""


class Storing:
    """What one storage node holds, sends, copies and lets go."""

    def __init__(self, ctx: Context, config: ServingConfig, directory: Directory) -> None:
        self.fetching: dict[str, Fetching] = {}
        self.copied = 0
        self.sent_bytes = 0
        self._ctx = ctx
        self._config = config
        self._directory = directory
        self._inference: Inference = ctx.inference
        self._shelf = ctx.inference.shelf(ctx)
        self._held: dict[str, None] = {}
        self._wanted_until_s: dict[str, float] = {}
        self._popularity = Popularity(_MEMORY_PERIODS * config.announce_s)
        self._rule = ReplicaRule(config.replicas, config.most_replicas, config.replica_budget)
        self._to_copy: dict[str, None] = {}
        self._is_copying = False
        self._repaired_for: tuple[int, ...] = ()

    async def run(self) -> None:
        """Look after what is held, period after period."""
        await self._begin()
        while True:
            now_s = self._ctx.now
            self._directory.index.beat(float(len(self.fetching)), self._config.expected_bps, now_s)
            self._repair()
            self._ask_others()
            self._let_go()
            if self._to_copy and not self._is_copying:
                self._is_copying = True
                self._ctx.spawn(self._copy())
            await self._ctx.sleep(self._config.announce_s)

    async def _begin(self) -> None:
        """Hold what was published before the run, or what an earlier life held."""
        saved = self._ctx.restore()
        if saved is None:
            me, least = self._ctx.me, self._config.replicas
            names = [name for name in self._inference.cards if me in self._directory.ranked(name)[:least]]
            self._repaired_for = self._directory.members
        else:
            names = str(saved["held"]).split()
        for name in names:
            self._hold(name)
        await self._keep()

    # What others ask

    def describe(self, message: Describe) -> Message:
        """What an adapter consists of."""
        if message.adapter not in self._held:
            return Absent(adapter=message.adapter)
        try:
            _, sizes, chunk_bytes, digests = self._shelf.manifest(message.adapter)
        except Missing:
            return Absent(adapter=message.adapter)
        return Described(adapter=message.adapter, layers_bytes=sizes, chunk_bytes=chunk_bytes, digests=digests)

    def get(self, message: Get) -> Message:
        """A chunk."""
        if message.adapter not in self._held or not 0 <= message.chunk < self._chunks(message.adapter):
            return Absent(adapter=message.adapter)
        content = self._shelf.content(message.adapter, message.chunk)
        self._popularity.demand(message.adapter, content.spec.size_bytes, self._ctx.now)
        self.sent_bytes += content.spec.size_bytes
        return Data(adapter=message.adapter, chunk=message.chunk, content=content)

    def _chunks(self, adapter: str) -> int:
        manifest = self._shelf.manifest(adapter)
        return Layout(manifest.layers_bytes, manifest.chunk_bytes).chunks

    def want(self, message: Want) -> None:
        """Keep an adapter for a while, too."""
        if message.adapter not in self._inference.cards:
            return
        self._wanted_until_s[message.adapter] = self._ctx.now + _LEASE_PERIODS * self._config.announce_s
        if message.adapter not in self._held:
            self._to_copy[message.adapter] = None

    # Period after period

    def _repair(self) -> None:
        """After somebody has gone or come, fetch what now belongs here; again, while nobody seems to have something."""
        members = self._directory.members
        if members == self._repaired_for:
            return
        orders = self._orders(self._inference.cards)
        if not any(isinstance(order, Lost) for order in orders):
            self._repaired_for = members
        for order in orders:
            if isinstance(order, Copy) and order.target == self._ctx.me:
                self._to_copy[str(order.key)] = None

    def _orders(self, names: Iterable[str]) -> list[Order]:
        """What has to be done so that some adapters are where they belong, as far as this node knows."""
        me, members = self._ctx.me, self._directory.members
        holdings = self._directory.index.holdings(self._ctx.now)
        counts: dict[Key, int] = {}
        holders: dict[Key, set[int]] = {}
        for name in names:
            counts[name] = min(self._config.replicas, len(members))
            holders[name] = {*self._ctx.alive(holdings.get(name, ())), *((me,) if name in self._held else ())}
        return repair(counts, equally(list(members)), holders)

    def _ask_others(self) -> None:
        """Have more nodes keep what is popular, where this is the first of its nodes."""
        members = self._directory.members
        shares = self._popularity.shares(self._ctx.now)
        for name in sorted(map(str, shares)):
            ranked = self._directory.ranked(name)
            if ranked[0] != self._ctx.me or name not in self._held:
                continue
            holders = {each.node for each in self._directory.index.holders(name, self._ctx.now)}
            present = max(self._config.replicas, len(holders.intersection(members)))
            # Each holder sends its part: what this one has sent stands for as much from each of the others.
            share = present * shares[name] / len(members)
            for node in ranked[self._config.replicas : self._rule.next(present, share, len(members))]:
                self._ctx.spawn(self._ctx.send(node, Want(adapter=name)))

    def _let_go(self) -> None:
        """Drop what does not belong here once all who should hold it do, and nobody asks to keep it."""
        now_s, me, least = self._ctx.now, self._ctx.me, self._config.replicas
        extra = [name for name in self._held if me not in self._directory.ranked(name)[:least]]
        for order in self._orders(name for name in extra if now_s >= self._wanted_until_s.get(name, 0.0)):
            if isinstance(order, Drop) and order.node == me:
                del self._held[str(order.key)]
                self._directory.index.release(str(order.key))

    async def _copy(self) -> None:
        """Fetch one adapter after another."""
        while self._to_copy:
            name = next(iter(self._to_copy))
            del self._to_copy[name]
            if name in self._held:
                continue
            fetching = self.fetching[name] = Fetching(self._ctx, self._config, self._directory, self._shelf, name)
            if await fetching.run():
                self.copied += 1
                self._hold(name)
                await self._keep()
            del self.fetching[name]
        self._is_copying = False

    def _hold(self, name: str) -> None:
        self._held[name] = None
        self._directory.index.hold(name)

    async def _keep(self) -> None:
        await self._ctx.checkpoint(held=" ".join(self._held))
