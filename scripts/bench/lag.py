"""How long a live node's event loop takes to answer while its worker thread trains without a pause.

A probe asks the loop for a wake-up every 2 ms and notes how late it comes. ``--check`` exits with 1 where the 99th
percentile is beyond 50 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

import numpy as np
import uvloop

from node.config import DataSection, ModelSection, TopologySection, TrainingSection
from node.experiment.participant import TENSORS
from node.learn.data import federate
from node.learn.models import build as build_model
from node.learn.workload import Workload, prepare_torch
from node.live.checkpoints import Checkpoints
from node.live.world import LiveWorld
from node.record import Recorder
from node.solver import InlineExecutor
from node.tape import Tape
from node.topology import build
from protocols.local import Local

PROBE_S = 0.002


async def probe(lags_s: list[float]) -> None:
    """Note how late each wake-up comes, until cancelled."""
    while True:
        asked_s = time.perf_counter()
        await asyncio.sleep(PROBE_S)
        lags_s.append(time.perf_counter() - asked_s - PROBE_S)


async def measure(workload: Workload, rounds: int) -> tuple[list[float], float]:
    """Train alone for some rounds under the probe; gives the lags and the share of time spent training."""
    world = LiveWorld(
        0,
        1,
        0,
        workload,
        build(TopologySection(kind="full"), 1, 0),
        InlineExecutor(),
        Recorder(),
        Tape(),
        tensors=TENSORS,
        roles={},
        checkpoints=Checkpoints(None),
    )
    lags_s: list[float] = []
    probing = asyncio.create_task(probe(lags_s))
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    await world.run(Local(Local.Config(rounds=rounds)), None)
    busy = (time.process_time() - cpu_s) / (time.perf_counter() - wall_s)
    probing.cancel()
    await world.close()
    return lags_s, busy


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--check", action="store_true", help="exit with 1 where the target is missed")
    args = parser.parse_args()
    prepare_torch()
    missed = False
    for name, shape, steps in (("mlp", (1, 8, 8), 2_000), ("lenet", (3, 32, 32), 20), ("resnet8", (3, 32, 32), 10)):
        data = federate(DataSection(name="synthetic", samples=2_000, shape=shape), 1, 0)
        workload = Workload(
            data, build_model(ModelSection(name=name), shape, 10), TrainingSection(local_steps=steps, lr=0.01), 0
        )
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            lags_s, busy = runner.run(measure(workload, args.rounds))
        p50, p99, worst = np.percentile(np.array(lags_s) * 1000, [50, 99, 100])
        missed = missed or p99 > 50
        print(f"{name:>8}: median {p50:.2f} ms, p99 {p99:.2f} ms, worst {worst:.2f} ms; {busy:.0%} of one core busy")
    print("target: p99 within 50 ms")
    return 1 if missed and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
