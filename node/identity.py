"""Who a node is: its keys, the card that it shows to others, and the roster of those it talks to.

An identity is two key pairs: Ed25519 signs, X25519 (what ZeroMQ calls CURVE) encrypts links. A card binds both public
keys to a node number, an address and a network; only the holder of the signing key can make it. A roster is the
verified cards of one network: a link is admitted by its CURVE key, so nobody has to claim a number.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from node.errors import BadFrame, BadSignature, ConfigError, FrameTooLarge, NotAMember

CARD_BYTES = 1024
"""No card is longer."""
OUTBOUND = "outbound"
"""Instead of an address: of a node that nobody can dial."""

_CARD_DOMAIN = b"starling/card/1\0"
_FILE_BYTES = 4096

_Bytes32 = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Bytes64 = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
_Node = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
_Address = Annotated[str, msgspec.Meta(max_length=255, pattern=r"^(outbound|tcp://[A-Za-z0-9._:%\[\]-]+:[0-9]{1,5})\Z")]
_Network = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+\Z")]


class _KeyFile(msgspec.Struct, forbid_unknown_fields=True):
    starling_identity: int
    signing_key: _Bytes32
    curve_key: _Bytes32


@dataclass(frozen=True, eq=False)
class Identity:
    """A node's two secret keys. Never leaves the node; its ``repr`` shows public parts only."""

    _signing: Ed25519PrivateKey
    _curve: X25519PrivateKey

    @classmethod
    def generate(cls) -> Self:
        """New keys from the operating system's random source."""
        return cls(Ed25519PrivateKey.generate(), X25519PrivateKey.generate())

    @property
    def signing_public(self) -> bytes:
        """The Ed25519 public key, 32 bytes."""
        return self._signing.public_key().public_bytes_raw()

    @property
    def curve_public(self) -> bytes:
        """The CURVE public key, 32 bytes."""
        return self._curve.public_key().public_bytes_raw()

    @property
    def curve_secret(self) -> bytes:
        """The CURVE secret key, 32 bytes: for the transport alone."""
        return self._curve.private_bytes_raw()

    def __repr__(self) -> str:
        return f"<Identity {self.signing_public.hex()[:16]}>"

    def sign(self, statement: bytes) -> bytes:
        """An Ed25519 signature, 64 bytes. What the statement is for goes first in it, so that it passes for no other.

        :meth:`Card.check` verifies it.
        """
        return self._signing.sign(statement)

    def card(self, node: int, address: str, network: str) -> Card:
        """The signed card of this identity. A field that no card can hold is a ConfigError."""
        card = Card(node, self.signing_public, self.curve_public, address, network, bytes(64))
        try:
            msgspec.convert(card._fields(), _CARD)
        except msgspec.ValidationError as error:
            raise ConfigError(
                f"card: node {node}, address {address!r}, network {network!r}: {error}; allowed are a number below "
                "2**62, 'tcp://host:port' or 'outbound', and up to 128 printable characters without spaces"
            ) from None
        return Card(*card._fields()[:-1], self.sign(card._signed()))

    def save(self, path: Path) -> None:
        """Write the keys to a new file of mode 0600, in a folder of mode 0700. An existing file is a ConfigError."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _refuse_open(path.parent, path.parent.stat().st_mode)
        content = _KeyFile(1, self._signing.private_bytes_raw(), self.curve_secret)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise ConfigError(f"identity: {path} cannot be created: {error.strerror}; name a new file") from error
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(content) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the keys. A file that is missing, open to others or damaged is a ConfigError, never a new identity."""
        try:
            _refuse_open(path.parent, path.parent.stat().st_mode)
            with path.open("rb") as file:
                _refuse_open(path, os.fstat(file.fileno()).st_mode)
                content = msgspec.json.decode(file.read(_FILE_BYTES), type=_KeyFile)
        except OSError as error:
            raise ConfigError(f"identity: {path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"identity: {path} holds no keys ({error}); restore it, or name a new file") from None
        if content.starling_identity != 1:
            raise ConfigError(f"identity: {path} has version {content.starling_identity}; this program reads 1")
        return cls(
            Ed25519PrivateKey.from_private_bytes(content.signing_key),
            X25519PrivateKey.from_private_bytes(content.curve_key),
        )


def _refuse_open(path: Path, mode: int) -> None:
    if stat.S_IMODE(mode) & 0o077:
        wanted = "700" if stat.S_ISDIR(mode) else "600"
        raise ConfigError(f"identity: {path} is open to others (mode {stat.S_IMODE(mode):o}): chmod {wanted} {path}")


_CARD = tuple[_Node, _Bytes32, _Bytes32, _Address, _Network, _Bytes64]
_card_decoder = msgspec.msgpack.Decoder(_CARD)


@dataclass(frozen=True, slots=True)
class Card:
    """What a node shows of itself. Believe nothing in it before :meth:`verify`."""

    node: int
    signing_key: bytes
    """Ed25519 public key, 32 bytes."""
    curve_key: bytes
    """CURVE public key, 32 bytes."""
    address: str
    """Where it listens: ``tcp://host:port``; or ``outbound``: nowhere, it opens all of its links itself."""
    network: str
    """Which network (or run) the card is for."""
    signature: bytes
    """Ed25519, 64 bytes, over all of the above."""

    @property
    def is_outbound(self) -> bool:
        """Whether nobody can dial it."""
        return self.address == OUTBOUND

    def _fields(self) -> tuple[int, bytes, bytes, str, str, bytes]:
        return self.node, self.signing_key, self.curve_key, self.address, self.network, self.signature

    def _signed(self) -> bytes:
        return _CARD_DOMAIN + msgspec.msgpack.encode(self._fields()[:-1])

    def verify(self) -> None:
        """Raise BadSignature unless the holder of the signing key made this card as it is."""
        try:
            Ed25519PublicKey.from_public_bytes(self.signing_key).verify(self.signature, self._signed())
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError, OverflowError):
            raise BadSignature(f"the card of node {self.node} is not signed by its key; ask for a new one") from None

    def check(self, statement: bytes, signature: bytes) -> None:
        """Raise BadSignature unless the holder of this card's signing key has signed the statement; verify it first."""
        try:
            Ed25519PublicKey.from_public_bytes(self.signing_key).verify(signature, statement)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
            raise BadSignature(f"node {self.node} has not signed what it is said to have said") from None

    def to_bytes(self) -> bytes:
        """The card on the wire: at most CARD_BYTES."""
        return msgspec.msgpack.encode(self._fields())

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read a card, unverified. Anything malformed is a BadFrame (beyond CARD_BYTES: FrameTooLarge)."""
        if len(data) > CARD_BYTES:
            raise FrameTooLarge(f"a card of {len(data)} bytes; at most {CARD_BYTES} are allowed")
        try:
            return cls(*_card_decoder.decode(data))
        except ValueError as error:
            raise BadFrame(f"not a card: {error}") from None

    def to_text(self) -> str:
        """The card as one word of URL-safe base64, to paste or to put in a file."""
        return base64.urlsafe_b64encode(self.to_bytes()).decode("ascii")

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read what :meth:`to_text` wrote, unverified. Raises as :meth:`from_bytes`."""
        if len(text) > CARD_BYTES * 2:
            raise FrameTooLarge(f"a card of {len(text)} characters; at most {CARD_BYTES * 2} are allowed")
        try:
            return cls.from_bytes(base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True))
        except (binascii.Error, UnicodeEncodeError):
            raise BadFrame("not a card: its text is not URL-safe base64") from None


