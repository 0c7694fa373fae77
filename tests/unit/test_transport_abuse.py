"""What strangers and misbehaving members can do to a node: be refused, counted, logged, cut off."""

from __future__ import annotations

import os
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from structlog.testing import capture_logs

from loopback import SMALL_LIMITS, Party, Rogue, acquaint, model, note, small
from node.codec import VERSION
from node.errors import Unreachable
from node.identity import Identity, Roster
from node.live import frames


def header(kind: str, fields: object, version: int = VERSION) -> bytes:
    return bytes([version, len(kind)]) + kind.encode() + msgspec.msgpack.encode(fields)


def claim(elements: int, number: int = 0) -> bytes:
    spec = msgspec.msgpack.Ext(1, msgspec.msgpack.encode(("uint8", (elements,), ())))
    return header("loopback/model/1", (number, spec))


def envelope(header: bytes, payload: bytes = b"", *, header_bytes: int | None = None, payload_bytes: int | None = None):
    lengths = struct.pack(
        "<II",
        len(header) if header_bytes is None else header_bytes,
        len(payload) if payload_bytes is None else payload_bytes,
    )
    return bytes([frames.SMALL]) + lengths + header + payload


GOOD = note(1).header
MIB = 1 << 20
GARBAGE: dict[str, tuple[str, list[list[bytes]]]] = {
    "empty": ("kind", [[b""]]),
    "unknown kind": ("kind", [[b"\xff" * 100]]),
    "a sender's credit": ("kind", [[frames.credit(10**6)]]),
    "a receiver's place": ("kind", [[frames.place(1)]]),
    "cut lengths": ("truncated", [[b"\x01\x05\x00\x00"]]),
    "header length beyond the frame": ("truncated", [[envelope(GOOD, header_bytes=2**32 - 1)]]),
    "payload length beyond the frame": ("truncated", [[envelope(GOOD, payload_bytes=10**9)]]),
    "payload that no header announces": ("malformed", [[envelope(GOOD, b"surplus")]]),
    "announced payload that is not there": ("malformed", [[envelope(claim(100))]]),
    "unknown version": ("malformed", [[envelope(header("loopback/note/1", (1, ""), version=9))]]),
    "unknown message": ("malformed", [[envelope(header("loopback/secret/1", ()))]]),
    "fields of other types": ("malformed", [[envelope(header("loopback/note/1", ("one", 1)))]]),
    "no msgpack": ("malformed", [[envelope(GOOD[:-1] + b"\xc1")]]),
    "10 GB in a small frame": ("too_large", [[envelope(claim(10**10))]]),
    "10 GB announced": ("too_large", [[frames.announce(1, claim(10**10))]]),
    "2**64 bytes announced": ("too_large", [[frames.announce(1, claim(2**64 - 1))]]),
    "a long header": ("too_large", [[frames.announce(1, header("loopback/note/1", (1, "x" * 300_000)))]]),
    "a cut announcement": ("truncated", [[b"\x02" + bytes(8)]]),
    "an announcement without payload": ("transfer", [[frames.announce(1, claim(0))]]),
    "announced twice": ("transfer", [[frames.announce(1, claim(MIB))], [frames.announce(1, claim(MIB))]]),
    "too many transfers": ("transfer", [[frames.announce(n, claim(MIB))] for n in range(5)]),
    "too much arriving": ("too_large", [[frames.announce(n, claim(15 * MIB))] for n in range(2)]),
    "a chunk of nothing announced": ("transfer", [[frames.chunk(9, 0, 0), b"x"]]),
    "a cut chunk header": ("truncated", [[b"\x03\x01", b"x"]]),
    "a chunk elsewhere": ("chunk", [[frames.announce(1, claim(9))], [frames.chunk(1, 0, 5), b"x"]]),
    "a chunk of another buffer": ("chunk", [[frames.announce(1, claim(9))], [frames.chunk(1, 1, 0), bytes(9)]]),
    "a chunk too long": ("chunk", [[frames.announce(1, claim(9))], [frames.chunk(1, 0, 0), bytes(10)]]),
    "a chunk too short": ("chunk", [[frames.announce(1, claim(9))], [frames.chunk(1, 0, 0), bytes(8)]]),
    "a chunk without payload": ("parts", [[frames.announce(1, claim(9))], [frames.chunk(1, 0, 0)]]),
    "a chunk of three parts": ("parts", [[frames.announce(1, claim(9))], [frames.chunk(1, 0, 0), bytes(9), b"x"]]),
    "a small frame of parts": ("parts", [[envelope(GOOD), b"more"]]),
    "a thousand parts": ("parts", [[b"\x01"] + [b"x"] * 1000]),
}


