"""What a server makes of its clients' models beyond their mean, as ops: optimizers, control variates, unequal steps.

They are plain arithmetic on models, whatever library their tensors come from. ``D`` is the mean of the clients' models
less the server's own. A class here records its ops on any context; it keeps no values, so that a protocol can
checkpoint them, or hand them over to the next leader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from node.arithmetic import shift
from node.errors import ConfigError
from node.op import Op, Ref, Value, op

if TYPE_CHECKING:
    from node.compute import Compute


@op
def filled(model: Value, *, by: float) -> Value:
    """The shape of ``model``, every element ``by``."""
    return model * 0.0 + by


@op
def accumulated(mean: Value, after: Value, before: Value, *, beta: float) -> Value:
    """Heavy-ball momentum: ``beta * mean + D``."""
    return mean * beta + (after - before)


@op
def decayed_mean(mean: Value, after: Value, before: Value, *, beta: float) -> Value:
    """Exponential moving average of the change ``after - before``."""
    return mean * beta + (after - before) * (1 - beta)


@op
def summed_square(square: Value, after: Value, before: Value) -> Value:
    """Sum of the squared changes."""
    return square + (after - before) ** 2


@op
def decayed_square(square: Value, after: Value, before: Value, *, beta: float) -> Value:
    """Exponential moving average of the squared change."""
    return square * beta + (after - before) ** 2 * (1 - beta)


@op
def yogi_square(square: Value, after: Value, before: Value, *, beta: float) -> Value:
    """``square - (1 - beta) D^2 sign(square - D^2)``: it nears the squared change by no more than this."""
    change = (after - before) ** 2
    step = change * (1 - beta)
    return square - step * (square > change) + step * (square < change)


@op
def stepped(model: Value, mean: Value, *, lr: float) -> Value:
    """``model + lr * mean``."""
    return model + lr * mean


@op
def adaptive_step(model: Value, mean: Value, square: Value, *, lr: float, tau: float) -> Value:
    """``model + lr * mean / (sqrt(square) + tau)``."""
    return model + lr * mean / (square**0.5 + tau)


@op
def difference(one: Value, other: Value) -> Value:
    """``one - other``."""
    return one - other


@op
def next_control(own: Value, common: Value, before: Value, after: Value, *, distance: float) -> Value:
    """``own - common + (before - after) / distance``."""
    return own - common + (before - after) / distance


_SQUARES: dict[str, Op[...]] = {"adagrad": summed_square, "yogi": yogi_square, "adam": decayed_square}


@dataclass(frozen=True, slots=True)
class ServerOptimizer:
    """How a server steps from its model to the next, given the mean of the clients'.

    ``average``: to the mean (McMahan et al., AISTATS 2017). ``momentum``: FedAvgM (Hsu, Qi, Brown, 2019). ``adagrad``,
    ``yogi``, ``adam``: Reddi et al., ICLR 2021, without bias correction.
    """

    rule: Literal["average", "momentum", "adagrad", "yogi", "adam"] = "average"
    lr: float = 1.0
    """Learning rate; 0.01 to 0.1 for the adaptive rules. ``average`` goes all the way whatever it is."""
    beta1: float = 0.9
    """Decay of the mean change."""
    beta2: float = 0.99
    """Decay of the squared change, for ``yogi`` and ``adam``."""
    tau: float = 1e-3
    """Degree of adaptivity."""
    first_square: float | None = None
    """What every squared change starts at; None: ``tau ** 2``, as in the paper."""

    def moments(self, ctx: Compute, model: Ref) -> Mapping[str, Ref]:
        """What a server keeps from round to round besides its model, at the start."""
        if self.rule == "average":
            return {}
        mean = ctx.apply(filled, model, by=0.0)
        if self.rule == "momentum":
            return {"mean": mean}
        square = self.tau**2 if self.first_square is None else self.first_square
        return {"mean": mean, "square": ctx.apply(filled, model, by=square)}

    def step(self, ctx: Compute, model: Ref, mean: Ref, moments: Mapping[str, Ref]) -> tuple[Ref, Mapping[str, Ref]]:
        """The next model and moments, from the current ones and the mean of the clients' models."""
        if self.rule == "average":
            return mean, moments
        if self.rule == "momentum":
            first = ctx.apply(accumulated, moments["mean"], mean, model, beta=self.beta1)
            return ctx.apply(stepped, model, first, lr=self.lr), {"mean": first}
        first = ctx.apply(decayed_mean, moments["mean"], mean, model, beta=self.beta1)
        decay = {} if self.rule == "adagrad" else {"beta": self.beta2}
        second = ctx.apply(_SQUARES[self.rule], moments["square"], mean, model, **decay)
        after = ctx.apply(adaptive_step, model, first, second, lr=self.lr, tau=self.tau)
        return after, {"mean": first, "square": second}


class Scaffold:
    """Control variates against client drift, option II (SCAFFOLD: Karimireddy et al., ICML 2020).

    A client trains with the correction as a constant part of its gradient, by SGD without momentum or weight decay:
    only then is the way it went, over steps and learning rate, its mean gradient. A round sends twice the bytes of
    FedAvg. With few of many clients a round it can diverge.
    """

    @staticmethod
    def start(ctx: Compute, model: Ref) -> Ref:
        """The control of a client, or the common one, before the first round."""
        return ctx.apply(filled, model, by=0.0)

    @staticmethod
    def correction(ctx: Compute, common: Ref, own: Ref) -> Ref:
        """What a client adds to each of its gradients (``ctx.train(..., correction=)``): ``common - own``."""
        return ctx.apply(difference, common, own)

    @staticmethod
    def trained(ctx: Compute, common: Ref, own: Ref, before: Ref, after: Ref, steps: int, lr: float) -> tuple[Ref, Ref]:
        """A client's next control, and the change of it, which the server hears.

        ``before`` is the server's model, ``after`` what ``steps`` steps at the rate ``lr`` have made of it.
        """
        control = ctx.apply(next_control, own, common, before, after, distance=steps * lr)
        return control, ctx.apply(difference, control, own)

    @staticmethod
    def step(
        ctx: Compute, model: Ref, common: Ref, models: Sequence[Ref], changes: Sequence[Ref], clients: int, lr: float
    ) -> tuple[Ref, Ref]:
        """The server's next model and common control, from those of its ``clients`` that took part; unweighted.

        ``lr`` is the server's own rate: with 1 the next model is the mean of the clients'.
        """
        heard = ctx.mix(models)
        after = heard if lr == 1 else ctx.apply(shift, model, heard, model, by=lr)
        return after, ctx.apply(stepped, common, ctx.mix(changes), lr=len(changes) / clients)


def nova_weights(samples: Sequence[float], steps: Sequence[int]) -> tuple[float, ...]:
    """Weights for ``ctx.mix`` of the server's model and then the clients', which took unequal numbers of steps.

    FedNova, for SGD without momentum: Wang, Liu, Liang, Joshi, Poor, NeurIPS 2020. Each client's change is divided by
    its steps, so that who takes more does not pull more; the mean of the steps, by samples, scales the sum. The first
    weight may be negative; all sum to 1.

    Raises ConfigError unless every client has samples and steps.
    """
    if not samples or len(samples) != len(steps) or min(samples) <= 0 or min(steps) <= 0:
        raise ConfigError("nova_weights: samples and steps of each client; allowed: as many of both, all above 0")
    total = sum(samples)
    shares = [count / total for count in samples]
    effective = sum(share * count for share, count in zip(shares, steps, strict=True))
    weights = [effective * share / count for share, count in zip(shares, steps, strict=True)]
    return (1.0 - sum(weights), *weights)
