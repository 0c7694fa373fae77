"""Nodes that nobody can dial: both ways over the links that they open, through relays, and when those go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from loopback import WAIT_S, Party, Rogue, acquaint, model, note
from node.codec import Limits
from node.errors import BadSignature, Unreachable
from node.identity import Card, Identity, Roster
from node.live import detours, frames, relay, sealed
from node.live.bulk import Bulk
from node.live.parcels import LARGE_BYTES, Parcels
from node.live.refusals import Refusals
from node.live.wires import Opened
from node.live.wires import Path as Way
from node.store.objects import Store

MIB = 1 << 20
SECRET = b"nobody but the two of them reads this"


@pytest.fixture
async def party() -> AsyncIterator[Callable[..., Party]]:
    made: list[Party] = []

    def make(node: int, **options: Any) -> Party:
        made.append(Party(node, **options))
        return made[-1]

    yield make
    for each in made:
        await each.transport.close(0.0)


def outbound(party: Callable[..., Party], node: int, **options: Any) -> Party:
    return party(node, listen=None, grace_s=options.pop("grace_s", 60.0), **options)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.005)


def path(party: Party, peer: Party) -> Way | None:
    return party.transport.paths().get(peer.node)


def payload(size_bytes: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size_bytes, dtype=np.uint8)


class TestOverItsOwnLink:
    async def test_messages_flow_both_ways(self, party: Callable[..., Party]):
        a, b = party(0), outbound(party, 1)
        assert b.card.is_outbound
        acquaint(a, b)
        await a.transport.send(1, note(1))  # waits for the link that b opens
        await b.hears(1)
        await b.transport.send(0, note(2))
        await a.hears(1)
        assert (b.heard[0][0], b.notes, a.heard[0][0], a.notes) == (0, [1], 1, [2])
        assert path(a, b) == Way("outbound")
        assert path(b, a) == Way("direct")

    async def test_large_and_small_ones_together(self, party: Callable[..., Party]):
        a, b = party(0), outbound(party, 1)
        acquaint(a, b)
        arrays = {number: payload(5 * MIB + number, number) for number in range(1, 5)}
        for number, array in arrays.items():
            await a.transport.send(1, model(number, array))
            await b.transport.send(0, model(number, array))
            await a.transport.send(1, note(100 + number))
        await b.hears(8)
        await a.hears(4)
        for receiver in (a, b):
            models = [
                (message.number, buffers)
                for (_, message), buffers in zip(receiver.heard, receiver.buffers, strict=True)
                if buffers
            ]
            assert [number for number, _ in models] == [1, 2, 3, 4]
            for number, (buffer,) in models:
                np.testing.assert_array_equal(np.frombuffer(buffer, np.uint8), arrays[number])
        assert b.notes == [101, 102, 103, 104]
        assert a.transport.counters().refused == b.transport.counters().refused == {}

    async def test_more_than_a_socket_holds_waits_and_arrives(self, party: Callable[..., Party]):
        a, b = party(0), outbound(party, 1, limits=Limits(backlog_bytes=1))
        acquaint(a, b)
        text = "x" * 60_000
        sending = asyncio.create_task(send_all(a, 1, 800, text))
        await b.hears(800)
        await sending
        assert b.notes == list(range(800))

    async def test_it_dials_again_and_nothing_is_lost_that_waited(self, party: Callable[..., Party]):
        a, b = party(0), outbound(party, 1)
        acquaint(a, b)
        await b.transport.send(0, note(1))
        await a.hears(1)
        card, port = a.card, int(a.transport.address.rpartition(":")[2])
        await a.transport.close(1.0)
        await b.until(lambda: b.lost == [0])
        again = party(0, identity=a.identity, port=port, grace_s=60.0)
        assert again.card == card  # so there is nothing that b would be told
        again.transport.admit(Roster([card, b.card]))
        await again.transport.send(1, note(2))
        await b.hears(1)
        await b.until(lambda: b.back == [0])
        assert b.notes == [2]

    async def test_one_that_comes_back_is_known_again(self, party: Callable[..., Party]):
        a, b = party(0), outbound(party, 1)
        acquaint(a, b)
        await a.transport.send(1, note(1))
        await b.hears(1)
        await b.transport.close(1.0)
        await a.until(lambda: a.lost == [1])
        with pytest.raises(Unreachable):
            await a.transport.send(1, note(2))
        again = outbound(party, 1, identity=b.identity)
        acquaint(a, again)
        await again.transport.send(0, note(3))
        await a.until(lambda: a.back == [1])
        await a.transport.send(1, note(4))
        await again.hears(1)
        assert again.notes == [4]

    async def test_one_that_dies_silently_is_lost_after_the_grace(self, party: Callable[..., Party]):
        a, identity = party(0), Identity.generate()
        a.transport.admit(Roster([a.card, identity.card(1, "outbound", "loopback")]))
        dying = Rogue(a.card, identity)
        dying.send_note(1)
        await a.hears(1)
        a.transport.watch([1])
        await until(lambda: 1 in a.transport.paths())
        dying.close()
        await a.until(lambda: a.lost == [1])
        assert a.transport.paths() == {}

    async def test_one_that_never_comes_is_lost_too(self, party: Callable[..., Party]):
        a, absent = party(0), Identity.generate()
        a.transport.admit(Roster([a.card, absent.card(1, "outbound", "loopback")]))
        await a.transport.send(1, note(1))
        await a.until(lambda: a.lost == [1])

    async def test_a_large_model_goes_as_a_message_where_nobody_could_fetch_it(
        self, party: Callable[..., Party], tmp_path: Path
    ):
        a, b = party(0, grace_s=60.0), outbound(party, 1)
        acquaint(a, b)
        parcels = Parcels(1, b.transport, tmp_path / "parcels", lambda *message: None)
        array = payload(LARGE_BYTES + 1)
        await parcels.send(0, model(1, array))
        await a.hears(1)
        np.testing.assert_array_equal(np.frombuffer(a.buffers[0][0], np.uint8), array)
        assert not any(path.is_file() for path in (tmp_path / "parcels").rglob("*"))

    async def test_nothing_is_fetched_from_one_that_cannot_be_dialled(
        self, party: Callable[..., Party], tmp_path: Path
    ):
        a, b = party(0), outbound(party, 1)
        acquaint(a, b)
        bulk = Bulk(0, a.transport, Store(tmp_path), may_fetch=lambda peer, wanted: True)
        bulk.start()
        with pytest.raises(Unreachable, match="node 1 cannot be dialled; fetch it from another"):
            await bulk.fetch("a" * 64, 1)
        await bulk.close()

    async def test_nobody_else_may_send_over_a_link_that_was_dialled(self, party: Callable[..., Party]):
        """What a peer that listens sends over our link to it is refused, unless that is the only way."""
        a, b = party(0, grace_s=60.0), party(1, grace_s=60.0)
        acquaint(a, b)
        await b.transport.send(0, note(1))
        await a.hears(1)
        wire = a.transport._io.entrance.wire(1)
        assert isinstance(wire, Opened)
        a.transport._io.poll.post(wire.send, b"\x01")
        await until(lambda: b.transport.counters().refused == {"kind": 1})

    async def test_who_steers_what_nobody_sends_is_refused(self, party: Callable[..., Party]):
        a, b = party(0), party(1)
        roster = acquaint(a, b)
        rogue = Rogue(a.card, b.identity)
        try:
            for frame in (frames.credit(1), frames.place(1)):
                rogue.send(frame)
            await until(lambda: a.transport.counters().refused == {"kind": 2})
        finally:
            rogue.close()
        assert len(roster) == 2


async def send_all(sender: Party, to: int, count: int, text: str) -> None:
    for number in range(count):
        await sender.transport.send(to, note(number, text))


class TestThroughRelays:
    async def test_two_that_nobody_can_dial(self, party: Callable[..., Party]):
        hub, a, b = party(0), outbound(party, 1), outbound(party, 2)
        acquaint(hub, a, b)
        array = payload(3 * MIB)
        await a.transport.send(2, note(1))
        await b.transport.send(1, model(2, array))
        await b.hears(1)
        await a.hears(1)
        assert (b.heard[0][0], b.notes) == (1, [1])
        assert a.heard[0][0] == 2
        np.testing.assert_array_equal(np.frombuffer(a.buffers[0][0], np.uint8), array)
        assert path(a, b) == path(b, a) == Way("relay", 0)
        assert hub.heard == []
        passed = hub.transport.relayed()
        assert 3 * MIB < passed.size_bytes < 1.01 * 3 * MIB
        assert passed.queued_bytes == 0
        assert a.transport.relayed().frames == 0

    async def test_the_relay_sees_nothing_but_ciphertext(self, party: Callable[..., Party], monkeypatch):
        seen: list[bytes] = []

        def spying(admit: Any) -> Any:
            return lambda self, flow, passed: seen.append(bytes(passed.buffer)) or admit(self, flow, passed)

        monkeypatch.setattr(relay.Relay, "_admit", spying(relay.Relay._admit))
        hub, a, b = party(0), outbound(party, 1), outbound(party, 2)
        acquaint(hub, a, b)
        array = np.frombuffer(SECRET * 40_000, np.uint8)
        await a.transport.send(2, note(1, SECRET.decode()))
        await a.transport.send(2, model(2, array))
        await b.hears(2)
        assert b.heard[0][1].text.encode() == SECRET
        assert sum(map(len, seen)) > array.nbytes
        for word in (SECRET, SECRET[:8], note(1).kind.encode(), model(2, array).kind.encode()):
            assert not any(word in each for each in seen)

    async def test_the_quickest_of_several_is_taken_and_another_when_it_dies(self, party: Callable[..., Party]):
        hubs = [party(0), party(1), party(2)]
        a, b = outbound(party, 3), outbound(party, 4)
        acquaint(*hubs, a, b)
        await a.transport.send(4, note(1))
        await b.hears(1)
        number = 1
        for _ in range(2):
            via = path(a, b).via
            await hubs[via].transport.close(0.0)
            for one, other in ((a, b), (b, a)):
                await until(lambda via=via, ends=(one, other): (path(*ends) or Way("relay", via)).via != via)
            number += 1
            await a.transport.send(4, note(number))
            await b.transport.send(3, note(number))
            await b.until(lambda number=number: number in b.notes)
            await a.until(lambda number=number: number in a.notes)
        assert b.notes == [1, 2, 3]
        assert a.notes == [2, 3]
        assert 4 not in a.lost
        assert 3 not in b.lost

    async def test_a_model_that_was_under_way_starts_again_on_another(self, party: Callable[..., Party]):
        hubs = [party(0), party(1)]
        for hub in hubs:
            hub.transport._io.relay._quota = relay.Quota(rate_bps=300e6)
        a, b = outbound(party, 2), outbound(party, 3)
        acquaint(*hubs, a, b)
        await a.transport.send(3, note(1))
        await b.hears(1)
        array = payload(24 * MIB)  # beyond a window, so that its end has not left yet
        await a.transport.send(3, model(2, array))
        via = path(a, b).via
        await until(lambda: hubs[via].transport.relayed().size_bytes > 2 * MIB)
        await hubs[via].transport.close(0.0)
        await b.hears(2)
        np.testing.assert_array_equal(np.frombuffer(b.buffers[1][0], np.uint8), array)

    async def test_without_any_relay_the_other_is_lost_and_found_later(self, party: Callable[..., Party]):
        a, b = outbound(party, 1, grace_s=0.2), outbound(party, 2, grace_s=0.2)
        acquaint(a, b)
        await a.transport.send(2, note(1))
        await a.until(lambda: a.lost == [2])
        hub = party(0)
        acquaint(hub, a, b)
        await a.until(lambda: a.back == [2])
        await a.transport.send(2, note(2))
        await b.hears(1)
        assert b.notes == [2]

    async def test_one_that_starts_again_is_found_by_the_other(self, party: Callable[..., Party]):
        hub, a, b = party(0), outbound(party, 1), outbound(party, 2)
        acquaint(hub, a, b)
        await a.transport.send(2, note(1))
        await b.hears(1)
        await b.transport.close(1.0)
        await a.until(lambda: a.lost == [2])
        again = outbound(party, 2, identity=b.identity)
        acquaint(hub, a, again)
        await again.transport.send(1, note(2))
        await a.until(lambda: a.back == [2])
        await a.transport.send(2, note(3))
        await again.hears(1)
        await a.until(lambda: a.notes == [2])

    async def test_the_end_of_a_session_at_one_end_is_seen_by_the_other(self, party: Callable[..., Party]):
        """A peer that has forgotten the session, as after a crash that nobody saw, says so; both begin another."""
        hub, a, b = party(0), outbound(party, 1), outbound(party, 2)
        acquaint(hub, a, b)
        await a.transport.send(2, note(1))
        await b.hears(1)
        passing = b.transport._io._passing
        assert isinstance(passing, detours.Detours)
        forgotten: list[Any] = []
        b.transport._io.poll.post(lambda: forgotten.append(passing._wires.pop(1)))
        await until(lambda: forgotten)
        await a.transport.send(2, note(2))  # goes with the session
        await until(lambda: 1 in passing._wires)
        await a.transport.send(2, note(3))
        await b.until(lambda: 3 in b.notes)
        assert a.lost == b.lost == []

    async def test_what_is_gone_or_changed_on_the_way_ends_the_session_and_nothing_false_is_heard(
        self, party: Callable[..., Party], monkeypatch
    ):
        hub, a, b = party(0), outbound(party, 1), outbound(party, 2)
        acquaint(hub, a, b)
        await a.transport.send(2, note(1))
        await b.hears(1)
        spoil: list[Callable[[bytes], bytes | None]] = []
        admit = relay.Relay._admit

        def tampering(self: Any, flow: Any, passed: Any) -> bool:
            content = bytes(passed.buffer)
            if spoil and len(content) > 100:
                changed = spoil.pop()(content)
                return changed is None or admit(self, flow, zmq.Frame(changed))
            return admit(self, flow, passed)

        monkeypatch.setattr(relay.Relay, "_admit", tampering)
        for number, wrong in enumerate(
            (
                lambda content: None,
                lambda content: content[:-1] + bytes([content[-1] ^ 1]),
                lambda content: content[:50],
                lambda content: content[:9] + bytes([content[9] ^ 1]) + content[10:],
            )
        ):
            spoil.append(wrong)
            await a.transport.send(2, note(10 + number, "x" * 100))
            await until(lambda: not spoil)
            later = 100 * (number + 1)
            while later // 100 not in [each // 100 for each in b.notes]:
                await a.transport.send(2, note(later, "y" * 100))
                later += 1
                await asyncio.sleep(0.05)
            assert 10 + number not in b.notes
        assert b.transport.counters().refused["relay"] >= 3
        assert a.lost == b.lost == []

    async def test_a_relay_that_spoils_what_it_passes_on_is_not_taken_again(
        self, party: Callable[..., Party], monkeypatch: pytest.MonkeyPatch
    ):
        hubs = [party(0), party(1)]
        a, b = outbound(party, 2), outbound(party, 3)
        acquaint(*hubs, a, b)
        await a.transport.send(3, note(1))
        await b.hears(1)
        via = path(a, b).via
        spoiling, admit = hubs[via].transport._io.relay, relay.Relay._admit

        def spoil(self: Any, flow: Any, passed: Any) -> bool:
            content = bytes(passed.buffer)
            spoilt = self is spoiling and len(content) > 100  # what is said to find a way is shorter
            return admit(self, flow, zmq.Frame(content[:-1] + b"x") if spoilt else passed)

        monkeypatch.setattr(relay.Relay, "_admit", spoil)
        await a.transport.send(3, note(2, "x" * 100))
        for ends in ((a, b), (b, a)):
            await until(lambda ends=ends: path(*ends) == Way("relay", 1 - via))
        for number in range(3, 6):
            await a.transport.send(3, note(number, "x" * 100))
        await b.until(lambda: 5 in b.notes)
        assert b.notes == [1, 3, 4, 5]

    async def test_a_key_that_is_none_costs_only_its_owner(self, party: Callable[..., Party]):
        hub, a, odd = party(0), outbound(party, 1, grace_s=0.2), Identity.generate()
        unsigned = Card(2, odd.signing_public, bytes(32), "outbound", "loopback", bytes(64))
        card = Card(2, odd.signing_public, bytes(32), "outbound", "loopback", odd.sign(unsigned._signed()))
        a.transport.admit(Roster([hub.card, a.card, card]))
        hub.transport.admit(Roster([hub.card, a.card, card]))
        await a.transport.send(2, note(1))
        await a.until(lambda: 2 in a.lost)
        await a.transport.send(0, note(2))
        await hub.hears(1)
        assert a.transport.counters().refused["relay"] >= 1

    async def test_it_relays_for_nobody_else(self, party: Callable[..., Party]):
        hub, listening, a, b = party(0), party(1, grace_s=60.0), outbound(party, 2), outbound(party, 3)
        acquaint(hub, listening, a, b)
        await listening.transport.send(0, note(1))
        await b.transport.send(0, note(2))
        await hub.hears(2)
        a_wire = a.transport._io.links.dialled
        await until(lambda: 0 in a.transport.paths())
        for to in (1, 99, 0):
            a.transport._io.poll.post(a_wire()[0].send, frames.relay(to), b"\x01")
        await until(lambda: hub.transport.counters().refused.get("relay") == 3)
        rogue = Rogue(hub.card, listening.identity)
        try:
            rogue.send(frames.relay(3), b"\x01")  # it can be dialled, and so can dial those who relay: it needs none
            await until(lambda: hub.transport.counters().refused["relay"] == 4)
        finally:
            rogue.close()
        assert hub.transport.relayed().frames == 0
        assert b.heard == []

    async def test_who_is_no_member_is_not_relayed(self, party: Callable[..., Party]):
        knocks: list[Any] = []
        hub, b = party(0, on_knock=knocks.append), outbound(party, 2)
        acquaint(hub, b)
        await b.transport.send(0, note(1))
        await hub.hears(1)
        stranger = Rogue(hub.card, Identity.generate())
        try:
            stranger.send(frames.relay(2), b"\x01" + bytes(48))
            await until(lambda: hub.transport.counters().refused.get("stranger"))
        finally:
            stranger.close()
        assert hub.transport.relayed().frames == 0


class Taking:
    """A connection that takes so many frames, and then no more."""

    path = Way("outbound")

    def __init__(self) -> None:
        self.left = 10**9
        self.taken: list[tuple[bytes, int]] = []

    def send(self, frame: bytes, payload: Any = None) -> None:
        if not self.left:
            raise zmq.Again
        self.left -= 1
        self.taken.append((frame, 0 if payload is None else len(payload.buffer)))


class Content:
    """The second part of a frame, of so many bytes."""

    def __init__(self, size_bytes: int) -> None:
        self.frame = zmq.Frame(bytes(size_bytes))

    def into(self, slot: memoryview) -> int:
        raise AssertionError("a relay reads nothing")

    def whole(self) -> zmq.Frame:
        return self.frame


class TestQuota:
    @pytest.fixture
    def wires(self) -> dict[int, Taking]:
        return {peer: Taking() for peer in range(1, 5)}

    def relay(self, wires: dict[int, Taking], **quota: Any) -> relay.Relay:
        made = relay.Relay(wires.get, Refusals(0, 100), relay.Quota(**quota))  # type: ignore[arg-type]
        made.admit(Roster([Identity.generate().card(peer, "outbound", "loopback") for peer in range(1, 6)]))
        return made

    def ask(self, asked: relay.Relay, peer: int, to: int, size_bytes: int = 1000) -> None:
        asked.take(peer, memoryview(frames.relay(to)), Content(size_bytes))

    def test_frames_keep_their_order_and_name_their_sender(self, wires: dict[int, Taking]):
        made = self.relay(wires)
        for size_bytes in (10, 20, 30):
            self.ask(made, 1, 2, size_bytes)
        made.pump(1e9)
        assert wires[2].taken == [(frames.relay(1), 10), (frames.relay(1), 20), (frames.relay(1), 30)]
        assert (made.passed_frames, made.passed_bytes, made.queued_bytes, made.due_s) == (3, 60, 0, None)

    def test_what_is_beyond_a_pairs_bound_is_dropped_and_its_sender_told(self, wires: dict[int, Taking]):
        made = self.relay(wires, queue_bytes=2500)
        for _ in range(3):
            self.ask(made, 1, 2)
        assert made.queued_bytes == 2000
        assert wires[1].taken == [(frames.gone(2), 0)]
        self.ask(made, 3, 2)  # of another pair
        assert made.queued_bytes == 3000
        assert wires[3].taken == []

    def test_all_pairs_together_have_a_bound(self, wires: dict[int, Taking]):
        made = self.relay(wires, all_queued_bytes=2500)
        for peer in (1, 2, 3):
            self.ask(made, peer, 4)
        assert made.queued_bytes == 2000
        assert wires[3].taken == [(frames.gone(4), 0)]

    def test_a_pair_has_a_rate_and_another_does_not_wait_for_it(self, wires: dict[int, Taking]):
        made = self.relay(wires, rate_bps=8000)  # a thousand bytes a second
        for _ in range(3):
            self.ask(made, 1, 2)
        self.ask(made, 3, 2)
        made.pump(1000.0)
        assert [frame for frame, _ in wires[2].taken] == [frames.relay(1), frames.relay(3)]
        assert made.due_s == pytest.approx(1001.0 - relay.BURST_S)
        made.pump(1000.9)
        assert len(wires[2].taken) == 2
        made.pump(1001.0)
        assert len(wires[2].taken) == 3

    def test_who_takes_no_more_keeps_others_waiting_for_nothing(self, wires: dict[int, Taking]):
        made = self.relay(wires)
        wires[2].left = 1
        for to in (2, 2, 3):
            self.ask(made, 1, to)
        made.pump(5.0)
        assert (len(wires[2].taken), len(wires[3].taken), made.queued_bytes) == (1, 1, 1000)
        assert made.due_s == pytest.approx(5.0 + relay.AGAIN_S)
        wires[2].left = 1
        made.pump(6.0)
        assert made.queued_bytes == 0

    def test_so_many_pairs_and_no_more(self, wires: dict[int, Taking], monkeypatch: pytest.MonkeyPatch):
        now_s = [100.0]
        monkeypatch.setattr(relay.time, "monotonic", lambda: now_s[0])
        made = self.relay(wires, flows=2)
        for to in (2, 3, 4):
            self.ask(made, 1, to)
        assert wires[1].taken == [(frames.gone(4), 0)]
        made.pump(now_s[0])
        now_s[0] += relay.IDLE_S + 1
        self.ask(made, 1, 4)  # the others have not said anything for long
        assert len(wires[1].taken) == 1

    def test_nobody_is_there(self, wires: dict[int, Taking]):
        made = self.relay(wires)
        self.ask(made, 1, 5)
        assert wires[1].taken == [(frames.gone(5), 0)]
        assert made.queued_bytes == 0

    def test_those_who_talk_to_one_that_has_gone_are_told(self, wires: dict[int, Taking]):
        made = self.relay(wires)
        for peer, to in ((1, 2), (3, 2), (2, 4)):
            self.ask(made, peer, to)
        made.broken(2, Opened(None, b""))  # type: ignore[arg-type]
        assert wires[1].taken == wires[3].taken == [(frames.gone(2), 0)]
        assert wires[4].taken == []
        assert made.queued_bytes == 0

    def test_whose_membership_ends_is_not_relayed_any_more(self, wires: dict[int, Taking]):
        made = self.relay(wires)
        self.ask(made, 1, 2)
        made.admit(Roster([Identity.generate().card(1, "outbound", "loopback")]))
        assert made.queued_bytes == 0
        with pytest.raises(frames.Refused, match="no member that takes a relay"):
            self.ask(made, 1, 2)

    def test_only_relays_say_that_somebody_is_gone(self, wires: dict[int, Taking]):
        with pytest.raises(frames.Refused, match="that only relays send"):
            self.relay(wires).take(1, memoryview(frames.gone(2)), None)


class TestSealing:
    def pair(self, about: bytes = b"a>b", heard: bytes = b"a>b") -> tuple[sealed.Session, sealed.Session]:
        a, b = Identity.generate(), Identity.generate()
        opening = sealed.Opening(a.curve_secret, b.curve_public, about)
        reply, theirs = sealed.answer(b.curve_secret, a.curve_public, heard, opening.message)
        assert len(opening.message) == len(reply) == sealed.OPENING_BYTES
        return opening.finish(reply), theirs

    def say(self, session: sealed.Session, content: bytes) -> memoryview:
        content = session.seal(content)
        session.sent()
        return memoryview(content)

    def test_both_ways(self):
        a, b = self.pair()
        assert a.name == b.name
        for content in (b"", b"one", bytes(MIB)):
            assert b.open(self.say(a, content)) == content
            assert a.open(self.say(b, content)) == content

    def test_no_two_sessions_have_anything_in_common(self):
        a, b = Identity.generate(), Identity.generate()
        sealings = set()
        for _ in range(3):
            opening = sealed.Opening(a.curve_secret, b.curve_public, b"x")
            reply, theirs = sealed.answer(b.curve_secret, a.curve_public, b"x", opening.message)
            sealings |= {opening.message, reply, theirs.name, opening.finish(reply).seal(b"same")[16:]}
        assert len(sealings) == 12

    def test_each_frame_once_and_in_order(self):
        a, b = self.pair()
        first, second = self.say(a, b"1"), self.say(a, b"2")
        with pytest.raises(BadSignature, match="frame 0"):
            b.open(second)
        assert b.open(first) == b"1"
        with pytest.raises(BadSignature, match="frame 1"):
            b.open(first)
        assert b.open(second) == b"2"

    def test_a_frame_is_not_reflected_to_its_sender(self):
        a, _ = self.pair()
        with pytest.raises(BadSignature):
            a.open(self.say(a, b"1"))

    @given(st.integers(0, 40), st.integers(0, 7))
    def test_any_changed_bit_is_noticed(self, position: int, bit: int):
        a, b = self.pair()
        content = bytearray(self.say(a, b"a frame of some length"))
        content[position % len(content)] ^= 1 << bit
        with pytest.raises(BadSignature):
            b.open(memoryview(content))

    def test_only_the_two_of_them_can_begin_one(self):
        a, b, other = (Identity.generate() for _ in range(3))
        opening = sealed.Opening(other.curve_secret, b.curve_public, b"x")
        with pytest.raises(BadSignature, match="not who it ought to be"):
            sealed.answer(b.curve_secret, a.curve_public, b"x", opening.message)
        opening = sealed.Opening(a.curve_secret, b.curve_public, b"x")
        reply, _ = sealed.answer(
            other.curve_secret, a.curve_public, b"x", sealed.Opening(a.curve_secret, other.curve_public, b"x").message
        )
        with pytest.raises(BadSignature, match="not who it ought to be"):
            opening.finish(reply)

    def test_a_session_is_about_one_network_and_two_nodes(self):
        with pytest.raises(BadSignature):
            self.pair(b"network 1>2", b"network 2>1")

    @given(st.binary(max_size=100))
    def test_nothing_else_opens_or_ends_one(self, said: bytes):
        a, b = Identity.generate(), Identity.generate()
        with pytest.raises(BadSignature):
            sealed.answer(b.curve_secret, a.curve_public, b"x", said)
        with pytest.raises(BadSignature):
            sealed.Opening(a.curve_secret, b.curve_public, b"x").finish(said)
        with pytest.raises(BadSignature):
            self.pair()[1].open(memoryview(said))

    def test_a_key_of_no_use_is_refused(self):
        with pytest.raises(BadSignature, match="a key that is none"):
            sealed.Opening(Identity.generate().curve_secret, bytes(32), b"x")
