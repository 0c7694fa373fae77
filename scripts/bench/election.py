"""Leader election under random schedules of faults: rules that were broken, and how soon there was a leader again.

Each schedule runs a cohort of 1 to 9 machines in virtual time, through crashes, restarts, partitions, loss, doubled and
late messages, and clocks that drift; ``tests/swarm/election_schedules.py`` has the scheduler and the rules. Times are
in election timeouts T, from the last fault to the leader that made the next round. ``--check`` exits with 1 where a
rule was broken, or a leader took longer than 3 T in more than 1% of the schedules, or than 10 T in one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "swarm"))

from election_schedules import Outcome, Schedule, T, Violation

SOON_S, LATEST_S = 3 * T, 10 * T


def run(seed: int) -> Outcome | str:
    try:
        return Schedule(seed).run()
    except Violation as violation:
        return str(violation)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule; the others follow")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    args = parser.parse_args()
    began_s = time.perf_counter()
    with multiprocessing.Pool(args.processes) as pool:
        results = pool.map(run, range(args.seed, args.seed + args.schedules), chunksize=50)
    violations = [result for result in results if isinstance(result, str)]
    outcomes = [result for result in results if not isinstance(result, str)]
    leader_s = np.array([outcome.leader_s for outcome in outcomes])
    elected = sum(outcome.elections for outcome in outcomes)
    committed = sum(outcome.rounds + 1 for outcome in outcomes)
    print(f"{args.schedules:,} schedules, {elected:,} leaders, {committed:,} rounds; {len(violations)} violations")
    for violation in violations[:20]:
        print(f"  {violation}")
    late = np.inf
    if outcomes:
        late = float((leader_s > SOON_S).mean())
        percentiles = zip((50, 90, 99, 99.9, 100), np.percentile(leader_s, [50, 90, 99, 99.9, 100]) / T, strict=True)
        print("time to a leader: " + ", ".join(f"p{p:g} {value:.2f} T" for p, value in percentiles))
        print(f"within 3 T: {1 - late:.2%}; target: 99%, and all within 10 T, without a violation")
    print(f"{time.perf_counter() - began_s:.0f} s of wall time")
    missed = violations or late > 0.01 or float(leader_s.max()) > LATEST_S
    return 1 if missed and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
