"""Who may hand in what a cohort has learned: whom most of its members that are there follow, and know to be as far.

Any member could say that its cohort has stopped. So the node that unifies asks the others before it takes a model: who
leads has their votes. Of an elected leader's rounds they know, too: before it has trained one, a majority has accepted
the model of the round before. Of a fixed leader's, a member knows those that it has been asked for, and a leader may
ask few of them: so many rounds count as one of the others has been asked for. More takes an accomplice.
"""

from __future__ import annotations

from collections.abc import Sequence

from node import Context, DeadlineExceeded, Future, Message, Unreachable
from protocols.handing import Stopped
from protocols.leadership import Leadership


class Claim(Message, name="cpfl/claim/1"):
    """This node says that it leads your cohort, and that you have trained for so many rounds."""

    cohort: int
    leader: int
    rounds: int


class Vote(Message, name="cpfl/vote/1"):
    """What I know of that."""

    holds: bool | None = None
    """None: it is not for me to say."""
    rounds: int = 0
    """That I know to have begun, of those that the claim tells of."""


def is_possible(stopped: Stopped, most_rounds: int) -> bool:
    """Whether there can be such a cohort; ``most_rounds``: 0 for any number."""
    return stopped.samples >= 0 and stopped.rounds >= 0 and (not most_rounds or stopped.rounds <= most_rounds)


def vote(ctx: Context, leadership: Leadership, claim: Claim, seen: int) -> Vote:
    """What a member of the cohort says: nothing, where it is none any longer, or too few are left to have a leader.

    Args:
        seen: rounds up to the newest one that this node has been asked for.
    """
    members = leadership.members
    is_leaderless = leadership.leader is None and 2 * len(ctx.alive(members)) <= len(members)
    if ctx.me not in members or is_leaderless:
        return Vote()
    mine = leadership.testify()
    known = seen if mine is None else mine.round + 1
    holds = leadership.leader == claim.leader and (mine is None or known >= claim.rounds)
    return Vote(holds=holds, rounds=min(known, claim.rounds))


async def vouched(ctx: Context, members: Sequence[int], claim: Claim, own: Vote, timeout_s: float) -> int | None:
    """How many rounds of a claim count; None: no more than half of a cohort's members that are there confirm it.

    Who says nothing in time is against it. A leader whose members are all gone, or that never had any, is believed.

    Args:
        members: those that the cohort was formed of.
        own: what this node would say, if it is one of them.
    """
    others = [member for member in ctx.alive(members) if member not in (ctx.me, claim.leader)]
    said = [ctx.future() for _ in others]
    for member, future in zip(others, said, strict=True):
        ctx.spawn(_ask(ctx, member, claim, timeout_s, future))
    votes = [await future for future in said]
    votes += [own] if ctx.me in members and ctx.me != claim.leader else []
    heard = [vote for vote in votes if vote.holds is not None]
    confirming = [vote.rounds for vote in heard if vote.holds]
    leads = claim.leader in members
    if 2 * (len(confirming) + leads) <= len(heard) + leads:
        return None
    return max(confirming, default=claim.rounds)


async def _ask(ctx: Context, member: int, claim: Claim, timeout_s: float, future: Future[Vote]) -> None:
    try:
        answer = await ctx.request(member, claim, timeout_s=timeout_s)
    except Unreachable:
        answer = Vote()
    except DeadlineExceeded:
        answer = None
    future.set_result(answer if isinstance(answer, Vote) else Vote(holds=False))
