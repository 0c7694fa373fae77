"""A member of a network is killed in the middle of training and started again: what its network has learned then.

Everything is typed as an operator types it: ``starling network create``, ``starling network invite --uses``, and
``starling node --join`` in a folder of its own for each of the others; all are processes of their own. Ten nodes train
on ``digits``. In a round that is drawn, one of them, which is drawn too, is ended by SIGKILL, and ``starling node`` is
typed again in its folder.

Printed for every run: who was killed, with which round saved; the round with which its second life began, by its log
and by the first round that it measured; how long it was away; and the mean accuracy of all nodes' final models, beside
that of the same network undisturbed.

    python scripts/bench/survival.py [--runs 3] [--nodes 10] [--rounds 60] [--out DIR] [--check] [--set KEY=VALUE ...]

``--check`` exits with 1 where the mean accuracy is more than a point off, or a node did not go on with its round.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from node.live.checkpoints import Checkpoints

STARLING = Path(sys.executable).with_name("starling")
TARGET = 0.01
"""How far the accuracy may be from that of the undisturbed network."""
SETS = ("protocol.deadline_s=10", "training.local_steps=300")
"""Beside the bundled ``digits-gossip``: rounds so long that the killed node comes back in the midst of them."""
LONGEST_S = 300.0
LOOK_S = 0.05


class Killed(NamedTuple):
    """What became of the node that was killed."""

    node: int
    saved: int
    """The first round that its checkpoint left to do when it was killed."""
    restored: int
    """The one that its second life says in its log that it begins with."""
    measured: int
    """The first one that its second life has measured."""
    away_s: float
    """From the kill until it trained again."""

    @property
    def resumed(self) -> bool:
        """Whether it went on with its round; later ones its peers had finished in the meantime."""
        return self.saved == self.restored <= self.measured


class Member:
    """One life of a node of the network, in a folder of its own; ended with the stack, whatever happens."""

    def __init__(self, stack: ExitStack, folder: Path, state: Path, *arguments: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.state = state
        self.log = folder / "log"
        command = [str(STARLING), "node", "--admin", "127.0.0.1:0", *arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, stderr=log, env={**os.environ, "STARLING_NODE__TIMING": "host"}
            )
        stack.callback(self.process.wait)
        stack.callback(self.process.kill)

    def events(self) -> list[dict[str, Any]]:
        """What it has logged, in both lives."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def has_logged(self, event: str) -> bool:
        """Whether something has happened."""
        if self.process.poll() is not None:
            raise SystemExit(f"{self.folder.name} has ended: {self.log.read_text(encoding='utf-8')[-500:]}")
        return any(each["event"] == event for each in self.events())

    def round(self) -> int:
        """The next round, as its checkpoint says it; 0: there is none yet."""
        for folder in (self.state / "checkpoints").glob("*"):
            if (saved := Checkpoints(folder).load()) is not None:
                return int(saved[0]["round"])
        return 0

    def accuracies(self) -> dict[int, float]:
        """By round, as the last of its lives has measured them."""
        table = pq.read_table(self.state / "metrics.parquet", filters=[("metric", "=", "accuracy")])
        return {row["round"]: row["value"] for row in table.to_pylist()}

    def await_end(self) -> None:
        """Wait for its end after a SIGTERM."""
        if status := self.process.wait(LONGEST_S):
            raise SystemExit(f"{self.folder.name} has ended with status {status}")


def until(condition: Callable[[], object], what: str) -> None:
    """Look again and again."""
    end_s = time.monotonic() + LONGEST_S
    while not condition():
        if time.monotonic() > end_s:
            raise SystemExit(f"after {LONGEST_S:g} s: {what}")
        time.sleep(LOOK_S)


def starling(folder: Path, *arguments: str) -> dict[str, Any]:
    """A command's facts."""
    command = [str(STARLING), *arguments, "--json"]
    facts: dict[str, Any] = json.loads(subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE).stdout)
    return facts


