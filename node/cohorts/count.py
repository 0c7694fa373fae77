"""How many cohorts there should be, from the first updates of one round.

Past the gradient noise scale, more participants in a round hardly save rounds (McCandlish, Kaplan, Amodei: An Empirical
Model of Large-Batch Training, 2018): what one cohort cannot use, several can.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from node.errors import ConfigError


def gradient_noise_scale(rounds: Sequence[Sequence[NDArray[np.float64]]]) -> float:
    """Effective participants of a round: ``tr(Sigma) / |G|^2``, from the updates [dimension] in each of the first ones.

    Both parts are estimated without bias, and averaged over rounds before they are divided. Infinite where the mean
    update is no larger than its own noise. Raises ConfigError for a round with the updates of fewer than two nodes.
    """
    noise = signal = 0.0
    for updates in rounds:
        if len(updates) < 2:
            raise ConfigError(f"gradient_noise_scale: a round of {len(updates)} updates; allowed: 2 or more")
        rows = np.asarray(updates, dtype=np.float64)
        mean = rows.mean(axis=0)
        variance = float(((rows - mean) ** 2).sum()) / (len(rows) - 1)
        noise += variance
        signal += float((mean**2).sum()) - variance / len(rows)
    return noise / signal if signal > 0 else math.inf


def advised_count(
    noise_scale: float,
    histograms: Mapping[int, NDArray[np.int64]],
    least_samples: int = 0,
    least_holders: int = 1,
) -> int:
    """As many cohorts as have effective participants each, ``nodes / noise_scale``, but at least 1.

    ``histograms`` are counts of shape [classes], by node. There are never so many cohorts that one would have fewer
    than ``least_samples`` samples, or, evenly spread, fewer than ``least_holders`` nodes with a class that exists.
    """
    counts = np.array([histograms[node] for node in sorted(histograms)])
    holders = (counts > 0).sum(axis=0)
    bounds = [len(counts) / max(noise_scale, 1.0)]
    if least_samples:
        bounds.append(counts.sum() / least_samples)
    if least_holders and holders.any():
        bounds.append(holders[holders > 0].min() / least_holders)
    return max(1, math.floor(min(bounds) + 1e-9))


def predicted_rounds(rounds: float, participants: int, noise_scale: float, others: int) -> float:
    """Rounds to the same loss with ``others`` participants in each, where ``participants`` need ``rounds``.

    Rounds are in proportion to ``1 + noise_scale / participants``; to print beside those that were needed.
    """
    if math.isinf(noise_scale):
        return rounds * participants / others
    return rounds * (1 + noise_scale / others) / (1 + noise_scale / participants)
