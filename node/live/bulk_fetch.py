"""The receiving end of one bulk transfer: an attempt takes what it can get, and the next one only what is missing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from itertools import cycle, islice

from node.live.buffers import BufferPool
from node.live.bulk_socket import HELLO, NUMBER, Wire
from node.store.partial import Partial
from node.transfer.chunks import Receiving
from node.transfer.sealing import TAG_BYTES, Seal

AT_ONCE = 3
"""Chunks of a transfer in memory: one arrives, and those before it are verified and written."""

Progress = Callable[[int, int], None]
"""Told the bytes that are here, and those of the whole object, after each chunk; on the event loop."""


class Download:
    """One object on its way to this node's store, from one peer. Made on the event loop."""

    def __init__(
        self, sender: int, partial: Partial, workers: Executor, pool: BufferPool, progress: Progress | None
    ) -> None:
        self.receiving = Receiving(partial.manifest, partial.present)
        self._sender = sender
        self._partial = partial
        self._workers = workers
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        chunk_bytes = partial.manifest.chunk_bytes
        self._slots = [(pool.take(chunk_bytes + TAG_BYTES), pool.take(chunk_bytes)) for _ in range(AT_ONCE)]

    def attempt(self, wire: Wire, transfer: bytes, seal: Seal) -> None:
        """Take chunks until nothing is missing. Blocks; while one arrives, those before are verified and written.

        Raises:
            OSError, Unreachable: the connection has broken.
            BadSignature, BadFrame: somebody on the way, or the sender, does not keep to the rules.
            Corrupt: the sender's chunk is not what the object's id promises.
            StoreError: the disk refuses.
        """
        wire.send(HELLO.pack(transfer, seal.proof()))
        before = self.receiving.received
        keeping: deque[tuple[int, Future[None]]] = deque()

        def settle(most: int) -> None:
            while len(keeping) > most or (keeping and keeping[0][1].done()):
                index, kept = keeping[0]
                kept.result()
                keeping.popleft()
                self._arrived(index)
                wire.send(NUMBER.pack(self.receiving.received - before))

        try:
            for sealed, chunk in islice(cycle(self._slots), len(self.receiving.missing)):
                index = wire.receive_number()
                size_bytes = self.receiving.expect(index)
                frame = sealed[: size_bytes + TAG_BYTES]
                wire.receive(frame)
                keeping.append((index, self._workers.submit(self._keep, index, frame, chunk[:size_bytes], seal)))
                settle(AT_ONCE - 1)
            settle(0)
        finally:
            for index, kept in keeping:  # what has arrived whole is kept, however the attempt ends
                if kept.exception() is None:
                    self._arrived(index)

    def _keep(self, index: int, sealed: memoryview, chunk: memoryview, seal: Seal) -> None:
        seal.open(index, sealed, chunk)
        self.receiving.check(index, chunk, self._sender)
        self._partial.write(index, chunk)

    def _arrived(self, index: int) -> None:
        self.receiving.arrived(index)
        if self._progress is not None:
            here, whole = self.receiving.present_bytes, self.receiving.manifest.size_bytes
            self._loop.call_soon_threadsafe(self._progress, here, whole)
