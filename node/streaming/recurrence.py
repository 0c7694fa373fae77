"""How long it takes to fetch the layers of an adapter and to compute with them, one after the other or overlapped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate


def blocking_s(transfer_s: Sequence[float], compute_s: Sequence[float]) -> float:
    """Seconds until the last layer is computed, if computing starts when all layers are there."""
    return math.fsum(transfer_s) + math.fsum(compute_s)


def streamed_s(transfer_s: Sequence[float], compute_s: Sequence[float]) -> float:
    """Seconds until the last layer is computed, if each is computed as soon as it and those before it are there.

    ``done[l] = max(done[l - 1], arrive[l]) + compute[l]``, where layers arrive one after another.
    """
    done_s = 0.0
    for arrived_s, layer_s in zip(accumulate(transfer_s), compute_s, strict=True):
        done_s = max(done_s, arrived_s) + layer_s
    return done_s


def largest_gain(layers: int) -> float:
    """``blocking_s / streamed_s`` of equal layers, at most: where both times are equal. It is less than 2."""
    return 2 * layers / (layers + 1)
