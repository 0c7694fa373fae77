"""Run an experiment under the virtual clock, in this process."""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress

import psutil

from node import provenance
from node.clock import VirtualClock
from node.errors import StarlingError
from node.experiment.result import Result, finals, run_hash
from node.experiment.setup import Setup
from node.experiment.simulation import Simulation, simulation
from node.learn.workload import Workload
from node.privacy.ledger import Ledger
from node.record import Recorder
from node.sim.world import SimWorld
from node.solver import Solver
from node.tape import Sink, Tape
from node.usage import Usage, Watcher

Progress = Callable[[float, Recorder, Mapping[str, int]], None]
"""Told of the time in seconds, of what has been recorded, and how far the run is, now and then."""


def run_virtual(
    prepared: Setup | Simulation,
    progress: Progress,
    sink: Sink | None = None,
    watcher: Watcher | None = None,
    lineage: provenance.Log | None = None,
) -> Result:
    """Simulate all nodes until they have ended; a failure or an interrupt ends in the result, not in an exception.

    Close the result when its models are not needed any more.

    Raises:
        ConfigError: what only a simulation reads is wrong; not where the simulation has been prepared.

    Args:
        sink: receives the tape's blocks.
        watcher: receives what each node spends its time on, as it happens.
        lineage: receives how every value came to be and who received it.
    """
    started = time.perf_counter()
    built = prepared if isinstance(prepared, Simulation) else simulation(prepared)
    setup, solver = built.setup, built.solver
    result = Result(Recorder(setup.config.record.every))
    blocks: list[bytes] = []
    if sink is None and setup.config.record.events:
        sink = blocks.append
    tape, usage = Tape(sink), Usage(setup.config.nodes, watcher)
    result.on_close = solver.close
    workers = WorkerMemory(setup.config.executor.kind in ("processes", "dask"))
    ledger = setup.ledger()
    made: list[SimWorld] = []
    try:
        with lineage or nullcontext(), asyncio.Runner(loop_factory=VirtualClock) as runner:
            runner.run(_simulate(built, result, tape, usage, ledger, lineage, workers, progress, made.append))
        result.error = _headless(setup, made[0].lost)
        result.status = "failed" if result.error else "finished"
    except StarlingError as error:
        result.status, result.error = "failed", str(error)
        with suppress(StarlingError):
            for world in made:
                world.solve(())  # what had been recorded until then
    except KeyboardInterrupt:
        result.status, result.error = "interrupted", "interrupted"
    for world in made:
        _take_stock(result, world, solver, usage)
    result.recorder.drop_pending()
    states = {} if ledger is None else ledger.states(range(setup.config.nodes))
    result.spent = {node: state for node, state in states.items() if node < setup.config.nodes}
    result.event_hash, result.events = tape.digest(), tape.events
    result.tape = b"".join(blocks)
    if result.status == "finished":
        result.run_hash = run_hash(result)
    workers.look()
    result.peak_rss_bytes = peak_rss_bytes() + workers.peak_bytes
    result.wall_s = time.perf_counter() - started
    return result


async def _simulate(
    built: Simulation,
    result: Result,
    tape: Tape,
    usage: Usage,
    ledger: Ledger | None,
    lineage: provenance.Log | None,
    workers: WorkerMemory,
    progress: Progress,
    made: Callable[[SimWorld], None],
) -> None:
    setup, solver, config = built.setup, built.solver, built.setup.config

    def tell() -> None:
        workers.look()
        done = {"events": tape.events, "recorded": world.graph.recorded, "solved": solver.solved}
        progress(world.clock.time(), result.recorder, {**done, "resident_bytes": psutil.Process().memory_info().rss})

    world = SimWorld(
        config.nodes,
        config.seed,
        setup.workload,
        setup.topology,
        solver,
        result.recorder,
        tape,
        built.surroundings,
        usage=usage,
        roles=setup.roles,
        participants=setup.participants,
        window_tasks=config.executor.window_tasks or max(256, 8 * config.nodes),
        on_window=tell,
        stopwatch=time.perf_counter,
    )
    world.ledger, world.lineage, world.shapes = ledger, lineage, setup.shapes
    world.mechanisms = setup.mechanisms()
    world.inference = setup.inference()
    made(world)
    await world.run(setup.make_protocol, setup.wrapping)
    result.models = finals({node: ref for node, ref in world.finals.items() if node < config.nodes}, solver)
    tell()


def _headless(setup: Setup, lost: Mapping[int, str]) -> str | None:
    """What is wrong where an aggregator went for good before it had ended: nobody has made what all others sent."""
    gone = [node for node, role in sorted(setup.roles.items()) if role == "aggregator" and node in lost]
    return f"node {gone[0]}, the aggregator, is gone before it has ended: {lost[gone[0]]}" if gone else None


def _take_stock(result: Result, world: SimWorld, solver: Solver, usage: Usage) -> None:
    """What the run has taken, however it ended."""
    counters = solver.counters()  # first: what was still on its way counts as discarded
    result.time_s = world.clock.time()
    usage.close(result.time_s)
    result.usage, result.timeline = usage.summary(), usage.picture()
    result.messages, result.bytes_sent = world.mail.messages, world.mail.bytes_sent
    result.traffic = dict(sorted(world.mail.traffic.items()))
    result.refused_messages = world.mail.refusals.refused
    result.lost = {node: how for node, how in world.lost.items() if node < world.participants.nodes}
    result.tasks, result.forced_solves = world.graph.recorded, world.forcing.solves
    result.batched_calls = solver.batches
    result.graph = {
        **counters,
        "discarded_trainings": world.labour.discarded,
        "lost_messages": world.mail.lost,
        "forced_solves": world.forcing.solves,
        "forced_s": round(world.forcing.seconds, 3),
        "solving_s": round(world.solving_s, 3),
        "kernel": world.workload.kernel_name if isinstance(world.workload, Workload) else "",
    }


class WorkerMemory:
    """The most memory that an executor's processes have had to themselves, as far as it was looked at.

    Pages that they share with this process (the data, models in shared memory) are in its own resident size, and count
    once. What runs on other machines is not seen.

    Args:
        has_workers: whether there are any; without, a look costs nothing.
    """

    def __init__(self, has_workers: bool) -> None:
        self.peak_bytes = 0
        self._has_workers = has_workers

    def look(self) -> None:
        """Add up what all of them have now."""
        if not self._has_workers:
            return
        now_bytes = 0
        for worker in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it has ended meanwhile
                now_bytes += worker.memory_full_info().uss
        self.peak_bytes = max(self.peak_bytes, now_bytes)


def peak_rss_bytes() -> int:
    """The largest resident size that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
