"""Random faults against the protocols under the virtual clock, and what must hold after each schedule.

``python tests/swarm/fault_schedules.py 2000`` runs so many of them.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import structlog

from node import Observer, Protocol, StarlingError
from node.clock import VirtualClock
from node.config import ChurnSection, DevicesSection, InjectedFaultSection, NetworkSection, TopologySection
from node.graph import Graph
from node.mods import Wrapping
from node.record import Recorder
from node.sim.faults import surrounded
from node.sim.surroundings import surround
from node.sim.world import SimWorld
from node.solver import InlineExecutor, Solver
from node.tape import Tape
from node.testing import Quadratic
from node.topology import build
from protocols.adpsgd import ADPSGD
from protocols.catching_up import State
from protocols.dpsgd import DPSGD
from protocols.epidemic import Epidemic
from protocols.fedavg import FedAvg
from protocols.pushsum import PushSum

NODES = 6
ROUNDS = 24
FAULTS_S = 1.2
"""When the last fault that heals has healed; undisturbed, a run takes twice as long."""
LATENCY_S = 0.01
MADE = {
    "dpsgd": lambda: DPSGD(DPSGD.Config(rounds=ROUNDS, deadline_s=0.3)),
    "epidemic-local": lambda: Epidemic(Epidemic.Config(rounds=ROUNDS, degree=2, deadline_s=0.3)),
    "epidemic-oracle": lambda: Epidemic(
        Epidemic.Config(rounds=ROUNDS, degree=3, variant="oracle", deadline_s=0.3),
    ),
    "adpsgd": lambda: ADPSGD(ADPSGD.Config(rounds=ROUNDS, deadline_s=0.3)),
    "pushsum": lambda: PushSum(PushSum.Config(rounds=ROUNDS, deadline_s=0.3)),
    "fedavg": lambda: FedAvg(FedAvg.Config(rounds=ROUNDS, deadline_s=0.3)),
}
KINDS = ["crash", "restart", "pause", "slow", "partition", "loss", "delay", "garbage", "drift", "full-disk"]
_LOSING = ("full-disk", "restart")
BAND = 0.35
"""How far the mean of the final models may be from that of the undisturbed run, in units of a node's own bias."""


class Violation(AssertionError):
    """Something that must hold does not; says of which schedule."""


@dataclass
class Heard(Observer):
    """What a node has taken in, and when."""

    node: int
    taken: list[tuple[float, int]] = field(default_factory=list)
    given: set[int] = field(default_factory=set)
    """The rounds that others have said to be in when they gave this node their models to catch up with."""

    def __post_init__(self) -> None:
        super().__init__()

    def received(self, ctx, sender, message) -> None:
        self.taken.append((asyncio.get_running_loop().time(), sender))  # ctx.now is the node's own, and may drift
        if isinstance(message, State):
            self.given.add(message.round)


def drawn(rng: np.random.Generator, has_server: bool) -> list[InjectedFaultSection]:
    """Up to four faults; at most one hits a node's process at a time, and nobody kills the only server for good.

    Partitions and losses are in one direction as often as not; whose disk fills up is started again meanwhile or later.
    """
    made = []
    nodes = rng.permutation(np.arange(has_server, NODES)).tolist()
    for kind in rng.choice([*KINDS, "crash"], size=rng.integers(1, 5)).tolist():  # all others heal
        at_s, until_s = sorted(rng.uniform(0.0, FAULTS_S, 2).round(3).tolist())
        when = {"at_s": at_s, "for_s": max(0.01, until_s - at_s)}
        node, side, share = (
            nodes.pop(),
            rng.permutation(NODES)[: rng.integers(1, NODES)].tolist(),
            rng.uniform(0.2, 0.8),
        )
        others = [other for other in range(NODES) if other not in side] if rng.random() < 0.5 else None
        options = {
            "crash": {"nodes": [node], "at_s": at_s},
            "restart": {"nodes": [node], **when},
            "pause": {"nodes": [node], **when},
            "slow": {"nodes": [node], "rate": share, **when},
            "partition": {"groups": [side], "one_way": others and True, **when},
            "loss": {"nodes": side, "to": others, "rate": share, **when},
            "delay": {"delay_s": 0.2 * share, "jitter_s": 0.05, **when},
            "garbage": {"nodes": [node], "rate": share, **when},
            "drift": {"nodes": [node], "drift": share - 0.5, **when},
            "full-disk": {"nodes": [node], **when},
        }[kind]
        made.append(InjectedFaultSection(kind=kind, **options))
        if kind == "full-disk":
            restarts_s = rng.uniform(at_s, FAULTS_S)
            made.append(InjectedFaultSection(kind="restart", nodes=[node], at_s=restarts_s, for_s=0.1))
    return made


