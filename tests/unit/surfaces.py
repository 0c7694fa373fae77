"""Everything that reads bytes of strangers, each with a few true inputs: for tests and benchmarks that feed it others.

Feeding gives a valid value or one StarlingError; anything else that comes out is a crash. What was read and has one
canonical form is written again, and must be what was read.
"""

from __future__ import annotations

import asyncio
import atexit
import copy
import functools
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np

from faces import TOKEN, Shown
from node.codec import Limits, decode_header, encode
from node.errors import BadFrame, StarlingError
from node.message import Message
from node.op import Ref, Spec
from node.trust import request
from node.trust.authority import Authority, Terms
from node.trust.certificate import Certificate, Role
from node.trust.handshake import Handshake, Hello
from node.trust.ledger import Entry
from node.trust.revocation import Revocation
from node.trust.succession import Succession
from node.trust.token import Token
from trust_parties import ADMISSION, ALICE, BOB, CAROL, MALLORY, NETWORK, NOW_S, Network, certificate, ends


class Fuzzed(Message, name="fuzz/fuzzed/1"):
    round: int
    names: tuple[str, ...]
    model: Ref


@dataclass(frozen=True)
class Surface:
    """One thing that reads bytes."""

    name: str
    seeds: tuple[bytes, ...]
    """True inputs."""
    feed: Callable[[bytes], None]
    """Reads an input; raises StarlingError for what is wrong with it, and AssertionError for what is wrong with us."""


def mutated(rng: np.random.Generator, seeds: tuple[bytes, ...]) -> bytes:
    """A true input after one to four changes, now and then a piece of another, or noise."""
    data = bytearray(seeds[rng.integers(len(seeds))])
    for _ in range(rng.integers(1, 5)):
        start = int(rng.integers(len(data) + 1))
        end = min(len(data), start + int(rng.integers(1, 9)))
        match int(rng.integers(6)):
            case 0 if start < len(data):
                data[start] ^= 1 << int(rng.integers(8))
            case 1 if start < len(data):
                data[start] = _EDGES[rng.integers(len(_EDGES))]
            case 2:
                del data[start:end]
            case 3:
                data[start:start] = rng.bytes(int(rng.integers(1, 9)))
            case 4:
                other = seeds[rng.integers(len(seeds))]
                data[start:end] = other[start : start + int(rng.integers(1, 65))]
            case 5:
                del data[start:]
    return bytes(data)


_EDGES = bytes(
    [0x00, 0x01, 0x02, 0x7F, 0x80, 0x90, 0x9F, 0xC0, 0xC1, 0xC4, 0xC6, 0xCB, 0xCF, 0xD9, 0xDC, 0xDD, 0xDF, 0xFF]
)
"""Where msgpack's kinds of values begin and end."""


def surfaces() -> list[Surface]:
    """All of them, made anew."""
    network = Network()
    token = network.token()
    statements = {
        Certificate: certificate(),
        Revocation: Revocation(NETWORK, 1, bytes(20), NOW_S, NOW_S, "lost").signed_by(ADMISSION),
        Succession: Succession(NETWORK, ADMISSION.signing_public, BOB.signing_public, NOW_S).signed_by(ADMISSION),
    }
    return [
        _header(),
        Surface("token", (token.to_text().encode(), network.token(Role.attacker).to_text().encode()), _feed_token),
        *(_statement(kind, one) for kind, one in statements.items()),
        _answers(network),
        _admission(network, token),
        _handshake(network),
        _http(),
    ]


def _header() -> Surface:
    model = Ref(0, Spec((3, 2)), deque())
    seeds = tuple(
        encode(Fuzzed(round=number, names=("a", "bc"), model=model), lambda ref: memoryview(bytes(24)), *numbers).header
        for number, numbers in ((0, ()), (2**40, (1, 0)), (-1, (0, 7)))
    )
    limits = Limits(message_bytes=1 << 20, header_bytes=1 << 12)

    def feed(data: bytes) -> None:
        header = decode_header(data, limits)
        assert header.size_bytes <= limits.message_bytes

    return Surface("header", seeds, feed)


def _feed_token(data: bytes) -> None:
    text = data.decode("latin-1")
    token = Token.from_text(text)
    assert token.to_text() == text.strip()


def _statement(kind: type, true: Certificate | Revocation | Succession) -> Surface:
    def feed(data: bytes) -> None:
        statement = kind.from_bytes(data)
        assert statement.to_bytes() == data
        statement.check(ADMISSION.signing_public)
        assert statement == true

    return Surface(kind.__name__.lower(), (true.to_bytes(),), feed)


def _answers(network: Network) -> Surface:
    mine = network.member(CAROL)
    members = (request.Member(mine, b"card"), request.Member(certificate()))
    welcome = request.Welcome(mine, (), (), members, "demo", "nodes = 3", NOW_S)
    seeds = (request.encode(welcome), request.encode(request.Turned(request.Reason.FULL)))

    def feed(data: bytes) -> None:
        answer = request.decode_answer(data)
        assert request.decode_answer(request.encode(answer)) == answer

    return Surface("answer", seeds, feed)


