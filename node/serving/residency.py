"""Brings adapters into slots while others are computed with, and says which slot has which version.

Everything here is by version: a version never changes, so that a slot that was published never does, and a request that
holds one ends on it. All methods are the event loop's; reading, verifying and writing layers is done in threads.
"""

from __future__ import annotations

import asyncio
from typing import Protocol as Interface

from node.adapters.loading import Loading
from node.adapters.slots import Held, Slots
from node.adapters.stacks import Stacks
from node.caching.cache import Cache, Decision, Outcome
from node.caching.policies import DEFAULT_POLICY, policy_named
from node.errors import ConfigError, Corrupt, StarlingError, Unreachable
from node.serving.source import Source
from node.transfer.manifest import ObjectId


class Watcher(Interface):
    """Who is told what becomes of adapters."""

    def came(self, version: ObjectId) -> None:
        """It is resident, or so far that computing may begin."""

    def went(self, version: ObjectId) -> None:
        """It was evicted."""

    def blocked(self, version: ObjectId) -> None:
        """It has to wait until another is let go."""

    def unblocked(self, version: ObjectId) -> None:
        """It waits no longer, and is on its way."""

    def failed(self, version: ObjectId, error: StarlingError) -> None:
        """It could not be had."""

    def wake(self) -> None:
        """Something has changed that the next step may depend on."""


