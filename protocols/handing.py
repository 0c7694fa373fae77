"""How a cohort that has stopped hands in what it has learned, to the node that unifies.

Its leader tells that node of the model and is asked for it; or, where no model is to leave its cohort, for what it says
of public samples, in half precision. Where parameters are weighed by Fisher information, every member computes it on up
to 128 of its own training samples, and the leader hands in their mean, weighted by samples. It tells of squared
gradients of single records, which no privacy budget covers: with private training it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol as Interface
from typing import TypeAlias

from node import Context, DeadlineExceeded, Message, Ref, Unreachable
from protocols import forming
from protocols.cohort_outcome import WHOLE_RUN
from protocols.cohort_round import Hello, tell
from protocols.leadership import Leadership
from protocols.running_sum import RunningSum
from protocols.unify_settings import Needs
from protocols.versions import Absent, Shelf

Roll: TypeAlias = Mapping[int, Hello]
"""What members have said of themselves, by number."""


class Stopped(Message, name="cpfl/stopped/1"):
    """My cohort has converged; ask me for what it has learned."""

    cohort: int
    digest: str
    rounds: int
    """That the cohort has trained for."""
    samples: int
    """That its members train on, all together."""
    counts: tuple[float, ...]
    """The same of each class; empty where nobody needs them."""


class Noted(Message, name="cpfl/noted/1"):
    """I have it, and do not forget it."""


class Sought(Message, name="cpfl/sought/1"):
    """I unify: give me what your cohort has learned."""

    digest: str
    is_fisher_only: bool = False
    """I have the rest."""


class Extract(Message, name="cpfl/extract/1", any_shape=True):
    """What there is to unify of a cohort's model."""

    digest: str
    model: Ref | None = None
    logits: Ref | None = None
    """What it says of public samples, float16 [samples, classes]."""
    fisher: Ref | None = None
    """Its Fisher information, the mean over members."""


class Examine(Message, name="cpfl/examine/1"):
    """Tell me the Fisher information of my cohort's model on your samples."""

    term: int
    digest: str


class Examined(Message, name="cpfl/examined/1", key=("term",)):
    """Here it is."""

    term: int
    fisher: Ref


class Host(Interface):
    """The node that hands in, or is asked by its leader."""

    shelf: Shelf
    leadership: Leadership


def unifier(ctx: Context) -> int:
    """The node that unifies: all agree on it as soon as they know of the same losses."""
    return forming.elected(ctx, "unifier")[0]


