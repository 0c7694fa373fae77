"""How well a simulation foretells a real run: the same experiment twice, its times, traffic and models side by side.

D-PSGD runs as real processes over paced links. Before and after, ``starling calibrate`` measures this machine, with as
many processes at once as there are nodes; of the time that they take, each has had its share of the cores. Then the
same runs under the virtual clock: with the calibrated trace, all nodes sharing the cores (``devices.cores``), and
max-min fair links (``network.model = "fair"``). No jitter is simulated, so that simulated nodes stay in step.

Left out: start-up and the first round (connections open, caches are cold). Nothing is evaluated. Each node's round is
divided where the other end allows: computing until its model is trained; waiting until those of its neighbours are,
too; transferring until they have arrived. ``--check`` exits with 1 where a target is missed.

    python scripts/bench/fidelity.py [--rounds 30] [--check]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

from node import Context, Ref
from node.config import TopologySection
from node.topology import build
from protocols.dpsgd import DPSGD, Model

STARLING = Path(sys.executable).with_name("starling")
HERE = Path(__file__).parent
TARGET = 0.15
"""Largest error of the median predicted time of a round, as a share of the measured one."""
TOPOLOGY = TopologySection(kind="ring")
SETTINGS = {
    "name": "fidelity",
    "seed": 1,
    "protocol.use": "fidelity:TimedDPSGD",
    "topology.kind": TOPOLOGY.kind,
    "data.name": "digits",
    "model.name": "mlp",
    "model.hidden": [512, 128],
    "training.local_steps": 100,
    "network.model": "fair",
    "network.pace": True,
    "record.models": True,
    "record.events": True,
}


class TimedDPSGD(DPSGD):
    """D-PSGD that notes the time of each step of a round, on one timeline for all nodes, and evaluates nothing."""

    async def run(self, ctx: Context) -> Ref:
        """As its parent's."""
        now_s = asyncio.get_running_loop().time
        model = ctx.initial_model()
        for round in range(self.config.rounds):
            model = await ctx.train(model)
            trained_s = now_s()
            await ctx.send(ctx.neighbours(round), Model(round=round, model=model))
            heard = await ctx.collect(Model, frm=ctx.sources(round), round=round)
            ctx.record(round=round, trained_s=trained_s, heard_s=now_s())
            model = ctx.mix([model, *(m.model for m in heard.values())], ctx.weights(heard, round))
        return model


class Parts(NamedTuple):
    """What rounds consist of; seconds [rounds, nodes], without the first round."""

    computing: np.ndarray
    waiting: np.ndarray
    transferring: np.ndarray

    @property
    def round(self) -> np.ndarray:
        """The whole of each."""
        return np.asarray(self.computing + self.waiting + self.transferring)


