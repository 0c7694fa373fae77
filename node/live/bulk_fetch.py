"""The receiving end of one bulk transfer: an attempt takes what it can get, and the next one only what is missing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

from node.live.buffers import BufferPool
from node.live.bulk_socket import HELLO, NUMBER, Wire
from node.live.workers import in_worker
from node.store.partial import Partial
from node.transfer.chunks import Receiving
from node.transfer.sealing import TAG_BYTES, Seal

Progress = Callable[[int, int], None]
"""Told the bytes that are here, and those of the whole object, after each chunk."""


class Download:
    """One object on its way to this node's store, from one peer."""

    def __init__(
        self, sender: int, partial: Partial, workers: Executor, pool: BufferPool, progress: Progress | None
    ) -> None:
        self.receiving = Receiving(partial.manifest, partial.present)
        self._sender = sender
        self._partial = partial
        self._workers = workers
        self._progress = progress
        chunk_bytes = partial.manifest.chunk_bytes
        self._plain = pool.take(chunk_bytes)
        self._sealed = [pool.take(chunk_bytes + TAG_BYTES) for _ in range(2)]

    async def attempt(self, wire: Wire, transfer: bytes, seal: Seal) -> None:
        """Take chunks until nothing is missing; while one arrives, the one before is verified and written.

        Raises:
            OSError, Unreachable: the connection has broken.
            BadSignature, BadFrame: somebody on the way, or the sender, does not keep to the rules.
            Corrupt: the sender's chunk is not what the object's id promises.
            StoreError: the disk refuses.
        """
        await wire.send(HELLO.pack(transfer, seal.proof()))
        keeping: asyncio.Task[None] | None = None
        try:
            for kept in range(len(self.receiving.missing)):
                index = await wire.receive_number()
                self._sealed.reverse()
                sealed = self._sealed[0][: self.receiving.expect(index) + TAG_BYTES]
                await wire.receive(sealed)
                if keeping is not None:
                    await asyncio.shield(keeping)
                keeping = asyncio.create_task(self._keep(index, sealed, seal))
                if kept:
                    await wire.send(NUMBER.pack(kept))
            if keeping is not None:
                await asyncio.shield(keeping)
                await wire.send(NUMBER.pack(kept + 1))
        finally:
            if keeping is not None:  # what has arrived whole is kept, however the attempt ends
                await asyncio.gather(keeping, return_exceptions=True)

    async def _keep(self, index: int, sealed: memoryview, seal: Seal) -> None:
        await in_worker(self._workers, self._verify_and_write, index, sealed, seal)
        self.receiving.arrived(index)
        if self._progress is not None:
            self._progress(self.receiving.present_bytes, self.receiving.manifest.size_bytes)

    def _verify_and_write(self, index: int, sealed: memoryview, seal: Seal) -> None:
        chunk = self._plain[: len(sealed) - TAG_BYTES]
        seal.open(index, sealed, chunk)
        self.receiving.check(index, chunk, self._sender)
        self._partial.write(index, chunk)