class Residency:
    """The adapters in memory, as many as there are slots, and those on their way."""

    def __init__(
        self,
        source: Source,
        stacks: Stacks,
        slots: int,
        base_fingerprint: str,
        watcher: Watcher,
        policy: str = DEFAULT_POLICY,
    ) -> None:
        """``slots``: those of the stacks; one is left over for what is loaded while the others are in use."""
        if slots < 2:
            raise ConfigError(f"slots: {slots}; allowed: at least 2, one of them for what is being loaded")
        self.slot_bytes = stacks.size_bytes // (slots + 1)
        self.cache = Cache((slots - 1) * self.slot_bytes, policy_named(policy))
        self.slots = Slots(slots)
        self.swaps = self.loaded_bytes = 0
        self._source, self._stacks, self._base, self._watcher = source, stacks, base_fingerprint, watcher
        self._tasks: dict[ObjectId, asyncio.Task[None]] = {}
        self._wanted: dict[ObjectId, asyncio.Future[None]] = {}
        self._loadings: dict[ObjectId, Loading] = {}
        self._content: dict[int, ObjectId] = {}
        self._settled: list[ObjectId] = []
        self._fresh: set[ObjectId] = set()
        self._kept = 0
        self._boundary = asyncio.Event()

    def fetch(self, version: ObjectId) -> asyncio.Future[None]:
        """Bring an adapter here, once for all who ask; done when all of it is, or with the error that it failed with.

        It cannot be evicted before :meth:`settle` has been called after it came.
        """
        if version not in self._wanted:
            done = self._wanted[version] = asyncio.get_running_loop().create_future()
            # Not everybody who fetches waits for it: an error is told to the watcher in any case.
            done.add_done_callback(lambda done: done.cancelled() or done.exception())
            decision = self.cache.acquire(version, self.slot_bytes)
            if decision.outcome is Outcome.HIT:
                self._found(version)
            elif decision.outcome is Outcome.WAITING:
                self._watcher.blocked(version)
            else:
                self._apply((decision,))
            return done
        return self._wanted[version]

    def settle(self) -> None:
        """What has come by now may be evicted again, unless somebody holds it."""
        settled, self._settled = self._settled, []
        for version in settled:
            self._apply(self.cache.unpin(version))

    def hold(self, version: ObjectId) -> Held:
        """Keep a resident version until it is let go. Missing where it is not resident."""
        held = self.slots.hold(version)
        # The fetch that it was brought by is one access already.
        if version in self._fresh:
            self._fresh.remove(version)
        else:
            self.cache.access(version, self.slot_bytes)
        self.cache.pin(version)
        return held

    def let_go(self, held: Held) -> None:
        """The request has ended."""
        self.slots.let_go(held)
        self._apply(self.cache.unpin(held.version))

    def keep(self, version: ObjectId) -> None:
        """Never evict a resident version. ConfigError where nothing but kept versions would be left."""
        if (self._kept + 1) * self.slot_bytes >= self.cache.capacity_bytes:
            raise ConfigError(f"pinned: {self._kept} adapters are; unload one of them, or serve with more slots")
        self.cache.pin(version)
        self._kept += 1

    def release(self, version: ObjectId) -> None:
        """Take back :meth:`keep`."""
        self._kept -= 1
        self._apply(self.cache.unpin(version))

    def forget(self, version: ObjectId) -> None:
        """Nobody will ask for a version any more: it goes when those who hold it have ended."""
        if version in self.cache:
            self._apply(self.cache.remove(version))

    def loading(self, version: ObjectId) -> Loading | None:
        """What to wait for in a forward pass; None where all layers are there."""
        return self._loadings.get(version)

    def is_torn(self, held: Held) -> bool:
        """Whether a slot has something else than who holds it began with; it never has."""
        return self._content.get(held.slot) != held.version

    def step_ended(self) -> None:
        """A forward step is over: slots that it read may be free."""
        self._boundary.set()

    async def close(self) -> None:
        """End what is on its way."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _apply(self, decisions: tuple[Decision, ...]) -> None:
        """The cache has decided: let go what went, begin what was admitted."""
        for version in self.slots.resident():
            if version not in self.cache:
                self.slots.remove(version)
                self._fresh.discard(version)
                self._watcher.went(version)
        for decision in decisions:
            version = str(decision.key)
            if decision.outcome is Outcome.ADMITTED:
                self._watcher.unblocked(version)
                self._tasks[version] = asyncio.create_task(self._load(version))
        self._boundary.set()

    async def _load(self, version: ObjectId) -> None:
        slot = await self._slot()
        error: StarlingError | None = None
        try:
            await self._write(version, slot)
            self.swaps += 1
        except StarlingError as failed:
            error = failed
        except OSError as failed:
            error = Unreachable(f"adapter {version[:16]}: {failed.strerror or failed}")
        finally:
            self._tasks.pop(version, None)
        if error is None:
            self._arrived(version)
        else:
            self._lost(version, slot, error)

    async def _slot(self) -> int:
        """The cache has made room; the slot itself is free once no step reads it any more."""
        while (slot := self.slots.claim()) is None:
            self._boundary.clear()
            await self._boundary.wait()
        return slot

    async def _write(self, version: ObjectId, slot: int) -> None:
        artifact = await self._source.artifact(version)
        self._stacks.check(artifact, self._base)
        loading = Loading(self._stacks, slot, artifact)
        self._content[slot] = version
        try:
            async for layer, data in self._source.layers(artifact):
                await asyncio.to_thread(loading.write, layer, data)
                self.loaded_bytes += len(data)
                if self._source.streams and version not in self._loadings:
                    self._loadings[version] = loading
                    self.slots.publish(version, version, slot)
                    self._watcher.came(version)
            if not loading.is_complete:
                raise Corrupt(f"adapter {artifact.name}: not all of its layers came; ask again")
        except (StarlingError, OSError) as error:
            # Whoever waits tells a layer that is late by DeadlineExceeded: a failure must be something else.
            loading.fail(Unreachable(str(error)))
            raise
        if version not in self._loadings:
            self.slots.publish(version, version, slot)

    def _found(self, version: ObjectId) -> None:
        """The cache has it already."""
        if version in self.slots.resident():
            self._arrived(version)
            return
        error = Unreachable(f"adapter {version[:16]}: could not be had a moment ago; ask again")
        self._finish(version, error)
        self._watcher.failed(version, error)
        self._apply((*self.cache.remove(version), *self.cache.unpin(version)))

    def _arrived(self, version: ObjectId) -> None:
        self._fresh.add(version)
        self._loadings.pop(version, None)
        self._settled.append(version)
        self._finish(version, None)
        self._watcher.came(version)
        self._watcher.wake()

    def _lost(self, version: ObjectId, slot: int, error: StarlingError) -> None:
        if self._loadings.pop(version, None):
            self.slots.remove(version)
            self._watcher.went(version)
        else:
            self.slots.give_back(slot)
        self._finish(version, error)
        self._watcher.failed(version, error)
        self._apply((*self.cache.remove(version), *self.cache.unpin(version)))
        self._watcher.wake()

    def _finish(self, version: ObjectId, error: StarlingError | None) -> None:
        done = self._wanted.pop(version)
        if not done.done():
            done.set_exception(error) if error else done.set_result(None)