class Handing:
    """One node's part in it: as the leader of its cohort, or as a member."""

    def __init__(
        self,
        host: Host,
        needs: Needs,
        cohort: int,
        transfer_s: float,
        retry_s: float,
        window: int,
    ) -> None:
        """``retry_s``: how long to wait for a sign of who unifies before it is told again."""
        self.noted_by: int | None = None
        """Who keeps what this leader's cohort has learned."""
        self._host = host
        self._needs = needs
        self._cohort = cohort
        self._transfer_s = transfer_s
        self._retry_s = retry_s
        self._window = window
        self._extracts: dict[str, Extract] = {}

    # The leader

    async def hand_in(
        self, ctx: Context, leads: Callable[[int], bool], term: int, digests: Sequence[str], rounds: int, roll: Roll
    ) -> None:
        """Tell the node that unifies, and whoever takes its place, of the first model that is still to be had.

        Args:
            leads: whether this node still does, in that term.
            digests: the model to keep, and the newest one, which the leader has.
            roll: what members have said of themselves.
        """
        stopped_s = ctx.now
        kept = await self._kept(ctx, digests)
        digest = await ctx.digest(self._host.shelf[kept].model)
        self._extracts[digest] = await self._extracted(ctx, term, kept, digest, roll)
        hellos = [roll[member] for member in sorted(roll)]
        stopped = Stopped(
            cohort=self._cohort,
            digest=digest,
            rounds=rounds,
            samples=sum(hello.samples for hello in hellos),
            counts=tuple(math.fsum(column) for column in zip(*[hello.counts for hello in hellos], strict=True)),
        )
        self._record(ctx, stopped, stopped_s, self._host.shelf[kept].model)
        if self._needs.fisher_later:
            ctx.spawn(self._add_fisher(ctx, term, kept, digest, roll))
        while leads(term):
            if self.noted_by != (office := unifier(ctx)):
                tell(ctx, office, stopped)
            await ctx.sleep(self._retry_s)

    async def _kept(self, ctx: Context, digests: Sequence[str]) -> str:
        """The first model that the cohort still has."""
        others = ctx.alive([member for member in self._host.leadership.members if member != ctx.me])
        for digest in digests[:-1]:
            if await self._host.shelf.fetch(ctx, digest, others):
                return digest
            ctx.log.warning("the best model is lost with those that had it; the newest is handed in", digest=digest)
        return digests[-1]

    async def _extracted(self, ctx: Context, term: int, kept: str, digest: str, roll: Roll) -> Extract:
        model, needs = self._host.shelf[kept].model, self._needs
        logits = None
        if needs.logits:
            unify = ctx.unify
            logits = unify.halved(await unify.logits(model))
        fisher = await self._fisher(ctx, term, kept, roll) if needs.fisher else None
        return Extract(digest=digest, model=model if needs.model else None, logits=logits, fisher=fisher)

    async def _fisher(self, ctx: Context, term: int, digest: str, roll: Roll) -> Ref | None:
        """The members' mean, weighted by samples, of those that answer in time; None of nobody."""
        asked = [
            member for member in ctx.alive(self._host.leadership.members) if member in roll and roll[member].samples
        ]
        total = RunningSum(ctx, asked, self._window)

        def add(member: int, examined: Examined) -> int:
            total.add(member, examined.fisher, roll[member].samples)
            return roll[member].samples

        for member in asked:
            tell(ctx, member, Examine(term=term, digest=digest))
        heard = await ctx.collect_each(
            Examined, add, frm=asked, quorum=len(asked), timeout_s=self._transfer_s, term=term
        )
        summed = total.total()
        if summed is None:
            return None
        with ctx.aside():
            return ctx.mix([summed], [1 / sum(heard.values())])

    async def _add_fisher(self, ctx: Context, term: int, kept: str, digest: str, roll: Roll) -> None:
        fisher = await self._fisher(ctx, term, kept, roll)
        extract = self._extracts[digest]
        self._extracts[digest] = Extract(digest=digest, model=extract.model, logits=extract.logits, fisher=fisher)

    def _record(self, ctx: Context, stopped: Stopped, stopped_s: float, model: Ref) -> None:
        with ctx.aside():
            metrics = ctx.evaluate(model)
            fields: dict[str, Ref | float] = {
                "cpfl/cohort.number": stopped.cohort,
                "cpfl/cohort.stopped_s": stopped_s,
                "cpfl/cohort.rounds": stopped.rounds,
                "cpfl/cohort.samples": stopped.samples,
                "cpfl/cohort.size": len(self._host.leadership.members),
                "cpfl/cohort": metrics,
            }
            ctx.record(round=WHOLE_RUN, **fields)

    def answer(self, sought: Sought) -> Extract | Absent:
        """What to say to the node that unifies."""
        extract = self._extracts.get(sought.digest)
        if extract is None or (sought.is_fisher_only and extract.fisher is None):
            return Absent(digest=sought.digest)
        return Extract(digest=sought.digest, fisher=extract.fisher) if sought.is_fisher_only else extract

    # The member

    async def examine(self, ctx: Context, leader: int, examine: Examine) -> None:
        """Compute the Fisher information of the cohort's model here."""
        if ctx.data.samples and await self._host.shelf.fetch(ctx, examine.digest, (leader,)):
            with ctx.aside():  # whether unifiers are compared changes nothing of what this node draws
                computing = ctx.unify.fisher(self._host.shelf[examine.digest].model)
            tell(ctx, leader, Examined(term=examine.term, fisher=await computing))


async def extracted(ctx: Context, own: Handing, leader: int, sought: Sought, timeout_s: float) -> Extract | None:
    """What a leader says to the node that unifies; None where it does not. ``own``: that node's part as a leader."""
    if leader == ctx.me:
        answer = own.answer(sought)
    else:
        try:
            answer = await ctx.request(leader, sought, timeout_s=timeout_s)
        except (Unreachable, DeadlineExceeded):
            return None
    return answer if isinstance(answer, Extract) and answer.digest == sought.digest else None


async def is_whole(ctx: Context, extract: Extract, needs: Needs, leader: int) -> bool:
    """Whether an extract has all that is needed, and the model that its digest names."""
    if needs.logits and extract.logits is None:
        return False
    if needs.model and (extract.model is None or await ctx.digest(extract.model) != extract.digest):
        ctx.log.warning("a model that is not the one it is said to be", peer=leader, digest=extract.digest)
        return False
    return True
