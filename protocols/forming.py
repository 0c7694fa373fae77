"""How nodes find out which cohort they belong to.

By chance, by rendezvous or by a file, each finds out alone. Otherwise one node, the registrar, which a hash of all
numbers chooses, is told what the rule needs, and tells everybody who belongs where:

=================  ====================================================================================================
``stratified``     label histograms, perhaps with noise, to the registrar alone
``label-similar``  the same
``speed``          how long a step of training takes, to the registrar alone
``latency``        round trips to at most 16 others, to the registrar alone; those others learn that they are measured
``loss``           which of the registrar's models suits a node's training data best, all their losses, what it makes of
                   the best one, and its number of samples, to the registrar alone
=================  ====================================================================================================

Everybody learns which cohort everybody is in, whatever the rule. Who comes late tells the registrar the same, except
for ``loss`` (:mod:`protocols.fitting`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from node import Context, DeadlineExceeded, Message, ProtocolError, Unreachable
from node.cohorts import (
    Cohorts,
    at_random,
    by_latency,
    by_rendezvous,
    by_speed,
    cohort_file,
    completed,
    generator,
    rendezvous_costs,
    similar,
    stratified,
)
from node.election import score
from protocols.favourites import clustered
from protocols.round_trips import measured

if TYPE_CHECKING:
    from protocols.cohort_settings import Settings

Rule = Literal["random", "rendezvous", "stratified", "label-similar", "speed", "latency", "loss", "file"]

SHOWN: dict[Rule, tuple[str, ...]] = {
    "speed": ("speed",),
    "latency": ("round trips",),
    "loss": ("favourite model", "training loss"),
}
"""What a rule makes nodes tell, besides label histograms and the cohort that they are in."""

BY_LABEL: tuple[Rule, ...] = ("stratified", "label-similar")
"""The rules that go by label histograms."""

_FORMING = 2**32
"""Takes the place of a cohort's number where all draw together."""


class Revealed(Message, name="cpfl/revealed/1"):
    """What a node tells the registrar of itself."""

    counts: tuple[float, ...] = ()
    """Samples of each class, perhaps with noise."""
    step_s: float = 0.0
    """How long a step of training takes it."""
    peers: tuple[int, ...] = ()
    """Whom it has asked how far they are."""
    round_trips_s: tuple[float, ...] = ()
    """Of each of these."""


class Formed(Message, name="cpfl/formed/1"):
    """Who belongs where; who is nowhere has come too late, and is to join."""

    cohorts: tuple[tuple[int, ...], ...]


class Asking(Message, name="cpfl/asking/1"):
    """Have cohorts been formed, and who is in yours now?"""


class Unformed(Message, name="cpfl/unformed/1"):
    """They have not."""


