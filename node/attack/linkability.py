"""Who sent this? Linking anonymous messages to the node that trained them, or to one another.

The strong attacker of Shatter (Biswas et al., PoPETs 2025) holds every candidate's training set: it completes a
received chunk with its own model, and takes the candidate on whose data the result does best. Weaker ones hold public
data with the candidate's label marginal (``matching_rows`` of :mod:`node.attack.references`), or compare directions of
change.

Who really sent a message comes from the experiment's log, never from a field of the message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from node.errors import ConfigError

Logits = Callable[[Tensor, Tensor], Tensor]
"""From a flat model [dimension] and features [samples, *shape] to logits [samples, classes]."""


class Linked(NamedTuple):
    """How often messages were linked to their senders."""

    accuracy: float
    chance: float
    """Of guessing among all nodes but the attacker itself: 1/(n-1)."""
    messages: int


def completed(chunk: Tensor, places: Tensor, own: Tensor) -> Tensor:
    """A received chunk [k] at its places int64 [k], in the attacker's own previous aggregate [dimension]."""
    return own.index_copy(0, places, chunk)


@torch.no_grad()
def candidate_losses(
    logits: Logits, flats: Sequence[Tensor], candidates: Sequence[tuple[Tensor, Tensor]]
) -> np.ndarray:
    """Mean loss of each message's model on each candidate's samples, float64 [messages, candidates]."""

    def loss(flat: Tensor, features: Tensor, labels: Tensor) -> float:
        return float(cross_entropy(logits(flat, features).double(), labels))

    rows = [[loss(flat, *candidate) for candidate in candidates] for flat in flats]
    return np.array(rows).reshape(len(flats), len(candidates))


def guess_senders(losses: np.ndarray, attackers: np.ndarray) -> np.ndarray:
    """The candidate of least loss for each message, int64 [messages]; never the attacker that received it.

    Args:
        losses: [messages, candidates]; one that is not a number counts as infinite.
        attackers: who received each message, int64 [messages]: a candidate too.
    """
    if losses.ndim != 2 or losses.shape[1] < 2:
        raise ConfigError(f"losses: {list(losses.shape)}; need [messages, candidates] with two candidates or more")
    others = np.where(np.isnan(losses), np.inf, losses)
    others[np.arange(len(others)), attackers] = np.inf
    return np.asarray(others.argmin(axis=1))


def linked(guesses: np.ndarray, senders: np.ndarray, nodes: int) -> Linked:
    """How often guesses int64 [messages] are right, against chance among ``nodes`` nodes."""
    if len(guesses) != len(senders) or not len(guesses) or nodes < 2:
        raise ConfigError(f"senders: {len(senders)} for {len(guesses)} guesses among {nodes} nodes; need one for each")
    return Linked(float(np.mean(guesses == senders)), 1 / (nodes - 1), len(guesses))


def similarities(changes: np.ndarray, later: np.ndarray) -> np.ndarray:
    """Cosine of each later change [m, k] with each earlier one [n, k], both over the same coordinates: [m, n].

    A change is what a chunk became from one round to the next; a change of 0 is like no other.
    """
    return np.asarray(_unit(later) @ _unit(changes).T)


def reidentify(changes: np.ndarray, later: np.ndarray) -> np.ndarray:
    """For each later change [m, k] the earlier one [n, k] in the most similar direction, int64 [m]."""
    return np.asarray(similarities(changes, later).argmax(axis=1))


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = np.asarray(rows, dtype=np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)
