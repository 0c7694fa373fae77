"""Models on request: what is common to protocols whose nodes choose by themselves whom they hear in a round.

A node that has trained for a round asks the peers of its choice for what they have made in the same round, and gives
its own to those who ask. Rounds need not be in step: a peer that is behind answers when it is there, and one that is
ahead with what it has kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from pydantic import Field

from node import Context, Message, Protocol, Ref, on

MOST_TIMES_MEDIAN = 10
"""A number of samples counts for no more than this many times the median of all that are averaged."""

M = TypeVar("M", bound=Message)


class Ask(Message, name="pulling/ask/1"):
    """Send me what you have made in this round."""

    round: int


class Pulling(Protocol):
    """Asks and answers; a subclass trains, chooses and mixes. Its messages have the key ``round``."""

    uses_topology = False
    side_channels: ClassVar[tuple[str, ...]] = ("who is contacted", "number of samples")

    class Config(Protocol.Config):
        """Options of ``[protocol]`` that all of these have."""

        rounds: int = Field(100, ge=1)
        """Rounds of training, choosing and mixing."""
        deadline_s: float = Field(0.0, ge=0)
        """Longest wait for those who were asked; 0: all are needed."""
        kept_rounds: int = Field(4, ge=1)
        """Rounds whose models a node keeps for peers that are behind; one further behind is given the oldest of them.
        With as many as ``rounds``, no result depends on how fast nodes are."""

    config: Config

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._made: dict[int, Any] = {}
        self._askers: dict[int, int] = {}

    async def exchange(self, ctx: Context, round: int, peers: Sequence[int], made: M) -> dict[int, M]:
        """Offer what was made in a round to all who ask; gives the same round's of ``peers``, by sender."""
        self._made[round] = made
        if len(self._made) > self.config.kept_rounds:
            del self._made[min(self._made)]
        await ctx.send(peers, Ask(round=round))
        for asker in [peer for peer, wanted in self._askers.items() if wanted <= round]:
            await ctx.send(asker, self._made_in(self._askers.pop(asker)))
        return await ctx.collect(type(made), frm=peers, timeout_s=self.config.deadline_s or None, round=round)

    @on(Ask)
    def answer(self, ctx: Context, asker: int, ask: Ask) -> Message | None:
        """What was made in that round; where that is still to come, :meth:`exchange` sends it."""
        if ask.round > max(self._made, default=-1):
            self._askers[asker] = ask.round
            return None
        return self._made_in(ask.round)

    def _made_in(self, round: int) -> Message:
        """What was made in a round, or else in the first one after it that is kept."""
        kept = self._made.get(round)
        made: Message = kept or dataclasses.replace(self._made[min(self._made)], round=round)
        return made


def draw(ctx: Context, peers: Sequence[int], k: int) -> tuple[int, ...]:
    """``k`` different ones of some peers that are there, drawn uniformly (all, where there are fewer), sorted."""
    there = ctx.alive(peers)
    return there if k >= len(there) else tuple(sorted(ctx.rng.choice(there, k, replace=False).tolist()))


async def losses(ctx: Context, heard: Mapping[int, Any]) -> dict[int, float]:
    """The loss of each model that was heard on this node's own training data; none for a model that is broken."""
    found = await ctx.values([ctx.evaluate(message.model, on="train") for message in heard.values()])
    on_own = {peer: value["loss"] for peer, value in zip(heard, found, strict=True)}
    return {peer: loss for peer, loss in on_own.items() if math.isfinite(loss)}


def average(ctx: Context, model: Ref, heard: Iterable[Any]) -> Ref:
    """The mean of this node's model and those that were heard, weighted by the samples that each was trained on.

    What others claim of these is believed within reason: it must be above 0, and counts for no more than
    :data:`MOST_TIMES_MEDIAN` times the (lower) median of all, this node's own number included.
    """
    others = [message for message in heard if message.samples > 0]
    claimed = [ctx.data.samples, *(message.samples for message in others)]
    most = MOST_TIMES_MEDIAN * sorted(claimed)[(len(claimed) - 1) // 2]
    samples = [ctx.data.samples, *(min(count, most) for count in claimed[1:])]
    return ctx.mix([model, *(message.model for message in others)], [count / sum(samples) for count in samples])
