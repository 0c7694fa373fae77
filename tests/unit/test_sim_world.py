"""The simulated world: events, windows, what is freed, and what ends a run."""

import asyncio
import gc
import os
import subprocess
import sys

import pytest

from node import Context, Message, Protocol, ProtocolError, Ref
from node.clock import VirtualClock
from node.config import ChurnSection, DevicesSection, NetworkSection, TopologySection
from node.errors import Deadlock, SimulationError
from node.graph import Graph
from node.op import Op
from node.record import Recorder
from node.sim.garbage import lean_garbage_collection
from node.sim.surroundings import surround
from node.sim.world import SimWorld
from node.solver import BatchedExecutor, InlineExecutor, Solver
from node.tape import Event, EventKind, Tape, events_of
from node.testing import Quadratic
from node.topology import build
from protocols.adpsgd import ADPSGD
from protocols.dpsgd import DPSGD

SLOW = NetworkSection(latency_s=0.5, up_bps=1e30, down_bps=1e30)


class Model(Message, name="test.sim_world/model/1", key=("round",)):
    round: int
    model: Ref


def surroundings(nodes, network=SLOW):
    devices = DevicesSection(seconds_per_sample=1.0)
    return surround(nodes, 3, devices, network, ChurnSection(), learners=range(nodes))


def simulate(protocol, nodes=4, *, executor=None, workload=None, roles=None, network=SLOW, **options):
    """The world after a run, and its events."""
    events = []

    async def main():
        tape = Tape(lambda data: events.extend(events_of(data)))
        world = SimWorld(
            nodes,
            3,
            workload or Quadratic(nodes, seed=3),
            build(TopologySection(kind="full"), nodes, 3),
            Solver(Graph(3), executor or InlineExecutor()),
            Recorder(),
            tape,
            surroundings(nodes, network),
            roles=roles or {},
            **{"window_tasks": 10**9, **options},
        )
        try:
            await world.run(protocol, lambda node: None)
        finally:
            tape.digest()
        return world

    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        return runner.run(main()), events


def dpsgd(rounds):
    return lambda: DPSGD(DPSGD.Config(rounds=rounds))


# Events


