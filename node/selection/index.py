"""All adapters that are known, and how near each is to a query.

A query is one product with a matrix of all profiles: for ten thousand adapters that takes less than looking for a
better way does, and an adapter that is added changes no other's score.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from node.errors import ConfigError
from node.selection.embedding import Vectors
from node.selection.profile import Card


class Scored(NamedTuple):
    """An adapter, and the cosine between its profile and a query."""

    name: str
    score: float


class Index:
    """Cards by name.

    Args:
        embedder: the name of the embedder whose profiles are comparable here.
        base_fingerprint: the base model that adapters have to be for; None: of any.
    """

    def __init__(self, embedder: str, base_fingerprint: str | None = None) -> None:
        self._embedder = embedder
        self._base = base_fingerprint
        self._cards: dict[str, Card] = {}
        self._names: list[str] = []
        self._matrix: Vectors = np.zeros((0, 0), np.float32)
        self._is_stale = False

    def __len__(self) -> int:
        return len(self._cards)

    def __contains__(self, name: str) -> bool:
        return name in self._cards

    def __getitem__(self, name: str) -> Card:
        return self._cards[name]

    def cards(self) -> list[Card]:
        """All cards, by name."""
        return [self._cards[name] for name in sorted(self._cards)]

    def add(self, card: Card) -> None:
        """Take in a card, in place of an earlier one of its name.

        Raises:
            ConfigError: its profile is of another embedder or length, or it is for another base model.
        """
        if card.embedder != self._embedder:
            raise ConfigError(f"the card of {card.name!r} was made by {card.embedder}; allowed here: {self._embedder}")
        if self._base is not None and card.base_fingerprint != self._base:
            raise ConfigError(f"adapter {card.name!r} was trained for another base model")
        if self._cards and len(card.profile) != len(next(iter(self._cards.values())).profile):
            raise ConfigError(f"the card of {card.name!r} has {len(card.profile) // 2} dimensions, and the others not")
        card.vector  # noqa: B018  a profile that cannot be read is refused now
        self._cards[card.name] = card
        self._is_stale = True

    def remove(self, name: str) -> None:
        """Forget an adapter; nothing happens where it is not known."""
        if self._cards.pop(name, None) is not None:
            self._is_stale = True

    def scores(self, queries: Vectors, hidden: Iterable[str] = ()) -> list[list[Scored]]:
        """For each query, shape [queries, dimensions], all adapters but the hidden ones, the nearest first.

        Equal scores come in the order of names.
        """
        self._freshen()
        if not self._names:
            return [[] for _ in queries]
        unseen = set(hidden)
        found = queries @ self._matrix.T
        return [
            [Scored(self._names[i], float(row[i])) for i in _descending(row) if self._names[i] not in unseen]
            for row in found
        ]

    def nearest(self, query: Vectors, count: int, among: Iterable[str] | None = None) -> list[Scored]:
        """The ``count`` adapters nearest to one query, shape [dimensions], the nearest first; ``among`` these alone."""
        self._freshen()
        if not self._names:
            return []
        found = self._matrix @ query
        if among is not None:
            allowed = set(among)
            found = np.where([name in allowed for name in self._names], found, -np.inf)
        if count < len(found):
            bound = np.partition(found, -count)[-count]
            chosen = np.flatnonzero(found >= bound)
        else:
            chosen = np.arange(len(found))
        best = chosen[_descending(found[chosen])][:count]
        return [Scored(self._names[i], float(found[i])) for i in best if np.isfinite(found[i])]

    def _freshen(self) -> None:
        if self._is_stale:
            self._names = sorted(self._cards)
            rows = [self._cards[name].vector for name in self._names]
            self._matrix = np.stack(rows) if rows else np.zeros((0, 0), np.float32)
            self._is_stale = False


def _descending(scores: Vectors) -> np.ndarray:
    return np.argsort(-scores, kind="stable")
