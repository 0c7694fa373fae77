"""Matching neurons by a Bayesian nonparametric model: clients' neurons are noisy copies of atoms, however many.

Yurochkin, Agarwal, Ghosh, Greenewald, Hoang, Khazaeni: Bayesian Nonparametric Federated Learning of Neural Networks
(PFNM), ICML 2019: a Beta-Bernoulli process prior, one pass over clients from the largest on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import linear

from node.assumptions import Assumptions
from node.config import Section
from node.errors import ConfigError
from node.learn.models import Dense
from node.learn.oneshot.algorithm import Algorithm, Assets, Task, Upload
from node.op import Spec


class Atoms:
    """What clients' neurons are copies of: the posterior of each, as its precision and precision-weighted mean.

    Args:
        clients: how many there will be.
        dimension: numbers a neuron.
        prior: variance of atoms around 0.
        gamma: mass of the process: the larger, the more atoms.
    """

    def __init__(self, clients: int, dimension: int, prior: float, gamma: float) -> None:
        self._clients = clients
        self._prior = 1 / prior
        self._gamma = gamma
        self._pull = torch.zeros(0, dimension, dtype=torch.float64)
        self._precision = torch.zeros(0, dimension, dtype=torch.float64)
        self._users = torch.zeros(0, dtype=torch.float64)

    @property
    def means(self) -> Tensor:
        """Of each atom, float64 [atoms, dimension]."""
        return self._pull / self._precision

    def scores(self, neurons: Tensor, precision: Tensor) -> Tensor:
        """How well neurons [neurons, dimension] fit each atom, then each new one: [neurons, atoms + neurons]."""
        known = _fit(neurons * precision, precision, self._pull, self._precision)
        known += (self._users / (self._clients - self._users)).log()
        nothing = neurons.new_zeros(1, neurons.shape[1])
        new = _fit(neurons * precision, precision, nothing, nothing + self._prior)
        order = torch.arange(1, len(neurons) + 1, dtype=torch.float64)
        return torch.cat([known, new - 2 * order.log() + 2 * math.log(self._gamma / self._clients)], 1)

    def add(self, neurons: Tensor, precision: Tensor) -> None:
        """Take in one client's neurons [neurons, dimension], known with some precision [dimension]."""
        known = len(self._users)
        rows, places = linear_sum_assignment(self.scores(neurons, precision).numpy(), maximize=True)
        new = rows[places >= known]
        places[places >= known] = known + torch.arange(len(new)).numpy()
        self._users = torch.cat([self._users, self._users.new_zeros(len(new))])
        self._pull = torch.cat([self._pull, self._pull.new_zeros(len(new), self._pull.shape[1])])
        prior = self._precision.new_full((len(new), self._precision.shape[1]), self._prior)
        self._precision = torch.cat([self._precision, prior])
        self._users[places] += 1
        self._pull[places] += neurons[rows] * precision
        self._precision[places] += precision


def _fit(weighted: Tensor, precision: Tensor, pull: Tensor, known: Tensor) -> Tensor:
    """``sum (w s + G)^2 / (s + S) - sum G^2 / S`` for neurons [n, d] and atoms [m, d]: [n, m]."""
    share = 1 / (precision + known)
    crossed = weighted**2 @ share.T + 2 * weighted @ (pull * share).T
    return crossed + (pull**2 * share - pull**2 / known).sum(1)


class Pfnm(Algorithm):
    """One hidden layer of all neurons that clients have learned, each once.

    A neuron's weights out of it count by its client's share of each class. The layer is as wide as the data want it, up
    to all neurons of all clients; what is not used is zero.
    """

    declares = Assumptions(reveals="histogram")

    class Config(Section):
        """Options."""

        noise: float = Field(1.0, gt=0)
        """Variance of clients' neurons around their atoms."""
        prior: float = Field(1.0, gt=0)
        """Variance of atoms around 0."""
        gamma: float = Field(7.0, gt=0)
        """Mass of the process: the larger, the more atoms."""

    config: Config

    def result(self, task: Task, uploads: int) -> Spec:
        """Atoms, as many as there may be, then the classes' biases, flat.

        Raises ConfigError for a model that is no mlp with one hidden layer.
        """
        inputs, hidden, classes = _widths(task)
        return Spec((uploads * hidden * (inputs + 1 + classes) + classes,))

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Atoms [uploads * hidden, inputs + 1 + classes] and biases [classes], flat."""
        inputs, hidden, classes = _widths(assets.task)
        counts = torch.stack([upload.counts for upload in uploads])
        shares = counts / counts.sum(0).clamp_min(1)
        atoms = Atoms(len(uploads), inputs + 1 + classes, self.config.prior, self.config.gamma)
        biases = torch.zeros(classes, dtype=torch.float64)
        for i in sorted(range(len(uploads)), key=lambda i: (-uploads[i].samples, uploads[i].client)):
            into, bias, out, class_bias = assets.task.model.named(uploads[i].model.double()).values()
            precision = torch.cat([shares.new_ones(inputs + 1), shares[i]]) / self.config.noise
            atoms.add(torch.cat([into, bias[:, None], out.T], 1), precision)
            biases += shares[i] / self.config.noise * class_bias
        biases /= shares.sum(0) / self.config.noise + 1 / self.config.prior
        means = atoms.means
        unused = means.new_zeros(len(uploads) * hidden - len(means), means.shape[1])
        return torch.cat([means.flatten(), unused.flatten(), biases])

    def predict(self, state: Tensor, features: Tensor, assets: Assets) -> Tensor:
        """Probabilities [samples, classes]."""
        inputs, _, classes = _widths(assets.task)
        atoms, biases = state[:-classes].view(-1, inputs + 1 + classes), state[-classes:]
        into, bias, out = torch.split(atoms, [inputs, 1, classes], 1)
        return linear(linear(features.flatten(1), into, bias[:, 0]).relu(), out.T, biases).softmax(1)

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """The fit of each client's neurons to half of all that there may be, and an assignment."""
        inputs, hidden, classes = _widths(task)
        atoms = uploads * hidden / 2
        return uploads * (4.0 * hidden * atoms * (inputs + 1 + classes) + hidden**2 * atoms)


def _widths(task: Task) -> tuple[int, int, int]:
    model = task.model
    if not isinstance(model, Dense) or len(model.widths) != 3:
        raise ConfigError(
            f"model.name: neurons of {model.name!r} cannot be matched by pfnm; allowed: 'mlp' with one hidden layer"
        )
    inputs, hidden, classes = model.widths
    return inputs, hidden, classes
