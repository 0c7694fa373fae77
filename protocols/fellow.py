"""What a node of cohort-parallel learning does when it hears from others, whatever it is doing."""

from __future__ import annotations

from typing import Any

from node import Context, Future, Message, Protocol, on
from node.cohorts import Cohorts
from node.election import PreVoteRequest
from protocols.belonging import Dissolved, Join
from protocols.capability import Able, Capability, Load, loaded
from protocols.cohort_leader import Leader
from protocols.cohort_member import Member
from protocols.cohort_round import Assignment, Hello
from protocols.cohort_sums import opened
from protocols.exchange import Exchange
from protocols.favourites import Candidates, favoured
from protocols.fitting import Late, Registry
from protocols.forming import Asking, Formed, Unformed
from protocols.handing import Examine, Handing, Noted, Sought, Stopped, unifier
from protocols.leadership import RETURNED, Control, Leadership
from protocols.opening import Survivors
from protocols.round_trips import Ping, Pong
from protocols.succession import Succession
from protocols.testimony import Doubt
from protocols.unification import Result, Taught, Unification
from protocols.versions import Absent, Shelf, Wanted
from protocols.vouching import Claim, Vote, is_possible, vote


class Fellow(Protocol):
    """One node among others: its place, its parts, and whom it believes what."""

    over: Future[Result]
    """Set once there is a result."""
    shelf: Shelf
    leadership: Leadership
    capability: Capability
    cohorts: Cohorts = ()
    """Who belongs where, as far as this node knows; none before cohorts have been formed."""
    cohort: int
    """The number of this node's own."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.roll: dict[int, Hello] = {}
        self.registry = Registry()
        self._member: Member | None = None
        self._leader: Leader | None = None
        self._handing: Handing | None = None
        self._exchange: Exchange | None = None
        self._unification: Unification | None = None
        self._succession = Succession(self)

    def finish(self, ctx: Context, result: Result) -> None:
        """There is a result."""
        if not self.over.done():
            self.over.set_result(result)

    @on(Ping)
    def pinged(self, ctx: Context, sender: int, message: Ping) -> Message:
        """A node measures how far this one is."""
        return Pong()

    @on(Asking)
    def inquired(self, ctx: Context, sender: int, message: Asking) -> Message:
        """A node wants to know whether it is late, or who is in this one's cohort now."""
        if (result := self._result()) is not None or not self.cohorts:
            return result or Unformed()
        if self._leader is None:
            return Formed(cohorts=self.cohorts)
        members = tuple(self.leadership.members) or self.cohorts[self.cohort]
        return Formed(cohorts=(*self.cohorts[: self.cohort], members, *self.cohorts[self.cohort + 1 :]))

    @on(Join)
    def joining(self, ctx: Context, sender: int, message: Join) -> Message | None:
        """A node that has come late, or was left out meanwhile, wants to be a member."""
        if self._leader is not None and message.cohort == self.cohort:
            self.leadership.admit(ctx, sender)
        return self._result()

    @on(Late)
    def came_late(self, ctx: Context, sender: int, message: Late) -> Message:
        """A node that belongs nowhere yet wants to know from the registrar where it fits in."""
        return self._result() or self.registry.answer(ctx, self.config.forming, self.cohorts, sender, message)

    @on(Dissolved)
    def dissolved(self, ctx: Context, sender: int, message: Dissolved) -> Message | None:
        """A cohort is no more: its model is not to be waited for."""
        if self._unification is not None and not self.over.done():
            self._unification.dissolve(ctx, sender, message.cohort)
        return self._result()

    @on(Load)
    def burdened(self, ctx: Context, sender: int, message: Load) -> Message:
        """A member finds out how long a model of its takes to another node."""
        return loaded()

    @on(Able)
    def able(self, ctx: Context, sender: int, message: Able) -> None:
        """A member says what a round takes it."""
        self.capability.hear(ctx, sender, message)

    @on(Doubt)
    def doubted(self, ctx: Context, sender: int, message: Doubt) -> Message | None:
        """A member doubts what their leader says."""
        return None if self._leader is None else self.leadership.testify()

    @on(Candidates)
    def tried(self, ctx: Context, sender: int, message: Candidates) -> None:
        """The registrar wants to know which of its models suits this node."""
        if not self.cohorts and not self.config.secure:
            ctx.spawn(self._answer(ctx, sender, message))

    async def _answer(self, ctx: Context, registrar: int, candidates: Candidates) -> None:
        await ctx.send(registrar, await favoured(ctx, candidates))

    @on(Wanted)
    def wanted(self, ctx: Context, sender: int, message: Wanted) -> Message:
        """A node lacks a model."""
        return self.shelf.answer(message.digest)

    @on(Control)
    def controlled(self, ctx: Context, sender: int, message: Control) -> Message | None:
        """A member has said something of the election."""
        if self._leader is not None:
            self.leadership.hear(ctx, sender, message)
        return self._result() if message.kind in (PreVoteRequest.__name__, RETURNED) else None

    @on(Hello)
    def greeted(self, ctx: Context, sender: int, message: Hello) -> Message | None:
        """A member follows this node."""
        self.roll[sender] = message
        if self._leader is not None:
            if self.config.leader == "fixed":
                self.leadership.admit(ctx, sender)
            self._leader.greeted(ctx, sender)
        return self._result()

    @on(Assignment)
    def assigned(self, ctx: Context, sender: int, message: Assignment) -> None:
        """The leader wants a model trained; what anybody else wants does not count."""
        if self._member is not None and sender == self.leadership.leader:
            ctx.spawn(self._assigned(ctx, sender, message))

    async def _assigned(self, ctx: Context, leader: int, assignment: Assignment) -> None:
        assert self._member is not None
        if await self.leadership.trusts(ctx, leader, assignment):
            self._member.assign(ctx, leader, assignment)

    @on(Survivors)
    def survived(self, ctx: Context, sender: int, message: Survivors) -> Message:
        """A leader has a round's sum, and cannot open it alone."""
        return opened(ctx, None if self._leader is None else self.leadership.leader, sender, message)

    @on(Claim)
    def claimed(self, ctx: Context, sender: int, message: Claim) -> Message:
        """The node that unifies wants to know whether a node leads this one's cohort."""
        return self.vote(ctx, message)

    def vote(self, ctx: Context, claim: Claim) -> Vote:
        """What this node says of who leads its cohort."""
        belongs = self._leader is not None and claim.cohort == self.cohort and not self.over.done()
        if not belongs or self._member is None:
            return Vote()
        return vote(ctx, self.leadership, claim, self._member.rounds)

    @on(Stopped)
    def stopped(self, ctx: Context, sender: int, message: Stopped) -> Message | None:
        """A cohort has converged, says one of its members, and this node is to unify."""
        is_one = 0 <= message.cohort < len(self.cohorts) and is_possible(message, self.config.stopping.most_rounds)
        if is_one and self._unification is not None:
            if not self.over.done():
                ctx.spawn(self._unification.admit(ctx, sender, message))
            elif self._unification.taught is not None:
                return self._unification.taught
        return self._result()

    @on(Noted)
    def noted(self, ctx: Context, sender: int, message: Noted) -> None:
        """The model of this leader's cohort is safe."""
        if self._handing is not None and sender == unifier(ctx):
            self._handing.noted_by = sender

    @on(Sought)
    def sought(self, ctx: Context, sender: int, message: Sought) -> Message:
        """The node that unifies asks for what this leader's cohort has learned."""
        if self._handing is None or sender != unifier(ctx):
            return Absent(digest=message.digest)
        return self._handing.answer(message)

    @on(Examine)
    def examined(self, ctx: Context, sender: int, message: Examine) -> None:
        """The leader wants to know how much the cohort's model depends on each parameter."""
        if self._handing is not None and sender == self.leadership.leader and not self.config.secure:
            ctx.spawn(self._handing.examine(ctx, sender, message))

    @on(Taught)
    def taught(self, ctx: Context, sender: int, message: Taught) -> None:
        """All cohorts say this of public samples; this leader's learns it by itself."""
        if self._handing is None or self._exchange is None or self.over.done():
            return
        if sender in (self._handing.noted_by, unifier(ctx)):
            ctx.spawn(self._exchange.learn(ctx, message))

    @on(Result)
    def ended(self, ctx: Context, sender: int, message: Result) -> None:
        """It is over, says who unifies, or who taught this cohort's own student; others have to agree."""
        is_ours = self.config.is_exchanged and self._leader is not None and sender == self.leadership.leader
        if is_ours or self._leader is None:  # who belongs nowhere yet has chosen itself whom to ask
            self.finish(ctx, message)
        elif not self.over.done():
            ctx.spawn(self._succession.hear(ctx, sender, message))

    def _result(self) -> Result | None:
        """For a node that was away when it was sent."""
        return self.over.result() if self.over.done() else None
