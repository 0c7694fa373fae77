"""What linear algebra alone tells an attacker about nodes that it never hears from.

El Mrini, Cyffers and Bellet, "Privacy attacks in decentralized learning", ICML 2024. Everything that gossip sends is a
linear combination of the nodes' values, so an attacker's view is ``R x``: one row per message, one column per unknown.
An unknown is recovered exactly where its unit vector lies in the row space of R, that is, where its leverage is 1.

The same R with noise on the unknowns gives the exact loss of privacy: ``node.privacy.network``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import networkx
import numpy as np
from scipy.linalg import cho_factor, cho_solve  # type: ignore[import-untyped]
from scipy.sparse import sparray, spmatrix  # type: ignore[import-untyped]

from node.errors import ConfigError

Matrix: TypeAlias = np.ndarray | sparray | spmatrix

RANK_TOLERANCE = 1e-9
"""Singular values below this share of the largest count as 0; gossip has ones of 1e-6 within ten rounds."""
_RECOVERED = 1 - 1e-6


def averaging_view(mixing: np.ndarray, attackers: Sequence[int], rounds: int) -> np.ndarray:
    """What attackers see of plain gossip averaging: R [messages, nodes].

    Their own values, then in each round ``t`` the value ``(W^t x)_w`` of every neighbour ``w``.

    Args:
        mixing: W [nodes, nodes]; w is a neighbour of v where ``W[v, w]`` is not 0.
        attackers: nodes that pool what they see.
        rounds: averagings, each of which sends the values from before it.
    """
    nodes = len(mixing)
    _check_nodes(attackers, nodes)
    heard = np.flatnonzero((mixing[list(attackers)] != 0).any(axis=0))
    heard = heard[~np.isin(heard, attackers)]
    rows, power = [np.eye(nodes)[list(attackers)]], np.eye(nodes)
    for _ in range(rounds):
        rows.append(power[heard])
        power = mixing @ power
    return np.concatenate(rows)


def gradient_view(mixing: np.ndarray, attackers: Sequence[int], rounds: int) -> np.ndarray:
    """What attackers see of decentralized gradient descent: R [messages, targets], in the order of round and sender.

    The targets are all other nodes, and the unknowns their gradients, taken as constant over the rounds: what a
    neighbour sends in round ``t`` holds row ``w`` of ``sum_{s<=t} W_TT^s``, once the attackers have subtracted what
    follows from the common start and from their own models.
    """
    _check_nodes(attackers, len(mixing))
    targets = np.setdiff1d(np.arange(len(mixing)), attackers)
    among = mixing[np.ix_(targets, targets)]
    heard = (mixing[np.ix_(np.array(attackers), targets)] != 0).any(axis=0)
    rows, total, power = [], np.zeros_like(among), np.eye(len(targets))
    for _ in range(rounds):
        total = total + power
        rows.append(total[heard])
        power = among @ power
    return np.concatenate(rows)


def leverage(view: Matrix, tolerance: float = RANK_TOLERANCE) -> np.ndarray:
    """How much of each unknown's unit vector lies in the row space of R [messages, unknowns]: in [0, 1], [unknowns]."""
    basis = _row_space(view, tolerance)
    return np.asarray(np.clip((basis**2).sum(axis=0), 0, 1))


def recoverable(view: Matrix, tolerance: float = RANK_TOLERANCE) -> np.ndarray:
    """The unknowns that follow exactly from a view R [messages, unknowns]: columns, int64, ascending."""
    return np.flatnonzero(leverage(view, tolerance) >= _RECOVERED)


def reconstruct(
    view: Matrix, seen: np.ndarray, covariance: np.ndarray | None = None, tolerance: float = RANK_TOLERANCE
) -> np.ndarray:
    """The unknowns [unknowns, dimension] of least norm that explain what was seen; of use where they are recoverable.

    Args:
        view: R [messages, unknowns].
        seen: the messages, [messages, dimension].
        covariance: of the errors of the messages [messages, messages], where gradients vary or are noisy: generalised
            least squares. Absent: plain least squares.
        tolerance: relative, of the rank.

    Raises ConfigError for a covariance that is not positive definite.
    """
    dense, seen = _dense(view), np.asarray(seen, dtype=np.float64)
    if len(dense) != len(seen):
        raise ConfigError(f"seen: {len(seen)} messages for a view of {len(dense)} rows; need one for each")
    if covariance is None:
        return np.asarray(np.linalg.lstsq(dense, seen, rcond=tolerance)[0])
    try:
        factor = cho_factor(np.asarray(covariance, dtype=np.float64), lower=True)
    except np.linalg.LinAlgError as error:
        raise ConfigError("covariance: not positive definite; messages without error need none") from error
    whitened = dense.T @ cho_solve(factor, np.column_stack([dense, seen]))
    normal, right = whitened[:, : dense.shape[1]], whitened[:, dense.shape[1] :]
    return np.asarray(np.linalg.pinv(normal, rcond=tolerance, hermitian=True) @ right)


def recovered_by_distance(graph: networkx.Graph, attackers: Sequence[int], recovered: np.ndarray) -> dict[int, float]:
    """Share of the nodes at each distance from the nearest attacker that are among the recovered, nearest first."""
    distances = networkx.multi_source_dijkstra_path_length(graph, set(attackers), weight=None)
    at: dict[int, list[bool]] = {}
    for node in sorted(distances):
        if distances[node]:
            at.setdefault(distances[node], []).append(bool(np.isin(node, recovered)))
    return {distance: float(np.mean(at[distance])) for distance in sorted(at)}


def _row_space(view: Matrix, tolerance: float) -> np.ndarray:
    """An orthonormal basis [rank, unknowns] of the row space."""
    dense = _dense(view)
    if not dense.size:
        return np.zeros((0, dense.shape[1]))
    _, singular, right = np.linalg.svd(dense, full_matrices=False)
    rank = int(np.count_nonzero(singular > tolerance * singular[0]))
    return np.asarray(right[:rank])


def _dense(view: Matrix) -> np.ndarray:
    return np.asarray(view if isinstance(view, np.ndarray) else view.toarray(), dtype=np.float64)


def _check_nodes(attackers: Sequence[int], nodes: int) -> None:
    odd = [node for node in attackers if not 0 <= node < nodes]
    if odd or not attackers:
        raise ConfigError(f"attackers: {list(attackers)}; need one or more of the nodes 0 to {nodes - 1}")
