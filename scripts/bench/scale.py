"""Large simulations: whole runs from the command line, each in a process of its own, with their time and peak memory.

  gossip      10,000 nodes, epidemic learning on fresh random 4-regular graphs, 20 rounds of an MLP on synthetic digits
  federated   100,000 nodes, fedavg that samples 1,000 clients a round, 20 rounds
  lenet       1,000 nodes, epidemic learning with a LeNet, 2 rounds
  growth      2 rounds of epidemic learning with softmax regression at 100, 1,000, 10,000 and 100,000 nodes

``--small`` divides the numbers of nodes by 10. ``--check`` exits with 1 where a run needs 4 GiB, or where a run's own
time grows by more than the 1.15th power of its events.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

MOST_BYTES = 4 * 2**30
MOST_EXPONENT = 1.15
GOSSIP = ["protocol.use=epidemic", "protocol.variant=oracle", "protocol.degree=4"]
SYNTHETIC = ["data.name=synthetic", "data.noise=2.0"]
FAST = ["executor.kind=batched"]
AT_END = ["record.every=1000000"]


def data(nodes: int, each: int, test: int = 500) -> list[str]:
    """So many samples for each node, and some to test on."""
    samples = each * nodes + test
    return [f"nodes={nodes}", f"data.samples={samples}", f"data.test_fraction={test / samples}"]


def gossip(nodes: int) -> list[str]:
    return [*GOSSIP, *SYNTHETIC, *FAST, *AT_END, *data(nodes, 20), "protocol.rounds=20", "model.name=mlp"]


def federated(nodes: int) -> list[str]:
    sizes = [*data(nodes, 2), f"protocol.sample={nodes // 100}"]
    return ["protocol.use=fedavg", *SYNTHETIC, *FAST, *AT_END, *sizes, "protocol.rounds=20", "model.name=mlp"]


def lenet(nodes: int) -> list[str]:
    images = ["model.name=lenet", "data.shape=[3, 32, 32]", "protocol.rounds=2"]
    return [*GOSSIP, *SYNTHETIC, *FAST, *AT_END, *images, *data(nodes, 20, test=100)]


def growth(nodes: int) -> list[str]:
    tiny = ["model.name=softmax", "protocol.rounds=2", "training.local_steps=1"]
    return [*GOSSIP, *SYNTHETIC, *FAST, *AT_END, *tiny, *data(nodes, 2, test=100)]


def run(name: str, sets: list[str]) -> dict[str, float]:
    """Run an experiment in a process of its own; gives its summary, with the CPU seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        flags = [flag for key in sets for flag in ("--set", key)]
        command = [sys.executable, "-m", "node.cli.main", "run", "digits-gossip", "--clock", "virtual", "--quiet"]
        measured = [sys.executable, str(Path(__file__).with_name("measured.py")), *command, "--out", folder, *flags]
        done = subprocess.run(measured, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}")
        summary = json.loads((Path(folder) / "summary.json").read_text())
    return {**summary, "cpu_s": float(done.stdout.splitlines()[-1])}


def tell(name: str, found: dict[str, float]) -> None:
    """One line of the table."""
    accuracy = found["metrics"]["accuracy"]["mean"]  # type: ignore[index]
    print(
        f"{name:<12} {found['nodes']:>7} nodes {found['wall_s']:>8.1f} s wall {found['cpu_s']:>8.1f} s CPU "
        f"{found['events']:>9} events {found['tasks']:>9} tasks {found['peak_rss_bytes'] / 2**20:>6.0f} MiB peak  "
        f"{1e6 * found['cpu_s'] / found['events']:>6.1f} us CPU an event  accuracy {accuracy:.3f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=["gossip", "federated", "lenet", "growth"], action="append")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    share = 10 if asked.small else 1
    cases = {"gossip": (gossip, 10_000), "federated": (federated, 100_000), "lenet": (lenet, 1_000)}
    missed = False
    for name in asked.case or [*cases, "growth"]:
        if name == "growth":
            missed |= tell_growth([100, 1_000, 10_000, 100_000][: 3 if asked.small else 4])
            continue
        make, nodes = cases[name]
        found = run(name, make(nodes // share))
        tell(name, found)
        missed |= found["peak_rss_bytes"] > MOST_BYTES
    sys.exit(1 if missed and asked.check else 0)


def tell_growth(sizes: list[int]) -> bool:
    """Runs of rising size, and the power of the size by which CPU time grows; whether that is too much."""
    runs = []
    for nodes in sizes:
        found = run("growth", growth(nodes))
        tell("growth", found)
        runs.append(found)
    first, last = runs[1], runs[-1]
    # The run's own time: imports and the report take the same few seconds at every size, and would flatten the curve.
    exponent = math.log(last["wall_s"] / first["wall_s"]) / math.log(last["events"] / first["events"])
    print(f"the run's time grows with the {exponent:.2f}th power of the events (target: at most {MOST_EXPONENT})")
    return exponent > MOST_EXPONENT


if __name__ == "__main__":
    main()
