"""Rounds whose leader learns the sum of its members' models, and no single one: secure aggregation in a cohort.

Bonawitz et al.: Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017. The leader tells all
members of a round of each other: the keys that they have shown it, and how much each counts. Whoever is there at the
round's end opens the sum of those who are; what that takes, and what a leader that lies can learn, is in
:mod:`node.privacy.recovery`. A member takes part only with members of its cohort, and only if it counts for what it has
said itself; as the sum's name is made of all that they were told, leaders who tell them different things hear noise,
and none can have a sum in which all but one count for nothing.

A leader that trains adds its own model to the sum of the others, of whom it takes three. A round that a new leader
repeats is another sum, with other masks, and nobody opens one for a leader that it does not follow any longer.

What is not hidden: who takes part, how many samples members have, what the cohort's model loses on those that they hold
out, and, where Oort asks, what there is to learn. Nor do sums hide what a cohort has learned.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from node import LEAST_SENDERS, Context, Message, Part, Ref, ShownKey
from protocols.cohort_round import Answer, Assignment, Hello, Update, weight_of
from protocols.cohort_settings import Settings
from protocols.leadership import Leadership
from protocols.opening import Opened, Survivors, openings


class Masked(Message, name="cpfl/masked/1", key=("term", "round"), any_shape=True):
    """What a member made of it, as noise that is gone from the sum once enough members have opened that."""

    term: int
    round: int
    part: Ref | None = None
    """Its weighted model in steps of 2**-20, masked, int32; None: it takes no part. What a leader tells itself is its
    model as it is."""
    total: bytes = b""
    """Names the sum."""
    shares: tuple[bytes, ...] = ()
    """What each sender of the sum, in their order, can help to open it with, sealed."""
    loss: float = math.nan
    """Of the model that came, on what the member holds out; taken before it was trained."""
    held: int = 0
    """Samples that the loss is the mean over."""
    utility: float = 0.0
    """What there was to learn (Oort)."""


def numbered(term: int, round: int) -> int:
    """Numbers one leader's sums: what comes later has a higher number, and no two have the same."""
    return term << 32 | round


# The leader


def announced(
    ctx: Context, settings: Settings, assignment: Assignment, asked: Sequence[int], roll: Mapping[int, Hello]
) -> tuple[Assignment, tuple[int, ...]]:
    """What to assign to those who share secrets, and who they are, the leader included; nobody, where they are few."""
    senders: list[tuple[int, float, bytes, bytes]] = []
    for member in asked:
        hello = roll[member]
        if member != ctx.me and len(hello.key) == len(ShownKey._fields) and ctx.privacy.trusts(member, _key(hello.key)):
            public, signature = hello.key
            senders.append((member, float(weight_of(hello, settings.weights)), public, signature))
    if len(senders) < LEAST_SENDERS:
        ctx.log.warning("too few members for a sum under masks", there=len(senders), needed=LEAST_SENDERS)
        return assignment, ()
    hidden = {sender for sender, *_ in senders}
    return replace(assignment, senders=tuple(senders)), tuple([m for m in asked if m in hidden or m == ctx.me])


