"""Whom to believe that all is over: the node that unifies, or, as it may be lost while it says so, a majority.

Who unifies follows from who is there. A node that has missed the end hears of it from others of its cohort; it believes
them when more than half of those that are there say the same. What anybody else says is kept until its turn comes: a
node may not know yet that those before it in the succession are lost.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol as Interface

from node import Context
from protocols import forming
from protocols.leadership import Leadership
from protocols.unification import Result


class Host(Interface):
    """The node that waits for the end."""

    leadership: Leadership

    def finish(self, ctx: Context, result: Result) -> None:
        """There is a result."""
        ...


class Succession:
    """The results that one node has been told, and by whom."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._said: dict[int, tuple[Result, str]] = {}

    async def hear(self, ctx: Context, sender: int, result: Result) -> None:
        """A node says that it is over."""
        if sender == forming.elected(ctx, "unifier")[0]:
            self._host.finish(ctx, result)
            return
        digest = "" if result.model is None else await ctx.digest(result.model)
        self._said[sender] = (result, f"{digest} {result.round}")
        self.judge(ctx)

    def judge(self, ctx: Context) -> None:
        """End, if who may say so has said it."""
        first = forming.elected(ctx, "unifier")[0]
        if first in self._said:
            self._host.finish(ctx, self._said[first][0])
            return
        others = [member for member in ctx.alive(self._host.leadership.members) if member != ctx.me]
        for result, name in self._said.values():
            if 2 * self._count(name, others) > len(others):
                self._host.finish(ctx, result)
                return

    def _count(self, name: str, nodes: Collection[int]) -> int:
        return sum([node in self._said and self._said[node][1] == name for node in nodes])
