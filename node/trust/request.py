"""What passes over the admission link: a stranger asks to join or a member to renew, and one of two answers.

The link is encrypted to the admitting node's CURVE key, which the token names, and authenticates the key of who asks.
A request is about that key, so that one who has overheard or stolen it can use it on no other link; asking again is
the same use. So it needs no freshness of its own.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, TypeVar

import msgspec

from node.identity import CARD_BYTES, Identity
from node.trust.certificate import Certificate
from node.trust.refusal import Reason, Refused
from node.trust.revocation import Revocation
from node.trust.statement import VERSION, Identifier, PublicKey, Seconds, Signature, Statement, verifies
from node.trust.succession import Succession
from node.trust.token import Secret, Token, TokenId

_Message = TypeVar("_Message")

MOST_REQUEST_BYTES = 1024
MOST_ANSWER_BYTES = 256 << 10


class Join(Statement, frozen=True, tag="join"):
    """Asks for a certificate of two keys; signed by the Ed25519 one."""

    domain = b"starling/join/1\0"

    network: Identifier
    signing_key: PublicKey
    curve_key: PublicKey
    token: TokenId | None
    """None: the network is hoped to be open."""
    secret: Secret | None

    @classmethod
    def by(cls, identity: Identity, token: Token) -> Join:
        """The request of an identity that has been given a token."""
        keys = (identity.signing_public, identity.curve_public)
        return cls(token.network, *keys, token.id, token.secret).signed_by(identity)

    def __repr__(self) -> str:
        return f"<Join with token {self.token.hex() if self.token else 'none'}>"


class Renew(Statement, frozen=True, tag="renew"):
    """A member asks for a certificate that lasts longer, for its own keys or new ones; signed by its Ed25519 key."""

    domain = b"starling/renew/1\0"

    network: Identifier
    old_key: PublicKey
    """The Ed25519 key of the member."""
    signing_key: PublicKey
    """The Ed25519 key from now on; the same, where only the time is to be longer."""
    curve_key: PublicKey
    consent: Signature
    """The new Ed25519 key's signature: nobody's key is taken without its holder."""

    @classmethod
    def by(cls, old: Identity, new: Identity, network: bytes) -> Renew:
        """The request of an identity to go on as another one, or as itself."""
        keys = (old.signing_public, new.signing_public, new.curve_public)
        return cls(network, *keys, new.sign(_consent(network, *keys))).signed_by(old)

    def check_both(self) -> None:
        """Refused (signature) unless both keys have agreed."""
        self.check(self.old_key)
        wanted = _consent(self.network, self.old_key, self.signing_key, self.curve_key)
        if not verifies(self.signing_key, wanted, self.consent):
            raise Refused(Reason.SIGNATURE, "the new key has not agreed to take over from the old one")


def _consent(network: bytes, old_key: bytes, signing_key: bytes, curve_key: bytes) -> bytes:
    return b"starling/consent/1\0" + hashlib.sha256(network + old_key + signing_key + curve_key).digest()


class Member(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Somebody to talk to."""

    certificate: Certificate
    card: Annotated[bytes, msgspec.Meta(max_length=CARD_BYTES)] = b""
    """Where it can be reached, a :class:`~node.identity.Card`; empty where the admitting node does not know."""


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag="welcome", forbid_unknown_fields=True):
    """All that a member needs to begin. The statements in it are signed; believe the rest as far as the link."""

    certificate: Certificate
    successions: tuple[Succession, ...]
    """How the founding admission key led to the one that signs now, all of it."""
    revocations: tuple[Revocation, ...]
    """Whom not to accept, from the start."""
    members: tuple[Member, ...]
    """As many as there was room for."""
    name: Annotated[str, msgspec.Meta(max_length=128)]
    experiment: Annotated[str, msgspec.Meta(max_length=1 << 20)]
    """The experiment that the network runs: a TOML file."""
    time_s: Seconds
    """The admitting node's clock."""


class Turned(msgspec.Struct, frozen=True, array_like=True, tag="turned", forbid_unknown_fields=True):
    """A refusal, as briefly as a stranger may know it."""

    reason: Reason


_requests: msgspec.msgpack.Decoder[Join | Renew] = msgspec.msgpack.Decoder(Join | Renew)
_answers: msgspec.msgpack.Decoder[Welcome | Turned] = msgspec.msgpack.Decoder(Welcome | Turned)


def encode(message: Join | Renew | Welcome | Turned) -> bytes:
    """A request or answer on the wire."""
    return bytes([VERSION]) + msgspec.msgpack.encode(message)


def decode_request(data: bytes) -> Join | Renew:
    """Read a request, believing nothing in it. Refused (malformed, version) for anything else."""
    return _read(data, _requests, MOST_REQUEST_BYTES)


def decode_answer(data: bytes) -> Welcome | Turned:
    """Read an answer, believing nothing in it. Refused (malformed, version) for anything else."""
    return _read(data, _answers, MOST_ANSWER_BYTES)


def _read(data: bytes, decoder: msgspec.msgpack.Decoder[_Message], most_bytes: int) -> _Message:
    if len(data) > most_bytes:
        raise Refused(Reason.MALFORMED, f"{len(data)} bytes over the admission link; at most {most_bytes} are allowed")
    if data[:1] != bytes([VERSION]):
        raise Refused(Reason.VERSION, f"version {data[:1].hex() or 'none'}; this program speaks {VERSION}")
    try:
        return decoder.decode(data[1:])
    except (ValueError, RecursionError) as error:
        raise Refused(Reason.MALFORMED, f"nothing that passes over the admission link: {error}") from None