class Roster:
    """The verified cards of one network: every number and every key is there once."""

    def __init__(self, cards: Iterable[Card], *, are_verified: bool = False) -> None:
        """Verify the cards, unless they already are; BadSignature for a false one.

        ConfigError for two that do not go together.
        """
        self._cards = sorted(cards, key=lambda card: card.node)
        for card in self._cards if not are_verified else ():
            card.verify()
        for what in ("node", "signing_key", "curve_key"):
            _refuse_twins(self._cards, what)
        networks = sorted({card.network for card in self._cards})
        if len(networks) != 1:
            raise ConfigError(f"roster: cards of {len(networks)} networks {networks}; all must be of one")
        self.network = networks[0]
        self._by_node = {card.node: card for card in self._cards}
        self._by_curve_key = {card.curve_key: card for card in self._cards}

    def card(self, node: int) -> Card:
        """The card of a node; NotAMember where there is none."""
        try:
            return self._by_node[node]
        except KeyError:
            raise NotAMember(f"node {node} is not in the roster of network {self.network!r}") from None

    def holder(self, curve_key: bytes) -> Card | None:
        """The card that carries a CURVE public key (32 bytes), or None for a stranger's."""
        return self._by_curve_key.get(curve_key)

    def __contains__(self, node: object) -> bool:
        return node in self._by_node

    def __iter__(self) -> Iterator[Card]:
        return iter(self._cards)

    def __len__(self) -> int:
        return len(self._cards)


def _refuse_twins(cards: list[Card], what: str) -> None:
    seen: dict[object, Card] = {}
    for card in cards:
        twin = seen.setdefault(getattr(card, what), card)
        if twin is not card:
            raise ConfigError(f"roster: nodes {twin.node} and {card.node} have the same {what}; each needs its own")
