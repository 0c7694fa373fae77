"""Secrets that some number of shares give away, and fewer say nothing about.

Shamir: How to Share a Secret, Communications of the ACM 1979, over the integers modulo the prime ``2**31 - 1``, whose
products fit into 64 bits: so all words of many secrets are shared in a few vector operations.
"""

from __future__ import annotations

from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray

PRIME = 2**31 - 1
"""Words of secrets and shares are below it."""

Words = NDArray[np.uint32]


class Coins(Interface):
    """Independent uniform words of 32 bits, that nobody else knows: a :class:`~node.privacy.noise.Keystream`."""

    def words(self, count: int) -> Words:
        """The next words, shape (count,)."""
        ...


def split(secret: Words, shares: int, threshold: int, coins: Coins) -> Words:
    """Shares at the points 1, 2, …, of shape [shares, words]: any ``threshold`` of them give the secret's words."""
    coefficients = field_words(coins, (threshold - 1) * len(secret)).reshape(threshold - 1, len(secret))
    points = np.arange(1, shares + 1, dtype=np.uint64)[:, None]
    value = np.zeros((shares, len(secret)), np.uint64)
    for coefficient in coefficients.astype(np.uint64):
        value = (value + coefficient) * points % PRIME
    return ((value + secret) % PRIME).astype(np.uint32)


def join(points: list[int], shares: Words) -> Words:
    """The secret's words from the shares at some points, of shape [points, words]: by Lagrange's formula at 0."""
    secret = np.zeros(shares.shape[1], np.uint64)
    for point, share in zip(points, shares, strict=True):
        factor = 1
        for other in points:
            if other != point:
                factor = factor * other * pow(other - point, -1, PRIME) % PRIME
        secret = (secret + share.astype(np.uint64) % PRIME * np.uint64(factor)) % PRIME
    return secret.astype(np.uint32)


def field_words(coins: Coins, count: int) -> Words:
    """Words below the prime, uniform up to one part in ``2**31``, shape (count,)."""
    return coins.words(count) % np.uint32(PRIME)
