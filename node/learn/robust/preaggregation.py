"""What is done to models before a rule: mixing them with their nearest, in random buckets, or clipping their norms.

Rows are finite models [m, d]; the result is new rows, in the same order (buckets: in a random one).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from node.learn.robust.geometry import combine, norms, squared_distances


def nearest_neighbour_mixing(rows: Tensor, f: int) -> Tensor:
    """Each row becomes the mean of the ``m - f`` rows nearest to it, itself included: [m, d].

    Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan, AISTATS 2023.
    """
    squared = squared_distances(rows)
    nearest = squared.argsort(dim=1, stable=True)[:, : len(rows) - f]
    return combine(torch.zeros_like(squared).scatter_(1, nearest, 1 / nearest.shape[1]), rows)


def bucketing(rows: Tensor, rng: np.random.Generator, bucket_size: int = 2) -> Tensor:
    """The means of random buckets of ``bucket_size`` rows, the last one maybe smaller: [ceil(m / bucket_size), d].

    Karimireddy, He, Jaggi, ICLR 2022.
    """
    m = len(rows)
    bucket_of = np.empty(m, np.int64)
    bucket_of[rng.permutation(m)] = np.arange(m) // bucket_size
    weights = bucket_of == np.arange(buckets(m, bucket_size))[:, None]
    shares = torch.from_numpy(weights / weights.sum(1, keepdims=True))
    return combine(shares.to(rows.device), rows)


def buckets(m: int, bucket_size: int) -> int:
    """How many buckets ``m`` rows fill."""
    return -(-m // bucket_size)


def static_clipping(rows: Tensor, norm: float = 1.0) -> Tensor:
    """Scale rows longer than ``norm`` to that length: [m, d]."""
    return _clipped(rows, norms(rows), norm)


def adaptive_clipping(rows: Tensor, f: int) -> Tensor:
    """ARC: clip the ``floor(2 f (m - f) / m)`` longest rows to the length of the next: [m, d].

    Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan, arXiv 2405.14432 (2024).
    """
    lengths = norms(rows)
    clipped = 2 * f * (len(rows) - f) // len(rows)
    return _clipped(rows, lengths, float(lengths.sort(descending=True).values[clipped]))


def _clipped(rows: Tensor, lengths: Tensor, longest: float) -> Tensor:
    long = (lengths > longest).nonzero().squeeze(1)
    clipped = rows.clone()
    for row in long.tolist():
        clipped[row] = (rows[row].double() * (longest / lengths[row])).to(rows.dtype)
    return clipped
