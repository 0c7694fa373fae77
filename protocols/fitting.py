"""Where a node fits in that comes late: by the rule by which cohorts were formed, as far as somebody remembers.

The registrar keeps what nodes have revealed to it. Who comes late reveals as much, to it alone and once, and is told in
which order the cohorts suit it; not how well, as many such questions would tell what others have revealed. Cohorts
count as they were formed, without those that are gone. Where a rule makes nodes reveal nothing, where it went by models
that nobody has any longer (``loss``), and where the registrar is lost or has been away: by rendezvous.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from node import Context, DeadlineExceeded, Message, Unreachable
from node.cohorts import Cohorts, distance_costs, near_costs, similar_costs, stratified_costs
from protocols import forming
from protocols.cohort_settings import Settings
from protocols.forming import Revealed, Rule

RULES: tuple[Rule, ...] = (*forming.BY_LABEL, "speed", "latency")
"""The rules by which a registrar can tell where a late node fits in."""


class Late(Message, name="cpfl/late/1"):
    """I belong nowhere yet; this is what I would have revealed."""

    counts: tuple[float, ...] = ()
    step_s: float = 0.0
    peers: tuple[int, ...] = ()
    round_trips_s: tuple[float, ...] = ()


class Fits(Message, name="cpfl/fits/1"):
    """These suit you, best first."""

    cohorts: tuple[int, ...]
    """All of them; none, where I do not know."""


def ordered(rule: Rule, known: dict[int, Revealed], cohorts: Cohorts, late: Late) -> tuple[int, ...]:
    """The numbers of the cohorts as they suit a late node; ``known``: what members have revealed."""
    members = tuple([tuple([node for node in each if node in known]) for each in cohorts])
    counts: dict[int, Any] = {node: each.counts for node, each in known.items()}
    match rule:
        case "stratified":
            found = stratified_costs(counts, members, late.counts)
        case "label-similar":
            found = similar_costs(counts, members, late.counts)
        case "speed":
            found = distance_costs({node: (each.step_s,) for node, each in known.items()}, members, (late.step_s,))
        case _:
            found = near_costs(dict(zip(late.peers, late.round_trips_s, strict=False)), members)
    return tuple(sorted(range(len(cohorts)), key=lambda number: (found[number], number)))


class Registry:
    """What a registrar remembers; at all other nodes, nothing."""

    def __init__(self) -> None:
        self.known: dict[int, Revealed] = {}
        self._told: dict[int, Fits] = {}

    def answer(self, ctx: Context, rule: Rule, cohorts: Cohorts, sender: int, late: Late) -> Fits:
        """Where a late node fits in; asked again, it is told the same."""
        there = {node: self.known[node] for node in ctx.alive(sorted(self.known))}
        if not there or rule not in RULES or any(sender in members for members in cohorts):
            return Fits(cohorts=())
        width = len(next(iter(there.values())).counts)
        if sender not in self._told and len(late.counts) == width:
            self._told[sender] = Fits(cohorts=ordered(rule, there, cohorts, late))
        return self._told.get(sender, Fits(cohorts=()))


async def costs(ctx: Context, settings: Settings, counts: tuple[float, ...], cohorts: int) -> Sequence[float]:
    """What it costs each cohort that this node joins it, which has come late.

    Args:
        counts: what it tells of its labels, where the rule goes by them.
    """
    registrar = forming.elected(ctx, "registrar")[0]
    if settings.forming in RULES and registrar != ctx.me:
        mine = await forming.revealed(ctx, settings, counts)
        late = Late(counts=mine.counts, step_s=mine.step_s, peers=mine.peers, round_trips_s=mine.round_trips_s)
        try:
            answer = await ctx.request(registrar, late, timeout_s=settings.election_timeout_s)
        except (Unreachable, DeadlineExceeded):
            answer = None
        if isinstance(answer, Fits) and sorted(answer.cohorts) == list(range(cohorts)):
            return [answer.cohorts.index(number) for number in range(cohorts)]
    return forming.costs(ctx, cohorts)