class Schedule:
    """One protocol under the faults that a seed stands for."""

    def __init__(
        self,
        seed: int,
        protocol: str | None = None,
        *,
        make: Callable[[], Protocol] | None = None,
        faults: Sequence[InjectedFaultSection] | None = None,
    ) -> None:
        rng = np.random.default_rng([seed, *b"faults"])
        name = str(rng.choice(sorted(MADE)))
        self.seed = seed
        self.protocol = protocol or name
        self.make = make or MADE[self.protocol]
        self.has_server = self.protocol == "fedavg"
        self.faults = drawn(rng, self.has_server) if faults is None else list(faults)
        self.workload = Quadratic(NODES, lr=0.3, seed=seed)
        self.heard = [Heard(node) for node in range(NODES)]
        self.tasks_left = 0

    def __str__(self) -> str:
        faults = "; ".join(str(fault.model_dump(exclude_none=True)) for fault in self.faults)
        return f"seed {self.seed}, {self.protocol}: {faults or 'no faults'}"

    def run(self) -> SimWorld:
        """Run it to the end, and see that everything holds.

        Raises:
            Violation: something does not.
        """
        try:
            with asyncio.Runner(loop_factory=VirtualClock) as runner:
                world = runner.run(self._simulated())
        except StarlingError as error:
            raise Violation(f"the run does not end well: {error} ({self})") from error
        self._see(not self.tasks_left, f"{self.tasks_left} tasks are left")
        self._check_members(world)
        self._check_rounds(world)
        self._check_messages()
        return world

    async def _simulated(self) -> SimWorld:
        protocol = self.make()
        world = SimWorld(
            NODES,
            self.seed,
            self.workload,
            build(TopologySection(kind="regular", degree=4), NODES, self.seed),
            Solver(Graph(self.seed), InlineExecutor()),
            Recorder(),
            Tape(),
            surrounded(
                surround(
                    NODES,
                    self.seed,
                    DevicesSection(seconds_per_sample=0.1),
                    NetworkSection(latency_s=LATENCY_S),
                    ChurnSection(detect_s=0.5),
                    learners=range(self.has_server, NODES),
                ),
                self.faults,
                NODES,
            ),
            roles=protocol.roles(protocol.config, NODES),
            window_tasks=10**9,
        )
        await world.run(self.make, lambda node: Wrapping([], [self.heard[node]]))
        await asyncio.sleep(0)  # what has been cancelled ends now
        self.tasks_left = len(asyncio.all_tasks()) - 1
        return world

    def _see(self, holds: bool, claim: str) -> None:
        if not holds:
            raise Violation(f"{claim} ({self})")

    def _check_members(self, world: SimWorld) -> None:
        crashed = {node for fault in self.faults if fault.kind == "crash" for node in fault.nodes or ()}
        ended = set(world.finals)
        self._see(ended | set(world.lost) == set(range(NODES)), f"ended {ended}, lost {set(world.lost)}")
        self._see(set(world.lost) <= crashed, f"lost {set(world.lost)}, but only {crashed} crashed for good")
        for node, ref in sorted(world.finals.items()):
            self._see(bool(np.isfinite(world.solver.value(ref)).all()), f"the model of node {node} is not finite")

    def _check_rounds(self, world: SimWorld) -> None:
        """No node loses what it has saved, does a round twice, or skips any but to catch up; a server's client does
        what it is given, at times again."""
        for node in range(NODES):
            recorded = [(row.round, row.metric) for row in world.recorder.rows() if row.node == node]
            in_order = [round for round, _ in recorded]
            if {fault.kind for fault in self.faults if node in (fault.nodes or ())}.issuperset(_LOSING):
                self._check_kept(world, node)
                continue
            rounds = list(dict.fromkeys(in_order))
            self._see(in_order == sorted(in_order), f"node {node} goes back: rounds {rounds}")
            if not (self.has_server and node > 0):
                skips = [after for before, after in pairwise([-1, *rounds]) if after > before + 1]
                caught_up = {round - 1 for round in self.heard[node].given}
                self._see(caught_up.issuperset(skips), f"node {node} skips: rounds {rounds}")
                self._see(len(recorded) == len(set(recorded)), f"node {node} does a round twice")

    def _check_kept(self, world: SimWorld, node: int) -> None:
        """One whose disk was full when it was started again goes back, but not behind what it had saved before."""
        full, restart = (next(f for f in self.faults if f.kind == kind and node in (f.nodes or ())) for kind in _LOSING)
        rows = [row for row in world.recorder.rows() if row.node == node]
        saved = max([row.round for row in rows if row.time_s < full.at_s], default=0)
        after = min([row.round for row in rows if row.time_s >= restart.end_s], default=saved)
        self._see(after >= saved, f"node {node} had saved round {saved}, and goes on at {after}")

    def _check_messages(self) -> None:
        """Nothing comes across a partition, from one that is dead, or from who is no node."""
        for heard in self.heard:
            for now_s, sender in heard.taken:
                self._see(0 <= sender < NODES, f"node {heard.node} hears {sender}, which is no node")
                for fault in self.faults:
                    self._see(not _forbids(fault, sender, heard.node, now_s), f"{sender} is heard at {now_s:g} s")

    def distance(self, world: SimWorld) -> float:
        """How far the mean of the final models is from that without faults."""
        calm = Schedule(self.seed, self.protocol, make=self.make, faults=())
        undisturbed = calm.run()
        return float(np.linalg.norm(mean_model(world) - mean_model(undisturbed)))

    @property
    def heals(self) -> bool:
        """Whether nothing is gone for good."""
        return all(fault.for_s is not None for fault in self.faults)

    @property
    def bias(self) -> float:
        """Root mean square distance of a node's own optimum from the common one."""
        return float(np.sqrt(np.mean(np.sum((self.workload.targets - self.workload.optimum) ** 2, axis=1))))


