"""Where the layers of adapters come from: a store on this machine, or whatever else has them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol as Interface

from node.adapters.artifact import Artifact, Layer
from node.adapters.keeping import kept, layer_bytes
from node.store.objects import Store
from node.transfer.manifest import ObjectId


class Source(Interface):
    """What has adapters, by version. What it raises is a StarlingError, and may be tried again later."""

    streams: bool
    """Whether layers come so slowly, one after another, that computing should begin with the first."""

    async def artifact(self, version: ObjectId) -> Artifact:
        """What an adapter is."""
        ...

    def layers(self, artifact: Artifact) -> AsyncIterator[tuple[Layer, bytes]]:
        """Its layers with their bytes, in any order, each once; who asks verifies them."""
        ...


class StoreSource:
    """A store on this machine. The disk is read in threads."""

    streams = False

    def __init__(self, store: Store) -> None:
        self._store = store

    async def artifact(self, version: ObjectId) -> Artifact:
        """Missing or Corrupt where the store has none."""
        return await asyncio.to_thread(kept, self._store, version)

    async def layers(self, artifact: Artifact) -> AsyncIterator[tuple[Layer, bytes]]:
        """In the order of a forward pass."""
        for layer in artifact.layers:
            yield layer, await asyncio.to_thread(layer_bytes, self._store, artifact, layer)
