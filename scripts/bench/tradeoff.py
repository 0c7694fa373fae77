"""The whole grid of the trade-off study, or its closed-form test bed.

    python scripts/bench/tradeoff.py [--out runs/tradeoff-grid] [--seeds 3] [--set KEY=VALUE ...]
    python scripts/bench/tradeoff.py --testbed

The grid is scripts/bench/tradeoff.toml: hours on two cores. The same command goes on where an earlier one was ended;
--set and --sweep are those of `starling run`.
--testbed prints the closed forms of personalized mean estimation beside what the simulator measures on the same task.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from node.cli.main import main as starling
from node.experiment.testbed import simulate
from node.privacy.mean_estimation import MeanEstimation, attack_auc

GRID = Path(__file__).with_suffix(".toml")
TASK = MeanEstimation(nodes=20, samples=10, spread=0.3, noise=0.5, change=3.0)
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
NOISES = (0.1, 0.5, 1.0, 2.0, 4.0)


def testbed(trials: int) -> None:
    """Both variants over the weight of the common mean, then the best weight over the noise."""
    for task in (TASK, replace(TASK, noised="estimate")):
        figures = f"n = {task.nodes}, m = {task.samples}, tau = {task.spread}, s = {task.noise}, D = {task.change}"
        print(f"noise on the {task.noised}: {figures}")
        print("     w    MSE  simulated    mu est.  AUC est.  simulated  AUC release  simulated")
        for weight in (*WEIGHTS, task.best_weight):
            print(_line(task, weight, trials))
        print()
    print("     s       w*      MSE*  simulated")
    for noise in NOISES:
        task = replace(TASK, noise=noise)
        best = task.best_weight
        print(f"{noise:6g} {best:8.6f}  {task.error(best):8.6f}  {simulate(task, best, trials=trials).error:9.6f}")


def _line(task: MeanEstimation, weight: float, trials: int) -> str:
    found, mu = simulate(task, weight, trials=trials), task.mu_estimate(weight)
    return (
        f"{weight:6.4f} {task.error(weight):6.4f} {found.error:10.4f} {mu:10.4f} {attack_auc(mu):9.4f}"
        f" {found.auc_estimate:10.4f} {attack_auc(task.mu_release):12.4f} {found.auc_release:10.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--testbed", action="store_true", help="closed forms beside simulated values")
    parser.add_argument("--trials", type=int, default=20_000, help="of each simulated value")
    parser.add_argument("--out", default="runs/tradeoff-grid")
    parser.add_argument("--seeds", type=int, default=3)
    options, more = parser.parse_known_args()
    if options.testbed:
        testbed(options.trials)
        return
    seeds = ",".join(str(seed) for seed in range(1, options.seeds + 1))
    starling(["run", str(GRID), "--clock", "virtual", "--sweep", f"seed={seeds}", "--out", options.out, *more])


if __name__ == "__main__":
    main()
