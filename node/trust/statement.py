"""Statements that one Ed25519 key has signed: their bytes, their signatures, and the only way to read them.

On the wire a statement is a version byte and a msgpack array of its fields, the signature last. What is signed is the
same without the signature behind a domain tag, so that a signature fits one kind of object. The encoding is canonical:
other bytes that mean the same are refused, so that a statement has one hash and one size.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, ClassVar, Self

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from node.identity import Identity
from node.trust.refusal import Reason, Refused

VERSION = 1

Identifier = Annotated[bytes, msgspec.Meta(min_length=20, max_length=20)]
"""Of a network or a peer: see :func:`~node.trust.certificate.peer_id`."""
PublicKey = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
Seconds = Annotated[int, msgspec.Meta(ge=0, lt=2**40)]
"""A time, in whole seconds since 1970."""
Number = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Text = Annotated[str, msgspec.Meta(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*\Z")]
"""One line for people."""


class Record(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Fields with one canonical form in bytes: a version byte, then msgpack."""

    most_bytes: ClassVar[int] = 1024
    """No longer one is read."""

    def to_bytes(self) -> bytes:
        """The canonical form."""
        return bytes([VERSION]) + msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the canonical form, believing nothing in it. Refused (malformed, version) for anything else."""
        what = cls.__name__.lower()
        if len(data) > cls.most_bytes:
            raise Refused(Reason.MALFORMED, f"a {what} of {len(data)} bytes; at most {cls.most_bytes} are allowed")
        if data[:1] != bytes([VERSION]):
            said = f"has version {data[0]}" if data else "is empty"
            raise Refused(Reason.VERSION, f"a {what} {said}; this program reads version {VERSION}")
        try:
            record = _decoder(cls).decode(data[1:])
        except (ValueError, RecursionError) as error:
            raise Refused(Reason.MALFORMED, f"not a {what}: {error}") from None
        if not isinstance(record, cls) or record.to_bytes() != data:
            raise Refused(Reason.MALFORMED, f"a {what} that is not in its canonical form")
        return record


class Statement(Record, frozen=True, kw_only=True):
    """A record that somebody has signed. Subclasses name the domain of their signatures, and never share one."""

    domain: ClassVar[bytes]

    signature: Signature = bytes(64)

    def signed_by(self, identity: Identity) -> Self:
        """The same with the signature of an identity."""
        return msgspec.structs.replace(self, signature=identity.sign(self._signed()))

    def check(self, signing_key: bytes) -> None:
        """Raise Refused (signature) unless the holder of an Ed25519 public key, 32 bytes, has signed exactly this."""
        if not self.is_signed_by(signing_key):
            raise Refused(Reason.SIGNATURE, f"a {type(self).__name__.lower()} is not signed by the key that it needs")

    def is_signed_by(self, signing_key: bytes) -> bool:
        """Whether the holder of an Ed25519 public key, 32 bytes, has signed exactly this."""
        return verifies(signing_key, self._signed(), self.signature)

    def _signed(self) -> bytes:
        # The signature is the last field, whatever else a subclass has.
        return self.domain + bytes([VERSION]) + msgspec.msgpack.encode(msgspec.structs.astuple(self)[:-1])


def verifies(signing_key: bytes, statement: bytes, signature: bytes) -> bool:
    """Whether an Ed25519 signature is that of this key over these bytes."""
    try:
        Ed25519PublicKey.from_public_bytes(signing_key).verify(signature, statement)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


@functools.cache
def _decoder(cls: type[Any]) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(cls)
