"""Who leads a cohort: one that its members elect, or its first one without asking.

What happens here happens to :mod:`node.election`'s state machine, event by event: messages, timers and models come in,
and what it decides is carried out in order.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Sequence
from typing import Any
from typing import Protocol as Interface

from node import Context, Future, Message, ProtocolError
from node.election import (
    Action,
    Aggregated,
    BecomeLeader,
    Commit,
    Durable,
    Election,
    Fetch,
    Fetched,
    Input,
    Persist,
    Preference,
    Proposal,
    Received,
    Role,
    Send,
    Start,
    StepDown,
    Tick,
    Timing,
    Unavailable,
    Warn,
    pack,
    unpack,
)
from protocols.versions import Shelf


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

    def lead(self, ctx: Context, epoch: int, term: int, round: int, digest: str) -> Awaitable[None]:
        """This node leads: go on after this round, whose model is at hand."""
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
    def epoch(self) -> int:
        """Of the cohort's membership."""
        ...

    def start(self, ctx: Context) -> None:
        """Begin, or begin again."""
        ...

    def hear(self, ctx: Context, sender: int, control: Control) -> None:
        """A member has said something."""
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

    def kept(self) -> tuple[str, ...]:
        """The digests of models that must not be lost."""
        ...

    def state(self) -> str:
        """For a checkpoint."""
        ...


class Fixed:
    """The first member leads, as a server does, whatever happens; when it is gone, its cohort is."""

    epoch = 0

    def __init__(self, me: int, members: Sequence[int], host: Host) -> None:
        self._leader = members[0]
        self._me = me
        self._host = host
        self._newest = ""

    def start(self, ctx: Context) -> None:
        """Lead from the first round on, or follow."""
        if self._me == self._leader:
            ctx.spawn(self._host.lead(ctx, 0, 0, -1, ""))
        else:
            self._host.follow(ctx, self._leader)

    def hear(self, ctx: Context, sender: int, control: Control) -> None:
        """Nobody has anything to say."""

    def leads(self, term: int) -> bool:
        """The first member does."""
        return self._me == self._leader and not self._host.is_over

    def admits(self, epoch: int, term: int) -> bool:
        """Always."""
        return True

    async def commit(self, ctx: Context, term: int, round: int, digest: str) -> bool:
        """What the leader has made is the cohort's."""
        self._newest = digest
        await self._host.keep(ctx)
        return True

    def kept(self) -> tuple[str, ...]:
        """What was made last."""
        return (self._newest,)

    def state(self) -> str:
        """Nothing."""
        return ""


class Elected:
    """Whom a majority has elected leads, until a majority does not hear it any longer."""

    def __init__(
        self,
        ctx: Context,
        host: Host,
        durable: Durable,
        timing: Timing,
        preference: Preference | None = None,
    ) -> None:
        self._election = Election(ctx.me, durable, timing, ctx.rng, preference)
        self._host = host
        self._inbox: deque[Input] = deque()
        self._is_driving = False
        self._wake_s = math.inf
        self._awaited: tuple[int, Future[bool]] | None = None

    @property
    def epoch(self) -> int:
        """Of the newest entry that is committed."""
        return self._election.committed.epoch

    def start(self, ctx: Context) -> None:
        """Wait for a leader, or for the time to stand for election."""
        self._feed(ctx, Start())

    def hear(self, ctx: Context, sender: int, control: Control) -> None:
        """Take in what a member has said; strangers, and what no member would say, are passed over."""
        if sender not in {*self._election.members, *self._election.committed.members}:
            return
        try:
            message = unpack(control.kind, control.fields)
        except ProtocolError as error:
            ctx.log.warning("not a message of an election", peer=sender, reason=str(error))
            return
        self._feed(ctx, Received(sender, message))

    def leads(self, term: int) -> bool:
        """Whether this node is the leader of that term."""
        return self._election.role is Role.LEADER and self._election.term == term and not self._host.is_over

    def admits(self, epoch: int, term: int) -> bool:
        """Whether no newer leader is known."""
        return self._election.admits(epoch, term)

    async def commit(self, ctx: Context, term: int, round: int, digest: str) -> bool:
        """Wait until a majority keeps the model, or this node does not lead any longer."""
        if not self.leads(term):
            return False
        future = ctx.future()
        self._awaited = (round, future)
        self._feed(ctx, Aggregated(term, round, digest))
        return bool(await future)

    def kept(self) -> tuple[str, ...]:
        """What was accepted, and what was committed last."""
        return self._election.durable.digests

    def state(self) -> str:
        """What this node has promised."""
        return self._election.durable.to_text()

    # Driving the machine

    def _feed(self, ctx: Context, event: Input) -> None:
        self._inbox.append(event)
        if not self._is_driving and not self._host.is_over:
            self._is_driving = True
            ctx.spawn(self._drive(ctx))

    async def _drive(self, ctx: Context) -> None:
        while self._inbox and not self._host.is_over:
            await self._take(ctx, self._inbox.popleft())
        self._is_driving = False

    async def _take(self, ctx: Context, event: Input) -> None:
        match event:
            case Received(sender=sender, message=Proposal(entry=entry)) if entry.digest not in self._host.shelf:
                ctx.spawn(self._get(ctx, entry.digest, (sender,), event, None))
                return
        before = self._election.leader
        for action in self._election.step(event, ctx.now):
            await self._perform(ctx, action)
        leader = self._election.leader
        if leader not in (None, before, ctx.me):
            self._host.follow(ctx, leader)
        self._sleep(ctx)

    async def _perform(self, ctx: Context, action: Action) -> None:
        match action:
            case Persist():
                await self._host.keep(ctx)
            case Send(to=to, message=message):
                kind, fields = pack(message)
                ctx.spawn(
                    ctx.send(to, Control(kind=kind, fields=fields))
                )  # a full queue to one must not delay the rest
            case BecomeLeader(term=term, entry=entry):
                ctx.spawn(self._host.lead(ctx, entry.epoch, term, entry.round, entry.digest))
            case StepDown():
                self._conclude(is_committed=False)
            case Commit(entry=entry):
                if self._awaited is not None and entry.round >= self._awaited[0]:
                    self._conclude(is_committed=True)
            case Fetch(digest=digest, holders=holders):
                ctx.spawn(self._get(ctx, digest, holders, Fetched(digest), Unavailable(digest)))
            case Warn(line=line):
                ctx.log.warning(line)

    def _conclude(self, *, is_committed: bool) -> None:
        awaited, self._awaited = self._awaited, None
        if awaited is not None and not awaited[1].done():
            awaited[1].set_result(is_committed)

    async def _get(
        self, ctx: Context, digest: str, holders: Sequence[int], found: Input, missing: Input | None
    ) -> None:
        """Get a model, and go on with what can happen only with it."""
        event = found if await self._host.shelf.fetch(ctx, digest, holders) else missing
        if event is not None:
            self._feed(ctx, event)

    def _sleep(self, ctx: Context) -> None:
        """See that this node is woken when something is due."""
        if self._election.deadline_s < self._wake_s:
            self._wake_s = self._election.deadline_s
            ctx.spawn(self._tick(ctx, self._wake_s))

    async def _tick(self, ctx: Context, wake_s: float) -> None:
        await ctx.sleep(max(0.0, wake_s - ctx.now))
        if self._wake_s == wake_s:  # otherwise an earlier one has taken its place
            self._wake_s = math.inf
            self._feed(ctx, Tick())
