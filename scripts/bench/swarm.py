"""Many real nodes on this machine: how soon they are there, what memory they take, how soon they are gone.

An experiment with ``clock = "real"`` runs as ``starling run`` runs it: a process for each node, forked from one parent
that is warmed up, with an encrypted link to each neighbour on a regular graph. A small model is trained and exchanged
for some rounds. At their end every process weighs itself, while all the others are still there.

Printed: seconds from the launch of the command until all nodes are there, and from when the last one has weighed itself
until every process is gone; messages; the memory of all together, where pages that several share count once (PSS); and
what each node has to itself (USS, the median and the most). ``--check`` exits with 1 where a target is missed: all
started in 30 s for 200 nodes, stopped in 5 s, 10 MiB a node together.

Of what a node has to itself, two thirds are copies of the parent's pages in which reference counts have changed, of
some eight hundred functions and what these use. The rest are models, what zmq and torch allocate, and what freed
memory malloc keeps: telling it to keep less saves one mebibyte of fifteen, and takes half as long again to train a
ResNet.

    python scripts/bench/swarm.py [--nodes 200] [--rounds 5] [--degree 4] [--check]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import tomli_w

from node import Context, Observer
from node.config import ExperimentConfig
from node.experiment.loading import load
from node.experiment.real import run_real
from node.experiment.result import Result
from node.experiment.setup import prepare
from node.record import Recorder

MIB = 2**20
START_S, STOP_S = 0.15, 5.0
"""Targets: to start, for each node; to stop, for all."""
NODE_MIB = 10.24
"""Target: of all memory together, for each node; 200 nodes in 2 GiB."""


class Weigh(Observer):
    """Says what memory its process and their common parent take when its rounds are over, and when it has said so."""

    def ended(self, ctx: Context) -> None:
        """All rounds are over."""
        taken = psutil.Process().memory_full_info()
        parent_bytes = psutil.Process(os.getppid()).memory_full_info().pss if ctx.me == 0 else 0
        print(time.monotonic(), taken.pss, taken.uss, parent_bytes, flush=True)


class Watch:
    """Notes when all nodes are there."""

    def __init__(self) -> None:
        self.started_s = 0.0

    def look(self, time_s: float, recorder: Recorder, state: Mapping[str, int]) -> None:
        """Called now and then, with the time since all are there; 0: they are not."""
        if time_s:
            self.started_s = self.started_s or time.time() - time_s


def experiment(path: Path, nodes: int, rounds: int, degree: int) -> ExperimentConfig:
    """Gossip on a regular graph, of a perceptron with 17,226 parameters."""
    tables = {
        "name": "swarm",
        "nodes": nodes,
        "clock": "real",
        "protocol": {"use": "dpsgd", "rounds": rounds},
        "topology": {"kind": "regular", "degree": degree},
        "data": {"name": "digits", "partition": "iid"},
        "model": {"name": "mlp", "hidden": [128, 64]},
        "mods": [{"use": "swarm:Weigh"}],
    }
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")
    return load(str(path))


def measure(folder: Path, config: ExperimentConfig) -> bool:
    """Run, print, and say whether the targets are met."""
    watch = Watch()
    result: Result = run_real(prepare(config), folder, watch.look, lambda text: print(text, file=sys.stderr))
    ended_s = time.monotonic()
    if result.error:
        raise SystemExit(result.error)
    said = [log.read_text(encoding="utf-8").split() for log in sorted((folder / "logs").iterdir())]
    over_s = max(float(each[0]) for each in said)
    together = sum(int(each[1]) + int(each[3]) for each in said) / MIB
    alone = sorted(int(each[2]) / MIB for each in said)
    start_s, stop_s = watch.started_s - psutil.Process().create_time(), ended_s - over_s
    print(f"{config.nodes} nodes: started in {start_s:.1f} s, stopped in {stop_s:.1f} s; {result.messages} messages")
    print(f"memory: {together:.0f} MiB together, {together / config.nodes:.2f} for each node")
    print(f"what a node has to itself: {statistics.median(alone):.2f} MiB, at most {alone[-1]:.2f}")
    return start_s <= START_S * config.nodes and stop_s <= STOP_S and together <= NODE_MIB * config.nodes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--degree", type=int, default=4)
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    args = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        met = measure(folder, experiment(folder / "swarm.toml", args.nodes, args.rounds, args.degree))
    return 1 if args.check and not met else 0


if __name__ == "__main__":
    sys.exit(main())
