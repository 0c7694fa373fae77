"""How nodes find out which cohort they belong to.

By chance, by rendezvous or by a file, each finds out alone. Otherwise one node, which a hash of all numbers chooses, is
told what the rule needs, and tells everybody who belongs where.
"""

from __future__ import annotations

from typing import Any, Literal

from node import Context, Message, ProtocolError, Unreachable
from node.cohorts import (
    Cohorts,
    at_random,
    by_rendezvous,
    by_speed,
    cohort_file,
    generator,
    joined,
    rendezvous_costs,
    similar,
    stratified,
)
from node.election import score

Rule = Literal["random", "rendezvous", "stratified", "label-similar", "speed", "file"]

_FORMING = 2**32
"""Takes the place of a cohort's number where all draw together."""


class Revealed(Message, name="cpfl/revealed/1"):
    """What a node tells the registrar of itself."""

    counts: tuple[float, ...] = ()
    """Samples of each class, perhaps with noise."""
    step_s: float = 0.0
    """How long a step of training takes it."""


class Formed(Message, name="cpfl/formed/1"):
    """Who belongs where."""

    cohorts: tuple[tuple[int, ...], ...]


async def formed(
    ctx: Context, rule: Rule, cohorts: int, path: str, counts: tuple[float, ...], timeout_s: float
) -> Cohorts:
    """The members of each cohort.

    Args:
        counts: what this node tells of its labels, where the rule goes by them.
        timeout_s: how long the registrar waits for what nodes reveal, and they for its answer after that; who reveals
            nothing is put where a hash says.

    Raises:
        Unreachable: the registrar is gone.
    """
    nodes = ctx.nodes
    match rule:
        case "random":
            return at_random(nodes, cohorts, generator(ctx.seed, _FORMING, 0))
        case "rendezvous":
            return by_rendezvous(nodes, cohorts, beacon(ctx), -(-len(nodes) // cohorts))
        case "file":
            return cohort_file.read(path, nodes)
    mine = await revealed(ctx, rule, counts)
    registrar = elected(ctx, "registrar")[0]
    if ctx.me == registrar:
        return await registered(ctx, rule, cohorts, mine, timeout_s)
    await ctx.send(registrar, mine)
    heard = await ctx.collect(Formed, frm=(registrar,), quorum=1, timeout_s=2 * timeout_s)
    if registrar not in heard:
        raise Unreachable(f"node {ctx.me}: the registrar, node {registrar}, has not said who belongs to which cohort")
    return tuple(tuple(members) for members in heard[registrar].cohorts)


async def revealed(ctx: Context, rule: Rule, counts: tuple[float, ...]) -> Revealed:
    """What this node has to tell for a rule."""
    if rule == "speed":
        began_s = ctx.now
        await ctx.train(ctx.initial_model(), steps=1)
        return Revealed(step_s=ctx.now - began_s)
    return Revealed(counts=counts)


async def registered(ctx: Context, rule: Rule, cohorts: int, mine: Revealed, timeout_s: float) -> Cohorts:
    """The registrar: hear everybody, apply the rule, and tell everybody."""
    peers = ctx.peers(None)
    heard: dict[int, Revealed] = await ctx.collect(Revealed, frm=peers, timeout_s=timeout_s)
    known = {**heard, ctx.me: mine}
    found = applied(ctx, rule, known, cohorts)
    for node in [node for node in ctx.nodes if node not in known]:
        found = joined(found, node, rendezvous_costs(beacon(ctx), node, cohorts))
    await ctx.send(peers, Formed(cohorts=found))
    return found


def applied(ctx: Context, rule: Rule, known: dict[int, Revealed], cohorts: int) -> Cohorts:
    """The cohorts of the nodes that have revealed something."""
    if len(known) < cohorts:
        raise ProtocolError(f"protocol.cohorts: {cohorts}, but only {len(known)} nodes have come to form them")
    counts: dict[int, Any] = {node: known[node].counts for node in sorted(known)}
    match rule:
        case "speed":
            return by_speed({node: known[node].step_s for node in sorted(known)}, cohorts)
        case "stratified":
            return stratified(counts, cohorts)
        case _:
            return similar(counts, cohorts, generator(ctx.seed, _FORMING, 0))


def elected(ctx: Context, office: str) -> list[int]:
    """The nodes that are not known to be gone, in the order in which they hold an office that all need once."""
    return sorted(ctx.alive(ctx.nodes), key=lambda node: score(beacon(ctx), office, node), reverse=True)


def beacon(ctx: Context) -> str:
    """What hashes of this experiment begin with."""
    return f"cpfl-{ctx.seed}"


def to_text(cohorts: Cohorts) -> str:
    """For a checkpoint."""
    return ";".join(" ".join(map(str, members)) for members in cohorts)


def from_text(text: str) -> Cohorts:
    """What :func:`to_text` wrote."""
    return tuple(tuple(map(int, members.split())) for members in text.split(";"))