@pytest.fixture
async def victim() -> AsyncIterator[Party]:
    party = Party(0, limits=SMALL_LIMITS, grace_s=60.0)
    yield party
    await party.transport.close(0.0)


@pytest.fixture
async def friend() -> AsyncIterator[Party]:
    party = Party(1)
    yield party
    await party.transport.close(0.0)


@pytest.fixture
def member(victim: Party, friend: Party) -> Iterator[Rogue]:
    """Node 2, admitted like the friend, that then does as it likes."""
    identity = Identity.generate()
    roster = Roster([victim.card, friend.card, identity.card(2, "tcp://127.0.0.1:1", "loopback")])
    for party in (victim, friend):
        party.transport.admit(roster)
    rogue = Rogue(victim.card, identity)
    yield rogue
    rogue.close()


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines


@pytest.mark.parametrize("name", sorted(GARBAGE))
async def test_garbage_is_refused_and_nothing_else_suffers(
    logs: list[Any], victim: Party, friend: Party, member: Rogue, name: str
):
    reason, messages = GARBAGE[name]
    await friend.transport.send(0, model(10, np.arange(3_000_000, dtype=np.uint8)))
    for parts in messages:
        member.send(*parts)
    member.send_note(7)  # on the same link, behind the garbage
    await friend.transport.send(0, note(8))
    await victim.hears(3)
    assert sorted((sender, message.number) for sender, message in victim.heard) == [(1, 8), (1, 10), (2, 7)]
    assert victim.transport.counters().refused == {reason: 1}
    (line,) = [line for line in logs if line["event"] == "refused"]
    assert (line["log_level"], line["node"], line["peer"], line["reason"]) == ("warning", 0, 2, reason)
    assert len(line["detail"]) < 300
    assert victim.lost == []


async def test_claims_allocate_nothing(logs: list[Any], victim: Party, member: Rogue):
    member.send_note(1)
    await victim.hears(1)
    tracemalloc.start()
    try:
        for number in range(4):
            member.send(frames.announce(number, claim(10**10)))
            member.send(envelope(claim(10**10)))
        member.send_note(2)
        await victim.hears(2)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert victim.transport.counters().refused == {"too_large": 8}


