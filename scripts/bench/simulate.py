"""A whole simulation, solved inline and batched in turn: how much faster, and how far apart the results.

``digits-gossip`` under the virtual clock with many nodes; each run is a process of its own. The target is for the run
itself (``wall_s`` of its summary); CPU seconds are of the whole process, with imports, data and report. Medians;
``--check`` exits with 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

STARLING = Path(sys.executable).with_name("starling")


def run(kind: str, nodes: int, rounds: int, folder: str) -> tuple[float, dict[str, Any]]:
    """One run: its CPU seconds and its summary."""
    before = os.times()
    sets = [f"nodes={nodes}", f"protocol.rounds={rounds}", f"executor.kind={kind}"]
    command = [str(STARLING), "run", "digits-gossip", "--clock", "virtual", "--json", "--out", f"{folder}/{kind}"]
    done = subprocess.run(
        [*command, *[part for key in sets for part in ("--set", key)]], check=True, capture_output=True, text=True
    )
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    summary: dict[str, Any] = json.loads(done.stdout)
    return cpu_s, summary


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    args = parser.parse_args()
    cpu_s: dict[str, list[float]] = {"inline": [], "batched": []}
    run_s: dict[str, list[float]] = {"inline": [], "batched": []}
    summaries: dict[str, dict[str, Any]] = {}
    with TemporaryDirectory() as folder:
        for _ in range(args.repeat):
            for kind in cpu_s:
                seconds, summaries[kind] = run(kind, args.nodes, args.rounds, folder)
                cpu_s[kind].append(seconds)
                run_s[kind].append(summaries[kind]["wall_s"])
    for kind, summary in summaries.items():
        print(
            f"{kind:>8}: {statistics.median(cpu_s[kind]):7.1f} CPU s, run {statistics.median(run_s[kind]):6.1f} s, "
            f"peak memory {summary['peak_rss_bytes'] / 1e6:5.0f} MB, {summary['batched_calls']} calls, "
            f"mean accuracy {summary['metrics']['accuracy']['mean']:.6f}"
        )
    ratio, whole = (
        statistics.median(a / b for a, b in zip(seconds["inline"], seconds["batched"], strict=True))
        for seconds in (run_s, cpu_s)
    )
    accuracies = [summary["metrics"]["accuracy"]["mean"] for summary in summaries.values()]
    apart = abs(accuracies[0] - accuracies[1])
    same = summaries["inline"]["event_hash"] == summaries["batched"]["event_hash"]
    print(f"batched is {ratio:.2f} times as fast (target 3; whole process {whole:.2f});", end=" ")
    print(f"accuracies {apart:.1e} apart (target 1e-4);", end=" ")
    print("the events are the same" if same else "THE EVENTS DIFFER")
    return 1 if args.check and (ratio < 3 or apart > 1e-4 or not same) else 0


if __name__ == "__main__":
    sys.exit(main())
