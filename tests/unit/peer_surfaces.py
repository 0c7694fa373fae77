"""Everything that reads bytes of members: they are known, and need not be honest. See ``surfaces.py``."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence

import msgspec
import numpy as np

from node import codec
from node.codec import Encoded, Limits
from node.daemon.decrees import Decrees
from node.daemon.introduction import Minutes, Proven, read
from node.daemon.members import read_record, record_of
from node.daemon.timekeeping import Time
from node.errors import BadFrame, StarlingError
from node.live import frames
from node.live.bulk_messages import Denial, Fetch, Grant
from node.live.membership import Said
from node.live.receive import Receiver
from node.membership import (
    PRESETS,
    Ack,
    Broadcast,
    Differences,
    Disconnect,
    Gossip,
    Graft,
    IHave,
    Nack,
    Partial,
    Ping,
    PingRequest,
    Prune,
    Received,
    Sizes,
    Start,
    State,
    Statement,
    Summary,
    Swim,
    Tick,
    wire,
)
from node.membership import Message as Remark
from node.membership.overlay import ForwardJoin, Join, Neighbour, NeighbourAnswer, Shuffle, ShuffleAnswer
from node.message import Message
from node.op import Ref, Spec
from node.transfer.manifest import Manifest, _digest
from node.trust.certificate import id_text
from node.trust.revocation import Revocation
from node.trust.succession import Succession
from surfaces import Fuzzed, Surface
from trust_parties import ADMISSION, ALICE, BOB, NETWORK, NOW_S, certificate

LIMITS = Limits(message_bytes=1 << 20, header_bytes=1 << 12)
PEER = 1


def peer_surfaces() -> list[Surface]:
    """All of them, made anew."""
    return [_membership(), _record(), _meeting(), _words(), _frames(), _manifest()]


def _word(peer: int, state: State = State.ALIVE) -> Statement:
    return Statement(state, peer, 2, peer, b"record", bytes(64))


def _membership() -> Surface:
    """What members say of members, to one that knows all and to one that knows a few, and what these do then."""
    accusation = Statement(State.SUSPECT, 0, 1, PEER, b"", bytes(64))
    news = (_word(2), accusation)
    remarks: Sequence[Remark] = (
        Ping(7, news),
        Ack(7, 20, news),
        PingRequest(7, 2, 500),
        Nack(7),
        Gossip(news),
        Summary(tuple(range(64)), news),
        Differences((1, 2, 3), news, True, False),
        Join(_word(PEER)),
        ForwardJoin(_word(2), 3),
        Neighbour(_word(PEER), True),
        NeighbourAnswer(_word(PEER), True),
        Disconnect(_word(PEER, State.LEFT)),
        Shuffle(_word(PEER), 3, (_word(2), _word(3))),
        ShuffleAnswer((_word(2),)),
        Broadcast(b"content", 3),
        IHave(bytes(16)),
        Graft(bytes(16)),
        Prune(),
    )

    def feed(data: bytes) -> None:
        remark = wire.decode(data)
        assert wire.decode(wire.encode(remark)) == remark
        for machine in (
            Swim(0, 0, b"r", PRESETS["lan"], np.random.default_rng(0), most_peers=8),
            Partial(0, 0, b"r", Sizes(), np.random.default_rng(0)),
        ):
            machine.step(Start((PEER,), (_word(PEER),)), 0.0)
            if isinstance(machine, Partial):
                machine.step(Received(PEER, Neighbour(_word(PEER), True)), 0.0)
            machine.step(Received(PEER, remark), 0.1)
            machine.step(Received(PEER, remark), 0.2)
            machine.step(Tick(), max(0.3, machine.deadline_s))
            assert len(machine.known()) <= 40

    return Surface("membership", tuple(wire.encode(remark) for remark in remarks), feed)


def _record() -> Surface:
    mine = certificate()
    card = ALICE.card(mine.node, "tcp://127.0.0.1:7600", id_text(NETWORK))

    def feed(data: bytes) -> None:
        found, shown = read_record(data)
        assert (found.node, found.curve_key) == (shown.node, shown.curve_key)

    return Surface("record", (record_of(mine, card),), feed)


def _meeting() -> Surface:
    """What two members tell each other at a door."""
    revocation = Revocation(NETWORK, 1, bytes(20), NOW_S, NOW_S, "lost").signed_by(ADMISSION)
    succession = Succession(NETWORK, ADMISSION.signing_public, BOB.signing_public, NOW_S).signed_by(ADMISSION)
    seeds = (
        msgspec.msgpack.encode(Proven(bytes(80), _word(2))),
        Minutes((revocation,), (succession,), (_word(2), _word(3))).within(),
    )

    def feed(data: bytes) -> None:
        kinds: tuple[type[Proven] | type[Minutes], ...] = (Proven, Minutes)
        for kind in kinds:
            try:
                said = read(data, kind)
            except StarlingError:
                continue
            assert read(msgspec.msgpack.encode(said), kind) == said
            return
        raise BadFrame("nothing that is said at a door")

    return Surface("meeting", seeds, feed)


def _words() -> Surface:
    """Headers of the messages that a daemon attends to itself, and what is packed in them."""
    revocation = Revocation(NETWORK, 1, bytes(20), NOW_S, NOW_S, "lost").signed_by(ADMISSION)
    succession = Succession(NETWORK, ADMISSION.signing_public, BOB.signing_public, NOW_S).signed_by(ADMISSION)
    said = (
        Decrees(revocations=(revocation.to_bytes(),), successions=(succession.to_bytes(),)),
        Said(body=wire.encode(Gossip((_word(2),)))),
        Time(unix_s=NOW_S),
        Fetch(number=1, object="0" * 64, missing=b"\x0f", ciphers=("aes-256-gcm",)),
        Grant(number=1, transfer=bytes(16), key=bytes(32), cipher="aes-256-gcm", port=7602, manifest=bytes(45)),
        Denial(number=1, reason="busy"),
    )

    def feed(data: bytes) -> None:
        header = codec.decode_header(data, LIMITS)
        if not issubclass(header.type, tuple(type(one) for one in said)):
            raise BadFrame("a message of a protocol")
        found = codec.decode(header, (), _no_value)
        again = codec.decode(codec.decode_header(_header(found).header, LIMITS), (), _no_value)
        assert (type(again), vars(again)) == (type(found), vars(found))
        match found:
            case Decrees():
                assert all(Revocation.from_bytes(each).to_bytes() == each for each in found.revocations)
                assert all(Succession.from_bytes(each).to_bytes() == each for each in found.successions)
            case Said():
                wire.decode(found.body)

    return Surface("words", tuple(_header(one).header for one in said), feed)


def _frames() -> Surface:
    """What comes over the link of a member, before and while a model arrives; credits and places are two numbers."""
    model = Ref(0, Spec((3, 2)), deque())
    message = codec.encode(Fuzzed(round=1, names=("a",), model=model), lambda ref: memoryview(bytes(24)))
    small = bytes([frames.SMALL]) + b"".join(bytes(part) for part in frames.small_parts(message))
    announced = frames.announce(7, message.header)
    seeds = (small, small + small[1:], announced, frames.chunk(7, 0, 0))

    def feed(data: bytes) -> None:
        receiver = Receiver(LIMITS)
        receiver.connection(PEER, b"link")
        receiver.announce(PEER, memoryview(announced))
        assert len(list(receiver.give_places(0.0))) == 1
        frame = memoryview(data)
        match data[0] if data else None:
            case frames.SMALL:
                if not [*receiver.small(PEER, frame)]:
                    raise BadFrame("nothing in it")
            case frames.ANNOUNCE:
                assert frames.read_announce(frame)[0] != 7 or _is_refused(receiver, frame)
                receiver.announce(PEER, memoryview(frames.announce(8, bytes(frames.read_announce(frame)[1]))))
            case frames.CHUNK:
                chunk = frames.read_chunk(frame)
                slot = receiver.slot(PEER, chunk)
                assert len(slot) == 24
                assert receiver.arrived(PEER, chunk, 24, 24) is not None
            case _:
                raise BadFrame("no frame of a sender")

    return Surface("frames", seeds, feed)


def _is_refused(receiver: Receiver, frame: memoryview) -> bool:
    try:
        receiver.announce(PEER, frame)
    except StarlingError:
        return True
    return False


def _manifest() -> Surface:
    chunks = (bytes(256 << 10), bytes(256 << 10), b"end")
    true = Manifest.of(chunks, 256 << 10).to_bytes()
    assert len(true) == 13 + 3 * hashlib.sha256().digest_size

    def feed(data: bytes) -> None:
        manifest = Manifest.from_bytes(data, _digest(data))
        assert manifest.to_bytes() == data
        sizes = [manifest.chunk_size(index) for index in range(manifest.chunks)]
        assert sum(sizes) == manifest.size_bytes
        assert all(sizes)

    return Surface("manifest", (true, Manifest.of(()).to_bytes()), feed)


def _header(message: Message) -> Encoded:
    return codec.encode(message, _no_buffer)


def _no_buffer(ref: Ref) -> memoryview:
    raise AssertionError(f"no {ref} is in any of these")


def _no_value(buffer: memoryview, spec: Spec) -> Ref:
    raise BadFrame("a value in a message that carries none")
