"""Max-min fair links: CPU time for each flow that starts or ends, against filling anew over all flows.

Flows between random pairs of nodes, each over an uplink and a downlink; one at a time ends and another starts. The
naive reference does the same in the same process, and the rates are compared. Then one round of messages through each
model of the network on the virtual clock. ``--check`` exits with 1 where the target is missed: 20 times as fast.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, TypeVar, get_args

import numpy as np

from node.clock import VirtualClock
from node.config import Distribution, NetworkSection
from node.sim.network import build
from node.sim.network.maxmin import MaxMin

TARGET = 20
Model = Literal["latency", "fifo", "fair"]
Path = tuple[int, int]
Result = TypeVar("Result")


def naive(capacities: Sequence[float], paths: Mapping[int, Path]) -> dict[int, float]:
    """Progressive filling that counts all flows in each round; links of equal level are fixed in one round."""
    left, waiting, rates = list(capacities), dict(paths), dict[int, float]()
    while waiting:
        count: dict[int, int] = {}
        for path in waiting.values():
            for link in path:
                count[link] = count.get(link, 0) + 1
        level = min(left[link] / flows for link, flows in count.items())
        tight = {link for link, flows in count.items() if left[link] / flows <= level * (1 + 1e-9)}
        for flow in [flow for flow, (up, down) in waiting.items() if up in tight or down in tight]:
            for link in waiting.pop(flow):
                left[link] = max(left[link] - level, 0.0)
            rates[flow] = level
    return rates


class Traffic:
    """A constant number of flows between random nodes."""

    def __init__(self, nodes: int, flows: int, spread: float, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes = nodes
        self.capacities: list[float] = (1e6 * self._rng.lognormal(0, spread, 2 * nodes)).tolist()
        self.sharing = MaxMin(self.capacities)
        self.paths: dict[int, Path] = {}
        for _ in range(flows):
            self.start()
        self.sharing.solve()

    def start(self) -> None:
        sender, receiver = self._rng.integers(self._nodes, size=2).tolist()
        path = (sender, self._nodes + receiver)
        self.paths[self.sharing.start(path)] = path

    def end(self) -> None:
        flow = list(self.paths)[int(self._rng.integers(len(self.paths)))]
        self.sharing.end(flow)
        del self.paths[flow]


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """CPU seconds of some work, and what it gives."""
    before_s = time.process_time()
    result = work()
    return time.process_time() - before_s, result


def compare(name: str, traffic: Traffic, changes: int) -> float:
    """How many times as fast a change is; every twentieth is also made naively."""
    solved_s, naive_s, solved, apart = [], [], 0, 0.0
    for number in range(changes):
        traffic.start() if number % 2 else traffic.end()
        seconds, touched = timed(traffic.sharing.solve)
        solved_s.append(seconds)
        solved += len(touched)
        if number % 20 == 19:
            seconds, expected = timed(partial(naive, traffic.capacities, traffic.paths))
            naive_s.append(seconds)
            rates = traffic.sharing.rates
            apart = max(apart, *(abs(rates[flow] / rate - 1) for flow, rate in expected.items()))
    ratio = statistics.mean(naive_s) / statistics.mean(solved_s)
    print(
        f"{name:>26}: {statistics.mean(solved_s) * 1e6:6.0f} us a change ({solved / changes:5.1f} flows solved), "
        f"naive {statistics.mean(naive_s) * 1e6:7.0f} us: {ratio:6.0f} times as fast; {apart:.0e} apart"
    )
    return ratio if apart < 1e-9 else 0.0


def messages_per_s(model: Model, nodes: int, rounds: int) -> float:
    """Messages per CPU second: each node sends to four others in each round, over links of different rates."""
    rng = np.random.default_rng(1)
    to = rng.integers(nodes, size=(nodes, 4)).tolist()
    links = Distribution(distribution="lognormal", median=12e6, sigma=0.9)

    async def run() -> None:
        clock = asyncio.get_running_loop()
        assert isinstance(clock, VirtualClock)
        network = build(NetworkSection(model=model, up_bps=links, down_bps=links), nodes, 0, clock)
        for _ in range(rounds):
            for node in range(nodes):
                network.carry(node, to[node], 350_000, lambda parcel: None, None)
            await asyncio.sleep(1_000)

    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        seconds, _ = timed(lambda: runner.run(run()))
    return rounds * nodes * 4 / seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=int, default=1_000)
    parser.add_argument("--changes", type=int, default=400)
    parser.add_argument("--check", action="store_true", help="exit with 1 where the target is missed")
    args = parser.parse_args()
    ratios = [
        compare(f"{nodes} nodes, {name}", Traffic(nodes, args.flows, spread, seed=7), args.changes)
        for nodes, name, spread in ((1_000, "heterogeneous", 0.9), (250, "heterogeneous", 0.9), (250, "equal", 0.0))
    ]
    for model in get_args(Model):
        print(f"{model:>26}: {messages_per_s(model, 1_000, 3):9.0f} messages per CPU s, 1000 nodes to 4 others at once")
    print(f"target: {TARGET} times as fast")
    return 1 if args.check and min(ratios) < TARGET else 0


if __name__ == "__main__":
    sys.exit(main())
