"""Objects from store to store over real sockets: whole, sealed, resumed at what is missing, refused where need be."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.codec import Header
from node.errors import ConfigError, Corrupt, DeadlineExceeded, Missing, NotAMember, StoreError, Unreachable
from node.identity import Identity, Roster
from node.live import bulk as bulk_module
from node.live import bulk_serve, bulk_socket
from node.live.bulk import Bulk
from node.live.bulk_ciphers import ciphers
from node.live.bulk_messages import Denial, Fetch, Grant, belonging, encoded
from node.live.bulk_socket import HELLO, NUMBER, Wire
from node.live.transport import Transport
from node.store.objects import Store
from node.transfer.manifest import CHUNK_BYTES, Manifest
from node.transfer.sealing import TAG_BYTES, Seal

WAIT_S = 20.0
RNG = np.random.Generator(np.random.Philox(key=[7, 11]))


def random_file(path: Path, size_bytes: int) -> Path:
    path.write_bytes(RNG.bytes(size_bytes))
    return path


class Party:
    """A node with a store, a transport and bulk transfers."""

    def __init__(self, node: int, folder: Path, **options: Any) -> None:
        self.node, self.folder = node, folder
        self.identity = Identity.generate()
        self.asked: list[Any] = []
        """Questions that were not answered, where ``deaf``."""
        self.deaf = options.pop("deaf", False)
        self.transport = Transport(
            node, self.identity, on_message=self._hear, on_lost=self._lose, grace_s=0.3, listen="127.0.0.1"
        )
        self.transport.start()
        options.setdefault("may_fetch", lambda *_: True)
        self.bulk = Bulk(node, self.transport, Store(folder), **options)
        self.bulk.start()

    def add(self, size_bytes: int) -> Manifest:
        return self.bulk.store.add(random_file(self.folder / "source", size_bytes))

    async def fetch(self, manifest: Manifest, peer: int = 0, **options: Any) -> Manifest:
        return await self.bulk.fetch(manifest.id, peer, **options)

    async def end(self) -> None:
        await self.bulk.close()
        await self.transport.close(0.0)

    def _hear(self, sender: int, header: Header, buffers: list[memoryview]) -> None:
        if self.deaf:
            self.asked.append(header)
        elif header.type in Bulk.KINDS:
            self.bulk.receive(sender, header, buffers)

    def _lose(self, peer: int) -> None:
        self.bulk.lose(peer)


Make = Callable[..., Party]


@pytest.fixture
async def party(tmp_path: Path) -> AsyncIterator[Make]:
    made: list[Party] = []

    def make(**options: Any) -> Party:
        made.append(Party(len(made), tmp_path / str(len(made)), **options))
        return made[-1]

    try:
        async with asyncio.timeout(WAIT_S):
            yield make
    finally:
        for each in made:
            await each.end()


def acquaint(*parties: Party) -> None:
    roster = Roster([each.identity.card(each.node, each.transport.address, "bulk") for each in parties])
    for each in parties:
        each.transport.admit(roster)


def content(party: Party, manifest: Manifest) -> bytes:
    with party.bulk.store.open(manifest.id) as stored:
        return bytes(stored.view())


class Proxy:
    """Passes a TCP connection on, and cuts, or flips a bit, after so many bytes towards the receiver; each time one."""

    def __init__(self, cuts: list[int], flips: list[int] = ()) -> None:
        self.cuts, self.flips = list(cuts), list(flips)
        self.connections = 0
        self.passed_bytes: list[int] = []

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    async def close(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        cut = self.cuts.pop(0) if self.cuts else None
        flip = self.flips.pop(0) if self.flips else None
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        up = asyncio.ensure_future(_pump(reader, back))
        passed = 0
        with suppress(OSError):
            while cut is None or passed < cut:
                data = await there.read(65536 if cut is None else min(65536, cut - passed))
                if not data:
                    break
                if flip is not None and passed <= flip < passed + len(data):
                    data = bytearray(data)
                    data[flip - passed] ^= 1
                passed += len(data)
                writer.write(data)
                await writer.drain()
        self.passed_bytes.append(passed)
        with suppress(OSError):
            writer.write_eof()  # without a reset, which would take away what has been passed on
            back.transport.abort()
            await up
            writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            if not writer.is_closing():
                writer.write(data)


@pytest.fixture
async def proxied(party: Make) -> AsyncIterator[Callable[..., Any]]:
    """Two parties, the first behind a proxy."""
    proxies: list[Proxy] = []

    async def make(cuts: list[int], flips: list[int] = (), **options: Any) -> tuple[Party, Party, Proxy]:
        proxy = Proxy(cuts, flips)
        proxies.append(proxy)
        a = party(advertised_port=await proxy.start(), **options)
        proxy.target = a.bulk._server.port
        b = party()
        acquaint(a, b)
        return a, b, proxy

    yield make
    for proxy in proxies:
        await proxy.close()


# Whole


@pytest.mark.parametrize("size_bytes", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 12 * CHUNK_BYTES + 77])
async def test_an_object_arrives_bit_for_bit(party: Make, size_bytes: int):
    a, b = party(), party()
    acquaint(a, b)
    manifest = a.add(size_bytes)
    seen: list[tuple[int, int]] = []
    assert await b.fetch(manifest, progress=lambda here, whole: seen.append((here, whole))) == manifest
    assert content(b, manifest) == content(a, manifest)
    assert a.bulk.chunks_sent == b.bulk.chunks_received == manifest.chunks
    assert [here for here, _ in seen] == [min((i + 1) * CHUNK_BYTES, size_bytes) for i in range(manifest.chunks)]
    assert {whole for _, whole in seen} <= {size_bytes}


async def test_progress_is_told_on_the_event_loop(party: Make):
    a, b = party(), party()
    acquaint(a, b)
    threads: set[int] = set()
    await b.fetch(a.add(2 * CHUNK_BYTES), progress=lambda *_: threads.add(threading.get_ident()))
    assert threads == {threading.get_ident()}


async def test_what_is_there_already_is_not_fetched_again(party: Make):
    a, b = party(), party()
    acquaint(a, b)
    manifest = a.add(2 * CHUNK_BYTES)
    await b.fetch(manifest)
    await b.fetch(manifest)
    assert a.bulk.chunks_sent == 2


async def test_two_fetches_of_one_object_from_two_peers_bring_it_once(party: Make):
    a, b, c = party(), party(), party()
    acquaint(a, b, c)
    manifest = a.add(3 * CHUNK_BYTES)
    b.bulk.store.add(a.folder / "source")
    await asyncio.gather(c.fetch(manifest, 0), c.fetch(manifest, 1))
    assert a.bulk.chunks_sent + b.bulk.chunks_sent == 3


async def test_several_objects_and_peers_at_once_both_ways(party: Make):
    parties = [party() for _ in range(4)]
    acquaint(*parties)
    manifests = [each.add(3 * CHUNK_BYTES + each.node) for each in parties]
    pairs = [(to, frm) for to in parties for frm in parties if to is not frm]
    await asyncio.gather(*[to.fetch(manifests[frm.node], frm.node) for to, frm in pairs])
    for to, frm in pairs:
        assert content(to, manifests[frm.node]) == content(frm, manifests[frm.node])


# Broken and resumed


async def test_three_cuts_at_random_bytes_cost_no_chunk_that_had_arrived(proxied: Any):
    cuts = sorted(RNG.integers(1, 9 * CHUNK_BYTES, 3).tolist(), reverse=True)
    a, b, proxy = await proxied(cuts)
    manifest = a.add(30 * CHUNK_BYTES + 5)
    await b.fetch(manifest)
    assert content(b, manifest) == content(a, manifest), cuts
    assert proxy.connections == 4, cuts
    assert b.bulk.chunks_received == manifest.chunks, cuts  # none came twice
    frame_bytes = NUMBER.size + CHUNK_BYTES + TAG_BYTES
    arrived = [passed // frame_bytes for passed in proxy.passed_bytes[:3]]
    rest = manifest.chunks - sum(arrived)
    last_bytes = rest * (NUMBER.size + TAG_BYTES) + (rest - 1) * CHUNK_BYTES + 5
    assert proxy.passed_bytes[3] == last_bytes, cuts  # exactly what was missing


async def test_a_fetch_that_was_cancelled_goes_on_where_it_has_stopped(proxied: Any):
    a, b, _ = await proxied([5 * (NUMBER.size + CHUNK_BYTES + TAG_BYTES) + 9])
    manifest = a.add(8 * CHUNK_BYTES)
    fetching = asyncio.ensure_future(b.fetch(manifest, progress=lambda here, _: here > 3 * CHUNK_BYTES and stop()))
    stop = fetching.cancel
    with pytest.raises(asyncio.CancelledError):
        await fetching
    had = b.bulk.chunks_received
    assert 4 <= had < 8
    again = Store(b.folder).begin(manifest)
    assert len(again.present) >= 4
    again.close()
    await b.fetch(manifest)
    assert content(b, manifest) == content(a, manifest)
    assert b.bulk.chunks_received == 8 or b.bulk.chunks_received == had + 8 - len(again.present)


async def test_a_receiver_that_closes_breaks_off_and_keeps_what_came(party: Make):
    a, b = party(rate_bps=40e6), party()
    acquaint(a, b)
    manifest, come = a.add(20 * CHUNK_BYTES), asyncio.Event()
    fetching = asyncio.ensure_future(b.fetch(manifest, progress=lambda *_: come.set()))
    await come.wait()
    await b.bulk.close()
    with pytest.raises(Unreachable, match="has closed its transfers"):
        await fetching
    with Store(b.folder).begin(manifest) as partial:
        assert 1 <= len(partial.present) < 20


async def test_a_bit_that_flips_on_the_way_is_noticed_and_fetched_again_under_another_key(proxied: Any):
    a, b, proxy = await proxied([], [2 * CHUNK_BYTES + 12_345])
    manifest = a.add(4 * CHUNK_BYTES)
    await b.fetch(manifest)
    assert content(b, manifest) == content(a, manifest)
    assert proxy.connections == 2
    assert b.bulk.chunks_received == 4


async def test_a_connection_that_breaks_again_and_again_is_given_up(proxied: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bulk_module, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(bulk_module, "LONGEST_PAUSE_S", 0.001)
    a, b, proxy = await proxied([10] * 100)
    manifest = a.add(2 * CHUNK_BYTES)
    with pytest.raises(Unreachable, match="node 0: 8 attempts brought no chunk"):
        await b.fetch(manifest)
    assert proxy.connections == 8


# Refused


async def test_a_damaged_copy_is_found_at_its_chunk_and_its_sender_named(party: Make):
    a, b, c = party(), party(), party()
    acquaint(a, b, c)
    manifest = a.add(5 * CHUNK_BYTES)
    b.bulk.store.add(a.folder / "source")
    with (a.folder / "objects" / manifest.id).open("r+b") as file:
        file.seek(3 * CHUNK_BYTES + 7)
        file.write(b"?!")
    with pytest.raises(Corrupt, match="node 0 sent a wrong chunk 3 of object"):
        await c.fetch(manifest, 0)
    had = c.bulk.chunks_received
    assert had in (3, 4)  # that behind the wrong one may have been on its way
    await c.fetch(manifest, 1)  # the good chunks are kept
    assert b.bulk.chunks_sent == 5 - had
    assert content(c, manifest) == content(b, manifest)


async def test_who_has_it_not_says_so(party: Make):
    a, b = party(), party()
    acquaint(a, b)
    with pytest.raises(Missing, match="node 0 does not have object"):
        await b.bulk.fetch("0" * 64, 0)


async def test_an_object_that_a_peer_may_not_have_is_not_given(party: Make):
    a, b = party(may_fetch=lambda peer, _: peer != 1), party()
    acquaint(a, b)
    manifest = a.add(10)
    with pytest.raises(NotAMember, match="node 0 does not give us object"):
        await b.fetch(manifest)
    assert a.bulk.chunks_sent == 0


async def test_a_name_that_is_a_path_is_no_object(party: Make):
    a, b = party(), party()
    acquaint(a, b)
    with pytest.raises(Missing):
        await b.bulk.fetch("../../etc/passwd", 0)


async def test_nobody_outside_the_roster_is_asked(party: Make):
    a = party()
    acquaint(a)
    with pytest.raises(NotAMember):
        await a.bulk.fetch("0" * 64, 5)


async def test_a_peer_that_goes_ends_the_wait(party: Make):
    a, b = party(deaf=True), party()
    acquaint(a, b)
    fetching = asyncio.ensure_future(b.bulk.fetch("0" * 64, 0))
    while not a.asked:
        await asyncio.sleep(0)
    await a.transport.close(0.0)
    with pytest.raises(Unreachable):
        await fetching


async def test_a_deadline_says_that_what_came_is_kept(party: Make):
    a, b = party(deaf=True), party()
    acquaint(a, b)
    with pytest.raises(DeadlineExceeded, match=r"not whole after 0.05 s"):
        await b.bulk.fetch("0" * 64, 0, deadline_s=0.05)


async def test_a_full_disk_is_one_line(party: Make, monkeypatch: pytest.MonkeyPatch):
    a, b = party(), party()
    acquaint(a, b)
    manifest = a.add(CHUNK_BYTES)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError, match="No space left on device; make room"):
        await b.fetch(manifest)


async def test_more_transfers_than_may_be_sent_wait_for_their_turn(party: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bulk_serve, "MOST_SENDING", 1)
    parties = [party() for _ in range(4)]
    acquaint(*parties)
    manifest = parties[0].add(4 * CHUNK_BYTES)
    await asyncio.gather(*[each.fetch(manifest) for each in parties[1:]])
    assert parties[0].bulk.chunks_sent == 12


def test_a_rate_below_what_chunks_need_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="rate_bps: 5 is too slow"):
        Bulk(0, None, Store(tmp_path), may_fetch=lambda *_: True, rate_bps=5)


async def test_a_port_that_is_taken_is_one_line(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bulk = Bulk(0, None, Store(tmp_path), may_fetch=lambda *_: True, port=taken.getsockname()[1])
        with pytest.raises(ConfigError, match="cannot be bound") as raised:
            bulk.start()
    assert "\n" not in str(raised.value)


# The rate


async def test_a_capped_sender_shares_its_rate_between_peers(party: Make):
    """Equal shares by count: what the second has when the first is done differs by little; no time is asserted."""
    a, b, c = party(rate_bps=400e6), party(), party()
    acquaint(a, b, c)
    manifest = a.add(12 * CHUNK_BYTES)
    here = {1: 0, 2: 0}
    other: list[int] = []

    def follow(me: int) -> Callable[[int, int], None]:
        def told(present: int, whole: int) -> None:
            here[me] = present
            if present == whole:
                other.append(min(here.values()))

        return told

    await asyncio.gather(b.fetch(manifest, progress=follow(1)), c.fetch(manifest, progress=follow(2)))
    assert other[0] >= 6 * CHUNK_BYTES


async def test_a_sender_that_waits_for_its_turn_closes_at_once(party: Make, monkeypatch: pytest.MonkeyPatch):
    """At this rate a slice of a chunk takes longer than is waited for."""
    monkeypatch.setattr(bulk_module, "LEAST_RATE_BPS", 3e4)
    a, b = party(rate_bps=3e4), party()
    acquaint(a, b)
    fetching = asyncio.ensure_future(b.fetch(a.add(2 * CHUNK_BYTES)))
    while not a.bulk._server._serving:
        await asyncio.sleep(0)
    a.bulk.lose(b.node)
    assert not a.bulk._server._serving
    fetching.cancel()
    await asyncio.gather(fetching, return_exceptions=True)
    async with asyncio.timeout(WAIT_S / 2):
        await a.bulk.close()
    assert not a.bulk._server._tasks


# Who dials without being granted anything


class Caller:
    """A connection to a party's bulk transfers, whose calls block a thread: the event loop serves the other end."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire

    @classmethod
    async def dial(cls, party: Party) -> Caller:
        return cls(await Wire.dial("127.0.0.1", party.bulk.port))

    async def send(self, data: bytes) -> None:
        await asyncio.to_thread(self.wire.send, data)

    async def receive(self, into: memoryview) -> None:
        await asyncio.to_thread(self.wire.receive, into)

    async def receive_number(self) -> int:
        return await asyncio.to_thread(self.wire.receive_number)

    def close(self) -> None:
        self.wire.close()


