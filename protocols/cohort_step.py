"""How a cohort's model goes on from what its members have made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from node import Context, Ref
from node.learn.federated import nova_weights, stepped
from protocols.cohort_round import Answer, Hello, weight_of
from protocols.cohort_settings import Settings
from protocols.drift import COMMON, common_of
from protocols.versions import Version


class Outcome(NamedTuple):
    """What a round has come to."""

    answers: Mapping[int, Answer]
    """By member, or by those who have added up for some."""
    members: Sequence[int]
    """All whose models are in the mean."""
    model: Ref | None
    """The mean of their models; None where nobody has answered."""
    change: Ref | None
    """The mean change of their control variates."""
    times_s: Mapping[int, float]
    """After what time each answer came."""


NOTHING = Outcome({}, (), None, None, {})


def next_state(
    ctx: Context, settings: Settings, last: Version, outcome: Outcome, roll: Mapping[int, Hello]
) -> tuple[Ref, dict[str, Ref]]:
    """The model after a round, and what else goes with it: the optimizer's moments, the common control.

    ``roll``: what the cohort's members have said of themselves.
    """
    if outcome.model is None:
        return last.model, last.state
    with ctx.aside():
        mean = outcome.model
        if settings.weights == "nova":
            mean = _normalised(ctx, last.model, mean, [roll[member] for member in sorted(outcome.members)])
        optimizer = settings.optimizer
        moments = last.state if last.digest else optimizer.moments(ctx, last.model)
        model, moments = optimizer.step(ctx, last.model, mean, moments)
        state = {**last.state, **moments}
        if outcome.change is not None:
            share = _share(settings, outcome.members, roll)
            state[COMMON] = ctx.apply(stepped, common_of(ctx, last), outcome.change, lr=share)
    return model, state


def _normalised(ctx: Context, model: Ref, mean: Ref, hellos: Sequence[Hello]) -> Ref:
    """FedNova's step from the mean of models by samples over steps."""
    rest = nova_weights([hello.samples for hello in hellos], [max(hello.steps, 1) for hello in hellos])[0]
    return ctx.mix([model, mean], [rest, 1.0 - rest])


def _share(settings: Settings, members: Sequence[int], roll: Mapping[int, Hello]) -> float:
    """How much of the whole cohort some members are: S / N, where all count the same."""
    weights = {member: weight_of(roll[member], settings.weights) for member in sorted(roll)}
    return sum(weights[member] for member in sorted(members)) / sum(weights.values())
