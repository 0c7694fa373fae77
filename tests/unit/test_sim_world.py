"""The simulated world: events, windows, what is freed, and what ends a run."""

import asyncio
import gc
import os
import subprocess
import sys

import pytest

from node import Context, Message, Protocol, ProtocolError, Ref
from node.clock import VirtualClock
from node.config import DevicesSection, NetworkSection, TopologySection
from node.errors import Deadlock, SimulationError
from node.record import Recorder
from node.sim.world import SimWorld, lean_garbage_collection
from node.solver import BatchedExecutor, InlineExecutor
from node.tape import EventKind, Tape, events_of
from node.testing import Quadratic
from node.topology import build
from protocols.dpsgd import DPSGD


class Model(Message, name="test.sim_world/model/1", key=("round",)):
    round: int
    model: Ref


def simulate(protocol, nodes=4, workload=None, **options):
    """A finished world, and the bytes of its tape."""
    blocks = []

    async def main():
        world = SimWorld(
            nodes,
            3,
            workload or Quadratic(nodes, seed=3),
            build(TopologySection(kind="ring"), nodes, 3),
            options.pop("executor", InlineExecutor()),
            Recorder(),
            Tape(blocks.append),
            devices=options.pop("devices", DevicesSection(seconds_per_sample=1.0)),
            network=options.pop("network", NetworkSection(latency_s=0.5, up_bps=8e3, down_bps=8e3)),
            roles={},
            window_tasks=options.pop("window_tasks", 10**9),
            **options,
        )
        await world.run(protocol, lambda node: None)
        return world

    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        world = runner.run(main())
    world._note(0, EventKind.ENDED, 0)  # a last one, to see that nothing is hidden in the block
    return world, blocks


def gossip(rounds):
    return lambda: DPSGD(DPSGD.Config(rounds=rounds))


class Alone(Protocol):
    async def run(self, ctx: Context):
        return None


# Events


def test_every_event_is_on_the_tape():
    tape = Tape(sink := [].append)
    del sink
    events = []

    async def main():
        world = SimWorld(
            2,
            0,
            Quadratic(2),
            build(TopologySection(kind="full"), 2, 0),
            InlineExecutor(),
            Recorder(),
            Tape(lambda data: events.extend(events_of(data))) if tape.events == 0 else tape,
            devices=DevicesSection(seconds_per_sample=1.0),
            network=NetworkSection(latency_s=0.5, up_bps=1e30, down_bps=1e30),
            roles={},
            window_tasks=100,
        )
        await world.run(gossip(1), lambda node: None)
        return world
