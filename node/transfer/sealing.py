"""Chunks that nobody on the way can read or change: authenticated encryption under a key that serves one attempt.

AES-256-GCM or ChaCha20-Poly1305, equally strong; which is faster depends on the machine. A nonce is the number of the
chunk, so no chunk is ever sealed twice under one key; an attempt that resumes another has a key of its own. What a
chunk belongs to is authenticated with it (associated data).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from node.errors import BadFrame, BadSignature
from node.transfer.manifest import Bytes

KEY_BYTES = 32
TAG_BYTES = 16
"""What sealing adds to a chunk."""
PROOF_BYTES = TAG_BYTES

Aead: TypeAlias = AESGCM | ChaCha20Poly1305
CIPHERS: dict[str, type[AESGCM] | type[ChaCha20Poly1305]] = {
    "aes-256-gcm": AESGCM,
    "chacha20-poly1305": ChaCha20Poly1305,
}
_CHUNKS, _PROOF = b"\0", b"\1"


def choose(offered: Iterable[str], preferred: Iterable[str]) -> str:
    """The first of our preferred ciphers that a peer knows too; BadFrame where there is none."""
    known = list(offered)
    for name in preferred:
        if name in known:
            return name
    raise BadFrame(f"no common cipher: a peer knows {', '.join(known)[:80] or 'none'}; here {', '.join(CIPHERS)}")


def fresh_key() -> bytes:
    """A key from the operating system's random source."""
    return os.urandom(KEY_BYTES)


class Seal:
    """Seals or opens the chunks of one attempt. Safe from several threads."""

    def __init__(self, key: bytes, cipher: str, belongs: bytes) -> None:
        """``belongs`` says what the chunks are of, the same at both ends. BadFrame for an unknown cipher or bad key."""
        if cipher not in CIPHERS or len(key) != KEY_BYTES:
            raise BadFrame(f"cipher {cipher[:40]!r} with a key of {len(key)} bytes; known are {', '.join(CIPHERS)}")
        self._aead: Aead = CIPHERS[cipher](key)
        self._belongs = belongs

    def seal(self, index: int, chunk: Bytes, into: memoryview) -> None:
        """Seal a chunk into a buffer of its size and ``TAG_BYTES``. Never twice the same index."""
        self._aead.encrypt_into(_nonce(_CHUNKS, index), chunk, self._belongs, into)

    def open(self, index: int, sealed: Bytes, into: memoryview) -> None:
        """Open a sealed chunk into a buffer of its size. BadSignature for any other bytes than were sealed."""
        try:
            self._aead.decrypt_into(_nonce(_CHUNKS, index), sealed, self._belongs, into)
        except InvalidTag:
            raise BadSignature(f"chunk {index} was changed on its way, or is sealed for another transfer") from None

    def proof(self) -> bytes:
        """Shows that one knows the key, without telling it."""
        return self._aead.encrypt(_nonce(_PROOF, 0), b"", self._belongs)

    def check(self, proof: bytes) -> None:
        """BadSignature unless whoever made this proof knows the key."""
        try:
            self._aead.decrypt(_nonce(_PROOF, 0), proof, self._belongs)
        except InvalidTag:
            raise BadSignature("whoever dialled does not know the key of the transfer it names") from None


def _nonce(direction: bytes, index: int) -> bytes:
    return direction + index.to_bytes(11, "big")
