"""Run a protocol under the virtual clock, from Python, in one call."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from node.clock import VirtualClock
from node.config import ChurnSection, DevicesSection, InjectedFaultSection, NetworkSection, TopologySection
from node.graph import Graph
from node.mods import Mod, Observer, Wrapping
from node.op import Spec, Value
from node.participants import Participants
from node.private import Mechanisms
from node.protocol import Protocol
from node.record import Recorder
from node.sim.faults import surrounded
from node.sim.surroundings import Surroundings, surround
from node.sim.world import SimWorld
from node.solver import Executor, InlineExecutor, Solver
from node.tape import Tape
from node.testing.quadratic import Quadratic
from node.topology import build
from node.usage import Usage
from node.world import Workload, shapes


@dataclass
class Outcome:
    """What a simulated run has led to."""

    models: dict[int, Value]
    """Each node's final model."""
    recorder: Recorder
    """All recorded metrics."""
    time_s: float
    """Virtual seconds."""
    messages: int
    refused_messages: int
    bytes_sent: int
    tasks: int
    """Tasks recorded."""
    solved: int
    """Tasks computed."""
    forced_solves: int
    event_hash: str
    lost: dict[int, str]
    """Nodes that went and never came back, and since when."""
    usage: Usage = field(repr=False)
    counters: dict[str, int | float] = field(repr=False)
    """What solving the compute graph took: tasks skipped, calls, the most bytes of models at once."""
    events: bytes = field(repr=False, default=b"")

    def mean(self) -> NDArray[np.float64]:
        """The mean of the final models."""
        return np.asarray(np.mean([np.asarray(model) for model in self.models.values()], axis=0))

    def spread(self) -> float:
        """Largest distance of a final model from their mean."""
        mean = self.mean()
        return max(float(np.linalg.norm(np.asarray(model) - mean)) for model in self.models.values())


def run_protocol(
    protocol: Protocol,
    nodes: int = 8,
    *,
    workload: Workload | None = None,
    topology: TopologySection | None = None,
    seed: int = 0,
    devices: DevicesSection | None = None,
    network: NetworkSection | None = None,
    churn: ChurnSection | None = None,
    faults: Sequence[InjectedFaultSection] = (),
    mods: Sequence[Mod | Observer] = (),
    mechanisms: Mechanisms | None = None,
    executor: Executor | None = None,
    every: int = 1,
    window_tasks: int = 65_536,
) -> Outcome:
    """Run a protocol on ``nodes`` simulated nodes until all have ended.

    Args:
        protocol: an instance with its configuration; every node gets a copy of its own.
        workload: what is learned; None: :class:`Quadratic`.
        topology: None: a ring of two neighbours each (or what few nodes allow).
        faults: what goes wrong, as an experiment's ``[[faults]]``.
        mechanisms: what ``ctx.privacy`` hides models with, of tensors; None: nothing, and no torch is imported.
        mods: applied on every node; the copies are shallow, so that what an observer collects can be looked at.
    """
    if topology is None:
        topology = TopologySection(kind="ring" if nodes > 2 else "full")
    roles = protocol.roles(protocol.config, nodes)
    surroundings = surround(
        nodes,
        seed,
        devices or DevicesSection(),
        network or NetworkSection(),
        churn or ChurnSection(),
        learners=[node for node in range(nodes) if roles.get(node, "learner") == "learner"],
    )
    run = _run(
        protocol,
        nodes,
        workload or Quadratic(nodes, seed=seed),
        topology,
        seed,
        surrounded(surroundings, faults, nodes),
        mods,
        mechanisms,
        executor or InlineExecutor(),
        every,
        window_tasks,
    )
    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        return runner.run(run)


async def _run(
    protocol: Protocol,
    nodes: int,
    workload: Workload,
    topology: TopologySection,
    seed: int,
    surroundings: Surroundings,
    mods: Sequence[Mod | Observer],
    mechanisms: Mechanisms | None,
    executor: Executor,
    every: int,
    window_tasks: int,
) -> Outcome:
    blocks: list[bytes] = []
    tape, recorder, usage = Tape(blocks.append), Recorder(every), Usage(nodes)
    virtual = protocol.virtual_nodes(protocol.config)
    participants = Participants.drawn(nodes, (), virtual, np.random.default_rng([seed, *b"virtual"]))
    world = SimWorld(
        nodes,
        seed,
        workload,
        build(topology, nodes, seed),
        Solver(Graph(seed), executor),
        recorder,
        tape,
        surroundings,
        usage=usage,
        roles=protocol.roles(protocol.config, nodes),
        participants=participants,
        window_tasks=window_tasks,
    )
    if mods:
        world.shapes = shapes(workload, protocol.private_layers(protocol.config))
        if (wrapping := _wrapping(mods, world.shapes)) is not None:
            world.shapes = wrapping.carried(world.shapes)
    world.mechanisms = mechanisms
    world.inference = protocol.inference(protocol.config, nodes)
    await world.run(lambda: copy.deepcopy(protocol), lambda node: _wrapping(mods if node < nodes else (), world.shapes))
    usage.close(world.clock.time())
    digest = tape.digest()
    return Outcome(
        models={node: world.solver.value(ref) for node, ref in sorted(world.finals.items())},
        recorder=recorder,
        time_s=world.clock.time(),
        messages=world.mail.messages,
        refused_messages=world.mail.refusals.refused,
        bytes_sent=world.mail.bytes_sent,
        tasks=world.graph.recorded,
        solved=world.solver.solved,
        forced_solves=world.forcing.solves,
        event_hash=digest,
        lost={node: how for node, how in world.lost.items() if node < nodes},
        usage=usage,
        counters=world.solver.counters(),
        events=b"".join(blocks),
    )


def _wrapping(mods: Sequence[Mod | Observer], shapes: frozenset[Spec]) -> Wrapping | None:
    if not mods:
        return None
    own = [copy.copy(mod) for mod in mods]
    wrapping = Wrapping(
        [mod for mod in own if isinstance(mod, Mod)], [seen for seen in own if isinstance(seen, Observer)]
    )
    wrapping.carried(shapes)
    return wrapping
