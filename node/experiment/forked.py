"""One node of a real run, in a process that was forked for it."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uvloop

from node.experiment import faults
from node.experiment.participant import Participant
from node.experiment.result import Result
from node.experiment.setup import Setup
from node.identity import Card, Identity, Roster
from node.learn import tensors
from node.live.channel import Alive, Begin, Channel, Failed, Finished, Measured, Shown, Spent, Stop, Work
from node.live.checkpoints import Checkpoints
from node.live.injection import Disk
from node.live.pacing import Pace
from node.live.shaping import Shaper
from node.live.spending import Spending
from node.live.transport import Transport
from node.op import Value
from node.world import cannot_go_on

_ALIVE_EVERY_S = 2.0
_GRACE_S = 3.0
"""How long a link may be down before its peer counts as gone,"""
_GRACE_EACH_S = 0.1
"""or, where that is more, for each process of the run: hundreds that begin at once keep each other waiting."""


@dataclass(frozen=True)
class Part:
    """What one process is given of a run; what is begun in place of a killed one has the same."""

    setup: Setup
    folder: Path
    network: str
    node: int
    identity: Identity
    state: Path | None
    """Where it keeps what must survive it; None: it is never started again."""
    pace: Pace | None


def take_part(part: Part, end: socket.socket) -> int:
    """What the process runs: to its exit status, over its end of the channel to the supervisor."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_take_part(part, end))


async def _take_part(part: Part, end: socket.socket) -> int:
    main = asyncio.current_task()
    assert main is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, main.cancel)
    channel = await Channel.over(end)
    disk = Disk(faults.full_disks(part.setup.config.faults, part.setup.participants.device(part.node)))
    participant = _participant(part, channel, disk)
    world = participant.world
    transport = Transport(
        part.node,
        part.identity,
        on_message=world.receive,
        on_lost=world.lose,
        on_back=world.regain,
        grace_s=max(_GRACE_S, part.setup.participants.total * _GRACE_EACH_S),
        pace=part.pace,
    )
    transport.start()
    beside = [asyncio.create_task(_say_alive(channel))]
    try:
        channel.say(Shown(part.identity.card(part.node, transport.address, part.network).to_bytes()))
        begin = await channel.hear()
        if not isinstance(begin, Begin):
            return 0
        _begin(part, participant, transport, begin)
        disk.began_s = time.monotonic() - begin.elapsed_s
        beside.append(asyncio.create_task(_obey(channel, transport, main)))
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
        for task in beside:
            task.cancel()
        await transport.close()
        await world.close(wait=False)  # a node that is to end must not wait for a long training
        await channel.close()
    return 0


def _participant(part: Part, channel: Channel, disk: Disk) -> Participant:
    """The node's part in the learning, which tells the supervisor what it measures and spends."""
    sent_rows = 0
    spending = None if part.state is None else Spending(part.state / "spent.json")

    def settled() -> None:
        nonlocal sent_rows
        recorder, world = participant.recorder, participant.world
        rows = [(*row,) for row in recorder.rows(sent_rows, recorder.settled)]
        sent_rows = recorder.settled
        if rows:
            work = Work(world.graph.recorded, world.messages, world.bytes_sent, world.refused_messages, world.traffic)
            channel.say(Measured(rows, work))

    def spent(state: Mapping[str, Any]) -> None:
        if spending is not None:
            spending.keep(state)
        channel.say(Spent(dict(state)))

    participant = Participant(
        part.setup,
        part.node,
        checkpoints=Checkpoints(part.state, disk.write),
        on_settled=settled,
        folder=part.folder,
        keep_spent=spent,
        spent=None if spending is None else spending.load(),
    )
    return participant


def _begin(part: Part, participant: Participant, transport: Transport, begin: Begin) -> None:
    """Go in where the others are: to the roster, to the run's time, and to what its faults do to clock and messages."""
    config = part.setup.config
    transport.admit(_roster(begin))
    participant.world.elapsed_s = begin.elapsed_s
    participant.world.drifts = faults.drifts(config.faults, part.setup.participants.device(part.node))
    impairments = faults.impairments(config.faults, part.setup.participants, part.node)
    if impairments:
        transport.shape(Shaper(impairments, config.seed, part.node, time.monotonic() - begin.elapsed_s))


def _roster(begin: Begin) -> Roster:
    """The cards came from nodes' own channels, which nobody else can write to: no signature says more."""
    return Roster(map(Card.from_bytes, begin.cards), are_verified=True)


async def _say_alive(channel: Channel) -> None:
    while True:
        channel.say(Alive())
        await asyncio.sleep(_ALIVE_EVERY_S)


async def _obey(channel: Channel, transport: Transport, main: asyncio.Task[int]) -> None:
    """Do what the supervisor says, until it says the end, which comes by itself where the supervisor goes."""
    while isinstance(said := await channel.hear(), Begin):
        transport.admit(_roster(said))
    assert said is None or isinstance(said, Stop)
    main.cancel()


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
