"""Run an experiment as real processes on this machine: one per node, over encrypted ZeroMQ on loopback."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import uvloop

from node.experiment.participant import Participant, paces
from node.experiment.result import Result
from node.experiment.setup import Setup
from node.experiment.virtual import Progress, peak_rss_bytes
from node.identity import Card, Identity, Roster
from node.learn import tensors
from node.live import supervisor
from node.live.channel import Alive, Begin, Channel, Failed, Finished, Measured, Shown, Spent, Stop, Work
from node.live.checkpoints import Checkpoints
from node.live.pacing import Pace
from node.live.transport import Transport
from node.op import Value
from node.record import Recorder
from node.row import Row
from node.world import cannot_go_on

_TELL_EVERY_S = 0.25
_ALIVE_EVERY_S = 2.0


def run_real(setup: Setup, folder: Path, progress: Progress, note: Callable[[str], None]) -> Result:
    """Fork, supervise and gather; a failure or an interrupt ends in the result, not in an exception.

    Args:
        folder: the run's; logs of nodes that had something to say stay in ``logs/``.
        note: told in words of what must not be missed.

    Raises:
        ConfigError: the experiment's links cannot be paced.
    """
    paced, device = paces(setup.config), setup.participants.device
    started_s = time.monotonic()
    result = Result(Recorder())
    network = f"{setup.config.name}-{secrets.token_hex(8)}"
    children: list[supervisor.Child] = []
    try:
        _warm_up(setup)
        children = supervisor.fork_all(
            setup.participants.total,
            lambda node, end: _child(setup, folder, network, node, end, paced[device(node)] if paced else None),
            folder / "logs",
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_supervise(setup, children, result, progress, note))
    except KeyboardInterrupt:
        result.status, result.error = "interrupted", "interrupted"
    finally:
        supervisor.end_all(children)
    _gather(setup, children, result)
    result.wall_s = time.monotonic() - started_s
    return result


async def _supervise(
    setup: Setup,
    children: list[supervisor.Child],
    result: Result,
    progress: Progress,
    note: Callable[[str], None],
) -> None:
    recorder = result.recorder

    def measured(said: Measured) -> None:
        for row in said.rows:
            recorder.append(Row(*row))

    device = setup.participants.device

    def lost(node: int, how: str) -> None:
        if node != device(node) and device(node) in result.lost:
            return  # that has been said
        result.lost[node] = how
        note(f"node {node} {how}")

    watch = supervisor.Supervisor(children, measured, lost, device=device)
    main = asyncio.current_task()
    assert main is not None
    terminated = False

    def terminate() -> None:
        nonlocal terminated
        terminated = True
        main.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    telling = asyncio.create_task(_tell(watch, recorder, progress))
    try:
        await watch.run()
        result.status, result.error = ("failed", watch.failure) if watch.failure else ("finished", None)
    except asyncio.CancelledError:
        if not terminated:
            raise
        result.status, result.error = "interrupted", "terminated by SIGTERM"
    finally:
        telling.cancel()
        result.time_s = time.monotonic() - watch.started_s if watch.started_s else 0.0


async def _tell(watch: supervisor.Supervisor, recorder: Recorder, progress: Progress) -> None:
    while True:
        await asyncio.sleep(_TELL_EVERY_S)
        progress(time.monotonic() - watch.started_s if watch.started_s else 0.0, recorder, {})


def _gather(setup: Setup, children: list[supervisor.Child], result: Result) -> None:
    finished = [(child.node, child.finished) for child in children if child.finished is not None]
    spec = setup.workload.model_spec
    result.models = {
        node: tensors.from_buffer(bytearray(said.model), spec)
        for node, said in finished
        if said.model is not None and node < setup.config.nodes
    }
    reports = [said for _, said in finished]
    if reports and result.status == "finished":
        result.time_s = max(said.time_s for said in reports)
    result.events = sum(said.events for said in reports)
    result.tape = b"".join(said.tape for said in reports)
    work = [child.finished or child.work for child in children]
    result.tasks = sum(said.tasks for said in work)
    result.batched_calls = sum(said.batches for said in reports)
    result.forced_solves = sum(said.forced_solves for said in reports)
    result.messages = sum(said.messages for said in work)
    result.bytes_sent = sum(said.bytes_sent for said in work)
    traffic = sum((Counter(said.traffic) for said in work), Counter[str]())
    result.traffic = dict(sorted(traffic.items()))
    result.refused_messages = sum(said.refused_messages for said in work)
    if (ledger := setup.ledger()) is not None:  # a node that has not spent anything has not said anything of it
        said_spent = {child.node: child.spent for child in children if child.spent is not None}
        states = {**ledger.states(range(setup.config.nodes)), **said_spent}
        result.spent = {node: state for node, state in states.items() if node < setup.config.nodes}
    result.peak_rss_bytes = peak_rss_bytes() + sum(said.private_bytes for said in reports)


def _warm_up(setup: Setup) -> None:
    """Do once, before the fork, what every child would otherwise import and allocate for itself."""
    batched = setup.config.executor.kind == "batched"
    setup.workload.warm_up(batched)
    identity = Identity.generate()
    Roster([Card.from_bytes(identity.card(0, "tcp://127.0.0.1:1", "warm-up").to_bytes())])
    psutil.Process().memory_full_info()
    with ThreadPoolExecutor(1) as worker:
        worker.submit(setup.workload.warm_up, batched).result()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.sleep(0))


# In the child


def _child(setup: Setup, folder: Path, network: str, node: int, end: socket.socket, pace: Pace | None) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_take_part(setup, folder, network, node, end, pace))


async def _take_part(setup: Setup, folder: Path, network: str, node: int, end: socket.socket, pace: Pace | None) -> int:
    main = asyncio.current_task()
    assert main is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main.cancel)
    channel = await Channel.over(end)
    sent_rows = 0

    def settled() -> None:
        nonlocal sent_rows
        recorder = participant.recorder
        rows = [(*row,) for row in recorder.rows(sent_rows, recorder.settled)]
        sent_rows = recorder.settled
        if rows:
            work = Work(world.graph.recorded, world.messages, world.bytes_sent, world.refused_messages, world.traffic)
            channel.say(Measured(rows, work))

    def spent(state: Mapping[str, Any]) -> None:
        channel.say(Spent(dict(state)))

    participant = Participant(
        setup, node, checkpoints=Checkpoints(None), on_settled=settled, folder=folder, keep_spent=spent
    )
    world = participant.world
    identity = Identity.generate()
    transport = Transport(node, identity, on_message=world.receive, on_lost=world.lose, on_back=world.regain, pace=pace)
    transport.start()
    orders = asyncio.create_task(_obey(channel, main))
    alive = asyncio.create_task(_say_alive(channel))
    try:
        channel.say(Shown(identity.card(node, transport.address, network).to_bytes()))
        begin = await orders
        if begin is None:
            return 0
        transport.admit(Roster(Card.from_bytes(card) for card in begin.cards))
        orders = asyncio.create_task(_obey(channel, main))
        try:
            final = await participant.run(transport)
            channel.say(_finished(participant.result("finished"), final))
            await asyncio.shield(world.failure)
        except Exception as error:
            channel.say(Failed(cannot_go_on(error)))
            return 1
    except asyncio.CancelledError:
        return 0
    finally:
        orders.cancel()
        alive.cancel()
        await transport.close()
        await world.close(wait=False)  # a node that is to end must not wait for a long training
        await channel.close()
    return 0


async def _say_alive(channel: Channel) -> None:
    while True:
        channel.say(Alive())
        await asyncio.sleep(_ALIVE_EVERY_S)


async def _obey(channel: Channel, main: asyncio.Task[int]) -> Begin | None:
    """The supervisor's next order: the roster, or None for the end, which comes by itself where the supervisor goes."""
    said = await channel.hear()
    if isinstance(said, Begin):
        return said
    assert said is None or isinstance(said, Stop)
    main.cancel()
    return None


def _finished(result: Result, final: Value | None) -> Finished:
    return Finished(
        model=None if final is None else bytes(tensors.to_buffer(final)),
        time_s=result.time_s,
        events=result.events,
        tape=result.tape,
        tasks=result.tasks,
        batches=result.batched_calls,
        forced_solves=result.forced_solves,
        messages=result.messages,
        bytes_sent=result.bytes_sent,
        private_bytes=psutil.Process().memory_full_info().uss,
        refused_messages=result.refused_messages,
        traffic=dict(result.traffic),
    )