class MaskedGathering:
    """One round's sum under masks, and who is in it; as a :class:`~protocols.gathering.Gathering`."""

    kind = Masked

    def __init__(
        self, ctx: Context, settings: Settings, assignment: Assignment, shares: Mapping[int, float], before: Ref
    ) -> None:
        """``shares``: how much of the round each member is; ``before``: the model that entered it."""
        self.members: list[int] = []
        self._ctx = ctx
        self._settings = settings
        self._shares = shares
        self._before = before
        self._own: Ref | None = None
        weights = {member: weight for member, weight, *_ in assignment.senders}
        self._sum = ctx.privacy.gathering(weights, numbered(assignment.term, assignment.round), settings.window)

    @property
    def least(self) -> int:
        """How many must have answered: those that it takes to open the sum, and perhaps the leader."""
        return self._sum.threshold + 1

    def take(self, member: int, sent: Masked, branch: Sequence[int]) -> Answer:
        """Take in what a member has sent; nothing of one that takes no part, or of no part."""
        if sent.part is None or not self._include(member, Part(sent.part, sent.total, sent.shares)):
            self._ctx.log.warning("a member without a part in the sum", peer=member, round=sent.round)
            return Answer(math.nan, 0)
        weight = min(sent.held, 1) if self._settings.weights == "uniform" else sent.held
        return Answer(sent.loss, weight, sent.utility)

    def _include(self, member: int, part: Part) -> bool:
        if member != self._ctx.me:
            return self._sum.add(member, part)
        self._own = part.value
        return True

    async def means(self) -> tuple[Ref | None, None]:
        """Of the models of those who are in the sum, and the leader's; None where the sum was not opened."""
        ctx, settings = self._ctx, self._settings
        limits = {"quorum": self._sum.threshold, "grace_s": settings.election_timeout_s}
        opened = await openings(ctx, self._sum, timeout_s=settings.deadline_s or None, **limits)
        with ctx.aside():  # a leader trains as it would without masks
            opening = self._sum.total(self._before, opened)
        total = await opening
        return (None if total is None else self._mean(total)), None

    def _mean(self, total: Ref) -> Ref:
        """Of a sum in which the senders' weights, with those who are missing, make 1."""
        ctx, shares, alive = self._ctx, self._shares, self._sum.alive
        own = 0.0 if self._own is None else shares[ctx.me]
        whole = sum(share for member, share in shares.items() if member != ctx.me)
        there = sum(shares[member] for member in alive) + own
        self.members = sorted([*alive, *([] if self._own is None else [ctx.me])])
        models, weights = [total], [whole / there]
        if self._own is not None:
            models, weights = [*models, self._own], [*weights, own / there]
        with ctx.aside():
            return ctx.mix(models, weights)


# The member


async def contributed(
    ctx: Context,
    settings: Settings,
    leadership: Leadership,
    leader: int,
    assignment: Assignment,
    train: Callable[[Context, Assignment], Awaitable[Update]],
) -> Masked:
    """What this node sends its leader once it has trained: its part of the sum, or that it takes none."""
    absent = Masked(term=assignment.term, round=assignment.round)
    if leader != ctx.me and not _is_sound(ctx, settings, leadership, assignment):
        ctx.log.warning("sum refused", receiver=leader, round=assignment.round)
        return absent
    update = await train(ctx, assignment)
    made = replace(absent, part=update.model, loss=update.loss, held=update.held, utility=update.utility)
    if leader == ctx.me:
        return made
    keys = {member: _key(key) for member, _, *key in assignment.senders}
    weights = {member: weight for member, weight, *_ in assignment.senders}
    number = numbered(assignment.term, assignment.round)
    with ctx.aside():
        part = ctx.privacy.masked(update.model, leader, number, keys, recoverable=True, weights=weights)
    return absent if part is None else replace(made, part=part.value, total=part.total, shares=part.shares)


def _is_sound(ctx: Context, settings: Settings, leadership: Leadership, assignment: Assignment) -> bool:
    """Whether all senders are of this cohort, and this node counts for what it has and under its own key."""
    mine = float(weight_of(Hello(samples=ctx.data.samples, steps=ctx.steps), settings.weights))
    is_counted = (ctx.me, mine, *ctx.privacy.key) in assignment.senders
    return is_counted and all(leadership.belongs(member) for member, *_ in assignment.senders)


def opened(ctx: Context, leader: int | None, sender: int, asked: Survivors) -> Opened:
    """This node's shares for the leader that it follows, where nothing speaks against opening the sum; or none."""
    shares = ctx.privacy.opened(sender, asked.total, asked.alive, asked.shares) if sender == leader else None
    return Opened(round=asked.round, shares=shares or b"")


def _key(shown: Sequence[bytes]) -> ShownKey:
    return ShownKey(*shown)
