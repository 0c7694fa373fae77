"""The ways to peers that can be dialled as little as this node: through another that both have dialled.

Whoever has something to say asks for an answer through a few relays at once. The first way to be heard is the one that
is taken: so it is the quickest there and then, by distance and by load. When it breaks, both ends look for another.
"""

from __future__ import annotations

import contextlib
import time
from typing import NamedTuple

import numpy as np
import zmq

from node.errors import BadSignature
from node.identity import Identity, Roster
from node.live import frames, sealed
from node.live.frames import Refused
from node.live.links import Links
from node.live.refusals import Refusals
from node.live.wires import Dialled, Part, Path, Payload, Receiving, Wire

RELAYS = 3
"""That are asked at once."""
ANSWER_S = 1.0
"""How long an answer may take."""
RETRY_S, MOST_RETRY_S = 0.25, 8.0
"""When to try again where there was none; twice as late each time."""

AVOID_S = 30.0
"""For how long a relay that a way has broken at is asked only where there is no other."""

_OPEN, _ANSWER, _DATA, _UNKNOWN = (bytes([kind]) for kind in range(1, 5))
_OUTER = (frames.RELAY, frames.GONE, frames.KNOCK)


class _Rest(NamedTuple):
    """The second part of a frame that was sealed as a whole."""

    content: memoryview

    def into(self, slot: memoryview) -> int:
        size_bytes = min(len(slot), len(self.content))
        slot[:size_bytes] = self.content[:size_bytes]
        return len(self.content)

    def whole(self) -> zmq.Frame:
        return zmq.Frame(self.content)


class Detour:
    """A wire to a peer through a relay."""

    def __init__(self, relay: int, peer: int, session: sealed.Session, over: Wire) -> None:
        self.relay = relay
        self.path = Path("relay", relay)
        self.session = session
        self._peer = peer
        self._over = over

    def send(self, frame: bytes, payload: Payload | None = None) -> None:
        """Seal and send a frame. zmq.Again while too much waits on the way to the relay."""
        content = frame if payload is None else b"".join((frame, _bytes_of(payload)))
        self._over.send(frames.relay(self._peer), _DATA + self.session.seal(content))
        self.session.sent()


class _Attempt(NamedTuple):
    opening: sealed.Opening
    asked: dict[int, Wire]
    """The relays that have not said that they cannot."""
    until_s: float


