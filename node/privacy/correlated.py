"""Noise that hides single models and cancels in the average of all: DECOR's between nodes, Zip-DL's within one node.

DECOR (Allouah et al., ICML 2024): each edge shares a stream that one end adds and the other subtracts. Zip-DL (Biswas
et al., PoPETs 2025): a node sends every neighbour its model with other noise, which sums up to zero under the mixing
weights. Neither survives a node that drops out unnoticed: what then remains has the variance given here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from node.errors import ConfigError
from node.op import Op, Spec, Static, Task, Value, op
from node.privacy.keys import PairSecrets
from node.privacy.noise import NoiseSource, NoiseStream

Vector = NDArray[np.float64]


def pairwise_noise(
    secrets: PairSecrets, peers: Collection[int], round: int, deviation: float, dimension: int
) -> Vector:
    """A node's part of DECOR's correlated noise, [dimension]: over all nodes the parts add up to zero.

    ``peers``: the neighbours that take part in the round; both ends of every edge must agree on it. ``deviation``: the
    standard deviation that each edge adds. Peers are added up in order, so that both worlds get the same bits.
    """
    noise = np.zeros(dimension)
    for peer in sorted(peers):
        shared = secrets.stream("decor", peer, round).normals(dimension)
        noise += shared if secrets.me < peer else -shared
    noise *= deviation
    return noise


def pairwise_residual(laplacian: Vector, absent: Collection[int], pairwise: float) -> float:
    """Variance of the sum of the present nodes' correlated noise, where some dropped out after it was added.

    Each edge between a node that is there and one that is not leaves its noise behind. Laplacian [nodes, nodes].
    """
    present = np.ones(len(laplacian))
    present[sorted(absent)] = 0.0
    return float(pairwise**2 * (present @ laplacian @ present))


def cancelling_noise(weights: Sequence[float], deviation: float, dimension: int, stream: NoiseStream) -> Vector:
    """Zip-DL's noise, one vector for each member of a closed neighbourhood, [members, dimension] (Algorithm 1).

    Under the members' ``weights`` in the node's row of the mixing matrix, its own one included, the vectors sum up to
    zero. ``deviation``: of the noise they are made of, ``eta * s``; how noisy each is says :func:`cancelling_variance`.
    Raises ConfigError as :func:`cancelling_variance`.
    """
    shares = _positive(weights)[:, None]
    drawn = stream.normals(len(shares) * dimension).reshape(len(shares), dimension)
    noise: Vector = deviation * (drawn - (shares * drawn).sum(0) / (len(shares) * shares))
    return noise


def cancelling_variance(weights: Sequence[float]) -> Vector:
    """Variance of each member's noise in Zip-DL, as a multiple of ``deviation**2``, [members].

    Uniform weights give ``(members - 1) / members``. Raises ConfigError for fewer than two members, or a weight of 0.
    """
    shares = _positive(weights)
    members = len(shares)
    others = (shares**2).sum() - shares**2
    variance: Vector = ((members - 1) / members) ** 2 + others / (members * shares) ** 2
    return variance


def cancelling_residual(weights: Sequence[float], absent: Collection[int]) -> float:
    """Variance of the weighted sum of the noise that arrives where some members are absent, times ``deviation**2``.

    ``absent``: places in ``weights``. A share of the sum over all members is subtracted from each, present or not.
    """
    shares = _positive(weights)
    gone = np.isin(np.arange(len(shares)), sorted(absent))
    there = (len(shares) - gone.sum()) / len(shares)
    return float((shares[~gone] ** 2).sum() * (1 - there) ** 2 + (shares[gone] ** 2).sum() * there**2)


def decorrelate(secrets: PairSecrets) -> Op[...]:
    """The op that adds DECOR's noise to a model: static ``peers``, ``round``, ``deviation`` (times the step size)."""

    def solve(task: Task) -> Tensor:
        (model,), static = task.inputs, task.static
        noise = pairwise_noise(secrets, static["peers"], static["round"], static["deviation"], model.numel())
        return _add(model, noise)

    return Op(f"{__name__}:decorrelate", solve, basis=secrets.basis)


def zip_shares(source: NoiseSource) -> Op[...]:
    """The op that gives a model with Zip-DL's noise for each member, [members, dimension]; take one with :func:`share`.

    Static ``weights`` of the closed neighbourhood and ``deviation``.
    """

    def solve(task: Task) -> Tensor:
        (model,), static = task.inputs, task.static
        noise = cancelling_noise(static["weights"], static["deviation"], model.numel(), source(task.key))
        return torch.stack([_add(model, row) for row in noise])

    def spec(inputs: Sequence[Spec], static: Static) -> Spec:
        return Spec((len(static["weights"]), *inputs[0].shape), inputs[0].dtype)

    return Op(f"{__name__}:zip_shares", solve, spec=spec, seeded=True)


@op(spec=lambda inputs, static: Spec(inputs[0].shape[1:], inputs[0].dtype))
def share(shares: Value, *, place: int) -> Value:
    """The model for one member of a neighbourhood, by its place among the weights."""
    return shares[place].clone()


def _add(model: Tensor, noise: Vector) -> Tensor:
    return (model.double() + torch.from_numpy(noise)).to(model.dtype)


def _positive(weights: Sequence[float]) -> Vector:
    """The weights as an array, if noise can cancel under them."""
    if len(weights) < 2 or not all(weight > 0 for weight in weights):
        raise ConfigError(f"weights: {tuple(weights)}; noise cancels under two or more weights above 0")
    return np.asarray(weights, np.float64)
