"""Who leads a cohort: one that its members elect (:mod:`protocols.elected`), or its first one without asking."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any
from typing import Protocol as Interface

from node import Context, Message
from protocols.cohort_round import Assignment, tell
from protocols.testimony import Statement
from protocols.versions import Shelf

RETURNED = "Returned"
"""What a fixed leader says that has been away."""

_NONE = "-"


class Control(Message, name="cpfl/control/1"):
    """What members say to each other to elect a leader, and to commit its models."""

    kind: str
    fields: tuple[Any, ...]


class Host(Interface):
    """The node that is led, or leads."""

    shelf: Shelf

    @property
    def is_over(self) -> bool:
        """Whether there is a result, and nothing is left to lead."""
        ...

    def lead(self, ctx: Context, term: int, round: int, digest: str) -> Awaitable[None]:
        """This node leads: go on after this round, whose model is at hand."""
        ...

    def elected(self, ctx: Context, round: int, *, is_failover: bool) -> None:
        """A majority wants this node to lead after this round; ``is_failover``: the last leader is lost."""
        ...

    def follow(self, ctx: Context, leader: int) -> None:
        """Another one does."""
        ...

    def keep(self, ctx: Context) -> Awaitable[None]:
        """Save what must survive a restart, and only then go on."""
        ...


class Leadership(Interface):
    """What a cohort's protocol asks of it."""

    @property
    def leader(self) -> int | None:
        """Who leads, as far as this node knows."""
        ...

    @property
    def members(self) -> Sequence[int]:
        """Who belongs to the cohort."""
        ...

    @property
    def epoch(self) -> int:
        """Of the cohort's membership."""
        ...

    def start(self, ctx: Context) -> None:
        """Begin, or begin again."""
        ...

    def hear(self, ctx: Context, sender: int, control: Control) -> None:
        """A member has said something."""
        ...

    def belongs(self, node: int) -> bool:
        """Whether a node is a member, or about to be one."""
        ...

    def leads(self, term: int) -> bool:
        """Whether this node leads, in that term."""
        ...

    def admits(self, epoch: int, term: int) -> bool:
        """Whether what a leader has sent then still counts."""
        ...

    def commit(self, ctx: Context, term: int, round: int, digest: str) -> Awaitable[bool]:
        """Make a round's model the cohort's; False where this node leads no longer."""
        ...

    def settle(self, ctx: Context, term: int, round: int) -> Awaitable[None]:
        """Between two rounds: let go of members that are gone, and hand over where it is another one's turn."""
        ...

    def admit(self, ctx: Context, node: int) -> None:
        """Have a node join the cohort, if this one leads."""
        ...

    def leave(self) -> None:
        """Take no part any longer."""
        ...

    def trusts(self, ctx: Context, leader: int, assignment: Assignment) -> Awaitable[bool]:
        """Whether what a leader assigns is what the cohort has agreed on, as far as anybody can tell."""
        ...

    def testify(self) -> Statement | None:
        """What this node knows the cohort to have agreed on; None where it is no part of that."""
        ...

    def kept(self) -> tuple[str, ...]:
        """The digests of models that must not be lost."""
        ...

    def state(self) -> str:
        """For a checkpoint."""
        ...


class Fixed:
    """The first member leads, as a server does, whatever happens; when it is gone, its cohort is."""

    epoch = 0

    def __init__(self, me: int, members: Sequence[int], host: Host, saved: str = "") -> None:
        """``saved``: what :meth:`state` gave, where this node has been a member before."""
        term, round, digest, *numbers = saved.split() if saved else ("-1", "-1", _NONE, *map(str, members))
        self.members = tuple(map(int, numbers))
        self.leader = self.members[0]
        self._me = me
        self._host = host
        self._term = int(term) + 1  # what was asked for before is asked for anew
        self._round = int(round)
        self._newest = "" if digest == _NONE else digest
        self._is_back = bool(saved)

    def start(self, ctx: Context) -> None:
        """Lead from the first round on, or from the one after the last that was committed; or follow."""
        if self._me != self.leader:
            self._host.follow(ctx, self.leader)
            return
        if self._is_back:
            for member in self.members[1:]:
                tell(ctx, member, Control(kind=RETURNED, fields=()))
        ctx.spawn(self._host.lead(ctx, self._term, self._round, self._newest))

    def hear(self, ctx: Context, sender: int, control: Control) -> None:
        """The leader is back, and has forgotten who its members are."""
        if sender == self.leader and control.kind == RETURNED and not self._host.is_over:
            self._host.follow(ctx, sender)

    async def settle(self, ctx: Context, term: int, round: int) -> None:
        """Whoever is gone may come back, and nobody else is to lead."""

    def admit(self, ctx: Context, node: int) -> None:
        """Whoever comes is a member from now on."""
        self.members = tuple(dict.fromkeys((*self.members, node)))  # the first one leads

    def leave(self) -> None:
        """Nobody has to be told."""

    async def trusts(self, ctx: Context, leader: int, assignment: Assignment) -> bool:
        """It is what a server says."""
        return True

    def testify(self) -> None:
        """Nobody has been asked."""

    def belongs(self, node: int) -> bool:
        """Whom the leader says so of: it alone knows who has joined."""
        return True

    def leads(self, term: int) -> bool:
        """The first member does, until it is away."""
        return self._me == self.leader and term == self._term and not self._host.is_over

    def admits(self, epoch: int, term: int) -> bool:
        """Always."""
        return True

    async def commit(self, ctx: Context, term: int, round: int, digest: str) -> bool:
        """What the leader has made is the cohort's."""
        self._round, self._newest = round, digest
        await self._host.keep(ctx)
        return True

    def kept(self) -> tuple[str, ...]:
        """What was made last."""
        return (self._newest,)

    def state(self) -> str:
        """The term, the round that was made last, its model, and the members, the leader first."""
        return " ".join([str(self._term), str(self._round), self._newest or _NONE, *map(str, self.members)])
