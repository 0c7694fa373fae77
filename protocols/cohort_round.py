"""One round of a cohort: what leader and members say to each other, and the mean that is made of it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from node import Context, Message, Ref


class Hello(Message, name="cpfl/hello/1"):
    """I follow you; this is what I have to train on."""

    samples: int
    counts: tuple[float, ...] = ()
    """Samples of each class, perhaps with noise; empty where nobody needs them."""


class Assignment(Message, name="cpfl/assignment/1"):
    """Train this model; ask me for it if you lack it."""

    epoch: int
    term: int
    round: int
    digest: str


class Update(Message, name="cpfl/update/1", key=("term", "round")):
    """What a member made of it."""

    term: int
    round: int
    model: Ref
    loss: float
    """Of the model that came, on what the member holds out; taken before it was trained."""
    held: int
    """Samples that the loss is the mean over."""


class Answer(NamedTuple):
    """What is kept of an update, once its model is added up."""

    loss: float
    held: int


class RunningMean:
    """The weighted mean of models that are added as they come, in the order of their members' numbers.

    At most ``window`` models wait for those of lower numbers: one more, and the lowest that has come is added before
    its turn. Up to there the result has the bits of ``ctx.mix`` over all; beyond, two runs agree to rounding. So a
    leader's memory depends on the window, not on the cohort.
    """

    def __init__(self, ctx: Context, weights: Mapping[int, float], window: int) -> None:
        self._ctx = ctx
        total = sum(weights.values())
        self._shares = {member: weights[member] / total for member in sorted(weights)}
        self._turns = deque(self._shares)
        self._window = window
        self._waiting: dict[int, Ref] = {}
        self._sum: Ref | None = None
        self._added: list[int] = []

    def add(self, member: int, model: Ref) -> None:
        """Take in a member's model."""
        self._waiting[member] = model
        while self._waiting and (self._turns[0] in self._waiting or len(self._waiting) > self._window):
            self._add_lowest()

    def _add_lowest(self) -> None:
        member = min(self._waiting)
        model, share = self._waiting.pop(member), self._shares[member]
        with self._ctx.aside():
            if self._sum is None:
                self._sum = self._ctx.mix([model], [share])
            else:
                self._sum = self._ctx.mix([self._sum, model], [1.0, share])
        self._turns.remove(member)
        self._added.append(member)
        if len(self._added) % self._window == 0:
            self._ctx.spawn(self._settle(self._sum))

    async def _settle(self, partial: Ref) -> None:
        """Let go of the models that are in the sum."""
        await self._ctx.value(partial)

    def mean(self) -> Ref | None:
        """The mean of those that have come; None where none has."""
        while self._waiting:
            self._add_lowest()
        if self._sum is None or not self._turns:
            return self._sum
        with self._ctx.aside():
            return self._ctx.mix([self._sum], [1.0 / sum(self._shares[member] for member in sorted(self._added))])


def validation_loss(answers: Mapping[int, Answer], *, by_samples: bool) -> float:
    """The mean of the members' losses, weighted by what they are means over or not; NaN where nobody has any."""
    heard = [answer for answer in answers.values() if answer.held]
    weights = [answer.held if by_samples else 1 for answer in heard]
    if not heard:
        return math.nan
    return math.fsum(w * answer.loss for w, answer in zip(weights, heard, strict=True)) / sum(weights)
