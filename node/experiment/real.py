"""Run an experiment as real processes on this machine: one per node, over encrypted ZeroMQ on loopback."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import uvloop

from node.experiment import faults
from node.experiment.forked import Part, take_part
from node.experiment.participant import Participant, paces
from node.experiment.result import Result
from node.experiment.setup import Setup
from node.experiment.virtual import Progress, peak_rss_bytes
from node.identity import Card, Identity, Roster
from node.learn import tensors
from node.live.channel import Measured
from node.live.checkpoints import Checkpoints
from node.live.children import Child, end_all, fork_all
from node.live.supervisor import Supervisor
from node.live.transport import Transport
from node.record import Recorder
from node.row import Row

_TELL_EVERY_S = 0.25
_SILENCE_S = 30.0
"""How long a node may say nothing before it is killed,"""
_SILENCE_EACH_S = 0.1
"""or, where that is more, for each process of the run: hundreds that begin at once keep each other waiting."""


def run_real(setup: Setup, folder: Path, progress: Progress, note: Callable[[str], None]) -> Result:
    """Fork, supervise and gather; a failure or an interrupt ends in the result, not in an exception.

    Args:
        folder: the run's; logs of nodes that had something to say stay in ``logs/``.
        note: told in words of what must not be missed.

    Raises:
        ConfigError: the experiment's links cannot be paced, or a fault cannot be injected.
    """
    config, participants = setup.config, setup.participants
    faults.check(config.faults, participants)
    restarts = faults.restarts(config.faults)
    paced = paces(config)
    started_s = time.monotonic()
    result = Result(Recorder())
    network = f"{config.name}-{secrets.token_hex(8)}"
    keys = {node: Identity.generate() for node in faults.kept(config.faults)}
    states = TemporaryDirectory(prefix="state-", dir=folder)
    children: list[Child] = []

    def main(node: int, end: socket.socket) -> int:
        pace = paced[participants.device(node)] if paced else None
        state = Path(states.name) / f"node-{node}" if node in keys else None
        if state is not None:
            state.mkdir(exist_ok=True)
        return take_part(Part(setup, folder, network, node, keys.get(node) or Identity.generate(), state, pace), end)

    try:
        _warm_up(setup)
        children = fork_all(participants.total, main, folder / "logs", restarts)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_supervise(setup, children, result, progress, note))
    except KeyboardInterrupt:
        result.status, result.error = "interrupted", "interrupted"
    finally:
        end_all(children)
        states.cleanup()
    _gather(setup, children, result)
    result.wall_s = time.monotonic() - started_s
    return result


async def _supervise(
    setup: Setup,
    children: list[Child],
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

    silence_s = max(_SILENCE_S, len(children) * _SILENCE_EACH_S)
    watch = Supervisor(children, measured, lost, silence_s, device, faults.acts(setup.config.faults))
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


async def _tell(watch: Supervisor, recorder: Recorder, progress: Progress) -> None:
    while True:
        await asyncio.sleep(_TELL_EVERY_S)
        progress(time.monotonic() - watch.started_s if watch.started_s else 0.0, recorder, {})


def _gather(setup: Setup, children: list[Child], result: Result) -> None:
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
    psutil.Process().memory_full_info()
    with ThreadPoolExecutor(1) as worker:
        worker.submit(setup.workload.warm_up, batched).result()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_rehearse(setup, identity))


async def _rehearse(setup: Setup, identity: Identity) -> None:
    """Be a node that has no peers, and end: saves each child a mebibyte of what is set up on first use."""
    participant = Participant(setup, 0, checkpoints=Checkpoints(None), on_settled=lambda: None)
    world = participant.world
    transport = Transport(0, identity, on_message=world.receive, on_lost=world.lose, on_back=world.regain)
    transport.start()
    card = identity.card(0, transport.address, "warm-up").to_bytes()
    transport.admit(Roster([Card.from_bytes(card)]))
    setup.mechanisms(identity, transport.roster)
    await transport.close()
    await world.close()