def _admission(network: Network, token: Token) -> Surface:
    """Mutated requests, as often as one likes: nobody but Alice and Bob has signed any, so nobody else comes in."""
    seeds = tuple(
        request.encode(one)
        for one in (
            request.Join.by(ALICE, token),
            request.Join.by(BOB, network.token()),
            request.Renew.by(ALICE, ALICE, NETWORK),
            request.Renew.by(MALLORY, BOB, NETWORK),
        )
    )
    kept: list[Entry] = []
    authority = Authority(ADMISSION, Terms(NETWORK, 8), ADMISSION.signing_public, kept.append)
    for entry in network.kept:
        authority.apply(entry)

    def feed(data: bytes) -> None:
        asked = request.decode_request(data)
        issue = authority.admit if isinstance(asked, request.Join) else authority.renew
        issued = issue(asked, asked.curve_key, NOW_S)  # type: ignore[arg-type]
        assert issued.binds(ALICE) or issued.binds(BOB)
        assert len(kept) <= 2

    return Surface("admission", seeds, feed)


def _handshake(network: Network) -> Surface:
    """Every message in every state: one who has just begun, one who waits for a reply, one who waits for a proof."""
    alice, bob = network.local(ALICE), network.local(BOB)
    initiator, responder = ends(alice, bob)
    opening = initiator.open(NOW_S)
    fresh, waiting = copy.copy(responder), copy.copy(initiator)
    reply = responder.receive(opening, 0.0, NOW_S).send
    proving = copy.copy(responder)
    proof = initiator.receive(reply or b"", 0.0, NOW_S).send
    hello = Hello.from_bytes(msgspec.msgpack.decode(opening[1:])[1])
    other = msgspec.structs.replace(hello, incarnation=2**52, successions=())
    seeds = (opening, reply or b"", proof or b"", b"\x01" + msgspec.msgpack.encode([1, other.to_bytes()]))
    states: list[Handshake] = [fresh, waiting, proving]
    true = {bob.certificate, alice.certificate}

    def feed(data: bytes) -> None:
        errors = []
        for state in states:
            try:
                outcome = copy.copy(state).receive(data, 0.0, NOW_S)
            except StarlingError as error:
                errors.append(str(error))
            else:
                assert outcome.session is None or outcome.session.peer in true
        if len(errors) == len(states):
            raise BadFrame(f"refused in every state: {errors[0]}")

    return Surface("handshake", seeds, feed)


# Control over HTTP

_ANSWER = re.compile(rb"HTTP/\d\.\d (\d{3}) [\x20-\x7e]*\r\n(?:[!-9;-~]+: [\x20-\x7e]*\r\n)+\r\n")
_TURNS = 16
"""Of the event loop: more than any answer takes."""


class _Wire(asyncio.Transport):
    """A connection whose other end is a test."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.9", 40_000), "sockname": ("192.0.2.1", 7601)})
        self.sent = bytearray()
        self._is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def close(self) -> None:
        self._is_closed = True

    abort = close

    def is_closing(self) -> bool:
        return self._is_closed

    def pause_reading(self) -> None:
        """There is nothing more to read."""

    def resume_reading(self) -> None:
        """There is nothing more to read."""


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    atexit.register(loop.close)
    return loop


def _http() -> Surface:
    """Whole requests, as a connection brings them: orders with the token and with another, and a look at the status."""

    def request(line: str, token: str = TOKEN, body: str = "") -> bytes:
        head = f"{line} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\nContent-Length: {len(body)}"
        return f"{head}\r\n\r\n{body}".encode()

    seeds = (
        request("POST /loglevel", body='{"level": "debug"}'),
        request("POST /pause"),
        request("POST /drain", token="s" * len(TOKEN)),
        request("GET /status"),
    )
    shown = Shown()
    server = shown.server()
    _loop().run_until_complete(server._runner.setup())

    async def answer(data: bytes) -> bytes:
        assert server._runner.server is not None
        protocol, wire = server._runner.server(), _Wire()
        protocol.connection_made(wire)
        protocol.data_received(data)
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        handling = protocol._task_handler
        protocol.connection_lost(None)
        if handling is not None:  # it would wait for the rest of the request
            handling.cancel()
            await asyncio.wait([handling])
        return bytes(wire.sent)

    def feed(data: bytes) -> None:
        shown.orders.clear()
        shown.noted.clear()
        said = _loop().run_until_complete(answer(data))
        assert not shown.orders or f"Bearer {TOKEN}".encode() in data
        if not said:
            raise BadFrame("a request that goes on")
        statuses = [int(found[1]) for found in _ANSWER.finditer(said)]
        assert statuses, said
        assert max(statuses) < 500, said
        if max(statuses) >= 400:
            raise BadFrame(f"answered {max(statuses)}")

    return Surface("http", seeds, feed)
