"""Secrets that two nodes share, one keystream a round from each, and a book that no keystream is used twice.

Two nodes agree by Diffie-Hellman on X25519 keys that a roster vouches for (RFC 7748); HKDF-SHA256 (RFC 5869) gives one
key for each purpose and run; ChaCha20 (RFC 8439) turns it into one stream for each round and receiver. A simulation
derives the secrets from its seed: any of its nodes could then read all of them.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Literal, Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from node.errors import BadSignature, ConfigError, NotAMember, ProtocolError
from node.op import Key
from node.privacy.noise import KEY_BYTES, Keystream

Purpose = Literal["decor", "secagg", "share", "self"]
"""What a stream is for: correlated noise, masks of secure aggregation, sealed shares of these, or a node's own ones."""

_PAIR = b"starling/pair/1\0"
_SEED = b"starling/insecure/1\0"


class PairSecrets:
    """What one node shares with each of its peers, for one run."""

    def __init__(self, me: int, run: bytes, agree: Callable[[int], bytes], origin: bytes, insecure: bool) -> None:
        """``agree`` gives the secret shared with a peer; ``run`` names the run, the same at all nodes and never again;
        ``origin`` is public, and different for other secrets.

        Make one with :meth:`exchanged` or :meth:`seeded`. Raises ConfigError for a run without a name.
        """
        if not run:
            raise ConfigError("run: an empty name would give two runs the same masks; allowed are any other bytes")
        self.me = me
        self.run = run
        self.insecure = insecure
        """Whether the secrets follow from the seed, so that every node knows all of them."""
        self._agree = agree
        self._origin = origin
        self._keys: dict[tuple[Purpose, int], bytes] = {}

    @classmethod
    def exchanged(cls, me: int, secret_key: bytes, public_keys: Mapping[int, bytes], run: bytes) -> Self:
        """Secrets from this node's X25519 secret key and its peers' public ones, 32 bytes each.

        The peers' keys must be authentic: take them from a verified roster, or from messages signed by their owners.
        """
        own = X25519PrivateKey.from_private_bytes(secret_key)

        def agree(peer: int) -> bytes:
            if peer == me:
                return own.exchange(own.public_key())
            if peer not in public_keys:
                raise NotAMember(f"node {peer} has shown no key to share a secret with; wait for its card")
            try:
                return own.exchange(X25519PublicKey.from_public_bytes(public_keys[peer]))
            except ValueError as error:
                raise BadSignature(
                    f"the X25519 key of node {peer} is of no use ({error}); ask for a new card"
                ) from None

        return cls(me, run, agree, own.public_key().public_bytes_raw(), insecure=False)

    @classmethod
    def seeded(cls, me: int, seed: int, run: bytes) -> Self:
        """Secrets that anyone who knows the experiment's seed can derive: for simulations, and runs to compare."""

        known = seed.to_bytes(16, "little")

        def agree(peer: int) -> bytes:
            return _derive(known, _SEED + _pair(me, peer))

        return cls(me, run, agree, known, insecure=True)

    def stream(self, purpose: Purpose, peer: int, round: int, receiver: int = 0) -> Keystream:
        """The stream that this node shares with a peer in a round, for values that one receiver sums up, if any.

        The same at both ends. What it hides is hidden once: a sender takes each pair of round and receiver only once
        (:class:`Rounds`). With the purpose "self", and no other, the peer is the node itself. Raises NotAMember and
        BadSignature where there is no key of the peer, or none that works.
        """
        if not 0 <= round < 2**64 or not 0 <= receiver < 2**32:
            raise ProtocolError(
                f"round {round} has no keystream for node {receiver}: rounds are counted from 0, below 2**64, and nodes"
                " below 2**32"
            )
        nonce = struct.pack("<III", round % 2**32, receiver, round // 2**32)
        return Keystream(self._key(purpose, peer), nonce)

    def basis(self, key: Key) -> bytes:
        """What the value of an op that reads these secrets follows from, besides its task: for ``Op.basis``."""
        parts = (struct.pack("<Q", self.me), self.run, self._origin, _sources())
        return b"".join(blake2b(part, digest_size=16).digest() for part in parts)

    def _key(self, purpose: Purpose, peer: int) -> bytes:
        if (peer == self.me) != (purpose == "self"):
            raise ProtocolError(
                f"node {self.me} shares no secret with node {peer} for {purpose!r}: it is its own, or none"
            )
        if (purpose, peer) not in self._keys:
            label = _PAIR + purpose.encode() + b"\0" + _pair(self.me, peer) + self.run
            self._keys[purpose, peer] = _derive(self._agree(peer), label)
        return self._keys[purpose, peer]


class Rounds:
    """For each receiver, the last round that something was masked for: no round comes twice, nor after a later one."""

    def __init__(self, last: Mapping[int, int] | None = None) -> None:
        """``last``: what :attr:`last` was before a restart. A node that forgets it must change the run's name."""
        self.last = dict(last or {})

    def take(self, round: int, receiver: int) -> None:
        """Use up a round. Raises ProtocolError for one that is used up, or earlier than one that is."""
        if round <= self.last.get(receiver, -1):
            raise ProtocolError(
                f"round {round} for node {receiver} comes after round {self.last[receiver]}: a mask that is used twice "
                "hides nothing; go on to a later round"
            )
        self.last[receiver] = round


@functools.cache
def _sources() -> bytes:
    """All of this package: too much rather than too little."""
    return b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))


def _pair(one: int, other: int) -> bytes:
    return struct.pack("<QQ", min(one, other), max(one, other))


def _derive(secret: bytes, label: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=label).derive(secret)