def _forbids(fault: InjectedFaultSection, sender: int, node: int, now_s: float) -> bool:
    """Whether a message that comes now should have been lost; those sent just before a partition still arrive."""
    late_s = 1.0  # the longest that delays hold a message back, with what jitter adds
    if fault.kind == "crash":
        return sender in (fault.nodes or ()) and now_s > fault.at_s
    if fault.kind == "restart":
        return node in (fault.nodes or ()) and fault.at_s < now_s < fault.end_s
    if fault.kind == "partition" and fault.groups is not None and fault.at_s + late_s < now_s < fault.end_s:
        leaves, enters = sender in fault.groups[0], node in fault.groups[0]
        return leaves and not enters if fault.one_way else leaves != enters
    return False


def mean_model(world: SimWorld) -> np.ndarray:
    """The mean of the final models."""
    return np.mean([world.solver.value(ref) for _, ref in sorted(world.finals.items())], axis=0)


def shrunk(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """A schedule that still fails, of which no single fault can be left out."""
    for i in range(len(schedule.faults)):
        fewer = [*schedule.faults[:i], *schedule.faults[i + 1 :]]
        smaller = Schedule(schedule.seed, schedule.protocol, make=schedule.make, faults=fewer)
        if fails(smaller):
            return shrunk(smaller, fails)
    return schedule


def main(schedules: int) -> None:
    """Run so many schedules, and say how far healed ones end from undisturbed runs, in units of a node's own bias."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    worst: dict[str, list[float]] = {}
    for seed in range(schedules):
        schedule = Schedule(seed)
        world = schedule.run()
        if schedule.heals:
            far = schedule.distance(world) / schedule.bias
            schedule._see(far < BAND, f"{far:.3f} biases from the undisturbed run")
            worst.setdefault(schedule.protocol, []).append(far)
        if seed % 100 == 0:
            gc.collect()
    for protocol, distances in sorted(worst.items()):
        far = sorted(distances)
        at = {"median": len(far) // 2, "99%": len(far) * 99 // 100, "worst": -1}
        told = ", ".join(f"{name} {far[place]:.3f}" for name, place in at.items())
        sys.stdout.write(f"{protocol}: {len(far)} of {schedules} schedules healed; {told}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
