"""What members say when a leader names another model than the one that they have committed.

An honest leader assigns a round only after a majority has accepted the model that it begins with. So whenever a
majority of all members says that it knows nothing of that model, the leader lies about the round or the digest: who
finds that out trains nothing for it, names the lie in the log, and does not hear it any longer, so that it loses the
majority that it needs. Less than that proves nothing: just under half of an honest leader's members may be slow to get
a model, so a few that are asked first can only clear it.
"""

from __future__ import annotations

from collections.abc import Sequence

from node import Context, DeadlineExceeded, Future, Message, Unreachable
from node.cohorts import generator, uniform
from protocols.cohort_round import Assignment

MOST_ASKED = 16
"""Members that a doubtful one asks: many members may be a little late."""


class Doubt(Message, name="cpfl/doubt/1"):
    """Which model have you committed, or are about to?"""


class Statement(Message, name="cpfl/statement/1"):
    """This one, after this round."""

    round: int
    digest: str


def agrees(statement: Statement, assignment: Assignment) -> bool:
    """Whether this is the model that an assignment begins with, or a later one."""
    is_same = statement.digest == assignment.digest
    return statement.round >= assignment.round or (statement.round == assignment.round - 1 and is_same)


async def suspected(ctx: Context, members: Sequence[int], assignment: Assignment, timeout_s: float) -> bool:
    """Whether half of a few members, or more, know nothing of what an assignment begins with."""
    others = [member for member in members if member != ctx.me]
    drawn = uniform(others, MOST_ASKED, generator(ctx.seed, ctx.me, assignment.round))
    return 2 * await _against(ctx, drawn, assignment, timeout_s) >= len(drawn)


async def contradicted(ctx: Context, members: Sequence[int], assignment: Assignment, timeout_s: float) -> bool:
    """Whether a majority of all members, this one among them, knows nothing of what an assignment begins with."""
    others = [member for member in members if member != ctx.me]
    return 2 * (1 + await _against(ctx, others, assignment, timeout_s)) > len(members)


async def _against(ctx: Context, asked: Sequence[int], assignment: Assignment, timeout_s: float) -> int:
    """How many of some members say that they know nothing of it."""
    said = [ctx.future() for _ in asked]
    for member, future in zip(asked, said, strict=True):
        ctx.spawn(_ask(ctx, member, timeout_s, future))
    heard: list[Statement | None] = [await future for future in said]
    return sum([not agrees(each, assignment) for each in heard if each is not None])


async def _ask(ctx: Context, member: int, timeout_s: float, future: Future[Statement | None]) -> None:
    try:
        answer = await ctx.request(member, Doubt(), timeout_s=timeout_s)
    except (Unreachable, DeadlineExceeded):
        answer = None
    future.set_result(answer if isinstance(answer, Statement) else None)
