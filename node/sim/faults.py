"""What the faults of an experiment are in a simulation: rules of its network, changes of its nodes, slower devices.

A message is lost or late as a whole, nobody is told of a partition, and a node that has ended is hit no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from node.config import InjectedFaultSection, NetworkSection, RuleSection, check_faults
from node.errors import ConfigError
from node.sim.churn import Change, Churn
from node.sim.surroundings import Spell, Surroundings


def surrounded(around: Surroundings, faults: Sequence[InjectedFaultSection], nodes: int) -> Surroundings:
    """What surrounds simulated nodes, with faults.

    Raises:
        ConfigError: a fault is wrong, or is none of a simulation.
    """
    check_faults(faults, nodes)
    for i, fault in enumerate(faults):
        if fault.kind == "pause" and around.cores:
            raise ConfigError(f"faults[{i}].kind: nodes that share a machine (devices.cores) cannot pause; use restart")
    if not faults:
        return around
    return replace(
        around,
        network=_with_rules(around.network, faults),
        churn=_with_changes(around.churn, faults),
        slowdowns=(*around.slowdowns, *_spells("slow", faults)),
        garbage=(*around.garbage, *_spells("garbage", faults)),
        drifts=(*around.drifts, *_spells("drift", faults)),
        full_disks=(*around.full_disks, *_spells("full-disk", faults)),
    )


def _spells(kind: str, faults: Sequence[InjectedFaultSection]) -> Iterator[Spell]:
    for fault in faults:
        if fault.kind == kind:
            rate = fault.rate or fault.drift or 0.0
            yield Spell(frozenset(fault.nodes or ()), fault.at_s, fault.end_s, rate)


def _with_rules(network: NetworkSection, faults: Sequence[InjectedFaultSection]) -> NetworkSection:
    rules = (*network.rules, *(rule for fault in faults for rule in _rules(fault)))
    return network.model_copy(update={"rules": rules})


def _rules(fault: InjectedFaultSection) -> Iterator[RuleSection]:
    when = {"start_s": fault.at_s, "end_s": None if fault.for_s is None else fault.end_s}
    for group in fault.groups or ():
        yield RuleSection(kind="partition", frm=group, both_ways=not fault.one_way, **when)
    # One rule for each sender: a rule from several nodes is not about what they tell each other.
    senders = [None] if fault.nodes is None else [(node,) for node in fault.nodes]
    for frm in senders:
        if fault.kind == "loss":
            yield RuleSection(kind="drop", value=fault.rate or 0.0, frm=frm, to=fault.to, **when)
        if fault.delay_s:
            yield RuleSection(kind="delay", value=fault.delay_s, frm=frm, to=fault.to, **when)
        if fault.jitter_s:
            yield RuleSection(kind="jitter", value=fault.jitter_s, frm=frm, to=fault.to, **when)


def _with_changes(churn: Churn | None, faults: Sequence[InjectedFaultSection]) -> Churn | None:
    changes: dict[int, list[Change]] = {}
    for i, fault in enumerate(faults):
        if fault.kind not in ("crash", "restart", "pause"):
            continue
        for node in fault.nodes or ():
            if churn is not None and node in churn.changes:
                raise ConfigError(f"faults[{i}].nodes: node {node} goes by [churn] already; keep one of the two")
            changes.setdefault(node, []).append(Change(fault.at_s, "pause" if fault.kind == "pause" else "crash"))
            if fault.for_s is not None:
                changes[node].append(Change(fault.end_s, "return"))
    if not changes:
        return churn
    before = churn or Churn({}, {})
    return Churn(before.absent, {**before.changes, **{node: iter(sorted(of)) for node, of in changes.items()}})
