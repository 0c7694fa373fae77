"""One round of a cohort: what leader and members say to each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from node import Context, Message, Ref

Weights = Literal["samples", "uniform", "nova"]


class Hello(Message, name="cpfl/hello/1"):
    """I follow you; this is what I have to train on."""

    samples: int
    counts: tuple[float, ...] = ()
    """Samples of each class, perhaps with noise; empty where nobody needs them."""
    steps: int = 1
    """Of one training."""
    key: tuple[bytes, ...] = ()
    """Public key and signature, to share secrets with others; empty where models are not masked."""


class Assignment(Message, name="cpfl/assignment/1"):
    """Train this model; ask me for it if you lack it."""

    epoch: int
    term: int
    round: int
    digest: str
    to: int | None = None
    """Who adds up what becomes of it; None: I do."""
    shares: tuple[tuple[int, float], ...] = ()
    """For the one who adds up: whose models, and how much of the whole round each one is."""
    senders: tuple[tuple[int, float, bytes, bytes], ...] = ()
    """Whose models are added up under masks: number, how much it counts, public key and signature."""
    again: bool = False
    """Whether it has been told before: then it counts only for who lacks it, or whose answer must be lost."""


class Update(Message, name="cpfl/update/1", key=("term", "round")):
    """What a member made of it."""

    term: int
    round: int
    model: Ref
    loss: float
    """Of the model that came, on what the member holds out; taken before it was trained."""
    held: int
    """Samples that the loss is the mean over."""
    change: Ref | None = None
    """Of the member's control variate (SCAFFOLD)."""
    utility: float = 0.0
    """What there was to learn: samples times the root mean square of losses (Oort); 0 where nobody asks."""


class Partial(Message, name="cpfl/partial/1", key=("term", "round")):
    """What some members made of it, added up by one of them."""

    term: int
    round: int
    model: Ref
    """The sum of their models, each times its share of the round."""
    members: tuple[int, ...]
    """Who is in it."""
    loss: float
    """The mean of theirs."""
    weight: float
    """How much that mean counts."""
    change: Ref | None = None
    """The sum of their changes, each times its share."""


class Answer(NamedTuple):
    """What is kept of an update, or of a partial sum, once its model is added up."""

    loss: float
    weight: float
    """How much the loss counts; 0 where there is none."""
    utility: float = 0.0


def weight_of(hello: Hello, weights: Weights) -> float:
    """How much a member counts."""
    match weights:
        case "uniform":
            return 1
        case "nova":
            return hello.samples / max(hello.steps, 1)
        case _:
            return hello.samples


def mean_loss(answers: Iterable[Answer]) -> Answer:
    """The weighted mean of losses, and all their weight; NaN where nobody has any, infinite where a model diverged."""
    heard = [answer for answer in answers if answer.weight]
    weight = sum(answer.weight for answer in heard)
    if not heard:
        return Answer(math.nan, 0)
    if not all(math.isfinite(answer.loss) for answer in heard):
        return Answer(math.inf, weight)
    return Answer(math.fsum(answer.weight * answer.loss for answer in heard) / weight, weight)


def shares_of(weights: Mapping[int, float]) -> dict[int, float]:
    """What each member is of the whole round, by number."""
    total = sum(weights.values())
    return {member: weights[member] / total for member in sorted(weights)}


def tell(ctx: Context, node: int, message: Message) -> None:
    """Send beside whatever goes on; what a node tells itself is no traffic."""
    if node == ctx.me:
        ctx.deliver(node, message)
    else:
        ctx.spawn(ctx.send(node, message))