async def grant_of(a: Party, b: Party, manifest: Manifest) -> Grant:
    answer = await a.bulk._server.answer(b.node, Fetch(number=1, object=manifest.id, missing=b"", ciphers=ciphers()), 0)
    assert isinstance(answer, Grant)
    return answer


async def ends(wire: Caller) -> bool:
    """Whether the other end closes without a byte."""
    try:
        await wire.receive(memoryview(bytearray(1)))
    except (OSError, Unreachable):
        return True
    finally:
        wire.close()
    return False


async def test_a_stranger_who_knows_a_transfer_but_not_its_key_gets_nothing(party: Make):
    a, b = party(), party()
    acquaint(a, b)
    grant = await grant_of(a, b, a.add(CHUNK_BYTES))
    for transfer in (grant.transfer, bytes(16)):
        wire = await Caller.dial(a)
        await wire.send(HELLO.pack(transfer, bytes(16)))
        assert await ends(wire)
    assert a.bulk.chunks_sent == 0


async def test_a_grant_serves_one_connection(party: Make):
    a, b = party(), party()
    acquaint(a, b)
    manifest = a.add(CHUNK_BYTES)
    grant = await grant_of(a, b, manifest)
    seal = Seal(grant.key, grant.cipher, belonging("bulk", 0, 1, grant.transfer, manifest.id, manifest.chunks))
    first, second = [await Caller.dial(a) for _ in range(2)]
    await first.send(HELLO.pack(grant.transfer, seal.proof()))
    assert await first.receive_number() == 0
    await second.send(HELLO.pack(grant.transfer, seal.proof()))
    assert await ends(second)
    first.close()


