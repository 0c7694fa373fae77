"""Who comes late joins a cohort that has room; who was left out meanwhile joins its own again; and a cohort that has
become too small, or cannot go on, dissolves.

Each node sees to itself. It asks one member of each cohort who belongs there now, and goes where it costs least, of
those with room: late nodes where they fit in (:mod:`protocols.fitting`), those of dissolved cohorts by rendezvous. That
cohort's leader has the change of membership committed like a round. What a dissolved cohort has learned is lost.

Of several cohorts that are too small, the smallest dissolves first, and the highest number of equals: that may make the
others big enough. A cohort that has lost its fixed leader or its majority waits ``muster_s`` for them; what it can no
longer commit would keep all others waiting. The node that unifies does not wait for a cohort any longer once more than
half of those that it was formed of, and that are there, have left it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol as Interface

from node import Context, DeadlineExceeded, Message, ProtocolError, Unreachable
from node.cohorts import Cohorts, joined, smallest
from protocols import fitting, forming
from protocols.cohort_round import tell
from protocols.cohort_settings import Settings
from protocols.forming import Asking, Formed
from protocols.leadership import Leadership

_PATIENCE = 2
"""Looks in a row that must find a cohort too small before it is left: who is away may be back at once."""


class Join(Message, name="cpfl/join/1"):
    """Have me join this cohort."""

    cohort: int


class Dissolved(Message, name="cpfl/dissolved/1"):
    """My cohort was too small, or could not go on, and is no more; do not wait for its model."""

    cohort: int


class Host(Interface):
    """The node that belongs somewhere."""

    leadership: Leadership
    cohort: int
    cohorts: Cohorts

    @property
    def is_over(self) -> bool:
        """Whether there is a result."""
        ...

    def move(self, ctx: Context, cohorts: Cohorts, cohort: int) -> None:
        """Begin anew, in another cohort, as one who is no member of it yet."""
        ...


class Belonging:
    """One node's place in a cohort."""

    def __init__(self, host: Host, settings: Settings) -> None:
        self._host = host
        self._settings = settings
        self._min_size = settings.least_size
        self._timeout_s = settings.election_timeout_s
        self._muster_s = settings.muster_s
        self._has_fixed_leader = settings.leader == "fixed"
        self._left: dict[int, None] = {}
        self._elsewhere: dict[int, None] = {}  # members that have left this node's cohort, as they say themselves
        self._small = 0
        self._lost_since_s: float | None = None

    async def find(self, ctx: Context, cohorts: Cohorts, counts: tuple[float, ...]) -> tuple[Cohorts, int]:
        """The cohorts as they are now, with this node where it is to join, and that one's number.

        Args:
            counts: what this node tells of its labels, where the rule goes by them.

        Raises:
            ProtocolError: nobody answers.
        """
        view = tuple([await self._row(ctx, cohorts, number) for number in range(len(cohorts))])
        number = _cheapest(ctx, view, await fitting.costs(ctx, self._settings, counts, len(view)))
        return _entered(ctx, view, number), number

    async def watch(self, ctx: Context) -> None:
        """Look now and then, until it is over, whether this node still has a place in a cohort that can live."""
        host = self._host
        while not host.is_over:
            await ctx.sleep(2 * self._timeout_s)
            for cohort in self._left:
                tell(ctx, forming.elected(ctx, "unifier")[0], Dissolved(cohort=cohort))
            if self._is_lost(ctx):
                await self._leave(ctx, await self._others(ctx), "a cohort that cannot go on dissolves")
            elif self._is_too_small(ctx):
                await self._shrink(ctx)
            elif host.leadership.leader is None:
                await self.ask(ctx)

    def _is_lost(self, ctx: Context) -> bool:
        """Whether those whom the cohort cannot do without have been away for too long."""
        members = self._host.leadership.members
        there = [member for member in ctx.alive(members) if member not in self._elsewhere]
        if not members or self._can_commit(there, members):
            self._lost_since_s = None
        elif self._lost_since_s is None:
            self._lost_since_s = ctx.now
        return self._lost_since_s is not None and ctx.now - self._lost_since_s >= self._muster_s

    def _can_commit(self, there: Sequence[int], members: Sequence[int]) -> bool:
        if self._has_fixed_leader:
            return bool(members) and members[0] in there
        return 2 * len(there) > len(members)

    def _is_too_small(self, ctx: Context) -> bool:
        members = self._host.leadership.members
        is_small = bool(members) and len(ctx.alive(members)) < self._min_size
        self._small = self._small + 1 if is_small else 0
        return self._small >= _PATIENCE

    async def _shrink(self, ctx: Context) -> None:
        """Leave, if no other cohort is to dissolve first."""
        host, others = self._host, await self._others(ctx)
        rows = [host.leadership.members if number == host.cohort else row for number, row in enumerate(others)]
        if smallest([ctx.alive(members) for members in rows]) == host.cohort:
            await self._leave(ctx, others, "a cohort that is too small dissolves")
        else:
            self._small = 0

    async def _leave(self, ctx: Context, others: Cohorts, why: str) -> None:
        """Join a cohort that can go on and is big enough; where none is, one that can go on."""
        host, left = self._host, self._host.cohort
        able = tuple([members if self._can_commit(ctx.alive(members), members) else () for members in others])
        big = tuple([members if len(ctx.alive(members)) >= self._min_size else () for members in able])
        try:
            cohort = _cheapest(ctx, big if any(big) else able, forming.costs(ctx, len(able)))
        except ProtocolError:  # the last cohort stays, however small it is
            if self._lost_since_s is not None:
                ctx.log.warning("a cohort cannot go on, and its members find no other one; they wait", cohort=left)
                self._lost_since_s = None
            return
        ctx.log.warning(why, cohort=left, joins=cohort)
        self._left[left], self._small, self._lost_since_s = None, 0, None
        self._left.pop(cohort, None)
        host.move(ctx, _entered(ctx, others, cohort), cohort)
        await self.ask(ctx)

    async def _others(self, ctx: Context) -> Cohorts:
        """The cohorts as they are now, this node's left empty."""
        host = self._host
        return tuple(
            [
                () if number == host.cohort else await self._row(ctx, host.cohorts, number)
                for number in range(len(host.cohorts))
            ]
        )

    async def ask(self, ctx: Context) -> None:
        """Join, unless those who are there know this node as a member: then it waits for a leader like them."""
        host = self._host
        self._elsewhere.clear()
        members = await self._row(ctx, host.cohorts, host.cohort)
        if ctx.me not in members:
            for member in ctx.alive(members):
                tell(ctx, member, Join(cohort=host.cohort))

    async def _row(self, ctx: Context, cohorts: Cohorts, number: int) -> tuple[int, ...]:
        """Who belongs to a cohort now, as the first says of those that do; nobody, where nobody answers."""
        for peer in ctx.alive(cohorts[number]):
            if peer == ctx.me:
                continue
            try:
                answer = await ctx.request(peer, Asking(), timeout_s=self._timeout_s)
            except (Unreachable, DeadlineExceeded):
                continue
            if isinstance(answer, Formed) and number < len(answer.cohorts):
                if peer in answer.cohorts[number]:
                    return tuple(answer.cohorts[number])
                if number == self._host.cohort:
                    self._elsewhere[peer] = None
        return ()

    # Over restarts

    def state(self) -> str:
        """For a checkpoint: the cohorts that this node has left."""
        return " ".join(map(str, self._left))

    def restore(self, saved: str) -> None:
        """Go on from what :meth:`state` gave."""
        self._left = dict.fromkeys(map(int, saved.split()))


def _cheapest(ctx: Context, view: Cohorts, costs: Sequence[float]) -> int:
    """The number of the cohort to join; raises ProtocolError where none has room."""
    found = joined(view, ctx.me, costs)
    return next(number for number, members in enumerate(found) if ctx.me in members)


def _entered(ctx: Context, view: Cohorts, number: int) -> Cohorts:
    """With this node as the last of a cohort: the first may lead for good."""
    return (*view[:number], (*view[number], ctx.me), *view[number + 1 :])
