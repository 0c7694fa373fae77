"""Cohort-parallel federated learning without a server.

Dhasade, Kermarrec, Nguyen, Pires, de Vos: Harnessing Increased Client Participation with Cohort-Parallel Federated
Learning, EuroMLSys 2025. One cohort is federated averaging (McMahan et al., AISTATS 2017); as many as there are nodes
are one-shot learning. Where the paper has a server for each cohort, members elect a leader here, and a majority of them
keeps every round's model, so that no leader's loss costs a round.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from node import ConfigError, Context, Message, Protocol, Ref, on
from node.cohorts import Cohorts, noised
from node.election import Durable, Preference, PreVoteRequest, Timing, rotating, sortition
from node.unifiers import UNIFIERS
from protocols import forming
from protocols.cohort_leader import Leader
from protocols.cohort_member import Member
from protocols.cohort_round import Assignment, Hello
from protocols.cohort_settings import Settings
from protocols.leadership import Control, Elected, Fixed, Leadership
from protocols.unification import Noted, Result, Stopped, Unification
from protocols.versions import Shelf, Wanted


class CPFL(Protocol):
    """Form cohorts; each elects a leader, and trains a model until it stops; unify the cohorts' models."""

    uses_topology = False
    side_channels = ("number of samples", "label histogram", "validation loss", "speed", "cohort")

    class Config(Settings):
        """Options of ``[protocol]``; those of the stopping rule are in ``[protocol.stopping]``."""

    config: Config
    leadership: Leadership

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.cohorts: Cohorts = ()
        self.roll: dict[int, Hello] = {}
        self.counts: tuple[float, ...] = ()
        self._member: Member | None = None
        self._leader: Leader | None = None
        self._unification: Unification | None = None

    @classmethod
    def check(cls, config: Config, nodes: int) -> None:
        """There must be nodes enough, and all that the unifier needs."""
        if config.cohorts > nodes:
            raise ConfigError(f"protocol.cohorts: {config.cohorts} for {nodes} nodes; allowed: 1 to {nodes}")
        if (config.forming == "file") != bool(config.path):
            raise ConfigError("protocol.path: a file of cohorts goes with protocol.forming = 'file', and only with it")
        if not config.leader_trains and config.leader == "elected":
            raise ConfigError("protocol.leader_trains: only a leader that is fixed may be no member; set it to true")
        unifier = UNIFIERS.get(config.unify)
        if unifier is not None and unifier.by_fisher:
            allowed = ", ".join(name for name, each in UNIFIERS.items() if not each.by_fisher)
            raise ConfigError(f"protocol.unify: leaders send no Fisher information; allowed: {allowed}")

    @classmethod
    def unifier(cls, config: Config) -> str:
        """What makes one model of the cohorts'; nothing for one cohort."""
        return config.unify if config.cohorts > 1 else ""

    @classmethod
    def uses_local_tests(cls, config: Config) -> bool:
        """Members judge their cohort's models by what they hold out."""
        return config.stopping.rule != "budget" or config.checkpoint == "best"

    async def run(self, ctx: Context) -> Ref | None:
        """Form, elect, train, unify; everybody ends with the result."""
        saved = ctx.restore() or {}
        self.over = ctx.future()
        self.shelf = Shelf(ctx, self.config.transfer_s)
        self.shelf.restore(saved)
        self.counts = self._revealed(ctx, saved)
        self.cohorts = forming.from_text(saved["cohorts"]) if saved else await self._formed(ctx)
        self._take_places(ctx, saved)
        await self.keep(ctx)
        self.leadership.start(ctx)
        result = await self.over
        ctx.record(round=result.round, accuracy=result.accuracy, loss=result.loss)
        return self.shelf[self.leadership.kept()[0]].model if result.model is None else result.model

    async def _formed(self, ctx: Context) -> Cohorts:
        config = self.config
        return await forming.formed(ctx, config.forming, config.cohorts, config.path, self.counts, config.muster_s)

    def _revealed(self, ctx: Context, saved: Mapping[str, Any]) -> tuple[float, ...]:
        """What this node tells of its labels, if any of it is needed: once, as noise that is drawn again wears off."""
        if saved:
            return tuple(map(float, saved["counts"].split()))
        if self.config.forming not in ("stratified", "label-similar") and not self._weighs_labels:
            return ()
        return tuple(noised(ctx.data.label_histogram, self.config.histogram_epsilon, ctx.rng).counts.tolist())

    @property
    def _weighs_labels(self) -> bool:
        return self.config.unify in UNIFIERS and UNIFIERS[self.config.unify].by_label

    def _take_places(self, ctx: Context, saved: Mapping[str, Any]) -> None:
        """Become a member of one's cohort, and who may lead it and unify all."""
        config = self.config
        cohort = next(number for number, members in enumerate(self.cohorts) if ctx.me in members)
        members = self.cohorts[cohort]
        if config.leader == "fixed":
            self.leadership = Fixed(ctx.me, members, self)
        else:
            beacon = forming.beacon(ctx)
            text = saved.get("election")
            durable = Durable.from_text(text) if text else Durable.first(members, beacon)
            preferences: dict[str, Preference] = {"rotation": rotating, "sortition": sortition(f"cohort-{cohort}")}
            timing = Timing(config.election_timeout_s)
            self.leadership = Elected(ctx, self, durable, timing, preferences.get(config.preference))
        if config.leader_trains or members[0] != ctx.me:
            self.roll[ctx.me] = self._hello(ctx)
        self._member = Member(self, config.proximal)
        self._leader = Leader(config, self.shelf, self.leadership, cohort, members, self.roll)
        self._unification = Unification(self, config.unify, self.cohorts, config.quantile, config.election_timeout_s)
        self._unification.restore(ctx, saved)

    def _hello(self, ctx: Context) -> Hello:
        return Hello(samples=ctx.data.samples, counts=self.counts if self._weighs_labels else ())

    # What its parts ask of the node

    @property
    def is_over(self) -> bool:
        """Whether there is a result."""
        return self.over.done()

    async def lead(self, ctx: Context, epoch: int, term: int, round: int, digest: str) -> None:
        """This node leads its cohort."""
        assert self._leader is not None
        await self._leader.lead(ctx, epoch, term, round, digest)

    def follow(self, ctx: Context, leader: int) -> None:
        """Another node does: it has to know what this one has."""
        ctx.spawn(ctx.send(leader, self._hello(ctx)))

    async def keep(self, ctx: Context) -> None:
        """Save what must survive a restart, and let go of models that nobody needs any longer."""
        assert self._member is not None
        assert self._unification is not None
        digests = [*self.leadership.kept(), *[teacher.digest for teacher in self._unification.teachers.values()]]
        digests += [self.shelf[digest].best for digest in digests if digest in self.shelf]
        if self._member.newest is not None:
            digests.append(self._member.newest.digest)
        self.shelf.keep(digests)
        await ctx.checkpoint(
            cohorts=forming.to_text(self.cohorts),
            counts=" ".join(map(repr, self.counts)),
            election=self.leadership.state(),
            **self.shelf.state(),
            **self._unification.state(),
        )

    def finish(self, ctx: Context, result: Result) -> None:
        """There is a result."""
        if not self.over.done():
            self.over.set_result(result)

    # What it hears

    @on(Wanted)
    def wanted(self, ctx: Context, sender: int, message: Wanted) -> Message:
        """A node lacks a model."""
        return self.shelf.answer(message.digest)

    @on(Control)
    def controlled(self, ctx: Context, sender: int, message: Control) -> Message | None:
        """A member has said something of the election."""
        if self._leader is not None:
            self.leadership.hear(ctx, sender, message)
        return self._result() if message.kind == PreVoteRequest.__name__ else None

    @on(Hello)
    def greeted(self, ctx: Context, sender: int, message: Hello) -> Message | None:
        """A member follows this node."""
        self.roll[sender] = message
        if self._leader is not None:
            self._leader.greeted(ctx, sender)
        return self._result()

    @on(Assignment)
    def assigned(self, ctx: Context, sender: int, message: Assignment) -> None:
        """The leader wants a model trained."""
        if self._member is not None:
            self._member.assign(ctx, sender, message)

    @on(Stopped)
    def stopped(self, ctx: Context, sender: int, message: Stopped) -> Message | None:
        """A cohort has converged, and this node is to unify."""
        if self._unification is not None and not self.over.done():
            ctx.spawn(self._unification.admit(ctx, sender, message))
        return self._result()

    @on(Noted)
    def noted(self, ctx: Context, sender: int, message: Noted) -> None:
        """The model of this leader's cohort is safe."""
        if self._leader is not None:
            self._leader.noted_by = sender

    @on(Result)
    def ended(self, ctx: Context, sender: int, message: Result) -> None:
        """It is over."""
        self.finish(ctx, message)

    def _result(self) -> Result | None:
        """For a node that was away when it was sent."""
        return self.over.result() if self.over.done() else None
