"""The adapters of a compute node: which are there, in use, or on their way, and which have to go for others."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from node import Context
from node.batching.queues import Queues
from node.caching.cache import Cache, Decision, Outcome
from node.caching.policies import policy_named
from protocols.directory import Directory
from protocols.fetching import Fetching
from protocols.serving_settings import ServingConfig


class Larder:
    """A cache whose misses are fetched. Its accesses are one for each fetch, and one for each further use.

    Args:
        queues: told which adapters are there, or so far that what needs them may begin.
        changed: called when something has come, so that more can be done than before.
        failed: told of an adapter that could not be had.
    """

    def __init__(
        self,
        ctx: Context,
        config: ServingConfig,
        directory: Directory,
        queues: Queues,
        changed: Callable[[], None],
        failed: Callable[[str], None],
    ) -> None:
        self.fetching: dict[str, Fetching] = {}
        self.cache = Cache(config.cache_bytes, policy_named(config.policy))
        self.peak_bytes = 0
        self.refetched = 0
        """Chunks that were asked for again."""
        self.came_s: dict[str, float] = {}
        """Since when those that are there can be used."""
        self._ctx = ctx
        self._config = config
        self._directory = directory
        self._queues = queues
        self._changed = changed
        self._failed = failed
        self._cards = ctx.inference.cards
        self._numbers = {name: float(number) for number, name in enumerate(self._cards)}
        self._shelf = ctx.inference.shelf(ctx)
        self._layers: dict[str, set[int]] = {}
        self._users: dict[str, int] = {}
        self._fresh: set[str] = set()
        """Fetched and not used yet: the first use is no access of its own."""
        self._landed: list[str] = []
        """Fetched since the last step: what they were fetched for has not begun yet."""
        self._accesses = 0
        self._disk_free_s = 0.0
        self._has_all = config.source == "memory"
        if self._has_all:
            self.peak_bytes = sum(card.size_bytes for card in self._cards.values())
            for name in self._cards:
                queues.came(name)

    @property
    def resident(self) -> tuple[str, ...]:
        """What a request could use at once, sorted."""
        return tuple(sorted(self._cards if self._has_all else self.came_s))

    @property
    def link_free_in_s(self) -> float:
        """When all that is on its way will be there, as far as one can tell."""
        left_bytes = sum(self._cards[name].size_bytes for name in self.fetching)
        return 8 * left_bytes / self._config.expected_bps

    def ready(self, adapter: str, layers: int) -> int:
        """How many of its layers, from the first on, are there."""
        came = self._layers.get(adapter)
        if not adapter or came is None:
            return layers
        return next((layer for layer in range(layers) if layer not in came), layers)

    def fetch(self, adapter: str) -> None:
        """An adapter is needed next."""
        decision = self.cache.acquire(adapter, self._cards[adapter].size_bytes)
        self._note_access(adapter, False)
        if decision.outcome is Outcome.WAITING:
            self._queues.block(adapter)
        elif decision.outcome is Outcome.REFUSED:
            self._failed(adapter)
        else:
            self._admit([decision])

    def take(self, adapter: str) -> None:
        """A request begins that uses an adapter which is there, or comes."""
        if not adapter:
            return
        self._users[adapter] = self._users.get(adapter, 0) + 1
        if adapter in self._fresh:
            self._fresh.discard(adapter)
            self.cache.pin(adapter)
            return
        self._note_access(adapter, True)
        if not self._has_all:
            self.cache.acquire(adapter, self._cards[adapter].size_bytes)

    def give(self, adapter: str) -> None:
        """A request that has used it is over."""
        if not adapter:
            return
        self._users[adapter] -= 1
        if self._has_all:
            return
        self._admit(self.cache.unpin(adapter))
        if not self._config.keeps and not self._users[adapter] and adapter in self.came_s:
            self._forget(adapter)
            self._admit(self.cache.remove(adapter))

    def settle(self) -> None:
        """What has come since the last step may go again: whoever waited for it had its chance to begin."""
        landed, self._landed = self._landed, []
        for adapter in landed:
            self._admit(self.cache.unpin(adapter))

    def _admit(self, decisions: Iterable[Decision]) -> None:
        for decision in decisions:
            for victim in decision.victims:
                self._forget(str(victim))
            adapter = str(decision.key)
            self._queues.unblock(adapter)
            self._layers[adapter] = set()
            self._fresh.add(adapter)
            self.peak_bytes = max(self.peak_bytes, self.cache.used_bytes)
            self.fetching[adapter] = Fetching(
                self._ctx,
                self._config,
                self._directory,
                self._shelf,
                adapter,
                lambda layer, adapter=adapter: self._layer_came(adapter, layer),  # type: ignore[misc]
            )
            self._ctx.spawn(self._fetch(adapter))

    async def _fetch(self, adapter: str) -> None:
        fetching = self.fetching[adapter]
        came = await (self._read(adapter) if self._config.source == "disk" else fetching.run())
        self.refetched += fetching.asked - fetching.chunks if came else 0
        del self.fetching[adapter]
        if came:
            self._usable(adapter)
            del self._layers[adapter]
            self._landed.append(adapter)
        else:
            self._forget(adapter)
            self._failed(adapter)
            self._admit((*self.cache.remove(adapter), *self.cache.unpin(adapter)))
        self._changed()

    async def _read(self, adapter: str) -> bool:
        """From the node's own disk, which reads one layer after another."""
        for layer, size_bytes in enumerate(self._shelf.manifest(adapter).layers_bytes):
            self._disk_free_s = max(self._ctx.now, self._disk_free_s) + 8 * size_bytes / self._config.disk_bps
            await self._ctx.sleep(self._disk_free_s - self._ctx.now)
            self._layer_came(adapter, layer)
        return True

    def _layer_came(self, adapter: str, layer: int) -> None:
        self._layers[adapter].add(layer)
        if self._config.streams:
            if 0 in self._layers[adapter]:
                self._usable(adapter)
            self._changed()

    def _usable(self, adapter: str) -> None:
        if adapter not in self.came_s:
            self.came_s[adapter] = self._ctx.now
            self._queues.came(adapter)

    def _forget(self, adapter: str) -> None:
        self._queues.went(adapter)
        self._layers.pop(adapter, None)
        self.came_s.pop(adapter, None)
        self._fresh.discard(adapter)

    def _note_access(self, adapter: str, is_hit: bool) -> None:
        fields = {"access/adapter": self._numbers[adapter], "access/is_hit": float(is_hit)}
        self._ctx.record(round=self._accesses, **fields)
        self._accesses += 1