async def formed(ctx: Context, settings: Settings, counts: tuple[float, ...], known: dict[int, Revealed]) -> Cohorts:
    """The members of each cohort.

    Where there is a registrar, it waits ``muster_s`` for what nodes reveal; who comes later is in none, and joins. When
    the registrar is lost, the next one takes its place, unless some node knows the outcome already.

    Args:
        counts: what this node tells of its labels, where the rule goes by them.
        known: gets what nodes have revealed, where this one is the registrar.

    Raises:
        Unreachable: the registrar is there, but says nothing.
    """
    nodes, cohorts = ctx.nodes, settings.cohorts
    match settings.forming:
        case "random":
            return at_random(nodes, cohorts, generator(ctx.seed, _FORMING, 0))
        case "rendezvous":
            return by_rendezvous(nodes, cohorts, beacon(ctx), -(-len(nodes) // cohorts))
        case "file":
            return cohort_file.read(settings.path, nodes)
    mine: Revealed | None = None
    while True:
        if (found := await asked(ctx, elected(ctx, "registrar"), settings.muster_s)) is not None:
            return found
        mine = mine or await revealed(ctx, settings, counts)
        registrar = elected(ctx, "registrar")[0]
        if ctx.me == registrar:
            return await registered(ctx, settings, mine, known)
        if (found := await told(ctx, registrar, settings, mine)) is not None:
            return found


async def asked(ctx: Context, order: list[int], timeout_s: float) -> Cohorts | None:
    """The cohorts, where the first other node in some order knows them: this one may have come late."""
    others = [node for node in order if node != ctx.me]
    if not others:
        return None
    try:
        answer = await ctx.request(others[0], Asking(), timeout_s=timeout_s)
    except (Unreachable, DeadlineExceeded):
        return None
    if isinstance(answer, Formed):
        return rows(answer.cohorts)
    if isinstance(answer, Unformed):
        return None
    ctx.deliver(others[0], answer)  # all is over, and this is the result
    return ()


async def revealed(ctx: Context, settings: Settings, counts: tuple[float, ...]) -> Revealed:
    """What this node has to tell for a rule."""
    match settings.forming:
        case "speed":
            began_s = ctx.now
            await ctx.train(ctx.initial_model(), steps=1)
            return Revealed(step_s=ctx.now - began_s)
        case "latency":
            found = await measured(ctx, settings.election_timeout_s)
            return Revealed(peers=tuple(found), round_trips_s=tuple(found.values()))
    return Revealed(counts=counts)


async def told(ctx: Context, registrar: int, settings: Settings, mine: Revealed) -> Cohorts | None:
    """What the registrar makes of all that is revealed; None where it is lost meanwhile."""
    rounds = settings.forming_starts * (settings.forming_rounds + 1) if settings.forming == "loss" else 0
    await ctx.send(registrar, mine)
    wait_s = settings.muster_s * (2 + rounds)
    heard = await ctx.collect(Formed, frm=(registrar,), quorum=1, timeout_s=wait_s)
    if registrar in heard:
        return rows(heard[registrar].cohorts)
    if ctx.alive((registrar,)):
        raise Unreachable(f"node {ctx.me}: the registrar, node {registrar}, has not said who belongs to which cohort")
    ctx.log.warning("the registrar is lost; the next one takes its place", peer=registrar)
    return None


async def registered(ctx: Context, settings: Settings, mine: Revealed, known: dict[int, Revealed]) -> Cohorts:
    """The registrar: hear everybody, apply the rule, and tell everybody; ``known`` gets what it has heard."""
    peers = ctx.peers(None)
    heard: dict[int, Revealed] = await ctx.collect(Revealed, frm=peers, timeout_s=settings.muster_s)
    known |= {node: {**heard, ctx.me: mine}[node] for node in sorted((*heard, ctx.me))}
    if len(known) < settings.cohorts:
        raise ProtocolError(f"protocol.cohorts: {settings.cohorts}, but only {len(known)} nodes have come to form them")
    found = await applied(ctx, settings, known)
    await ctx.send(peers, Formed(cohorts=found))
    return found


async def applied(ctx: Context, settings: Settings, known: dict[int, Revealed]) -> Cohorts:
    """The cohorts of the nodes that have revealed something."""
    cohorts, rng = settings.cohorts, generator(ctx.seed, _FORMING, 0)
    counts: dict[int, Any] = {node: revealed.counts for node, revealed in known.items()}
    match settings.forming:
        case "speed":
            return by_speed({node: revealed.step_s for node, revealed in known.items()}, cohorts)
        case "latency":
            told = {node: dict(zip(each.peers, each.round_trips_s, strict=False)) for node, each in known.items()}
            return by_latency(list(known), completed(told), cohorts, rng)[0]
        case "loss":
            others = [node for node in known if node != ctx.me]
            rounds, starts = settings.forming_rounds, settings.forming_starts
            return await clustered(ctx, others, cohorts, rounds, starts, settings.muster_s)
        case "stratified":
            return stratified(counts, cohorts)
        case _:
            return similar(counts, cohorts, rng)


def elected(ctx: Context, office: str) -> list[int]:
    """The nodes that are not known to be gone, in the order in which they hold an office that all need once."""
    return sorted(ctx.alive(ctx.nodes), key=lambda node: score(beacon(ctx), office, node), reverse=True)


def beacon(ctx: Context) -> str:
    """What hashes of this experiment begin with."""
    return f"cpfl-{ctx.seed}"


def costs(ctx: Context, cohorts: int) -> list[int]:
    """What it costs each cohort that this node joins it: nobody has to know anything of either."""
    return rendezvous_costs(beacon(ctx), ctx.me, cohorts)


def rows(cohorts: Any) -> Cohorts:
    """As they come in a message."""
    return tuple([tuple(members) for members in cohorts])


def to_text(cohorts: Cohorts) -> str:
    """For a checkpoint."""
    return ";".join(" ".join(map(str, members)) for members in cohorts)


def from_text(text: str) -> Cohorts:
    """What :func:`to_text` wrote."""
    return tuple(tuple(map(int, members.split())) for members in text.split(";"))