def founded(stack: ExitStack, folder: Path, sets: Sequence[str], nodes: int) -> list[Member]:
    """The members of a new network, all of them started."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder.mkdir(parents=True)
    chosen = [word for pair in sets for word in ("--set", pair)]
    starling(folder, "network", "create", "trial", "--listen", f"127.0.0.1:{port}", *chosen)
    first = Member(stack, folder, folder / "network" / "state", "--config", "network/node.toml")
    until(lambda: first.has_logged("started"), "the first node has not started")
    token = starling(folder, "network", "invite", "--uses", str(nodes - 1))["token"]
    own = [folder / f"member-{number}" for number in range(1, nodes)]
    return [first, *[Member(stack, each, each / "state", "--join", token) for each in own]]


def run(folder: Path, sets: Sequence[str], nodes: int, victim: int, at: int) -> tuple[float, Killed | None]:
    """Let a network learn, and kill its ``victim``, counted from 1, once that has saved round ``at``; 0: nobody.

    Gives the mean accuracy of the final models, and what became of the victim.
    """
    with ExitStack() as stack:
        members = founded(stack, folder, sets, nodes)
        killed = _kill(stack, members, victim, at) if at else None
        for member in members:
            until(partial(member.has_logged, "finished"), f"{member.folder.name} has not finished")
        for member in members:
            member.process.send_signal(signal.SIGTERM)
        for member in members:
            member.await_end()
    measured = [member.accuracies() for member in members]
    accuracy = float(np.mean([found[max(found)] for found in measured]))
    if killed is None:
        return accuracy, None
    return accuracy, killed(members[victim])


def _kill(stack: ExitStack, members: list[Member], victim: int, at: int) -> Callable[[Member], Killed]:
    """Kill a member, and type ``starling node`` again; gives what tells its story, once it has ended."""
    first = members[victim]
    until(lambda: first.round() >= at, f"{first.folder.name} has not come to round {at}")
    first.process.kill()
    first.process.wait()
    killed_s, saved = time.time(), first.round()
    members[victim] = Member(stack, first.folder, first.state)

    def story(second: Member) -> Killed:
        events = second.events()
        restored = next(each for each in events if each["event"] == "restored")
        node = next(each["node"] for each in events if each["event"] == "started")
        away_s = np.datetime64(restored["time"].removesuffix("Z"), "us").astype(int) / 1e6 - killed_s
        return Killed(node, saved, restored["round"], min(second.accuracies()), away_s)

    return story


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="with other seeds; each once with and once without a kill")
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path, help="keep all runs there")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the experiment")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    args = parser.parse_args()
    every: list[tuple[float, Killed]] = []
    with TemporaryDirectory() as temporary:
        out = (args.out or Path(temporary)).resolve()
        for seed in range(args.runs):
            rng = np.random.default_rng(seed)
            victim, at = int(rng.integers(1, args.nodes)), int(rng.integers(args.rounds // 4, args.rounds // 2))
            sets = [f"nodes={args.nodes}", f"seed={seed}", f"protocol.rounds={args.rounds}", *SETS, *args.set]
            calm, _ = run(out / f"{seed}-undisturbed", sets, args.nodes, victim, 0)
            accuracy, killed = run(out / f"{seed}-killed", sets, args.nodes, victim, at)
            assert killed is not None
            every.append((accuracy - calm, killed))
            print(
                f"seed {seed}: node {killed.node} killed with round {killed.saved} to do; its log begins with "
                f"{killed.restored}, it measured {killed.measured} first, away for {killed.away_s:.1f} s; "
                f"accuracy {accuracy:.4f}, undisturbed {calm:.4f}",
                flush=True,
            )
    worst = max(abs(difference) for difference, _ in every)
    resumed = sum(killed.resumed for _, killed in every)
    print(f"{len(every)} killed, {resumed} went on with their round; accuracy at most {100 * worst:.2f} points off")
    return 1 if args.check and (worst > TARGET or resumed < len(every)) else 0


if __name__ == "__main__":
    sys.exit(main())
