"""A simulation whose models do not fit into memory: D-PSGD with a budget, against the same without one.

All models of a round are alive at once. Prints time, peak of model bytes and of the whole process, what went to the
file and back, and whether the results are the same to the last bit. ``--check`` exits with 1 where they are not, or
where model bytes went over the budget.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def run(nodes: int, rounds: int, width: int, budget_bytes: int) -> dict[str, Any]:
    samples = 8 * nodes + 100
    sets = [
        *(f"nodes={nodes}", f"protocol.rounds={rounds}", f"model.hidden=[{width}, {width}]"),
        *("data.name=synthetic", "data.partition=iid", f"data.samples={samples}"),
        *(f"data.test_fraction={100 / samples}", "training.local_steps=1", "training.batch_size=8"),
        *(f"executor.memory_bytes={budget_bytes}", "record.every=1000000"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        flags = [flag for key in sets for flag in ("--set", key)]
        command = [sys.executable, "-m", "node.cli.main", "run", "digits-gossip", "--clock", "virtual", "--quiet"]
        done = subprocess.run([*command, "--out", folder, *flags], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr.strip())
        found: dict[str, Any] = json.loads((Path(folder) / "summary.json").read_text())
    graph = found["graph"]
    print(
        f"{'budget ' + str(budget_bytes // 2**20) + ' MiB' if budget_bytes else 'no budget':<16} "
        f"{found['wall_s']:8.1f} s  models {graph['peak_resident_bytes'] / 2**20:8.0f} MiB  "
        f"process {found['peak_rss_bytes'] / 2**20:8.0f} MiB  spilled {graph['spilled_bytes'] / 2**30:6.1f} GiB  "
        f"read back {graph['unspilled_bytes'] / 2**30:6.1f} GiB  {found['run_hash']}",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--width", type=int, default=1_540, help="of two hidden layers; 1,540 make a model of 10 MB")
    parser.add_argument("--budget", type=int, default=2**30, help="bytes")
    parser.add_argument("--only-budget", action="store_true", help="leave out the run without a budget")
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    within = run(asked.nodes, asked.rounds, asked.width, asked.budget)
    missed = within["graph"]["peak_resident_bytes"] > asked.budget
    if not asked.only_budget:
        without = run(asked.nodes, asked.rounds, asked.width, 0)
        missed |= within["run_hash"] != without["run_hash"]
        print("the same to the last bit" if within["run_hash"] == without["run_hash"] else "DIFFERENT RESULTS")
    sys.exit(1 if missed and asked.check else 0)


if __name__ == "__main__":
    main()
