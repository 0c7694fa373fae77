"""What one round's members make of a model, added up: at their leader, or at one of them that does so for it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from node import Context, Ref
from protocols.cohort_round import Answer, Assignment, Partial, Update, mean_loss
from protocols.cohort_settings import Settings
from protocols.running_sum import RunningSum


class Gathering:
    """Sums of models, and of changes of control variates, and who is in them."""

    least = 0
    """How many must have answered for there to be a sum."""

    def __init__(self, ctx: Context, settings: Settings, shares: Mapping[int, float]) -> None:
        """``shares``: how much of the round each member is; they sum to 1 at the leader."""
        self.members: list[int] = []
        self.kind: type[Update | Partial] = Partial if settings.branching else Update
        """What it is made of, at the leader."""
        self._ctx = ctx
        self._is_uniform = settings.weights == "uniform"
        self._shares = shares
        self._models = RunningSum(ctx, shares, settings.window)
        self._changes = RunningSum(ctx, shares, settings.window)

    def take(self, sender: int, sent: Update | Partial, branch: Collection[int]) -> Answer:
        """Take in what the leader is sent, by a member or for a branch."""
        return self.add(sender, sent) if isinstance(sent, Update) else self.add_partial(sender, sent, branch)

    def add(self, member: int, update: Update) -> Answer:
        """Take in what a member has sent."""
        self._include(member, update, (member,), self._shares[member])
        weight = min(update.held, 1) if self._is_uniform else update.held
        return Answer(update.loss, weight, update.utility)

    def add_partial(self, sender: int, partial: Partial, branch: Collection[int]) -> Answer:
        """Take in what another node has added up of a branch; nothing of a sum of others, or of one twice."""
        members = partial.members
        if len(set(members)) < len(members) or not set(members) <= set(branch):
            self._ctx.log.warning("a sum of models that are not all of its branch", peer=sender, members=members)
            return Answer(math.nan, 0)
        self._include(sender, partial, partial.members, 1.0)
        return Answer(partial.loss, partial.weight)

    def _include(self, sender: int, sent: Update | Partial, members: tuple[int, ...], times: float) -> None:
        self._models.add(sender, sent.model, times)
        if sent.change is not None:
            self._changes.add(sender, sent.change, times)
        self.members += members

    @property
    def share(self) -> float:
        """How much of the round has come."""
        return sum(self._shares[member] for member in sorted(self.members))

    def sums(self) -> tuple[Ref | None, Ref | None]:
        """Of models and of changes; None of nothing."""
        return self._models.total(), self._changes.total()

    async def means(self) -> tuple[Ref | None, Ref | None]:
        """Of those that have come."""
        model, change = self.sums()
        if len(self.members) == len(self._shares):
            return model, change
        return self._scaled(model), self._scaled(change)

    def _scaled(self, total: Ref | None) -> Ref | None:
        if total is None:
            return None
        with self._ctx.aside():
            return self._ctx.mix([total], [1.0 / self.share])


async def gather_partial(ctx: Context, settings: Settings, assignment: Assignment) -> Partial | None:
    """Add up for the leader what the members under this node send; None where nothing comes in half the deadline.

    The other half is for the sum to get to the leader.
    """
    shares = dict(assignment.shares)
    gathering = Gathering(ctx, settings, shares)
    answers = await ctx.collect_each(
        Update,
        gathering.add,
        frm=tuple(shares),
        quorum=len(shares),
        timeout_s=settings.deadline_s / 2 or None,
        term=assignment.term,
        round=assignment.round,
    )
    model, change = gathering.sums()
    if model is None:
        return None
    loss, weight, _ = mean_loss(answers.values())
    return Partial(
        term=assignment.term,
        round=assignment.round,
        model=model,
        members=tuple(sorted(gathering.members)),
        loss=loss,
        weight=weight,
        change=change,
    )
