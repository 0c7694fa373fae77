"""Texts as unit vectors, so that texts of one task are near each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any
from typing import Protocol as Interface

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import HashingVectorizer

Vectors = npt.NDArray[np.float32]

DIMENSIONS = 1_024
"""Of hashed n-grams: two bytes each in a card."""

_NGRAMS = (2, 4)
_NUMBER = re.compile(r"\d+")


class Embedder(Interface):
    """What turns texts into vectors; it must work without a network."""

    dimensions: int
    """The length of a vector."""
    name: str
    """What makes its vectors comparable: those of two names are not."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """A row for each text, shape [texts, dimensions], of length 1 (0 for a text without content)."""
        ...


class HashedNgrams:
    """Character n-grams, counted under their hashes: needs no model and no download.

    Two texts are near where they share their wording, so a profile should have prompts in every language and manner
    that is expected. Weights follow from the texts that it was made with and never change: what is added to an index
    later leaves all other scores as they are.

    Args:
        texts: examples of what will be embedded. What most of them share weighs least; none: all weigh the same.
    """

    def __init__(self, texts: Sequence[str] = (), dimensions: int = DIMENSIONS) -> None:
        self._hashing = HashingVectorizer(analyzer="char_wb", ngram_range=_NGRAMS, n_features=dimensions, norm=None)
        self.dimensions = dimensions
        self.name = f"hashed-ngrams-{dimensions}"
        self._weights = np.ones(dimensions)
        if texts:
            holding = np.asarray((self._counts(texts) != 0).sum(axis=0)).ravel()
            self._weights = np.log((1 + len(texts)) / (1 + holding)) + 1

    def embed(self, texts: Sequence[str]) -> Vectors:
        """A row for each text, shape [texts, dimensions]."""
        if not len(texts):
            return np.zeros((0, self.dimensions), np.float32)
        rows = self._counts(texts).multiply(self._weights).toarray()
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        unit: Vectors = (rows / np.maximum(lengths, np.finfo(np.float64).tiny)).astype(np.float32)
        return unit

    def _counts(self, texts: Sequence[str]) -> Any:
        """A sparse matrix, shape [texts, dimensions]. Which number a text has says nothing of its task."""
        return self._hashing.transform([_NUMBER.sub("0", text.lower()) for text in texts])


class Remembering:
    """An embedder that does not embed the same text twice in a row of ``most`` texts."""

    def __init__(self, embedder: Embedder, most: int = 4_096) -> None:
        self.name = embedder.name
        self.dimensions = embedder.dimensions
        self._one: Callable[[str], Vectors] = lru_cache(most)(lambda text: embedder.embed([text])[0])

    def embed(self, texts: Sequence[str]) -> Vectors:
        """A row for each text, shape [texts, dimensions]."""
        rows = [self._one(text) for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self.dimensions), np.float32)