async def test_a_false_acknowledgement_ends_the_transfer(party: Make):
    a, b = party(), party()
    acquaint(a, b)
    manifest = a.add(20 * CHUNK_BYTES)
    grant = await grant_of(a, b, manifest)
    seal = Seal(grant.key, grant.cipher, belonging("bulk", 0, 1, grant.transfer, manifest.id, manifest.chunks))
    wire = await Caller.dial(a)
    await wire.send(HELLO.pack(grant.transfer, seal.proof()) + NUMBER.pack(19))
    with pytest.raises((OSError, Unreachable)):
        await wire.receive(memoryview(bytearray(manifest.size_bytes)))
    wire.close()


async def test_a_receiver_that_keeps_nothing_is_sent_a_window_and_no_more(party: Make):
    a, b = party(), party()
    acquaint(a, b)
    manifest = a.add(20 * CHUNK_BYTES)
    grant = await grant_of(a, b, manifest)
    seal = Seal(grant.key, grant.cipher, belonging("bulk", 0, 1, grant.transfer, manifest.id, manifest.chunks))
    wire = await Caller.dial(a)
    await wire.send(HELLO.pack(grant.transfer, seal.proof()))
    room = memoryview(bytearray(CHUNK_BYTES + TAG_BYTES))
    for index in range(8):
        assert await wire.receive_number() == index
        await wire.receive(room)
    assert a.bulk.chunks_sent <= 8
    await wire.send(NUMBER.pack(1))
    assert await wire.receive_number() == 8
    wire.close()


