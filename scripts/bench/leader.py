"""What a cohort's leader holds: the memory of a real leader process, by the number of its members.

The leader is a process of its own, with the encrypted links, event loop and worker thread of any node; it leads a
cohort for some rounds without training itself. Its members are stand-ins that live together in the other process. Each
has keys and a link of its own and says what a member says, but sends back a model that is the same for all: at once,
or at some moment of ``--spread-s``, as members of different speeds do.

Printed in MiB, for each number of members: the leader's private memory (USS) before it knows anybody; what it has more
when all are linked and have said hello, which grows with every link; what the rounds add to that, at the most; and what
the models of all members would take that come in one round. ``--check`` exits with 1 where rounds add more with the
most members than with the fewest, by over 5% of what all their models would take: then the leader holds them.

    python scripts/bench/leader.py [--members 50 1000] [--rounds 4] [--spread-s 0] [--check]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import psutil
import tomli_w

from node import Context, Message, Observer, Ref, logs
from node.codec import Header, decode, encode
from node.config import ExperimentConfig
from node.election import score
from node.experiment.loading import load
from node.experiment.participant import TENSORS, Participant
from node.experiment.setup import prepare
from node.graph import Graph
from node.identity import Card, Identity, Roster
from node.live.checkpoints import Checkpoints
from node.live.transport import Transport
from node.op import Key, Task
from protocols.cohort_round import Assignment, Hello, Update
from protocols.unification import Result
from protocols.vouching import Claim, Vote

MIB = 2**20
NETWORK = "leader"
LEADER = 0
GRACE_S = 120.0
"""So many stand-ins in one process keep each other waiting, and are not lost for that."""
WINDOW = 16
"""Models that wait for their turn at the leader: few, so that fifty members are many."""
LOOKS = 8
"""How often the leader weighs itself in a round."""


class Held(NamedTuple):
    """The private memory of a leader, bytes."""

    alone: int
    greeted: int
    """With all members there, when it first asks for a round."""
    most: int
    """In all rounds."""


class Weigh(Observer):
    """Tells the leader's memory: when it first asks for a round, at the most from then on, and says so at the end."""

    def __init__(self, config: Observer.Config | None = None) -> None:
        super().__init__(config)
        self._greeted = self._most = self._heard = 0

    def sent(self, ctx: Context, to: int, message: Message) -> None:
        """The first one of all rounds."""
        if isinstance(message, Assignment) and not self._greeted:
            self._greeted = self._most = private_bytes()

    def received(self, ctx: Context, sender: int, message: Message) -> None:
        """Some of the answers."""
        self._heard += isinstance(message, Update)
        if isinstance(message, Update) and self._heard % max(1, len(ctx.nodes) // LOOKS) == 0:
            self._most = max(self._most, private_bytes())

    def ended(self, ctx: Context) -> None:
        """All rounds are over."""
        print(self._greeted, max(self._most, private_bytes()), flush=True)


def private_bytes() -> int:
    """What this process alone has in memory."""
    return int(psutil.Process().memory_full_info().uss)


def written(path: Path, members: int, rounds: int, hidden: int) -> Path:
    """An experiment in which node 0 leads all others, and unifies."""
    nodes = range(members + 1)
    offices = (max(nodes, key=lambda node: score(f"cpfl-{seed}", "unifier", node)) for seed in range(10**6))
    protocol = {"use": "cpfl", "cohorts": 1, "leader": "fixed", "leader_trains": False, "checkpoint": "last"}
    tables = {
        "nodes": len(nodes),
        "seed": next(seed for seed, office in enumerate(offices) if office == LEADER),
        "protocol": {
            **protocol,
            "muster_s": 600.0,
            "window": WINDOW,
            "stopping": {"rule": "budget", "most_rounds": rounds},
        },
        "data": {"name": "digits", "partition": "iid"},
        "model": {"name": "mlp", "hidden": [hidden]},
        "mods": [{"use": "leader:Weigh", "nodes": [LEADER]}],
    }
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")
    return path


# The leader's process


async def lead(config: ExperimentConfig) -> None:
    """Be the leader. Its card goes out first, then its memory; the members' cards come in."""
    setup, identity = prepare(config), Identity.generate()
    participant = Participant(setup, LEADER, checkpoints=Checkpoints(None), on_settled=lambda: None)
    world = participant.world
    hear, lose, regain = world.receive, world.lose, world.regain
    transport = Transport(LEADER, identity, on_message=hear, on_lost=lose, on_back=regain, grace_s=GRACE_S)
    transport.start()
    mine = identity.card(LEADER, transport.address, NETWORK).to_bytes()
    print(mine.hex(), flush=True)
    cards = [Card.from_bytes(bytes.fromhex(line)) for line in sys.stdin.readline().split()]
    print(private_bytes(), flush=True)
    transport.admit(Roster([Card.from_bytes(mine), *cards]))
    await participant.run(transport)
    await transport.close(60.0)  # the result, to all of them
    await world.close()


# The members' process


class StandIn:
    """Says what a member says; the model that it sends back is not its own."""

    def __init__(self, number: int, model: Ref, graph: Graph, trains_s: float) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._number, self._model, self._graph = number, model, graph
        self._identity, self._rounds, self._trains_s = Identity.generate(), 0, trains_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport = Transport(number, self._identity, on_message=self._hear, on_lost=self._lost, grace_s=GRACE_S)
        self._transport.start()
        self.card = self._identity.card(number, self._transport.address, NETWORK)

    def begin(self, leader: Card) -> None:
        """Say hello to the leader."""
        self._transport.admit(Roster([leader, self.card]))
        self._say(Hello(samples=1))

    async def close(self) -> None:
        """End."""
        await self._transport.close()

    def _lost(self, peer: int) -> None:
        if not self.over.done():
            self.over.set_exception(ConnectionError(f"member {self._number} has lost its leader"))

    def _hear(self, sender: int, header: Header, buffers: list[memoryview]) -> None:
        match decode(header, buffers, lambda buffer, spec: self._model):
            case Assignment(term=term, round=round, again=False):
                self._rounds = round + 1
                self._say_later(Update(term=term, round=round, model=self._model, loss=1.0, held=1))
            case Claim(rounds=rounds):
                self._say(Vote(holds=True, rounds=min(rounds, self._rounds)), header.request)
            case Result() if not self.over.done():
                self.over.set_result(None)

    def _say_later(self, update: Update) -> None:
        asyncio.get_running_loop().call_later(self._trains_s, self._say, update)

    def _say(self, message: Message, reply: int = 0) -> None:
        encoded = encode(message, lambda ref: TENSORS.to_buffer(self._graph.values[ref.id]), 0, reply)
        task = asyncio.get_running_loop().create_task(self._transport.send(LEADER, encoded, keep=message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def led(process: Process, config: ExperimentConfig, spread_s: float) -> Held:
    """Have stand-ins train under the leader of another process; gives what that process has weighed."""
    assert process.stdin is not None
    assert process.stdout is not None
    workload, graph = prepare(config).workload, Graph(config.seed)
    model = graph.constant(workload.init.solve(Task((), {}, Key(config.seed, 0, 0))), workload.model_spec)
    leader = Card.from_bytes(bytes.fromhex((await process.stdout.readline()).decode()))
    times_s = np.random.default_rng(config.seed).uniform(0.0, spread_s, config.nodes)
    members = [StandIn(number, model, graph, float(times_s[number])) for number in range(1, config.nodes)]
    process.stdin.write(" ".join(member.card.to_bytes().hex() for member in members).encode() + b"\n")
    alone = int(await process.stdout.readline())
    for member in members:
        member.begin(leader)
    greeted, most = map(int, (await process.stdout.readline()).split())
    await asyncio.gather(*[member.over for member in members])
    await asyncio.gather(*[member.close() for member in members])
    return Held(alone, greeted, most)


async def measured(path: Path, spread_s: float) -> tuple[Held, int]:
    """What a leader holds, and what all models of a round would take; bytes."""
    config = load(str(path))
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--lead", str(path), stdin=PIPE, stdout=PIPE, limit=MIB
    )
    held = await led(process, config, spread_s)
    await process.wait()
    return held, (config.nodes - 1) * prepare(config).workload.model_spec.size_bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[50, 1000])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--spread-s", type=float, default=0.0, help="time over which answers come; 0: all at once")
    parser.add_argument("--hidden", type=int, default=1024, help="units of the model's hidden layer")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the leader holds its members' models")
    parser.add_argument("--lead", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.lead is not None:
        logs.configure()  # not to stdout, which has the leader's words
        asyncio.run(lead(load(str(args.lead))))
        return 0
    print(f"{'members':>8}{'alone':>9}{'+ links':>9}{'+ rounds':>10}{'models of a round':>20}   MiB")
    added: Sequence[tuple[int, int]] = []
    with TemporaryDirectory() as folder:
        for members in args.members:
            path = written(Path(folder) / f"{members}.toml", members, args.rounds, args.hidden)
            held, models = asyncio.run(measured(path, args.spread_s))
            links, rounds = held.greeted - held.alone, held.most - held.greeted
            added = [*added, (models, rounds)]
            figures = [each / MIB for each in (held.alone, links, rounds, models)]
            print(f"{members:>8}{figures[0]:>9.1f}{figures[1]:>9.1f}{figures[2]:>10.1f}{figures[3]:>20.1f}", flush=True)
    (few, least), (many, most) = min(added), max(added)
    return 1 if args.check and most - least > 0.05 * (many - few) else 0


if __name__ == "__main__":
    sys.exit(main())
