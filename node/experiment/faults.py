"""What the faults of an experiment are in a real run: acts on processes, and impairments of what they send.

As in a simulation (:mod:`node.sim.faults`), a message is lost or late as a whole, nobody is told of a partition, and a
node that has ended is hit no more.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from itertools import count

from node.config import InjectedFaultSection, check_faults
from node.drifting import Drift
from node.errors import ConfigError
from node.live.injection import Act
from node.live.shaping import Impairment
from node.participants import Participants

PULSE_S = 0.1
"""A slow process is stopped for its share of every such while."""


def restarts(faults: Sequence[InjectedFaultSection]) -> list[int]:
    """The nodes that are started again, each as often as it is."""
    return [node for fault in faults if fault.kind == "restart" for node in fault.nodes or ()]


def kept(faults: Sequence[InjectedFaultSection]) -> list[int]:
    """The nodes that keep checkpoints on disk: those that are started again, and those whose disks fill up."""
    nodes = [node for fault in faults if fault.kind in ("restart", "full-disk") for node in fault.nodes or ()]
    return sorted({*nodes})


def check(faults: Sequence[InjectedFaultSection], participants: Participants) -> None:
    """See that a real run can do what its faults say.

    Raises:
        ConfigError: it cannot; names the fault and the key.
    """
    check_faults(faults, participants.nodes)
    for i, fault in enumerate(faults):
        if fault.kind == "restart" and not participants.are_nodes_alone:
            raise ConfigError(f"faults[{i}].kind: identities beyond the nodes cannot be restarted; use crash")


def acts(faults: Sequence[InjectedFaultSection]) -> Iterator[Act]:
    """What is done to the processes of nodes, by time; endless where one is slow to the end."""
    return heapq.merge(*[_acts(fault, node) for fault in faults for node in fault.nodes or ()])


def _acts(fault: InjectedFaultSection, node: int) -> Iterator[Act]:
    match fault.kind:
        case "crash" | "restart":
            yield Act(fault.at_s, node, "kill")
            if fault.for_s is not None:
                yield Act(fault.end_s, node, "revive")
        case "pause":
            yield Act(fault.at_s, node, "stop")
            yield Act(fault.end_s, node, "go_on")
        case "slow":
            for pulse in count():
                start_s = fault.at_s + pulse * PULSE_S
                if start_s >= fault.end_s:
                    return
                yield Act(start_s, node, "stop")
                yield Act(start_s + PULSE_S * (1 - (fault.rate or 1.0)), node, "go_on")


def impairments(
    faults: Sequence[InjectedFaultSection], participants: Participants, number: int
) -> tuple[Impairment, ...]:
    """What befalls the messages that a participant sends."""
    sender = participants.device(number)
    found: list[Impairment] = []
    for fault in faults:
        when = (fault.at_s, fault.end_s)
        if fault.groups is not None:
            side = _side(fault.groups, sender)
            others = [n for n in range(participants.total) if _side(fault.groups, participants.device(n)) != side]
            if side is not None or not fault.one_way:
                found.append(Impairment(*when, loss=1.0, peers=frozenset(others)))
        elif fault.nodes is None or sender in fault.nodes:
            peers = None if fault.to is None else _on(participants, fault.to)
            if fault.kind == "loss":
                found.append(Impairment(*when, loss=fault.rate or 0.0, peers=peers))
            elif fault.kind == "garbage":
                found.append(Impairment(*when, garbage=fault.rate or 0.0))
            elif fault.kind == "delay":
                found.append(
                    Impairment(*when, delay_s=fault.delay_s or 0.0, jitter_s=fault.jitter_s or 0.0, peers=peers)
                )
    return tuple(found)


def drifts(faults: Sequence[InjectedFaultSection], device: int) -> list[Drift]:
    """How the clock of a device runs."""
    found = [fault for fault in faults if fault.kind == "drift" and device in (fault.nodes or ())]
    return [Drift(fault.at_s, fault.end_s, fault.drift or 0.0) for fault in found]


def full_disks(faults: Sequence[InjectedFaultSection], device: int) -> list[tuple[float, float]]:
    """From when until when the disk of a device is full."""
    found = [fault for fault in faults if fault.kind == "full-disk" and device in (fault.nodes or ())]
    return [(fault.at_s, fault.end_s) for fault in found]


def _on(participants: Participants, devices: Sequence[int]) -> frozenset[int]:
    """Who is on some devices."""
    return frozenset(number for number in range(participants.total) if participants.device(number) in devices)


def _side(groups: Sequence[Sequence[int]], node: int) -> int | None:
    return next((side for side, group in enumerate(groups) if node in group), None)
