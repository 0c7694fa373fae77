"""How two members prove to each other who they are, once CURVE has made a link between two keys.

Three messages on a link that is encrypted already, as in the three-pass mutual authentication of ISO/IEC 9798-3: the
initiator opens with a hello, the responder replies with its own and a signature, the initiator proves itself with one.
Both sign all that was said, the link's two CURVE keys and what was chosen, which the session's id follows from; each in
its own part, so that no signature fits another session, another link, or the other side. Freshness comes from the
nonces; no clock decides.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, NamedTuple

import msgspec

from node.identity import Identity
from node.trust.certificate import Certificate
from node.trust.refusal import Reason, Refused
from node.trust.session import Session
from node.trust.statement import VERSION, Identifier, Number, Record, Seconds, Signature, verifies
from node.trust.succession import MOST, Succession
from node.trust.trust import Trust

DEADLINE_S = 5.0
"""What a peer is given between its first word and its proof."""
MOST_BYTES = 8 << 10
"""No message of a handshake is longer."""

_INITIATOR, _RESPONDER = b"starling/initiator/1\0", b"starling/responder/1\0"

Nonce = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Version = Annotated[int, msgspec.Meta(ge=0, lt=256)]
_Cipher = Annotated[str, msgspec.Meta(min_length=1, max_length=32)]


class Hello(Record, frozen=True):
    """Who one says to be, and what one can."""

    most_bytes = MOST_BYTES

    network: Identifier
    nonce: Nonce
    versions: Annotated[tuple[_Version, ...], msgspec.Meta(min_length=1, max_length=8)]
    ciphers: Annotated[tuple[_Cipher, ...], msgspec.Meta(min_length=1, max_length=8)]
    """The ones that it would use, best first; it offers none that it would not."""
    incarnation: Number
    time_s: Seconds
    """What its clock shows: a hint, for skew alone."""
    certificate: Certificate
    successions: Annotated[tuple[Succession, ...], msgspec.Meta(max_length=MOST)]
    """How the admission key came to be, for a peer that has slept through it."""


class _Opening(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    hello: bytes


class _Reply(msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True):
    hello: bytes
    signature: Signature


class _Proof(msgspec.Struct, frozen=True, array_like=True, tag=3, forbid_unknown_fields=True):
    signature: Signature


_decoder: msgspec.msgpack.Decoder[_Opening | _Reply | _Proof] = msgspec.msgpack.Decoder(_Opening | _Reply | _Proof)


@dataclass(frozen=True)
class Local:
    """This side of every handshake."""

    identity: Identity
    certificate: Certificate
    trust: Trust
    incarnation: int
    """Which life of this node this is; it grows with every start."""
    versions: tuple[int, ...] = (VERSION,)
    ciphers: tuple[str, ...] = ("aes-256-gcm", "chacha20-poly1305")
    """Best first."""


class Outcome(NamedTuple):
    """What follows from an event."""

    send: bytes | None = None
    session: Session | None = None
    """The peer has proved itself: the end. What is to be sent comes first."""


class _State(Enum):
    OPENING = "an opening"
    REPLY = "a reply"
    PROOF = "a proof"
    OVER = "nothing more"


class Handshake:
    """One side of one handshake. Whatever it refuses ends it; the link is then to be cut.

    Nothing is done for a stranger before its certificate has been checked, and nothing is kept of it but this.
    """

    def __init__(
        self, local: Local, nonce: bytes, link_key: bytes, now_s: float, *, timeout_s: float = DEADLINE_S
    ) -> None:
        """
        Args:
            nonce: 32 bytes of a secure random source, never used before.
            link_key: the CURVE public key of the link's other end, 32 bytes.
            now_s: seconds of any one clock that does not jump.
        """
        self.deadline_s = now_s + timeout_s
        self._local = local
        self._nonce = nonce
        self._link_key = link_key
        self._state = _State.OPENING
        self._expected: int | None = None
        self._hello = b""
        self._theirs: Hello | None = None
        self._transcript = b""

    def open(self, wall_s: float, expected: int | None = None) -> bytes:
        """Begin, as the one that has dialled; gives what to send.

        ``wall_s``: our clock, seconds since 1970; ``expected``: the node that the link was meant for.
        """
        self._expect(_State.OPENING)
        self._state = _State.REPLY
        self._expected = expected
        self._hello = self._our_hello(wall_s)
        return _encode(_Opening(self._hello))

    def receive(self, data: bytes, now_s: float, wall_s: float) -> Outcome:
        """A message of the peer. Raises Refused, and never answers again, for one that is not to be believed."""
        try:
            self.check_deadline(now_s)
            match _decode(data):
                case _Opening(hello):
                    return self._on_opening(hello, wall_s)
                case _Reply(hello, signature):
                    return self._on_reply(hello, signature, wall_s)
                case _Proof(signature):
                    return self._on_proof(signature, wall_s)
        except Refused:
            self._state = _State.OVER
            raise

    def check_deadline(self, now_s: float) -> None:
        """Refused (deadline) if the peer has not proved itself in time."""
        if now_s > self.deadline_s and self._state is not _State.OVER:
            self._state, awaited = _State.OVER, self._state
            raise Refused(Reason.DEADLINE, f"waited for {awaited.value} of the peer in vain")

    def _on_opening(self, hello: bytes, wall_s: float) -> Outcome:
        self._expect(_State.OPENING)
        theirs = self._believe(hello, wall_s)
        self._hello = self._our_hello(wall_s)
        self._agree(theirs, hello, self._hello, initiator=False)
        self._state = _State.PROOF
        return Outcome(_encode(_Reply(self._hello, self._local.identity.sign(_RESPONDER + self._transcript))))

    def _on_reply(self, hello: bytes, signature: bytes, wall_s: float) -> Outcome:
        self._expect(_State.REPLY)
        theirs = self._believe(hello, wall_s)
        self._agree(theirs, self._hello, hello, initiator=True)
        session = self._established(_RESPONDER, signature, wall_s)
        return Outcome(_encode(_Proof(self._local.identity.sign(_INITIATOR + self._transcript))), session)

    def _on_proof(self, signature: bytes, wall_s: float) -> Outcome:
        self._expect(_State.PROOF)
        return Outcome(None, self._established(_INITIATOR, signature, wall_s))

    def _expect(self, state: _State) -> None:
        if self._state is not state:
            raise Refused(Reason.ORDER, f"the peer sent {state.value} where it had to send {self._state.value}")

    def _our_hello(self, wall_s: float) -> bytes:
        local = self._local
        return Hello(
            local.certificate.network,
            self._nonce,
            local.versions,
            local.ciphers,
            local.incarnation,
            int(wall_s),
            local.certificate,
            tuple(local.trust.successions),
        ).to_bytes()

    def _believe(self, data: bytes, wall_s: float) -> Hello:
        """A hello whose certificate counts and is that of the link's key; that its sender is the holder comes later."""
        hello = Hello.from_bytes(data)
        certificate = hello.certificate
        if hello.network != self._local.certificate.network:
            raise Refused(Reason.NETWORK, "a hello from another network")
        if hello.nonce == self._nonce or certificate.signing_key == self._local.identity.signing_public:
            raise Refused(Reason.REPLAY, "our own hello came back, or another process has our keys")
        if certificate.curve_key != self._link_key:
            raise Refused(Reason.KEY, f"the certificate of node {certificate.node} over a link of another CURVE key")
        if self._expected not in (None, certificate.node):
            raise Refused(Reason.SENDER, f"node {certificate.node} answers where node {self._expected} was to be")
        self._local.trust.succeed(hello.successions)
        self._local.trust.check(certificate, wall_s)
        self._offset_s = hello.time_s - wall_s
        return hello

    def _agree(self, theirs: Hello, opening: bytes, reply: bytes, *, initiator: bool) -> None:
        local = self._local
        versions = sorted(set(local.versions) & set(theirs.versions))
        ours_first = (local.ciphers, theirs.ciphers) if initiator else (theirs.ciphers, local.ciphers)
        ciphers = [cipher for cipher in ours_first[0] if cipher in ours_first[1]]
        if not versions or not ciphers:
            raise Refused(Reason.VERSION, f"node {theirs.certificate.node} speaks no version, or no cipher, that we do")
        self._theirs, self._version, self._cipher = theirs, versions[-1], ciphers[0]
        own_key, their_key = local.identity.curve_public, self._link_key
        keys = (own_key, their_key) if initiator else (their_key, own_key)
        said = msgspec.msgpack.encode((opening, reply, *keys, self._version, self._cipher))
        self._transcript = hashlib.sha256(b"starling/handshake/1\0" + said).digest()

    def _established(self, part: bytes, signature: bytes, wall_s: float) -> Session:
        theirs, session = self._theirs, hashlib.sha256(b"starling/session/1\0" + self._transcript).digest()[:16]
        if theirs is None or not verifies(theirs.certificate.signing_key, part + self._transcript, signature):
            raise Refused(
                Reason.SIGNATURE, "the peer does not hold the key of its certificate, or heard something else"
            )
        self._local.trust.learn(theirs.certificate, wall_s)
        self._state = _State.OVER
        return Session(session, theirs.certificate, theirs.incarnation, self._version, self._cipher, self._offset_s)


def _encode(message: _Opening | _Reply | _Proof) -> bytes:
    return bytes([VERSION]) + msgspec.msgpack.encode(message)


def _decode(data: bytes) -> _Opening | _Reply | _Proof:
    if len(data) > MOST_BYTES:
        raise Refused(Reason.MALFORMED, f"{len(data)} bytes of a handshake; at most {MOST_BYTES} are allowed")
    if data[:1] != bytes([VERSION]):
        raise Refused(Reason.VERSION, f"a handshake of version {data[:1].hex() or 'none'}; this program has {VERSION}")
    try:
        return _decoder.decode(data[1:])
    except (ValueError, RecursionError) as error:
        raise Refused(Reason.MALFORMED, f"nothing that belongs to a handshake: {error}") from None
