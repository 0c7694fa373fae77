"""Rules that judge or clip what was received by a node's own model: the first of the finite rows [m, d].

They hold where a node hears more liars than honest peers, as happens on sparse graphs; the result is one model [d].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from node.learn.robust.geometry import combine, distances_to, mean_of, norms


def monna(rows: Tensor, f: int) -> Tensor:
    """The mean of the ``m - f`` rows nearest to the own one, itself included.

    Farhadkhani, Guerraoui, Gupta, Hoang, Pinot, Stephan, ICML 2023.
    """
    return mean_of(distances_to(rows[0], rows).argsort(stable=True)[: len(rows) - f], rows)


def balance(
    rows: Tensor, progress: float = 0.0, gamma: float = 0.3, kappa: float = 1.0, own_weight: float = 0.5
) -> Tensor:
    """Average the own model with the mean of those no farther from it than a share of its norm, which shrinks.

    Fang, Zhang, Hairi, Khanduri, Liu, Lu, Liu, Gong, CCS 2024. Where none is near enough, the own model stays.

    Args:
        progress: the share of all rounds that is over, from 0 to 1.
    """
    farthest = balance_factor(progress, gamma, kappa) * norms(rows[:1])
    accepted = (distances_to(rows[0], rows) <= farthest)[1:].nonzero().squeeze(1) + 1
    return _average(rows, accepted, own_weight)


def balance_factor(progress: float, gamma: float, kappa: float) -> float:
    """How far from the own model another may be, as a share of the own model's norm."""
    return gamma * math.exp(-kappa * progress)


def ubar(rows: Tensor, f: int, losses: Tensor, nearest_share: float = 0.0, own_weight: float = 0.5) -> Tensor:
    """Of the nearest received models, average those that are no worse on the own data; else the best of the nearest.

    Guo, Zhang, Yu, Xie, Ma, Xiang, Liu, IEEE Transactions on Circuits and Systems for Video Technology 2022 (also
    MOZI). The paper's gradient step is the node's own training, before or after.

    Args:
        losses: of every row on a minibatch of the node's own, float64 [m]; a loss that is not finite is the worst.
        nearest_share: of the received models, the share that may be near enough (the paper: 0.4); 0: all but ``f``.
    """
    received = len(rows) - 1
    if not received:
        return rows[0].clone()
    near = max(1, int(nearest_share * received) if nearest_share else received - f)
    nearest = distances_to(rows[0], rows)[1:].argsort(stable=True)[:near] + 1
    losses = torch.where(losses.isfinite(), losses, math.inf)
    accepted = nearest[losses[nearest] <= losses[0]]
    if not len(accepted):
        accepted = nearest[losses[nearest].argmin()][None]
    return _average(rows, accepted[losses[accepted].isfinite()], own_weight)


def centered_clipping(rows: Tensor, tau: float = 10.0, passes: int = 1, previous: Tensor | None = None) -> Tensor:
    """Move from the previous aggregate by the mean of all rows' offsets, each no longer than ``tau``.

    Karimireddy, He, Jaggi, ICML 2021.

    Args:
        previous: where to start, [d]; None: the own model.
    """
    point = (rows[0] if previous is None else previous).double()
    for _ in range(passes):
        shares = _clipping(distances_to(point, rows), tau) / len(rows)
        point = (1 - shares.sum()) * point + combine(shares, rows, torch.float64)
    return point.to(rows.dtype)


def clipped_gossip(rows: Tensor, f: int, weights: Tensor, tau: float = 0.0) -> Tensor:
    """Move from the own model by the weighted sum of the offsets of all others, each no longer than ``tau``.

    He, Karimireddy, Jaggi, arXiv 2202.01545 (2022).

    Args:
        weights: mixing weight of each row, float64 [m]; the own one's is not read.
        tau: 0: the ``f + 1``-th largest distance from the own model.
    """
    distances = distances_to(rows[0], rows)
    if not tau:
        farthest = distances[1:].sort(descending=True).values
        tau = float(farthest[f]) if f < len(farthest) else 0.0
    shares = weights * _clipping(distances, tau)
    shares[0] = 1 - shares[1:].sum()
    return combine(shares, rows)


def _clipping(distances: Tensor, tau: float) -> Tensor:
    """By what to multiply offsets of these lengths, so that none is longer than ``tau``."""
    return torch.where(distances > tau, tau / distances, 1.0)


def _average(rows: Tensor, accepted: Tensor, own_weight: float) -> Tensor:
    """The own model and the mean of those accepted, int64 [k]; the own model where there are none."""
    if not len(accepted):
        return rows[0].clone()
    weights = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    weights[accepted] = (1 - own_weight) / len(accepted)
    weights[0] = own_weight
    return combine(weights, rows)