def starling(*arguments: str, sets: dict[str, Any]) -> float:
    """Run a command of ours on the experiment; gives how many cores others kept busy meanwhile."""
    flags = [part for key, value in sets.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    began_s, others_s = time.monotonic(), busy_with_others_s()
    done = subprocess.run([str(STARLING), *arguments, *flags], capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"starling {arguments[0]} failed:\n{done.stdout}{done.stderr}")
    return (busy_with_others_s() - others_s) / (time.monotonic() - began_s)


def busy_with_others_s() -> float:
    """Seconds that the machine's cores have worked, or been stolen by its host, for others than us and our children."""
    all_cores = psutil.cpu_times()._asdict()
    ours = os.times()
    busy_s = sum(all_cores.get(kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))
    return float(busy_s - ours.user - ours.system - ours.children_user - ours.children_system)


def combine(traces: Sequence[Path], share: float, out: Path) -> None:
    """The mean of some traces of processes that had a share of a core each, as seconds with a whole core."""
    tables = [csv.read_csv(trace) for trace in traces]
    table = tables[0]
    for name in ("seconds_per_sample", "overhead_s"):
        mean = np.mean([each[name].to_numpy() for each in tables], axis=0)
        table = table.set_column(table.column_names.index(name), name, pa.array(mean * share))
    csv.write_csv(table, out)


def parts_of(folder: Path, nodes: int) -> Parts:
    """The rounds of a run."""
    rows = pq.read_table(folder / "metrics.parquet").to_pylist()
    rounds = 1 + max(row["round"] for row in rows)
    times = {name: np.empty((rounds, nodes)) for name in ("trained_s", "heard_s")}
    for row in rows:
        if row["metric"] in times:
            times[row["metric"]][row["round"], row["node"]] = row["value"]
    trained, heard = times["trained_s"], times["heard_s"]
    graph = build(TOPOLOGY, nodes, 0)
    able = np.stack([trained[:, [node, *graph.sources(node, 0)]].max(axis=1) for node in range(nodes)], axis=1)
    return Parts((trained[1:] - heard[:-1]), (able - trained)[1:], (heard - able)[1:])


def deliveries(folder: Path) -> Counter[tuple[int, int, int]]:
    """How often a message of so many bytes reached a node from a peer."""
    events = map(json.loads, (folder / "events.jsonl").read_text(encoding="utf-8").splitlines())
    return Counter(
        (event["node"], event["peer"], event["size_bytes"]) for event in events if event["kind"] == "delivered"
    )


def same_models(real: Path, virtual: Path, nodes: int) -> bool:
    """Whether all final models are the same, bit for bit."""
    files = [Path("models") / f"{node}.safetensors" for node in range(nodes)]
    return all((real / file).read_bytes() == (virtual / file).read_bytes() for file in files)


def show_times(predicted: Parts, measured: Parts) -> float:
    """Print both worlds' times; gives the error of the median round, as a share of the measured one."""
    print(f"{'ms':>24} {'predicted':>10} {'measured':>10} {'error':>8}")
    for name, statistic in (("median", np.median), ("p90", lambda values: np.quantile(values, 0.9)), ("mean", np.mean)):
        a, b = float(statistic(predicted.round)), float(statistic(measured.round))
        print(f"{'a round, ' + name:>24} {a * 1e3:10.1f} {b * 1e3:10.1f} {a / b - 1:+8.1%}")
    whole = float(np.mean(measured.round))
    for name in Parts._fields:
        a, b = float(np.mean(getattr(predicted, name))), float(np.mean(getattr(measured, name)))
        print(f"{name + ', mean':>24} {a * 1e3:10.1f} {b * 1e3:10.1f} {(a - b) / whole:+8.1%} of a round")
    spread = np.median(measured.round, axis=1)
    print(f"measured rounds' medians range from {spread.min() * 1e3:.1f} to {spread.max() * 1e3:.1f} ms")
    return float(np.median(predicted.round) / np.median(measured.round) - 1)


def run(folder: Path, args: argparse.Namespace) -> list[str]:
    """Run everything in a folder, print what was found, and give what missed its target."""
    experiment, trace = folder / "fidelity.toml", folder / "trace.csv"
    experiment.touch()
    rate = {"network.up_bps": args.mbps * 1e6, "network.down_bps": args.mbps * 1e6, "network.latency_s": args.latency}
    sets = {**SETTINGS, "nodes": args.nodes, "protocol.rounds": args.rounds, **rate}
    machine = {"devices.trace": str(trace), "devices.cores": args.cores}
    real, virtual = folder / "real", folder / "virtual"
    traces = [folder / "before.csv", folder / "after.csv"]
    calibrate = [("calibrate", str(experiment), "--processes", str(args.nodes), "--out", str(path)) for path in traces]
    others = [
        starling(*calibrate[0], sets=sets),
        starling("run", str(experiment), "--clock", "real", "--out", str(real), "--quiet", sets=sets),
        starling(*calibrate[1], sets=sets),
    ]
    combine(traces, min(args.cores / args.nodes, 1.0), trace)
    starling("run", str(experiment), "--clock", "virtual", "--out", str(virtual), "--quiet", sets={**sets, **machine})
    print(
        f"{args.nodes} nodes on {args.cores} cores, links of {args.mbps:g} Mbit/s and {args.latency * 1e3:g} ms,",
        end=" ",
    )
    print(f"{args.rounds - 1} rounds; without start-up and the first round, and nothing is evaluated")
    print("others kept {:.1f}, {:.1f} and {:.1f} cores busy before, while and after it ran".format(*others))
    error = show_times(parts_of(virtual, args.nodes), parts_of(real, args.nodes))
    predicted, measured = deliveries(virtual), deliveries(real)
    for name, counts in (("predicted", predicted), ("measured", measured)):
        size_bytes = sum(size * times for (_, _, size), times in counts.items())
        print(f"{Model.wire_name}, {name}: {counts.total()} messages, {size_bytes} bytes")
    equal = same_models(real, virtual, args.nodes)
    print(f"final models {'are bitwise equal' if equal else 'DIFFER'}")
    missed = {
        f"the median round is {error:+.1%} off, wanted within {TARGET:.0%}": abs(error) > TARGET,
        "messages or their bytes differ": predicted != measured,
        "models differ": not equal,
    }
    return [what for what, is_missed in missed.items() if is_missed]


def main() -> int:
    """Run, print, and with ``--check`` say whether the targets hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--mbps", type=float, default=20.0, help="of each node's uplink and downlink")
    parser.add_argument("--latency", type=float, default=0.005, metavar="SECONDS")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)), help="that this machine has for us")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        missed = run(Path(folder), args)
    for what in missed:
        print(f"missed: {what}", file=sys.stderr)
    return 1 if missed and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
