"""Invitations as one word to paste: where to go, whom to believe there, and the secret that lets one in.

``starling1_`` and then, in URL-safe base64 without padding, the canonical record and its CRC-32: the checksum tells a
slip of the hand from an attack, and is no protection. A token is a bearer secret; its ``repr`` shows only its id.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from typing import Annotated

import msgspec

from node.errors import ConfigError
from node.trust.certificate import Role, id_text
from node.trust.refusal import Reason, Refused
from node.trust.statement import Identifier, PublicKey, Record, Seconds

PREFIX = "starling1_"
MOST_TEXT = 1400
"""Characters of the longest token that is read."""
MOST_USES = 1_000_000

_FORM = re.compile(r"starling(?P<version>[0-9]{1,9})_(?P<content>[A-Za-z0-9_-]*)")
_CHECKSUM_BYTES = 4

TokenId = Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]
Secret = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
HostPort = Annotated[str, msgspec.Meta(max_length=255, pattern=r"^[A-Za-z0-9._:%\[\]-]+:[0-9]{1,5}\Z")]


class Bootstrap(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An admitting node."""

    address: HostPort
    """``host:port``."""
    curve_key: PublicKey


class Token(Record, frozen=True):
    """An invitation to a network. One to an open network has neither id nor secret: anybody may know it."""

    network: Identifier
    admission_key: PublicKey
    """The Ed25519 key that signs certificates, or has named those that came after it."""
    bootstrap: Annotated[tuple[Bootstrap, ...], msgspec.Meta(min_length=1, max_length=4)]
    role: Role
    expires_s: Seconds
    """0, in that to an open network: never."""
    uses: Annotated[int, msgspec.Meta(ge=0, le=MOST_USES)]
    """How often it could be used when it was made; 0, in that to an open network: as often as one likes."""
    id: TokenId | None
    secret: Secret | None

    def __post_init__(self) -> None:
        if (self.id is None) != (self.secret is None):
            raise ValueError("an id without a secret, or the other way round")

    def to_text(self) -> str:
        """The token itself: whoever reads it can join."""
        content = self.to_bytes()[1:]  # the version is in the prefix
        return PREFIX + _base64(content + _checksum(content))

    @classmethod
    def from_text(cls, text: str) -> Token:
        """Read a token. ConfigError, one line that does not repeat it, for anything else."""
        content = _content(text.strip())
        try:
            return cls.from_bytes(bytes([1]) + content)
        except Refused as refused:
            raise _wrong(f"its content is wrong ({refused.detail})") from None

    def check(self, now_s: float) -> None:
        """Refused (expired) if its time is over by our own clock; the admitting node's decides."""
        if self.expires_s and now_s > self.expires_s:
            raise Refused(Reason.EXPIRED, f"{self!r} ended {now_s - self.expires_s:.0f} s ago; ask for a new one")

    def __repr__(self) -> str:
        return f"<Token {self.id.hex() if self.id else 'open'} of network {id_text(self.network)}>"


def _content(text: str) -> bytes:
    if not text:
        raise _wrong("it is empty")
    if len(text) > MOST_TEXT:
        raise _wrong(f"it has {len(text)} characters; at most {MOST_TEXT} are allowed")
    match = _FORM.fullmatch(text)
    if match is None:
        if re.search(r"\s", text):
            raise _wrong("it contains a space or line break: paste it as one line")
        raise _wrong(f"it must begin with {PREFIX!r} and have only letters, digits, '-' and '_' after it")
    if match["version"] != "1":
        raise _wrong(f"it has version {match['version']}; this program reads 1: bring both to the same version")
    content = _unbase64(match["content"])
    if content is None or _checksum(content[:-_CHECKSUM_BYTES]) != content[-_CHECKSUM_BYTES:]:
        raise _wrong("its checksum does not fit: a character is wrong, or its end is missing; copy it again")
    return content[:-_CHECKSUM_BYTES]


def _wrong(why: str) -> ConfigError:
    return ConfigError(f"token: {why}; allowed: what 'starling network invite' has printed")


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(PREFIX.encode() + content).to_bytes(_CHECKSUM_BYTES, "big")


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _unbase64(text: str) -> bytes | None:
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error:
        return None
    return data if _base64(data) == text else None
