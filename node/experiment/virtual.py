"""Run an experiment under the virtual clock, in this process."""

from __future__ import annotations

import asyncio
import resource
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from node.clock import VirtualClock
from node.errors import StarlingError
from node.experiment.result import Result
from node.experiment.setup import Setup
from node.record import Recorder
from node.sim.world import SimWorld
from node.tape import Sink, Tape

Progress = Callable[[float, Recorder], None]
"""Told of the time in seconds and of what has been recorded, now and then."""


def run_virtual(setup: Setup, progress: Progress, sink: Sink | None = None) -> Result:
    """Simulate all nodes until they have ended; a failure or an interrupt ends in the result, not in an exception."""
    started = time.perf_counter()
    result = Result(Recorder(setup.config.record.every))
    blocks: list[bytes] = []
    made: list[SimWorld] = []
    if sink is None and setup.config.record.events:
        sink = blocks.append
    tape = Tape(sink)
    try:
        with asyncio.Runner(loop_factory=VirtualClock) as runner:
            runner.run(_simulate(setup, result, tape, progress, made.append))
        result.status = "finished"
    except StarlingError as error:
        result.status, result.error = "failed", str(error)
        with suppress(StarlingError):
            for world in made:
                world.solve(())  # what had been recorded until then
    except KeyboardInterrupt:
        result.status, result.error = "interrupted", "interrupted"
    result.recorder.drop_pending()
    result.event_hash, result.events = tape.digest(), tape.events
    result.tape = b"".join(blocks)
    result.peak_rss_bytes = peak_rss_bytes()
    result.wall_s = time.perf_counter() - started
    return result


async def _simulate(
    setup: Setup, result: Result, tape: Tape, progress: Progress, made: Callable[[SimWorld], None]
) -> None:
    config = setup.config
    recorder = result.recorder
    world = SimWorld(
        config.nodes,
        config.seed,
        setup.workload,
        setup.topology,
        setup.executor(),
        recorder,
        tape,
        devices=config.devices,
        network=config.network,
        roles=setup.roles,
        window_tasks=config.executor.window_tasks or max(256, 8 * config.nodes),
        on_window=lambda: progress(world.clock.time(), recorder),
    )
    made(world)
    try:
        await world.run(setup.make_protocol, setup.wrapping)
        result.models = {node: world.solver.value(ref) for node, ref in sorted(world.finals.items())}
    finally:
        result.time_s = world.clock.time()
        result.tasks = world.graph.recorded
        result.batched_calls = world.solver.batches
        result.forced_solves = world.forced_solves
        result.messages, result.bytes_sent = world.messages, world.bytes_sent
    progress(world.clock.time(), recorder)


def peak_rss_bytes() -> int:
    """The largest resident size that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