class Detours:
    """All ways through relays of one node that cannot be dialled; all of it belongs to the I/O thread."""

    def __init__(
        self,
        node: int,
        identity: Identity,
        links: Links,
        receiving: Receiving,
        refusals: Refusals,
        rng: np.random.Generator,
    ) -> None:
        self._node = node
        self._secret = identity.curve_secret
        self._links = links
        self._receiving = receiving
        self._refusals = refusals
        self._rng = rng
        self._roster: Roster | None = None
        self._wires: dict[int, Detour] = {}
        self._answered: dict[int, Detour] = {}
        """Those that have yet to be used by whoever asked."""
        self._openings: dict[int, bytes] = {}
        """What each peer has asked with last."""
        self._attempts: dict[int, _Attempt] = {}
        self._retries: dict[int, tuple[float, float]] = {}
        """When to try again, and how long that had to wait."""
        self._avoided: dict[int, float] = {}
        """Relays, and until when."""

    @property
    def due_s(self) -> float | None:
        """When :meth:`pump` is to be called although nothing has come; None: never."""
        untils_s = [attempt.until_s for attempt in self._attempts.values()]
        return min([*untils_s, *(at_s for at_s, _ in self._retries.values())], default=None)

    def admit(self, roster: Roster) -> None:
        """From now on these are the members; ways to those that are not, or have other keys, end."""
        before, self._roster = self._roster, roster
        for peer in {**self._wires, **self._answered, **self._attempts, **self._retries}:
            if before is None or peer not in roster or roster.card(peer) != before.card(peer):
                for held in (self._wires, self._answered, self._openings, self._attempts, self._retries):
                    held.pop(peer, None)

    def wire(self, peer: int) -> Detour | None:
        """The way to a peer; where there is none, one is looked for."""
        if peer not in self._wires:
            self._seek(peer)
        return self._wires.get(peer)

    def broken(self, peer: int, wire: Wire) -> None:
        """The wire to a relay has broken."""
        if isinstance(wire, Dialled):
            for other in {**self._wires, **self._answered, **self._attempts}:
                self._gone(peer, other)

    def pump(self, now_s: float) -> None:
        """Give up what was not answered, and try again what is due."""
        for peer in [peer for peer, attempt in self._attempts.items() if attempt.until_s <= now_s]:
            del self._attempts[peer]
            self._try_later(peer, now_s)
        for peer in [peer for peer, (at_s, _) in self._retries.items() if at_s <= now_s]:
            if self._links.has(peer) and peer not in self._wires:
                self._begin(peer, now_s)
            else:
                del self._retries[peer]

    def take(self, peer: int, frame: memoryview, more: Part | None) -> None:
        """A relay passes a frame on, or says that it cannot. Refused where nobody here is meant."""
        other = frames.read_peer(frame)
        if more is None:
            self._gone(peer, other)
            return
        content = more.whole().buffer
        if self._roster is None or other not in self._roster or not self._roster.card(other).is_outbound:
            raise Refused("relay", f"passes on a frame of node {other}, which is no member that takes a relay")
        kind, said = bytes(content[:1]), content[1:]
        try:
            if kind == _OPEN:
                self._on_open(peer, other, bytes(said))
            elif kind == _ANSWER:
                self._on_answer(peer, other, bytes(said))
            elif kind == _DATA:
                self._on_data(peer, other, said)
            elif kind == _UNKNOWN and (wire := self._wires.get(other)) is not None and wire.session.name == said:
                self._break(other, wire)
        except BadSignature as error:
            # The relay or the peer: there is no telling who, so nobody pays.
            self._refusals.by_address("relay", f"node {other} via node {peer}", time.monotonic(), str(error))

    # Looking for a way

    def _seek(self, peer: int) -> None:
        now_s = time.monotonic()
        if peer in self._answered:  # it has asked, and will soon use what it was answered
            self._retries.setdefault(peer, (now_s + ANSWER_S, RETRY_S / 2))
        elif peer not in self._attempts and peer not in self._retries:
            self._begin(peer, now_s)

    def _begin(self, peer: int, now_s: float) -> None:
        assert self._roster is not None
        self._answered.pop(peer, None)
        relays = self._links.dialled()
        good = [relay for relay in sorted(relays) if self._avoided.get(relay, now_s) <= now_s]
        chosen = self._rng.permutation(good or sorted(relays))[:RELAYS]
        try:
            opening = sealed.Opening(self._secret, self._roster.card(peer).curve_key, self._about(self._node, peer))
        except BadSignature as error:
            self._refusals.by_address("relay", f"node {peer}", now_s, str(error))
            self._try_later(peer, now_s)
            return
        attempt = _Attempt(opening, {}, now_s + ANSWER_S)
        for relay in map(int, chosen):
            if _said(relays[relay], peer, _OPEN + opening.message):
                attempt.asked[relay] = relays[relay]
        if attempt.asked:
            self._attempts[peer] = attempt
            self._retries.setdefault(peer, (now_s, RETRY_S / 2))
            self._retries[peer] = attempt.until_s + ANSWER_S, self._retries[peer][1]
        else:
            self._try_later(peer, now_s)

    def _try_later(self, peer: int, now_s: float) -> None:
        _, waited_s = self._retries.get(peer, (now_s, RETRY_S / 2))
        wait_s = min(2 * waited_s, MOST_RETRY_S)
        self._retries[peer] = now_s + wait_s, wait_s

    def _about(self, begins: int, peer: int) -> bytes:
        assert self._roster is not None
        return f"starling/detour/1 {self._roster.network} {begins}>{peer}".encode()

    def _on_open(self, relay: int, peer: int, message: bytes) -> None:
        over = self._links.dialled().get(relay)
        ours_counts = peer in self._attempts and self._node < peer
        if over is None or ours_counts or self._openings.get(peer) == message:
            return  # by the way that was quicker it has been answered already
        assert self._roster is not None
        card = self._roster.card(peer)
        reply, session = sealed.answer(self._secret, card.curve_key, self._about(peer, self._node), message)
        self._openings[peer] = message
        self._attempts.pop(peer, None)
        self._answered[peer] = Detour(relay, peer, session, over)
        _said(over, peer, _ANSWER + reply)

    def _on_answer(self, relay: int, peer: int, reply: bytes) -> None:
        attempt = self._attempts.get(peer)
        if attempt is None or relay not in attempt.asked:
            return
        session = attempt.opening.finish(reply)
        detour = Detour(relay, peer, session, attempt.asked[relay])
        self._establish(peer, detour)
        with contextlib.suppress(zmq.Again):
            detour.send(frames.PROBE_FRAME)

    def _establish(self, peer: int, detour: Detour) -> None:
        before = self._wires.pop(peer, None)
        for held in (self._answered, self._attempts, self._retries):
            held.pop(peer, None)
        if before is not None:
            self._receiving.ended(peer, before)
        self._wires[peer] = detour
        self._links.heard(peer)
        self._links.watch(peer)  # so that each end notices the other's going, and says its own good-bye
        self._links.reached(peer, detour)

    # Being on one

    def _on_data(self, relay: int, peer: int, said: memoryview) -> None:
        name = said[: sealed.NAME_BYTES]
        held = [detour for detour in (self._wires.get(peer), self._answered.get(peer)) if detour is not None]
        detour = next((each for each in held if each.session.name == name), None)
        if detour is None:
            self._disown(relay, peer, bytes(name))
            return
        try:
            content = memoryview(detour.session.open(said))
        except BadSignature:
            self._disown(relay, peer, bytes(name))
            if self._wires.get(peer) is detour:
                self._break(peer, detour)
            raise
        if self._wires.get(peer) is not detour:
            self._establish(peer, detour)
        self._hear(peer, detour, content)

    def _hear(self, peer: int, detour: Detour, content: memoryview) -> None:
        kind = content[0] if len(content) else 0
        if kind in _OUTER:
            raise BadSignature(f"a sealed frame of kind {kind}, which is never sealed")
        head = frames.CHUNK_HEAD_BYTES if kind == frames.CHUNK else len(content)
        self._receiving.frame(peer, detour, content[:head], _Rest(content[head:]) if kind == frames.CHUNK else None)
        if kind == frames.BYE and self._wires.get(peer) is detour:
            del self._wires[peer]

    def _disown(self, relay: int, peer: int, name: bytes) -> None:
        over = self._links.dialled().get(relay)
        if over is not None:
            _said(over, peer, _UNKNOWN + name)

    def _gone(self, relay: int, peer: int) -> None:
        """The way to a peer does not lead through a relay any more."""
        now_s, attempt = time.monotonic(), self._attempts.get(peer)
        if attempt is not None and attempt.asked.pop(relay, None) is not None and not attempt.asked:
            del self._attempts[peer]
            self._try_later(peer, now_s)
        if peer in self._answered and self._answered[peer].relay == relay:
            del self._answered[peer]
        detour = self._wires.get(peer)
        if detour is not None and detour.relay == relay:
            self._break(peer, detour)

    def _break(self, peer: int, detour: Detour) -> None:
        self._avoided[detour.relay] = time.monotonic() + AVOID_S
        self._receiving.ended(peer, self._wires.pop(peer))
        if self._links.has(peer):
            self._seek(peer)


def _bytes_of(payload: Payload) -> bytes | memoryview:
    return payload.buffer if isinstance(payload, zmq.Frame) else payload


def _said(over: Wire, peer: int, content: bytes) -> bool:
    try:
        over.send(frames.relay(peer), content)
    except zmq.Again:
        return False
    return True