async def test_a_malformed_question_is_answered_briefly(party: Make):
    a, b = party(), party()
    acquaint(a, b)
    manifest = a.add(3 * CHUNK_BYTES)
    for missing, known in ((b"\xff", ciphers()), (b"\x01\x02", ciphers()), (b"", ("rot13",))):
        asked = Fetch(number=4, object=manifest.id, missing=missing, ciphers=known)
        assert (await a.bulk._server.answer(1, asked, 0)).reason == "malformed"


async def test_answers_to_questions_that_were_not_asked_are_nothing(party: Make):
    a, b, c = party(), party(), party()
    acquaint(a, b, c)
    await c.transport.send(1, encoded(Denial(number=1, reason="missing")))
    manifest = a.add(1)
    await b.fetch(manifest)
    assert content(b, manifest) == content(a, manifest)


def test_a_grant_never_shows_its_key():
    grant = Grant(number=1, transfer=b"t" * 16, key=b"secret" * 5, cipher="x", port=1, manifest=b"")
    assert "secret" not in repr(grant)
    assert repr(grant) == f"<Grant 1 of transfer {(b't' * 16).hex()}, port 1>"


async def test_a_failure_to_accept_ends_nothing(party: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bulk_serve, "ACCEPT_PAUSE_S", 0.0)
    loop, failures = asyncio.get_running_loop(), [OSError(24, "Too many open files")] * 3
    accept = loop.sock_accept

    async def sometimes(listener: socket.socket) -> Any:
        if failures:
            raise failures.pop()
        return await accept(listener)

    monkeypatch.setattr(loop, "sock_accept", sometimes)
    a, b = party(), party()
    acquaint(a, b)
    manifest = a.add(10)
    await b.fetch(manifest)
    assert not failures
    assert content(b, manifest) == content(a, manifest)


