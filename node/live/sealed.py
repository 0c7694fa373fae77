"""Frames that nobody but two nodes can read or change, whoever passes them on.

Both know each other's X25519 key, which certificates vouch for. Two messages agree on keys for one session, as pattern
KK of the Noise Protocol Framework does (Perrin, revision 34, 2018): fresh keys of both, so that nothing that is found
later opens it, mixed with the lasting ones, so that nobody else can have taken part. Frames are sealed by AES-256-GCM
and numbered: one that is missing, doubled or out of order ends the session. No I/O.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from node.errors import BadSignature
from node.transfer.sealing import KEY_BYTES, TAG_BYTES

OPENING_BYTES = KEY_BYTES + TAG_BYTES
"""A fresh public key, and the proof of who made it."""
NAME_BYTES = 8
_NUMBER_BYTES = 8


class Session:
    """One end of a session."""

    def __init__(self, name: bytes, sending: bytes, receiving: bytes) -> None:
        self.name = name
        """The same at both ends, and no secret."""
        self._sending, self._receiving = AESGCM(sending), AESGCM(receiving)
        self._sent = self._received = 0

    def seal(self, content: bytes) -> bytes:
        """A frame on its way: the session's name, its number, and what nobody can read.

        Once it has left, and before the next is sealed, call :meth:`sent`. One that could not leave was seen by nobody,
        so that its number is free.
        """
        number = self._sent.to_bytes(_NUMBER_BYTES, "big")
        return self.name + number + self._sending.encrypt(bytes(4) + number, content, self.name)

    def sent(self) -> None:
        """What was sealed last has left."""
        self._sent += 1

    def open(self, sealed: memoryview) -> bytes:
        """The content of the next frame; BadSignature for any other."""
        head = NAME_BYTES + _NUMBER_BYTES
        number = self._received.to_bytes(_NUMBER_BYTES, "big")
        if sealed[:head] != self.name + number:
            raise BadSignature(f"frame {self._received} of a session was to come, and did not")
        try:
            content = self._receiving.decrypt(bytes(4) + number, sealed[head:], self.name)
        except InvalidTag:
            raise BadSignature(f"frame {self._received} of a session was changed on its way") from None
        self._received += 1
        return content


class Opening:
    """The side that begins.

    Args:
        own: this node's X25519 secret key, 32 bytes.
        peer: the other's public key, 32 bytes.
        about: what the session is for, and who begins it with whom; the same at both ends.
    """

    def __init__(self, own: bytes, peer: bytes, about: bytes) -> None:
        self._own = X25519PrivateKey.from_private_bytes(own)
        self._peer = peer
        self._about = about
        self._fresh = X25519PrivateKey.generate()
        fresh = self._fresh.public_key().public_bytes_raw()
        self._shared = _agreed(self._fresh, peer) + _agreed(self._own, peer)
        self.message = fresh + _proof(self._shared, about, fresh)
        """What to send, OPENING_BYTES."""

    def finish(self, answer: bytes) -> Session:
        """The session, from the other's answer; BadSignature for one that is not its."""
        fresh = answer[:KEY_BYTES]
        shared = self._shared + _agreed(self._fresh, fresh) + _agreed(self._own, fresh)
        said = self.message + fresh
        _check(shared, self._about, said, answer[KEY_BYTES:])
        name, first, second = _keys(shared, self._about + said)
        return Session(name, first, second)


def answer(own: bytes, peer: bytes, about: bytes, message: bytes) -> tuple[bytes, Session]:
    """The other side: an answer, OPENING_BYTES, to an :class:`Opening`, and the session. BadSignature for a false one.

    A message that was heard before passes too, but its sender cannot say anything in the session.
    """
    own_key, theirs = X25519PrivateKey.from_private_bytes(own), message[:KEY_BYTES]
    shared = _agreed(own_key, theirs) + _agreed(own_key, peer)
    _check(shared, about, theirs, message[KEY_BYTES:])
    mine = X25519PrivateKey.generate()
    fresh = mine.public_key().public_bytes_raw()
    shared += _agreed(mine, theirs) + _agreed(mine, peer)
    said = message + fresh
    name, first, second = _keys(shared, about + said)
    return fresh + _proof(shared, about, said), Session(name, second, first)


def _agreed(secret: X25519PrivateKey, public: bytes) -> bytes:
    try:
        return secret.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise BadSignature("a key that is none") from None


def _derived(shared: bytes, about: bytes, size_bytes: int) -> bytes:
    return HKDF(hashes.SHA256(), size_bytes, b"starling/sealed/1", about).derive(shared)


def _keys(shared: bytes, about: bytes) -> tuple[bytes, bytes, bytes]:
    derived = _derived(shared, b"keys\0" + about, NAME_BYTES + 2 * KEY_BYTES)
    return derived[:NAME_BYTES], derived[NAME_BYTES:-KEY_BYTES], derived[-KEY_BYTES:]


def _proof(shared: bytes, about: bytes, said: bytes) -> bytes:
    # The key is derived from what is said, so it seals nothing else, and a nonce that never changes is none twice.
    return AESGCM(_derived(shared, b"proof\0" + about + said, KEY_BYTES)).encrypt(bytes(12), b"", None)


def _check(shared: bytes, about: bytes, said: bytes, proof: bytes) -> None:
    try:
        AESGCM(_derived(shared, b"proof\0" + about + said, KEY_BYTES)).decrypt(bytes(12), proof, None)
    except (InvalidTag, ValueError):
        raise BadSignature("the other end of a session is not who it ought to be") from None
