"""What an adapter is good for, as one vector: the mean of its example prompts (Zhao et al., Findings of ACL 2024).

Prompts, not answers: profiles of answers find the wrong adapter about half of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from node.errors import ConfigError
from node.selection.embedding import Embedder, Vectors

MOST_DIMENSIONS = 65_536


@dataclass(frozen=True)
class Card:
    """What the network knows of an adapter without having it; the entry of an index."""

    name: str
    version: str
    rank: int
    size_bytes: int
    base_fingerprint: str
    embedder: str
    """The name of the embedder that made the profile."""
    profile: bytes
    """Half precision, little-endian."""

    @property
    def vector(self) -> Vectors:
        """The profile, of length 1, shape [dimensions].

        Raises:
            ConfigError: the bytes are no profile.
        """
        if not self.profile or len(self.profile) % 2 or len(self.profile) > 2 * MOST_DIMENSIONS:
            raise ConfigError(f"the card of {self.name!r}: {len(self.profile)} bytes are no profile")
        vector = np.frombuffer(self.profile, dtype="<f2").astype(np.float32)
        if not np.isfinite(vector).all():
            raise ConfigError(f"the card of {self.name!r}: its profile is not finite")
        return unit(vector)


def profile(texts: Sequence[str], embedder: Embedder) -> Vectors:
    """The direction of a task's prompts, shape [dimensions], whatever their order.

    Raises:
        ConfigError: there are no texts.
    """
    if not texts:
        raise ConfigError("a profile needs at least one example prompt")
    return unit(embedder.embed(sorted(texts)).astype(np.float64).mean(axis=0).astype(np.float32))


def packed(vector: Vectors) -> bytes:
    """A profile in half precision, as a card carries it."""
    return vector.astype("<f2").tobytes()


def unit(vector: Vectors) -> Vectors:
    """A vector of length 1 in the same direction; nothing stays nothing."""
    length = float(np.linalg.norm(vector)) or 1.0
    scaled: Vectors = (vector / length).astype(np.float32)
    return scaled
