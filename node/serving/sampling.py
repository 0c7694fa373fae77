"""The next token of an answer: the likeliest, or drawn from the nucleus (Holtzman et al., ICLR 2020)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """How the tokens of one answer are chosen."""

    temperature: float = 0.0
    """0: always the likeliest."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that together have this probability."""
    seed: int = 0
    """Equal seeds draw equal tokens, whatever else is in the batch."""


GREEDY = Sampling()


class Sampler:
    """Draws the tokens of one answer."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._rng = np.random.default_rng(sampling.seed)

    @property
    def is_greedy(self) -> bool:
        """Whether it always takes the likeliest."""
        return self._sampling.temperature == 0

    def draw(self, logits: Tensor) -> int:
        """A token, given the logits, shape [vocabulary]."""
        scores = logits.numpy().astype(np.float64) / self._sampling.temperature
        order = np.argsort(-scores, kind="stable")
        shares = np.exp(scores[order] - scores[order[0]])
        shares /= shares.sum()
        before = np.cumsum(shares) - shares
        shares[(before >= self._sampling.top_p) & (before > 0)] = 0.0
        sums = np.cumsum(shares)
        drawn = np.searchsorted(sums, self._rng.random() * sums[-1], side="right")
        return int(order[min(int(drawn), int(np.flatnonzero(shares)[-1]))])
