"""Cohort-parallel federated learning without a server.

Dhasade, Kermarrec, Nguyen, Pires, de Vos: Harnessing Increased Client Participation with Cohort-Parallel Federated
Learning, EuroMLSys 2025. One cohort is federated averaging (McMahan et al., AISTATS 2017); as many as there are nodes
are one-shot learning. Where the paper has a server for each cohort, members elect a leader here, and a majority of them
keeps every round's model, so that no leader's loss costs a round.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from node import ConfigError, Context, Ref, Row
from node.cohorts import Cohorts, cohort_file, noised
from node.election import Durable, Preference, Timing, rotating, sortition
from protocols import forming, secrecy
from protocols.belonging import Belonging
from protocols.capability import Capability
from protocols.cohort_leader import Leader
from protocols.cohort_member import Member
from protocols.cohort_outcome import WHOLE_RUN, outcome
from protocols.cohort_round import Hello
from protocols.cohort_settings import Settings
from protocols.elected import Elected
from protocols.exchange import Exchange
from protocols.fellow import Fellow
from protocols.handing import Handing, unifier
from protocols.leadership import Fixed
from protocols.unification import Result, Unification, needs
from protocols.versions import Shelf


class CPFL(Fellow):
    """Form cohorts; each elects a leader, and trains a model until it stops; unify the cohorts' models."""

    uses_topology = False
    side_channels = ("number of samples", "validation loss", "cohort")

    class Config(Settings):
        """Options of ``[protocol]``; those of the stopping rule are in ``[protocol.stopping]``."""

    config: Config

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self.counts: tuple[float, ...] = ()
        self.belonging = Belonging(self, self.config)

    @classmethod
    def check(cls, config: Config, nodes: int) -> None:
        """There must be nodes enough, and all that rounds and the unifier need."""
        config.check_rounds()
        config.check_unification()
        if config.secure:
            secrecy.check(config, nodes)
        if config.cohorts > nodes:
            raise ConfigError(f"protocol.cohorts: {config.cohorts} for {nodes} nodes; allowed: 1 to {nodes}")
        if (config.forming == "file") != bool(config.path):
            raise ConfigError("protocol.path: a file of cohorts goes with protocol.forming = 'file', and only with it")
        smallest = nodes // config.cohorts
        if config.forming == "file":
            smallest = min(map(len, cohort_file.read(config.path, range(nodes))))
        if config.least_size > smallest:
            raise ConfigError(
                f"protocol.min_size: cohorts of fewer than {config.least_size} members dissolve, and one begins with "
                f"{smallest}; allowed: 1 to {smallest}, or fewer and larger cohorts"
            )
        if not config.leader_trains and config.leader == "elected":
            raise ConfigError("protocol.leader_trains: only a leader that is fixed may be no member; set it to true")

    @classmethod
    def shows(cls, config: Config) -> Sequence[str]:
        """What members and leaders always tell, and what forming and unifying need besides."""
        shown = ["number of samples", "validation loss", "cohort", *forming.SHOWN.get(config.forming, ())]
        if config.sampling == "oort":
            shown.append("training loss")
        if config.secure:
            shown.append(secrecy.SHOWN)
        if cls.reveals_labels(config):
            finite = math.isfinite(config.histogram_epsilon)
            noise = f"epsilon {config.histogram_epsilon:g}, once" if finite else "without noise"
            shown.append(f"label histogram ({noise})")
        return shown

    @classmethod
    def hides(cls, config: Config) -> bool:
        """Whether models are added up under masks."""
        return config.secure

    @classmethod
    def releases(cls, config: Config) -> Mapping[str, float]:
        """Label histograms, where they are noised."""
        is_noised = cls.reveals_labels(config) and math.isfinite(config.histogram_epsilon)
        return {"label histogram": config.histogram_epsilon} if is_noised else {}

    @classmethod
    def reveals_labels(cls, config: Config) -> bool:
        """Whether nodes tell how many samples of each class they hold."""
        return config.forming in forming.BY_LABEL or cls.weighs_labels(config)

    @classmethod
    def weighs_labels(cls, config: Config) -> bool:
        """Whether cohorts count, for each class, as much as they have seen of it."""
        return config.cohorts > 1 and config.by_label

    def _tells_labels(self, ctx: Context) -> bool:
        return self.weighs_labels(self.config) and self.config.tells_labels(ctx)

    @classmethod
    def roles(cls, config: Config, nodes: int) -> Mapping[int, str]:
        """The leader of the only cohort, where it trains nothing, is a server."""
        serves = config.cohorts == 1 and config.leader == "fixed" and not config.leader_trains
        return {0: "server"} if serves else {}

    @classmethod
    def unifier(cls, config: Config) -> str:
        """What makes one model of the cohorts'; nothing for one cohort."""
        return config.unify if config.cohorts > 1 else ""

    @classmethod
    def compared(cls, config: Config) -> Sequence[str]:
        """What else is made of the cohorts' models, for the report."""
        return config.compare if config.cohorts > 1 else ()

    @classmethod
    def summary(cls, config: Config, rows: Iterable[Row], traffic: Mapping[str, int]) -> Mapping[str, Any]:
        """Cohorts, what unifying them took, and what both cost."""
        return outcome(rows, traffic)

    @classmethod
    def needs_plain_sgd(cls, config: Config) -> bool:
        """Control variates and normalised steps are made of gradients."""
        return config.correction == "scaffold" or config.weights == "nova"

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
        self.capability = Capability(saved.get("lives", 0) + 1)
        self.cohort = saved.get("cohort", -1)
        self.cohorts = forming.from_text(saved["cohorts"]) if saved else await self._formed(ctx)
        if self.over.done():
            return self.over.result().model
        await self._take_places(ctx, saved)
        await self.keep(ctx)
        self._begin(ctx)
        ctx.spawn(self.belonging.watch(ctx))
        result = await self.over
        assert self._unification is not None
        await self._unification.compare(ctx)
        assert self._member is not None
        ctx.record(round=WHOLE_RUN, **{"cpfl/member.cohort": self.cohort, "cpfl/training_s": self._member.training_s})
        ctx.record(round=result.round, accuracy=result.accuracy, loss=result.loss)
        return await self._own(ctx, result) if result.model is None else result.model

    async def _own(self, ctx: Context, result: Result) -> Ref:
        """The model of this node's cohort; the newest that it knows, where the cohort was left out."""
        digest = result.digests[self.cohort] if self.cohort < len(result.digests) else ""
        if digest and await self.shelf.fetch(ctx, digest, (unifier(ctx),)):
            return self.shelf[digest].model
        return self.shelf[self.leadership.kept()[0]].model

    async def _formed(self, ctx: Context) -> Cohorts:
        return await forming.formed(ctx, self.config, self.counts, self.registry.known)

    def _revealed(self, ctx: Context, saved: Mapping[str, Any]) -> tuple[float, ...]:
        """What this node tells of its labels, if any of it is needed: once, as noise that is drawn again wears off."""
        if saved:
            return tuple(map(float, saved["counts"].split()))
        if self.config.forming not in forming.BY_LABEL and not self._tells_labels(ctx):
            return ()
        coins = ctx.privacy.coins() if self.releases(self.config) else ctx.rng
        return tuple(noised(ctx.data.label_histogram, self.config.histogram_epsilon, coins).counts.tolist())

    async def _take_places(self, ctx: Context, saved: Mapping[str, Any]) -> None:
        """Become a member of one's cohort, and who may unify all; who is in none has come late, and joins one."""
        promised = saved.get("election", "")
        durable = Durable.from_text(promised) if promised and self.config.leader == "elected" else None
        if not saved:
            places = [number for number, members in enumerate(self.cohorts) if ctx.me in members]
            if places:
                self.cohort = places[0]
                durable = Durable.first(self.cohorts[self.cohort], forming.beacon(ctx))
            else:
                self.cohorts, self.cohort = await self.belonging.find(ctx, self.cohorts, self.counts)
        self.belonging.restore(saved.get("left", ""))
        self._member = Member(self, self.config)
        self._member.restore(saved)
        self._take_place(ctx, durable or Durable.first(()), promised)
        assert self._handing is not None
        wait_s, transfer_s = self.config.election_timeout_s, self.config.transfer_s
        self._unification = Unification(self, self._handing, self.config, self.cohorts, wait_s, transfer_s)
        self._unification.restore(ctx, saved)

    def _take_place(self, ctx: Context, durable: Durable, promised: str = "") -> None:
        """Be a member of one's cohort, and who may lead it; ``promised``: the leadership's part of a checkpoint."""
        config, cohort = self.config, self.cohort
        members = self.cohorts[cohort]
        if config.leader == "fixed":
            self.leadership = Fixed(ctx.me, members, self, promised)
        else:
            preferences: dict[str, Preference] = {
                "rotation": rotating,
                "sortition": sortition(f"cohort-{cohort}"),
                "capable": self.capability.prefer,
            }
            preference, timing = preferences.get(config.preference), Timing(config.election_timeout_s)
            self.leadership = Elected(ctx, self, durable, timing, preference, config.rotate_every, members)
        if config.leader_trains or members[0] != ctx.me:
            self.roll[ctx.me] = self._hello(ctx)
        needed, wait_s = needs(config, len(self.cohorts)), config.election_timeout_s
        self._handing = Handing(self, needed, cohort, config.transfer_s, wait_s, config.window)
        if self._unification is not None:
            self._unification.handing = self._handing
        self._exchange = Exchange(self, config)
        self._leader = Leader(config, self.shelf, self.leadership, cohort, self.roll, self._handing)

    def _begin(self, ctx: Context) -> None:
        """Take part in one's cohort, or ask it to be let in."""
        if self.config.preference == "capable":
            ctx.spawn(self._begin_by_rank(ctx))
        else:
            self.leadership.start(ctx)
        if self.leadership.leader is None and ctx.me not in self.leadership.members:
            ctx.spawn(self.belonging.ask(ctx))

    async def _begin_by_rank(self, ctx: Context) -> None:
        leadership = self.leadership
        await self.capability.compare(ctx, self.cohorts[self.cohort], self.config.muster_s)
        leadership.start(ctx)

    def move(self, ctx: Context, cohorts: Cohorts, cohort: int) -> None:
        """Begin anew, in another cohort, as one who is no member of it yet."""
        self.leadership.leave()
        self.cohorts, self.cohort = cohorts, cohort
        self.roll.clear()
        self._take_place(ctx, Durable.first(()))
        self._begin(ctx)

    def _key(self, ctx: Context) -> tuple[bytes, ...]:
        return tuple(ctx.privacy.key) if self.config.secure else ()

    def _hello(self, ctx: Context) -> Hello:
        counts = self.counts if self._tells_labels(ctx) else ()
        return Hello(samples=ctx.data.samples, counts=counts, steps=ctx.steps, key=self._key(ctx))

    # What its parts ask of the node

    @property
    def is_over(self) -> bool:
        """Whether there is a result."""
        return self.over.done()

    async def lead(self, ctx: Context, term: int, round: int, digest: str) -> None:
        """This node leads its cohort."""
        assert self._leader is not None
        await self._leader.lead(ctx, term, round, digest)

    def elected(self, ctx: Context, round: int, *, is_failover: bool) -> None:
        """A majority wants this node to lead: the record says since when, why, and what has to be done again."""
        assert self._member is not None
        newest = self._member.newest
        found = {
            "cpfl/election.cohort": self.cohort,
            "cpfl/election.after_round": round,
            "cpfl/election.failover": is_failover,
            "cpfl/election.repeated_rounds": newest is not None and newest.round > round,
        }
        with ctx.aside():
            ctx.record(round=WHOLE_RUN, **{name: float(value) for name, value in found.items()})

    def follow(self, ctx: Context, leader: int) -> None:
        """Another node does: it has to know what this one has."""
        ctx.spawn(ctx.send(leader, self._hello(ctx)))

    async def keep(self, ctx: Context) -> None:
        """Save what must survive a restart, and let go of models that nobody needs any longer."""
        assert self._member is not None
        assert self._unification is not None
        digests = [*self.leadership.kept(), *self._unification.digests]
        digests += [self.shelf[digest].best for digest in digests if digest in self.shelf]
        if self._member.newest is not None:
            digests.append(self._member.newest.digest)
        self.shelf.keep(digests)
        await ctx.checkpoint(
            cohorts=forming.to_text(self.cohorts),
            cohort=self.cohort,
            left=self.belonging.state(),
            lives=self.capability.lives,
            counts=" ".join(map(repr, self.counts)),
            election=self.leadership.state(),
            **self.shelf.state(),
            **self._unification.state(),
            **self._member.state(),
        )
