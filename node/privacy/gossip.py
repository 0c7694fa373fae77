"""Gossip matrices: what mixing with the neighbours does to a network's values, and how many rounds of it are enough."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from node.errors import ConfigError

Matrix = NDArray[np.float64]

# Below this, what rounding leaves of an eigenvalue 0: the graph falls apart.
_CONNECTED = 1e-12


def metropolis(adjacency: NDArray[np.bool_]) -> Matrix:
    """W with ``W_ij = 1 / (1 + max(d_i, d_j))`` for neighbours, the rest staying at home, shape (nodes, nodes).

    Xiao, Boyd, Lall: A Scheme for Robust Distributed Sensor Fusion Based on Average Consensus, IPSN 2005.

    Raises:
        ConfigError: the adjacency matrix is not square and symmetric with an empty diagonal.
    """
    _check_adjacency(adjacency)
    degrees = adjacency.sum(axis=1)
    matrix = adjacency / (1.0 + np.maximum.outer(degrees, degrees))
    return np.asarray(matrix + np.diag(1 - matrix.sum(axis=1)))


def laplacian(adjacency: NDArray[np.bool_]) -> Matrix:
    """Degrees on the diagonal, -1 for neighbours, shape (nodes, nodes).

    Raises:
        ConfigError: the adjacency matrix is not square and symmetric with an empty diagonal.
    """
    _check_adjacency(adjacency)
    return np.diag(adjacency.sum(axis=1).astype(np.float64)) - adjacency


def spectral_gap(matrix: Matrix) -> float:
    """Second smallest eigenvalue of I - W, from 0 to 2; what Chebyshev gossip takes as the gap.

    Unlike ``node.topology.spectral_gap`` it looks at one end of the spectrum only, for the recursion below has no use
    for the other.

    Raises:
        ConfigError: W is not symmetric with rows that sum to 1, or belongs to a graph of several pieces.
    """
    if not (np.allclose(matrix, matrix.T) and np.allclose(matrix.sum(axis=1), 1)):
        raise ConfigError("W: a spectral gap needs a symmetric matrix with rows that sum to 1, as Metropolis weights")
    gap = 1.0 if len(matrix) == 1 else float(np.linalg.eigvalsh(np.eye(len(matrix)) - matrix)[1])
    if gap < _CONNECTED:
        raise ConfigError("W: some nodes never hear of others; connect the graph")
    return gap


def chebyshev_gamma(gap: float) -> float:
    """The factor of accelerated gossip, ``x_{t+1} = gamma W x_t + (1 - gamma) x_{t-1}`` after a plain first round.

    Cyffers, Even, Bellet, Massoulié: Muffliato, NeurIPS 2022, algorithm 1.

    Raises:
        ConfigError: the gap is not above 0 and below 2.
    """
    if not 0 < gap < 2:
        raise ConfigError(f"gap: {gap}; allowed: above 0 and below 2, as of a connected graph's mixing matrix")
    return 2 * (1 - math.sqrt(gap * (1 - gap / 4))) / (1 - gap / 2) ** 2


def muffliato_rounds(gap: float, nodes: int, sigma: float, accelerated: bool = True) -> int:
    """Gossip rounds after which what is left of disagreement is below the noise's error; at least 1.

    Cyffers, Even, Bellet, Massoulié: Muffliato, NeurIPS 2022, for a noise of standard deviation ``sigma``
    on values of unit scale.

    Raises:
        ConfigError: gap or sigma are not above 0.
    """
    for name, value in {"gap": gap, "sigma": sigma}.items():
        if not value > 0:
            raise ConfigError(f"{name}: {value}; allowed: a number above 0")
    rounds = math.log(nodes / sigma**2 * max(0.25, sigma**2)) / (math.sqrt(gap) if accelerated else gap)
    return max(1, math.ceil(rounds))


def mix(matrix: Matrix, values: Matrix, rounds: int, gamma: float = 1.0) -> Matrix:
    """Values after so many rounds, shape of ``values``; ``gamma`` accelerates, and 1 is plain gossip."""
    before, now = values, values
    for round in range(rounds):
        # A recursion that started from zeros instead would not preserve the mean.
        before, now = now, matrix @ now if round == 0 else gamma * (matrix @ now) + (1 - gamma) * before
    return now


def _check_adjacency(adjacency: NDArray[np.bool_]) -> None:
    square = adjacency.ndim == 2 and adjacency.shape[0] == adjacency.shape[1]
    if not square or adjacency.dtype != np.bool_ or not (adjacency == adjacency.T).all() or adjacency.diagonal().any():
        raise ConfigError("adjacency: needs a square symmetric matrix of booleans, no node being its own neighbour")
