"""A leader that its members elect, and replace when it is lost.

What happens here happens to :mod:`node.election`'s state machine, event by event: messages, timers and models come in,
and what it decides is carried out in order.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from node import Context, Future, ProtocolError
from node.election import (
    Action,
    Aggregated,
    BecomeLeader,
    Change,
    Commit,
    Durable,
    Election,
    Entry,
    Fetch,
    Fetched,
    Input,
    Persist,
    Preference,
    Proposal,
    Received,
    Role,
    Rotate,
    Send,
    Start,
    StepAside,
    StepDown,
    Tick,
    Timing,
    Unavailable,
    Warn,
    Wish,
    pack,
    unpack,
)
from protocols.cohort_round import Assignment
from protocols.leadership import Control, Host
from protocols.testimony import Statement, agrees, contradicted, suspected


class Elected:
    """Whom a majority has elected leads, until a majority does not hear it any longer."""

    def __init__(
        self,
        ctx: Context,
        host: Host,
        durable: Durable,
        timing: Timing,
        preference: Preference | None = None,
        rotate_every: int = 0,
        hosts: Sequence[int] = (),
    ) -> None:
        """A member, or who is to become one.

        Args:
            rotate_every: rounds after which a leader hands over; 0: it does not.
            hosts: whom a node listens to that is no member yet.
        """
        self._election = Election(ctx.me, durable, timing, ctx.rng, preference)
        self._host = host
        self._timing = timing
        self._rotate_every = rotate_every
        self._hosts = hosts
        self._has_left = False
        self._has_followed = False
        self._inbox: deque[Input] = deque()
        self._is_driving = False
        self._wake_s = math.inf
        self._awaited: tuple[tuple[int, int], Future[bool]] | None = None
        self._handed_over_in: int | None = None
        self._accused: dict[int, Assignment] = {}

    @property
    def leader(self) -> int | None:
        """Whom this node follows; itself, where it leads."""
        return self._election.leader

    @property
    def members(self) -> Sequence[int]:
        """Those of the newest entry that is committed."""
        return self._election.committed.members

    @property
    def epoch(self) -> int:
        """Of the newest entry that is committed."""
        return self._election.committed.epoch

    def start(self, ctx: Context) -> None:
        """Wait for a leader, or for the time to stand for election."""
        self._feed(ctx, Start())

    def hear(self, ctx: Context, sender: int, control: Control) -> None:
        """Take in what a member has said; strangers, liars, and what no member would say, are passed over."""
        is_known = self.belongs(sender) if self._election.members or self.members else sender in self._hosts
        if not is_known or sender in self._host.shelf.liars:
            return
        try:
            message = unpack(control.kind, control.fields)
        except ProtocolError as error:
            ctx.log.warning("not a message of an election", peer=sender, reason=str(error))
            return
        self._feed(ctx, Received(sender, message))

    def belongs(self, node: int) -> bool:
        """Whether a node is in the newest entry, or in the newest one that is committed."""
        return node in self._election.members or node in self._election.committed.members

    def leads(self, term: int) -> bool:
        """Whether this node is the leader of that term."""
        return self._election.role is Role.LEADER and self._election.term == term and not self._is_done

    def admits(self, epoch: int, term: int) -> bool:
        """Whether no newer leader is known."""
        return self._election.admits(epoch, term)

    async def commit(self, ctx: Context, term: int, round: int, digest: str) -> bool:
        """Wait until a majority keeps the model, or this node does not lead any longer."""
        return await self._agreed(ctx, term, Aggregated(term, round, digest), (round, 0))

    async def settle(self, ctx: Context, term: int, round: int) -> None:
        """Between two rounds: let go of members that are gone, and hand over where it is another one's turn."""
        for node in lapsed(self.members, ctx.alive(self.members)):
            await self._agreed(ctx, term, Change(node, joins=False), (round, self.epoch + 1))
        if self._rotate_every and (round + 1) % self._rotate_every == 0:
            await self._agreed(ctx, term, Rotate(), (round, self.epoch + 1))
            while self.leads(term) and self._election.is_handing_over:
                await ctx.sleep(self._timing.heartbeat_s)

    def admit(self, ctx: Context, node: int) -> None:
        """Have a node join the cohort, if this one leads; nothing, where it is a member already."""
        if node not in self._election.members:
            self._feed(ctx, Change(node, joins=True))

    async def _agreed(self, ctx: Context, term: int, wish: Wish, version: tuple[int, int]) -> bool:
        """Wait until what this leader wishes for, or what came after it, is committed; False: it leads no longer."""
        if not self.leads(term):
            return False
        future = ctx.future()
        self._awaited = (version, future)
        self._feed(ctx, wish)
        return bool(await future)

    def kept(self) -> tuple[str, ...]:
        """What was accepted, and what was committed last."""
        return self._election.durable.digests

    def state(self) -> str:
        """What this node has promised."""
        return self._election.durable.to_text()

    def leave(self) -> None:
        """Take no part any longer."""
        self._has_left = True
        self._conclude(is_committed=False)

    async def trusts(self, ctx: Context, leader: int, assignment: Assignment) -> bool:
        """Whether what a leader assigns is what the cohort has agreed on; who lies is not heard any longer."""
        if leader == ctx.me or not await self._is_refuted(ctx, assignment):
            return True
        mine = self.testify()
        ctx.log.warning(
            "a leader lies about the round or the model that its cohort has committed",
            peer=leader,
            round=assignment.round,
            said=assignment.digest,
            accepted_round=mine.round,
            accepted=mine.digest,
        )
        self._host.shelf.liars[leader] = None
        self._accused[leader] = assignment
        return False

    async def _is_refuted(self, ctx: Context, assignment: Assignment) -> bool:
        """Whether members know nothing of what it begins with, and still do not when its model has had time to come."""
        timeout_s = self._timing.timeout_s
        if agrees(self.testify(), assignment):
            return False
        if not await suspected(ctx, self._election.members, assignment, timeout_s):
            return False
        await ctx.sleep(timeout_s)
        if agrees(self.testify(), assignment):
            return False
        return await contradicted(ctx, self._election.members, assignment, timeout_s)

    def _acquit(self, entry: Entry) -> None:
        """Hear a leader again whose word has turned out to be what the cohort has committed."""
        for leader, assignment in list(self._accused.items()):
            if (entry.round, entry.digest) == (assignment.round - 1, assignment.digest):
                del self._accused[leader]
                self._host.shelf.liars.pop(leader, None)

    def testify(self) -> Statement:
        """What this node keeps, committed or about to be."""
        accepted = self._election.durable.accepted
        return Statement(round=accepted.round, digest=accepted.digest)

    @property
    def _is_done(self) -> bool:
        return self._has_left or self._host.is_over

    # Driving the machine

    def _feed(self, ctx: Context, event: Input) -> None:
        self._inbox.append(event)
        if not self._is_driving and not self._is_done:
            self._is_driving = True
            ctx.spawn(self._drive(ctx))

    async def _drive(self, ctx: Context) -> None:
        while self._inbox and not self._is_done:
            await self._take(ctx, self._inbox.popleft())
        self._is_driving = False

    async def _take(self, ctx: Context, event: Input) -> None:
        match event:
            case Received(sender=sender, message=Proposal(entry=entry)) if entry.digest not in self._host.shelf:
                ctx.spawn(self._get(ctx, entry.digest, (sender,), event, None))
                return
            case Received(message=StepAside(term=term)):
                self._handed_over_in = term
        before = self._election.leader
        for action in self._election.step(event, ctx.now):
            await self._perform(ctx, action)
        leader = self._election.leader
        if leader not in (None, before, ctx.me):
            self._has_followed = True
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
                is_first = entry.round < 0 and not self._has_followed
                self._host.elected(ctx, entry.round, is_failover=not is_first and self._handed_over_in != term - 1)
                ctx.spawn(self._host.lead(ctx, term, entry.round, entry.digest))
            case StepDown():
                self._conclude(is_committed=False)
            case Commit(entry=entry):
                self._acquit(entry)
                if self._awaited is not None and entry.version >= self._awaited[0]:
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


def lapsed(members: Sequence[int], there: Sequence[int]) -> list[int]:
    """Which members that are gone a cohort is better off without.

    As many as leave an odd number: then those that stay can lose as many more as before, of fewer. From three to two
    would be for the worse, as both of two are needed.
    """
    gone = [member for member in members if member not in there]
    return gone if (len(members) - len(gone)) % 2 else gone[1:]