async def test_of_many_questions_of_one_peer_one_is_granted(party: Make):
    a, b = party(), party()
    acquaint(a, b)
    manifest = a.add(CHUNK_BYTES)
    for number in range(50):
        await b.transport.send(0, encoded(Fetch(number=number, object=manifest.id, missing=b"", ciphers=ciphers())))
    await b.fetch(manifest)
    assert len(a.bulk._server._granted) + len(a.bulk._server._serving) <= 1


async def test_one_that_never_started_closes(tmp_path: Path):
    await Bulk(0, None, Store(tmp_path), may_fetch=lambda *_: True).close()


async def test_strangers_that_say_nothing_take_no_thread(party: Make):
    a, b = party(), party()
    acquaint(a, b)
    strangers = [await Caller.dial(a) for _ in range(2 * (bulk_module.MOST_SENDING + bulk_module.MOST_FETCHING))]
    manifest = a.add(2 * CHUNK_BYTES)
    await b.fetch(manifest)
    assert content(b, manifest) == content(a, manifest)
    for stranger in strangers:
        stranger.close()


async def test_a_silent_connection_is_closed(party: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bulk_serve, "DIAL_S", 0.01)
    a = party()
    acquaint(a)
    wire = await Caller.dial(a)
    assert await ends(wire)


async def test_a_connection_that_stalls_has_broken(party: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bulk_socket, "STALL_S", 0.02)
    a = party()
    wire = await Caller.dial(a)
    with pytest.raises(TimeoutError):
        await wire.receive(memoryview(bytearray(1)))
    wire.close()
