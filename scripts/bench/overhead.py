"""What a training-heavy simulation costs beside its training, in one run.

  simulation  dpsgd on a random 4-regular graph, 5 local steps, whole: events, mixing, training, evaluation at the end
  kernel      the same training steps by the kernel that the simulation has chosen, alone in a loop
  torch       the same training steps as a plain loop over models with torch.optim.SGD (``--torch``: it is slow)

Wall and CPU seconds of this process, and the most memory that it has had; the simulation's event side is what it does
besides solving. ``--check`` exits with 1 where the simulation takes more than 1.25 of the kernel's time, the event side
more than a tenth of the whole, or CPU time more than 1.3 of torch's.

A thousand convolutional networks of 90,000 parameters, and their samples, in less than 900 MB:
``--rounds 3 --shape "[3, 32, 32]" --batch 8 --memory 400000000``.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from node.experiment.loading import load
from node.experiment.result import Result
from node.experiment.setup import Setup, prepare
from node.experiment.virtual import run_virtual
from node.op import Key, Task

BATCH = 128
TESTED = 10
"""Samples that each final model is evaluated on: evaluation is no overhead, and should not look like it."""


def simulate(setup: Setup) -> Result:
    result = run_virtual(setup, lambda time_s, recorder, state: None)
    if result.error:
        raise SystemExit(result.error)
    return result


def train_alone(setup: Setup) -> None:
    """All training steps of the run, with nothing around them."""
    workload, nodes = setup.workload, setup.config.nodes
    models = [workload.init.solve(Task((), {}, Key(0, 0, 0)))] * nodes
    static = {"steps": setup.config.training.local_steps, "lr": setup.config.training.lr, "proximal": 0.0}
    assert workload.train.solve_batch is not None
    for round in range(setup.options.rounds):
        for start in range(0, nodes, BATCH):
            chunk = range(start, min(start + BATCH, nodes))
            tasks = [Task((models[node],), static, Key(setup.config.seed, node, round)) for node in chunk]
            models[start : start + BATCH] = workload.train.solve_batch(tasks)


def train_plainly(setup: Setup) -> None:
    """The same amount of training as everybody would write it."""
    section, model = setup.config.training, setup.model
    module = model.module
    features, labels = torch.randn(section.batch_size, *setup.workload.sample_shape), torch.zeros(section.batch_size)
    for _ in range(setup.options.rounds * setup.config.nodes):
        optimizer = torch.optim.SGD(module.parameters(), lr=section.lr)
        for _ in range(section.local_steps):
            optimizer.zero_grad()
            cross_entropy(module(features), labels.long()).backward()
            optimizer.step()


def timed(what: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    what()
    return time.perf_counter() - wall_s, time.process_time() - cpu_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--shape", default="[1, 8, 8]", help="of one sample")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--memory", type=int, default=0, help="executor.memory_bytes")
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    samples = asked.batch * asked.nodes + TESTED
    sets = [
        *("clock=virtual", "executor.kind=batched", "record.every=1000000", "data.name=synthetic"),
        *(f"nodes={asked.nodes}", f"protocol.rounds={asked.rounds}", f"model.name={asked.model}"),
        *(f"data.shape={asked.shape}", f"data.samples={samples}", f"data.test_fraction={TESTED / samples}"),
        *("training.local_steps=5", f"training.batch_size={asked.batch}", "data.partition=iid"),
        f"executor.memory_bytes={asked.memory}",
    ]
    setup = prepare(load("digits-gossip", sets, {}))
    setup.workload.arithmetic(batched=True)
    runs: list[Result] = []
    whole = timed(lambda: runs.append(simulate(setup)))
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    alone = timed(lambda: train_alone(setup))
    [run] = runs
    events_share = 1 - run.graph["solving_s"] / whole[0]
    print(f"{asked.nodes} nodes, {asked.rounds} rounds, {setup.model.name} of {setup.model.dimension} parameters")
    print(f"  simulation  {whole[0]:8.1f} s wall {whole[1]:8.1f} s CPU, peak {peak_bytes / 1e6:.0f} MB")
    print(f"  kernel      {alone[0]:8.1f} s wall {alone[1]:8.1f} s CPU  ({setup.workload.kernel_name})")
    print(
        f"  simulation / kernel: {whole[0] / alone[0]:.3f} of the wall time, {whole[1] / alone[1]:.3f} of the CPU time"
    )
    print(f"  event side: {run.events} events, {events_share:.1%} of the simulation's time")
    missed = whole[1] > 1.25 * alone[1] or events_share > 0.1
    if asked.torch:
        plain = timed(lambda: train_plainly(setup))
        print(f"  torch       {plain[0]:8.1f} s wall {plain[1]:8.1f} s CPU")
        print(f"  simulation / torch: {whole[1] / plain[1]:.3f} of the CPU time")
        missed |= whole[1] > 1.3 * plain[1]
    sys.exit(1 if missed and asked.check else 0)


if __name__ == "__main__":
    main()
