"""The sending end of one bulk transfer: what an attempt is to bring, read and sealed ahead of the connection."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from itertools import cycle

from node.live.buffers import BufferPool
from node.live.bulk_socket import NUMBER, Wire
from node.store.objects import Stored
from node.transfer.chunks import ChunkSet, Sending
from node.transfer.sealing import TAG_BYTES, Seal

AHEAD = 2
"""Chunks that are read and sealed, or about to be, while the one before them leaves or the window is full."""


class Upload:
    """The chunks that one peer wants of an object, on their way to it."""

    def __init__(
        self,
        stored: Stored,
        wanted: ChunkSet,
        seal: Seal,
        workers: Executor,
        pool: BufferPool,
        leaving: Callable[[int], None],
    ) -> None:
        """``leaving`` is told, in the thread, of how many bytes each chunk is that leaves."""
        self._leaving = leaving
        self._stored = stored
        self._seal = seal
        self._workers = workers
        self._sending = Sending(wanted)
        chunk_bytes = stored.manifest.chunk_bytes
        self._slots = [(pool.take(chunk_bytes), pool.take(NUMBER.size + chunk_bytes + TAG_BYTES)) for _ in range(AHEAD)]

    def attempt(self, wire: Wire) -> None:
        """Send until the receiver has everything. Blocks; one chunk leaves while the next is read and sealed.

        Raises:
            OSError, Unreachable: the connection has broken.
            BadFrame: the receiver does not keep to the rules.
            Corrupt: the object is not what it was.
        """
        sending, slots = self._sending, cycle(self._slots)
        ahead: deque[Future[memoryview]] = deque()
        try:
            while not sending.is_over:
                while len(ahead) < AHEAD and (index := sending.next()) is not None:
                    ahead.append(self._workers.submit(self._sealed, index, *next(slots)))
                if ahead:
                    frame = ahead.popleft().result()
                    self._leaving(len(frame))
                    wire.send(frame)
                if wire.has_arrived() or not (ahead or sending.is_open):
                    sending.acknowledge(wire.receive_number())
        finally:
            wait(ahead)  # they use the object and the buffers

    def _sealed(self, index: int, plain: memoryview, frame: memoryview) -> memoryview:
        size_bytes = self._stored.read(index, plain)
        end = NUMBER.size + size_bytes + TAG_BYTES
        NUMBER.pack_into(frame, 0, index)
        self._seal.seal(index, plain[:size_bytes], frame[NUMBER.size : end])
        return frame[:end]