async def test_a_frame_beyond_the_bound_ends_the_connection_unread(victim: Party, friend: Party, member: Rogue):
    member.send_note(1)
    await victim.hears(1)
    member.send(bytes(frames.max_frame_bytes(SMALL_LIMITS) + 1))
    member.event(zmq.EVENT_DISCONNECTED)
    await friend.transport.send(0, note(2))
    await victim.hears(2)
    member.event(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    member.send_note(3)
    await victim.hears(3)
    assert victim.notes == [1, 2, 3]


async def test_who_goes_on_is_cut_off(logs: list[Any], victim: Party, friend: Party, member: Rogue):
    for _ in range(SMALL_LIMITS.refusals - 1):
        member.send(b"\xff")
    member.send_note(1)
    await victim.hears(1)
    assert victim.lost == []
    member.event(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    member.send(b"\xff")
    member.send_note(2)
    member.event(zmq.EVENT_DISCONNECTED)
    member.event(zmq.EVENT_HANDSHAKE_FAILED_AUTH)  # and it does not get in again
    await victim.until(lambda: victim.lost)
    await friend.transport.send(0, note(3))
    await victim.hears(2)
    assert victim.notes == [1, 3]
    assert victim.lost == [2]
    assert victim.transport.counters().refused["kind"] == SMALL_LIMITS.refusals
    with pytest.raises(Unreachable, match="node 2"):
        await victim.transport.send(2, note(4))
    assert [line["peer"] for line in logs if line["event"] == "cut off"] == [2]
    assert len([line for line in logs if line["event"] == "refused"]) == 1  # the rest within the same second


async def test_a_stranger_stays_outside(logs: list[Any], victim: Party, friend: Party):
    acquaint(victim, friend)
    rogue = Rogue(victim.card, Identity.generate())
    try:
        rogue.send_note(1)
        rogue.event(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    finally:
        rogue.close()
    await friend.transport.send(0, note(2))
    await victim.hears(1)
    assert victim.heard[0][0] == 1
    assert victim.transport.counters().refused["stranger"] >= 1
    line = next(line for line in logs if line.get("reason") == "stranger")
    assert line["address"] == "127.0.0.1"


async def test_nobody_comes_in_before_there_is_a_roster(victim: Party, friend: Party):
    rogue = Rogue(victim.card, friend.identity)
    try:
        rogue.send_note(1)
        rogue.event(zmq.EVENT_CONNECTED)
        assert not rogue.monitor.poll(100)  # the handshake is not answered
        assert victim.heard == []
        acquaint(victim, friend)
        await victim.hears(1)
    finally:
        rogue.close()
    assert victim.transport.counters().refused == {}


async def test_a_removed_member_is_a_stranger_on_the_link_that_it_has(victim: Party, friend: Party, member: Rogue):
    member.send_note(1)
    await victim.hears(1)
    victim.transport.admit(Roster([victim.card, friend.card]))
    await friend.transport.send(0, note(2))
    await victim.hears(2)
    member.send_note(3)
    await friend.transport.send(0, note(4))
    await victim.until(lambda: 4 in victim.notes)
    assert 3 not in victim.notes


async def test_a_number_given_to_another_key_does_not_let_the_old_one_speak(
    victim: Party, friend: Party, member: Rogue
):
    member.send_note(1)
    await victim.hears(1)
    heir = Identity.generate()
    roster = Roster([victim.card, friend.card, heir.card(2, "tcp://127.0.0.1:1", "loopback")])
    victim.transport.admit(roster)
    await friend.transport.send(0, note(2))
    await victim.hears(2)
    member.send_note(3)
    new = Rogue(victim.card, heir)
    try:
        new.send_note(4)
        await victim.hears(3)
    finally:
        new.close()
    assert victim.notes == [1, 2, 4]


async def test_a_server_with_another_key_is_not_talked_to(logs: list[Any], friend: Party):
    false = Identity.generate()
    caller = Party(3, grace_s=0.3)
    try:
        roster = Roster([caller.card, false.card(1, friend.transport.address, "loopback")])
        caller.transport.admit(roster)
        friend.transport.admit(Roster([caller.card, friend.card]))
        await caller.transport.send(1, note(1))
        await caller.until(lambda: caller.lost)
        assert caller.lost == [1]
        assert caller.transport.counters().messages_sent == 0
        assert friend.heard == []
        refused = caller.transport.counters().refused["handshake"] + friend.transport.counters().refused["handshake"]
        assert refused >= 2
        lines = [line for line in logs if line.get("reason") == "handshake" and line["node"] == 3]
        assert lines[0]["address"] == friend.transport.address
    finally:
        await caller.transport.close(0.0)


async def test_random_bytes_on_the_port(victim: Party, friend: Party):
    acquaint(victim, friend)
    host, port = victim.transport.address.removeprefix("tcp://").split(":")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(33)
    for data in (os.urandom(4096), b"GET / HTTP/1.1\r\n\r\n", b"", b"\xff" * 65536, greeting + b"\x02" + b"\xff" * 99):
        with socket.create_connection((host, int(port))) as connection:
            connection.settimeout(0.05)
            try:
                connection.sendall(data)
                connection.recv(1 << 16)
            except (TimeoutError, ConnectionError):
                pass
    await friend.transport.send(0, note(1))
    await victim.hears(1)
    assert victim.notes == [1]
    assert set(victim.transport.counters().refused) <= {"handshake"}


async def test_two_links_of_one_member_do_not_mix(victim: Party, member: Rogue):
    """A half-finished transfer belongs to its connection: a later one cannot write into it."""
    member.send(frames.announce(1, claim(2 * MIB)))
    member.send(frames.chunk(1, 0, 0), bytes(MIB))
    member.send_note(1)
    await victim.hears(1)
    second = Rogue(victim.card, member.identity)
    try:
        second.send(frames.chunk(1, 0, MIB), b"\xff" * MIB)
        second.send_note(2)
        await victim.hears(2)
    finally:
        second.close()
    assert victim.notes == [1, 2]
    assert victim.transport.counters().refused == {"transfer": 1}


async def test_good_frames_before_a_bad_one_are_delivered(victim: Party, member: Rogue):
    member.send(small(note(1), note(2)) + b"\x01")
    member.send_note(3)
    await victim.hears(3)
    assert victim.notes == [1, 2, 3]
    assert victim.transport.counters().refused == {"truncated": 1}
