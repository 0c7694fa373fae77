"""Streams of standard normal numbers: repeatable under the virtual clock, unpredictable when live.

Whoever knows a stream's seed can subtract its noise. A :class:`Seeded` stream therefore protects nobody: it is for
simulations, whose noise must be the same in every run. A live node draws from a ChaCha20 keystream whose key nobody
else knows; two nodes that share a key share a stream, which is what correlated noise and masks are made of.

The numbers are floating-point: an attacker who sees every bit of a noised value can tell some sums from others (Jin et
al., S&P 2022). No mechanism here defends against that.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol as Interface

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

from node.op import Key
from node.private import Coins

KEY_BYTES = 32
NONCE_BYTES = 12
_COUNTER = bytes(4)
_WORDS = 2.0**32
_APART = 1


class NoiseStream(Interface):
    """Independent standard normal numbers, one after another."""

    def normals(self, count: int) -> NDArray[np.float64]:
        """The next numbers, shape (count,)."""
        ...


NoiseSource = Callable[[Key], NoiseStream]
"""Where the noise of a task comes from: :func:`seeded` or :func:`secret`."""


class Seeded:
    """Repeatable numbers for simulations, independent of ``Key.rng`` of the same key. Not secret."""

    def __init__(self, key: Key) -> None:
        # Counters of Key.rng start at 0 in their two low words, which no task counts through.
        counter = [0, _APART, key.counter, key.node]
        self._generator = np.random.Generator(np.random.Philox(key=key.seed, counter=counter))

    def normals(self, count: int) -> NDArray[np.float64]:
        """The next numbers, shape (count,)."""
        return self._generator.standard_normal(count)


class Keystream:
    """The numbers of one ChaCha20 keystream (RFC 8439): the same for all who hold its key and nonce.

    Never use a key and nonce for two streams.
    """

    def __init__(self, key: bytes, nonce: bytes = bytes(NONCE_BYTES)) -> None:
        """``key``: 32 bytes, ``nonce``: 12 bytes; ValueError for other lengths."""
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"a nonce of {len(nonce)} bytes; {NONCE_BYTES} are needed")
        self._cipher = Cipher(ChaCha20(key, _COUNTER + nonce), mode=None).encryptor()

    def words(self, count: int) -> NDArray[np.uint32]:
        """The next uniformly distributed 32-bit words, shape (count,)."""
        return np.frombuffer(self._cipher.update(bytes(4 * count)), "<u4").astype(np.uint32, copy=False)

    def random(self, count: int) -> NDArray[np.float64]:
        """The next numbers uniform from 0 up to 1, of 53 bits as numpy's are, shape (count,)."""
        words = self.words(2 * count).reshape(-1, 2)
        return ((words[:, 0] >> 5) * 2.0**26 + (words[:, 1] >> 6)) * 2.0**-53

    def normals(self, count: int) -> NDArray[np.float64]:
        """The next numbers, shape (count,), from two words a pair (Box and Muller, 1958); none is beyond 6.7.

        An odd one out is dropped with the call, so both ends of a shared stream must ask for the same counts.
        Logarithm and cosine may differ in the last bit between two kinds of processors, and the numbers with them.
        """
        words = self.words(count + count % 2).reshape(-1, 2)
        radius = np.sqrt(-2.0 * np.log((words[:, 0] + 1.0) / _WORDS))
        angle = words[:, 1] * (2.0 * np.pi / _WORDS)
        return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1).reshape(-1)[:count]


def seeded(key: Key) -> NoiseStream:
    """The repeatable stream of a task: for simulations."""
    return Seeded(key)


def secret(key: Key) -> NoiseStream:
    """A fresh stream that nobody can repeat, whatever the task: for live nodes."""
    return Keystream(os.urandom(KEY_BYTES))


def secret_coins() -> Coins:
    """Uniform numbers that nobody can repeat."""
    return Keystream(os.urandom(KEY_BYTES))
