"""How much faster the stacked kernels are than one model at a time, in CPU seconds of one interleaved run.

    python scripts/bench/kernels.py [--nodes 1000] [--model mlp] [--samples 2] [--repeats 5] [--profile]

``--samples`` is what each node trains on (drawn from digits, with replacement where there are too few; 0: the data's
own iid partition). A node-round is training, 4-regular mixing and an evaluation on the whole test set.
"""

from __future__ import annotations

import argparse
import cProfile
import math
import pstats
import statistics
import time
from collections.abc import Sequence

import numpy as np

from node.config import DataSection, ModelSection, TrainingSection
from node.learn.data import Federation, load
from node.learn.models import build
from node.learn.partition import Shards, partition
from node.learn.workload import Workload, prepare_torch
from node.op import Key, Op, Task, Value

WEIGHTS = (0.2,) * 5


def federation(nodes: int, samples: int) -> Federation:
    """The digits, divided among nodes."""
    section = DataSection()
    train, test = load(section, 0)
    none = Shards(np.zeros(nodes + 1, np.int64), np.zeros(0, np.int64))
    if not samples:
        return Federation(train, test, partition(section, train, nodes, 0), none)
    copies = math.ceil(nodes * samples / len(train.labels))
    pool = np.concatenate([np.random.default_rng(i).permutation(len(train.labels)) for i in range(copies)])
    return Federation(train, test, Shards(np.arange(nodes + 1) * samples, pool[: nodes * samples]), none)


def solve(op: Op[...], tasks: Sequence[Task], batched: bool) -> tuple[list[Value], float]:
    """Values, and CPU seconds taken; in calls of at most 1,024 tasks, as the solver makes them."""
    start = time.process_time()
    if batched and op.solve_batch is not None:
        values = [value for i in range(0, len(tasks), 1024) for value in op.solve_batch(tasks[i : i + 1024])]
    else:
        values = [op.solve(task) for task in tasks]
    return values, time.process_time() - start


def round_of(work: Workload, models: list[Value], number: int, batched: bool) -> tuple[list[Value], dict[str, float]]:
    """One D-PSGD round of all nodes: the mixed models, and CPU seconds by op."""
    nodes = len(models)
    keys = [Key(0, node, number) for node in range(nodes)]
    static = [{"steps": work.steps(node), "lr": work.lr(number), "proximal": 0.0} for node in range(nodes)]
    tasks = [Task((model,), how, key) for model, how, key in zip(models, static, keys, strict=True)]
    trained, train_s = solve(work.train, tasks, batched)
    order = np.random.default_rng(1).permutation(nodes)
    tasks = []
    for place, node in enumerate(order):  # a circulant graph over a random order of the nodes
        heard = sorted({int(order[(place + step) % nodes]) for step in (-2, -1, 0, 1, 2)})
        tasks.append(Task(tuple(trained[i] for i in heard), {"weights": WEIGHTS[: len(heard)]}, keys[node]))
    mixed, mix_s = solve(work.mix, tasks, batched)
    tasks = [Task((model,), {"on": "test"}, key) for model, key in zip(mixed, keys, strict=True)]
    _, evaluate_s = solve(work.evaluate, tasks, batched)
    return mixed, {"train": train_s, "mix": mix_s, "evaluate": evaluate_s, "round": train_s + mix_s + evaluate_s}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--nodes", type=int, default=1000)
    arguments.add_argument("--model", default="mlp")
    arguments.add_argument("--samples", type=int, default=0)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--profile", action="store_true", help="show where the batched rounds spend their time")
    given = arguments.parse_args()
    prepare_torch()
    data = federation(given.nodes, given.samples)
    model = build(ModelSection(name=given.model), tuple(data.train.features.shape[1:]), data.train.classes)
    work = Workload(data, model, TrainingSection(), 0)
    work.warm_up()
    models = {batched: [model.initial(0)] * given.nodes for batched in (False, True)}
    seconds: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    profile = cProfile.Profile()
    for number in range(given.repeats + 1):
        for batched in (False, True):
            if given.profile and batched:
                profile.enable()
            models[batched], took = round_of(work, models[batched], number, batched)
            profile.disable()
            seconds[batched].append(took)
    sizes = data.shards.sizes
    print(
        f"{given.nodes} nodes of {sizes.min()}-{sizes.max()} samples, {model.name} of {model.dimension} parameters, "
        f"{len(data.test.labels)} test samples, batch 16, 5 steps; median of {given.repeats} rounds after the first"
    )
    print(f"{'':10}{'inline':>12}{'batched':>12}   CPU us per node {'ratio':>6}")
    for name in seconds[True][0]:
        inline, stacked = (
            statistics.median(row[name] for row in seconds[how][1:]) / given.nodes * 1e6 for how in (False, True)
        )
        print(f"{name:10}{inline:12.1f}{stacked:12.1f}{inline / stacked:23.2f}")
    if given.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(18)


if __name__ == "__main__":
    main()
