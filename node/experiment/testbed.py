"""The task of :mod:`node.privacy.mean_estimation` run through the simulator: it must fall on the closed forms.

Every coordinate of a vector is a trial of its own. In the second half of them one sample of node 0 has its other value,
so that an attacker who sees node 1's inbox, or node 0's estimate, has members and non-members to tell apart.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from node.attack.metrics import auc
from node.config import TopologySection
from node.context import Context
from node.errors import ConfigError
from node.message import Message
from node.mods import Observer
from node.op import Op, Ref, Spec, op
from node.privacy.mean_estimation import MeanEstimation
from node.protocol import Protocol
from node.testing import Quadratic, run_protocol

Floats = NDArray[np.float64]

_VICTIM, _NEIGHBOUR = 0, 1


class Release(Message, name="testbed/release/1", key=("round",)):
    """The mean of a node's samples, with noise."""

    round: int
    mean: Ref


class Personalized(Protocol):
    """Release a noised mean, and estimate one's own from it and all others'."""

    class Config(Protocol.Config):
        """Options."""

        weight: float = Field(0.5, ge=0, le=1)
        """Of the mean of all releases in a node's estimate."""
        noise: float = Field(0.5, gt=0)
        """Standard deviation of what is added to what nodes send, or publish."""
        noised: str = Field("release", pattern="^(release|estimate)$")
        """What it is added to."""

    config: Config

    async def run(self, ctx: Context) -> Ref:
        """One round is all; the estimate is the final model."""
        weight, noise = self.config.weight, self.config.noise
        own = await ctx.train(ctx.initial_model())  # one step to where the node's data are
        released = ctx.apply(noised, own, deviation=noise) if self.config.noised == "release" else own
        await ctx.send(ctx.neighbours(0), Release(round=0, mean=released))
        heard = await ctx.collect(Release, frm=ctx.neighbours(0), round=0)
        everybody = ctx.mix([released, *(message.mean for message in heard.values())])
        estimate = ctx.mix([own, everybody], [1 - weight, weight])
        return ctx.apply(noised, estimate, deviation=noise) if self.config.noised == "estimate" else estimate


@op(seeded=True)
def noised(mean: Floats, *, deviation: float, rng: np.random.Generator) -> Floats:
    """A mean with Gaussian noise on every coordinate."""
    return mean + deviation * rng.normal(size=mean.shape)


class Eavesdropper(Observer):
    """The victim's neighbour, who attacks what the victim releases."""

    def __init__(self, attack: Op[...]) -> None:
        super().__init__()
        self._attack = attack

    def received(self, ctx: Context, sender: int, message: Message) -> None:
        """One attack on each release of the victim."""
        if (sender, ctx.me) == (_VICTIM, _NEIGHBOUR) and isinstance(message, Release):
            ctx.record(round=message.round, auc=ctx.apply(self._attack, message.mean))


class Simulated(NamedTuple):
    """What a simulated run came to, where :mod:`node.privacy.mean_estimation` says what it must."""

    error: float
    """Mean squared error of all nodes' estimates."""
    auc_release: float
    """Of the attack on what the victim has sent."""
    auc_estimate: float
    """Of the attack on what it has estimated."""


def simulate(task: MeanEstimation, weight: float, *, trials: int = 20_000, seed: int = 0) -> Simulated:
    """Run the task under the virtual clock, many times at once.

    Raises:
        ConfigError: there are not two nodes at least, or a figure is out of range.
    """
    if task.nodes < 2:
        raise ConfigError(f"nodes: {task.nodes}; allowed: 2 or more, a victim and its neighbour")
    rng = np.random.default_rng([seed, *b"testbed"])
    truth = task.spread * rng.normal(size=(task.nodes, trials))
    means = truth + rng.normal(size=truth.shape) / math.sqrt(task.samples)
    members = np.arange(trials) >= trials // 2
    held = means.copy()
    held[_VICTIM, members] += task.change / task.samples
    known = means[_VICTIM]
    attack: Op[...] = Op("testbed:attack", lambda told: {"auc": auc(told.inputs[0] - known, members)}, spec=_figure)
    options = Personalized.Config(weight=weight, noise=task.noise, noised=task.noised)
    outcome = run_protocol(
        Personalized(options),
        task.nodes,
        workload=Quadratic(task.nodes, held, lr=1.0),
        topology=TopologySection(kind="full"),
        seed=seed,
        mods=[Eavesdropper(attack)],
    )
    estimates = np.array([outcome.models[node] for node in range(task.nodes)])
    expected = (1 - weight) * known + weight * means.mean(axis=0)  # all that the attacker knows
    return Simulated(
        float(((estimates - truth)[:, ~members] ** 2).mean()),
        outcome.recorder.latest("auc")[_NEIGHBOUR],
        auc(estimates[_VICTIM] - expected, members),
    )


def _figure(inputs: Any, static: Any) -> Spec:
    return Spec((1,), "float64", ("auc",))
