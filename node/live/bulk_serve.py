"""The sending end of bulk transfers: what is granted to whom, and the chunks that go to whoever dials for it."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from functools import partial
from typing import Any, NamedTuple

import structlog

from node.errors import BadFrame, ConfigError, StarlingError, StoreError, TransportError
from node.live.buffers import BufferPool
from node.live.bulk_ciphers import ciphers
from node.live.bulk_messages import TRANSFER_BYTES, Denial, Fetch, Grant, belonging
from node.live.bulk_pace import Place, Turns
from node.live.bulk_send import Upload
from node.live.bulk_socket import Wire, introduction
from node.live.workers import in_worker
from node.store.objects import Store
from node.transfer.chunks import ChunkSet
from node.transfer.manifest import Manifest, ObjectId
from node.transfer.sealing import Seal, choose, fresh_key

MOST_SENDING = 8
"""Transfers that are sent at a time; who asks for one more is asked to come back."""
MOST_DIALLING = 64
"""Connections that have not said yet which transfer they are for."""
ACCEPT_PAUSE_S = 0.1
DIAL_S = 10.0
"""How long a grant waits to be dialled, and a connection to say what it is for."""


class _Granted(NamedTuple):
    peer: int
    manifest: Manifest
    wanted: ChunkSet
    seal: Seal
    is_resumed: bool
    """Whether the peer has some of it already."""


class Server:
    """Grants transfers, at most one to a peer at a time, and sends them. All of it belongs to the event loop."""

    def __init__(
        self,
        node: int,
        network: Callable[[], str],
        store: Store,
        may_fetch: Callable[[int, ObjectId], bool],
        workers: Executor,
        threads: Executor,
        pool: BufferPool,
        rate_bps: float | None,
    ) -> None:
        self.chunks_sent = self.chunks_resent = self.bytes_sent = 0
        self.port = 0
        self._node = node
        self._network = network
        self._store = store
        self._may_fetch = may_fetch
        self._workers = workers
        self._threads = threads
        self._pool = pool
        self._turns = None if rate_bps is None else Turns(rate_bps)
        self._granted: dict[bytes, _Granted] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._dialling = 0
        self._counting = threading.Lock()
        self._listener: socket.socket | None = None

    def start(self, listen: str, port: int) -> None:
        """Bind and listen; ConfigError where the address cannot be had. Port 0: any that is free."""
        family = socket.AF_INET6 if ":" in listen else socket.AF_INET
        try:
            self._listener = socket.create_server((listen.strip("[]"), port), family=family)
        except OSError as error:
            raise ConfigError(
                f"bulk: {listen}:{port} cannot be bound: {error.strerror}; allowed are an address of this machine and "
                "a free port, or port 0 for any"
            ) from None
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._begin(self._accept())

    async def close(self) -> None:
        """Break everything off."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()

    def lose(self, peer: int) -> None:
        """A peer has gone: what it was granted ends."""
        self._granted = {name: granted for name, granted in self._granted.items() if granted.peer != peer}
        if peer in self._serving:
            self._serving.pop(peer).cancel()

    async def answer(self, peer: int, asked: Fetch, port: int) -> Grant | Denial:
        """Whether a peer may have what it asks for. Its new question replaces the one before."""
        if not self._may_fetch(peer, asked.object):
            return Denial(number=asked.number, reason="refused")
        try:
            manifest = await in_worker(self._workers, self._store.manifest, asked.object)
            whole = ChunkSet(manifest.chunks, range(manifest.chunks))
            wanted = ChunkSet.from_bytes(asked.missing, manifest.chunks) if asked.missing else whole
            cipher = choose(asked.ciphers, ciphers())
        except StoreError:
            return Denial(number=asked.number, reason="missing")
        except BadFrame:
            return Denial(number=asked.number, reason="malformed")
        self.lose(peer)
        if len(self._serving) + len(self._granted) >= MOST_SENDING:
            return Denial(number=asked.number, reason="busy")
        transfer, key = os.urandom(TRANSFER_BYTES), fresh_key()
        belongs = belonging(self._network(), self._node, peer, transfer, manifest.id, manifest.chunks)
        self._granted[transfer] = _Granted(peer, manifest, wanted, Seal(key, cipher, belongs), bool(asked.missing))
        asyncio.get_running_loop().call_later(DIAL_S, self._granted.pop, transfer, None)
        promised = b"" if asked.missing else manifest.to_bytes()
        return Grant(number=asked.number, transfer=transfer, key=key, cipher=cipher, port=port, manifest=promised)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        assert self._listener is not None
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # too many open files, or a caller that has gone already
                structlog.get_logger().warning("bulk connection not accepted", reason=str(error))
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            if self._dialling < MOST_DIALLING:
                self._dialling += 1
                self._begin(self._meet(connection))
            else:
                connection.close()

    async def _meet(self, connection: socket.socket) -> None:
        try:
            granted = await self._introduced(connection)
            task = asyncio.current_task()
            assert task is not None
            self._serving[granted.peer] = task
            try:
                await self._serve(connection, granted)
            finally:
                if self._serving.get(granted.peer) is task:
                    del self._serving[granted.peer]
        except (OSError, StarlingError) as error:
            structlog.get_logger().info("bulk transfer broken off", reason=str(error) or type(error).__name__)
        finally:
            connection.close()

    async def _introduced(self, connection: socket.socket) -> _Granted:
        try:
            async with asyncio.timeout(DIAL_S):
                transfer, proof = await introduction(connection)
        finally:
            self._dialling -= 1
        granted = self._granted.get(transfer)
        if granted is None:
            raise TransportError("nobody was granted the transfer that was dialled for")
        granted.seal.check(proof)
        del self._granted[transfer]
        return granted

    async def _serve(self, connection: socket.socket, granted: _Granted) -> None:
        place = None if self._turns is None else Place(self._turns, granted.peer)
        wire = Wire(connection, place)
        with self._store.reading(granted.manifest) as stored:
            leaving = partial(self._count, granted.is_resumed)
            upload = Upload(stored, granted.wanted, granted.seal, self._workers, self._pool, leaving)
            await wire.lend(self._threads, upload.attempt, wire)

    def _count(self, is_resumed: bool, size_bytes: int) -> None:
        with self._counting:
            self.chunks_sent += 1
            self.chunks_resent += is_resumed
            self.bytes_sent += size_bytes

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