def test_every_event_is_on_the_tape():
    world, events = simulate(dpsgd(1), 2)
    size = world.mail.bytes_sent // 2
    assert [event._replace(size_bytes=event.size_bytes // size) for event in events] == [
        Event(1.0, EventKind.TRAINED, 0, -1, 0),
        Event(1.0, EventKind.TRAINED, 1, -1, 0),
        Event(1.5, EventKind.DELIVERED, 1, 0, 1),
        Event(1.5, EventKind.DELIVERED, 0, 1, 1),
        Event(1.5, EventKind.ENDED, 1, -1, 0),
        Event(1.5, EventKind.ENDED, 0, -1, 0),
    ]
    assert world.mail.messages == 2
    assert world.clock.now == 1.5


@pytest.mark.parametrize("protocol", [dpsgd(4), lambda: ADPSGD(ADPSGD.Config(rounds=4))])
def test_bytes_and_messages_are_those_of_the_deliveries(protocol):
    world, events = simulate(protocol, 5)
    delivered = [event for event in events if event.kind == EventKind.DELIVERED]
    assert world.mail.messages == len(delivered)
    assert world.mail.bytes_sent == sum(event.size_bytes for event in delivered)
    assert sum(event.kind == EventKind.TRAINED for event in events) == 20
    assert sum(event.kind == EventKind.ENDED for event in events) == 5
    assert all(event.size_bytes > 4 * 8 for event in delivered)
    assert [event.time_s for event in events] == sorted(event.time_s for event in events)


def test_the_transfer_takes_the_time_of_all_bytes_on_the_wire():
    world, events = simulate(dpsgd(1), 2, network=NetworkSection(latency_s=2.0, up_bps=800, down_bps=1e9))
    arrival = next(event for event in events if event.kind == EventKind.DELIVERED)
    assert arrival.time_s == pytest.approx(1 + 2 + arrival.size_bytes / 100)
    assert world.mail.bytes_sent == 2 * arrival.size_bytes


# Windows and memory


@pytest.mark.parametrize("executor", [InlineExecutor(), BatchedExecutor()])
@pytest.mark.parametrize("window", [1, 7, 10**9])
def test_in_the_end_only_the_finals_and_the_initial_model_are_left(executor, window):
    world, _ = simulate(dpsgd(6), 5, executor=executor, window_tasks=window)
    world.graph.drain()
    assert set(world.graph.values) == {world.initial.id, *(ref.id for ref in world.finals.values())}
    assert sorted(world.finals) == list(range(5))


def test_windows_bound_what_waits_and_tell_when_they_close():
    """What is recorded is solved window by window; without windows all of it waits for the end."""
    windows, solved = [], []
    one, _ = simulate(dpsgd(40), window_tasks=20, on_window=lambda: windows.append(True))
    other, _ = simulate(dpsgd(40), on_window=lambda: solved.append(True))
    assert 10 < len(windows) <= 4 * 40 * 3 / 20
    assert solved == []
    assert one.solver.solved == other.solver.solved == 4 * 40 * 3
    assert list(one.recorder.rows()) == list(other.recorder.rows())


def test_an_unsolved_value_without_readers_is_never_computed():
    def explode(task):
        raise AssertionError("computed")

    class Wasteful(Protocol):
        async def run(self, ctx: Context):
            for _ in range(10):
                ctx.apply(Op("explode", explode), ctx.initial_model())
                await ctx.train(ctx.initial_model())
            return ctx.initial_model()

    world, _ = simulate(Wasteful, 3, window_tasks=5)
    assert world.solver.solved == 0


# Roles and topologies


def test_roles_say_who_is_whose_peer():
    seen = {}

    class Look(Protocol):
        async def run(self, ctx: Context):
            seen[ctx.me] = (ctx.peers(), ctx.peers("server"), ctx.peers("x"))

    simulate(Look, 4, roles={0: "server", 2: "server"})
    assert seen == {0: ((1, 3), (2,), ()), 1: ((3,), (0, 2), ()), 2: ((1, 3), (0,), ()), 3: ((1,), (0, 2), ())}


def test_another_topology_is_built_once():
    section = TopologySection(kind="ring")

    class Look(Protocol):
        async def run(self, ctx: Context):
            assert ctx.neighbours(within=section) == tuple(sorted([(ctx.me - 1) % 4, (ctx.me + 1) % 4]))

    world, _ = simulate(Look, 4)
    assert world.topology_of(section) is world.topology_of(TopologySection(kind="ring"))


# What ends a run


def test_a_world_needs_a_virtual_clock():
    async def main():
        SimWorld(
            1,
            0,
            Quadratic(1),
            build(TopologySection(kind="full"), 1, 0),
            Solver(Graph(0), InlineExecutor()),
            Recorder(),
            Tape(),
            surroundings(1),
            roles={},
            window_tasks=1,
        )

    with asyncio.Runner() as runner, pytest.raises(SimulationError, match="needs a VirtualClock"):
        runner.run(main())


def test_a_run_of_nodes_that_do_nothing_ends_at_once():
    class Idle(Protocol):
        async def run(self, ctx: Context):
            return None

    world, events = simulate(Idle, 3)
    assert world.finals == {}
    assert [(event.kind, event.time_s) for event in events] == [(EventKind.ENDED, 0.0)] * 3


def test_the_first_failure_ends_the_run_and_the_others_clean_up():
    cleaned = []

    class Failing(Protocol):
        async def run(self, ctx: Context):
            try:
                await ctx.sleep(1 + ctx.me)
                raise ProtocolError(f"node {ctx.me} fails")
            finally:
                cleaned.append(ctx.me)

    with pytest.raises(ProtocolError, match="node 0 fails"):
        simulate(Failing, 3)
    assert sorted(cleaned) == [0, 1, 2]


def test_two_failures_in_one_instant_are_the_first_ones():
    class Failing(Protocol):
        async def run(self, ctx: Context):
            await ctx.sleep(1)
            raise ProtocolError(f"node {ctx.me} fails")

    with pytest.raises(ProtocolError, match="node 0 fails"):
        simulate(Failing, 3)


def test_those_who_have_ended_do_not_keep_the_others_from_a_deadlock():
    class Waiting(Protocol):
        async def run(self, ctx: Context):
            if ctx.me == 1:
                await ctx.collect(Model, frm=(0,), round=7)

    with pytest.raises(Deadlock, match=r"node 1 waits for test.sim_world/model/1 round=7 from \[0\] since 0 s"):
        simulate(Waiting, 3)


def test_garbage_collection_is_as_before_even_after_a_failure():
    before = (gc.get_threshold(), gc.get_freeze_count())

    class Failing(Protocol):
        async def run(self, ctx: Context):
            assert gc.get_threshold()[0] >= 100_000
            raise ProtocolError("no")

    with pytest.raises(ProtocolError):
        simulate(Failing)
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
    with lean_garbage_collection(10_000):
        assert gc.get_threshold()[0] == 250_000


# Determinism

PRINT_HASH = """
from node.testing import run_protocol, Quadratic
from node.config import Distribution, DevicesSection, NetworkSection
from protocols.adpsgd import ADPSGD
outcome = run_protocol(
    ADPSGD(ADPSGD.Config(rounds=5)), 6, workload=Quadratic(6, noise=0.1),
    devices=DevicesSection(seconds_per_sample=Distribution(distribution="lognormal", median=0.01)),
    network=NetworkSection(latency_s=Distribution(distribution="uniform", high=0.1)),
)
print(outcome.event_hash, {node: model.tobytes().hex() for node, model in outcome.models.items()})
"""


def test_runs_are_the_same_in_every_process(tmp_path):
    """Whatever the hashes of strings are, and wherever it runs."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    printed = {
        subprocess.run(
            [sys.executable, "-c", PRINT_HASH],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root},
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, folder in (("0", root), ("1", tmp_path))
    }
    assert len(printed) == 1
    assert len(printed.pop()) > 32
