"""How much faster each training kernel is than ``torch.optim.SGD`` on one model at a time, in CPU seconds.

    python scripts/bench/kernels.py [--model mlp] [--batch 16] [--repeats 7] [--check]
    python scripts/bench/kernels.py --round [--model mlp] [--nodes 1000] [--samples 2] [--repeats 5] [--profile]

All kernels take turns, five steps each; medians. A star marks the one that a run would choose. ``--check`` ends with an
error where a kernel is further from the reference than the stated tolerance; it judges no time.

``--round`` times whole node-rounds inline and batched: training, 4-regular mixing and an evaluation on the whole test
set. ``--samples`` is what each node trains on (drawn from digits, with replacement where there are too few; 0: the
data's own iid partition).
"""

from __future__ import annotations

import argparse
import copy
import cProfile
import math
import pstats
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from node.config import DataSection, ModelSection, TrainingSection
from node.learn.data import Dataset, Federation, load
from node.learn.kernels import automatic, candidates
from node.learn.models import Model, build
from node.learn.partition import Shards, partition
from node.learn.slabs import StackedBatches
from node.learn.trial import Trial
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


CASES = {"mlp": [(1, 8, 8)], "lenet": [(1, 8, 8), (1, 28, 28), (3, 32, 32)], "resnet8": [(1, 8, 8), (3, 32, 32)]}
STEPS = 5
MODELS = 4


def with_torch_optim(model: Model, start: Tensor, batches: StackedBatches, lr: float) -> Tensor:
    """One model, as a module with an optimizer of torch's own."""
    module = copy.deepcopy(model.module)
    torch.nn.utils.vector_to_parameters(start, module.parameters())
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    for rows in batches.rows[:, 0]:
        optimizer.zero_grad()
        cross_entropy(module(batches.features[rows]), batches.labels[rows]).backward()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def tables(given: argparse.Namespace) -> bool:
    """Print a table for each model and shape; gives whether every kernel keeps to its tolerance."""
    agree = True
    for name in [given.model] if given.model else CASES:
        for shape in CASES[name]:
            train, _ = load(DataSection(name="synthetic", shape=shape, samples=500), 0)
            model = build(ModelSection(name=name), shape, train.classes)
            agree &= table(model, train, TrainingSection(batch_size=given.batch, local_steps=STEPS), given.repeats)
    return agree


def table(model: Model, train: Dataset, section: TrainingSection, repeats: int) -> bool:
    """Measure all kernels that there are for a model in turns."""
    trial = Trial(model, section, train.features, train.labels)
    tried = candidates(model, section, tuple(train.features.shape[1:]), train.features.device)
    chosen = automatic(model, section, train.features, train.labels)
    start = model.initial(0)
    one = StackedBatches(
        train.features, train.labels, torch.arange(section.batch_size).expand(STEPS, 1, -1), train.labels
    )
    seconds: dict[str, list[float]] = {name: [] for name in ("torch.optim", *(kernel.name for kernel in tried))}
    for _ in range(repeats + 1):
        with_torch_optim(model, start, one, section.lr)  # what ran before has emptied the caches
        begin = time.process_time()
        for _ in range(MODELS):
            with_torch_optim(model, start, one, section.lr)
        seconds["torch.optim"].append((time.process_time() - begin) / MODELS)
        for kernel in tried:
            seconds[kernel.name].append(trial._seconds(kernel, STEPS) / kernel.most_rows)
    print(f"\n{model.name} {list(train.features.shape[1:])}, {model.dimension} parameters, batch {section.batch_size}")
    first = statistics.median(seconds["torch.optim"][1:])
    agree = True
    for name, taken in seconds.items():
        median = statistics.median(taken[1:])
        print(f"  {name:14}{median * 1e6:12.1f} us{first / median:8.2f} {'*' if name == chosen.name else ''}")
    for kernel in tried[1:]:
        if not trial._agrees(kernel, tried[0]):
            print(f"  {kernel.name} is further from the reference than its tolerance")
            agree = False
    return agree


def rounds(given: argparse.Namespace) -> None:
    """Time whole rounds, inline and batched."""
    data = federation(given.nodes, given.samples)
    model = build(ModelSection(name=given.model or "mlp"), tuple(data.train.features.shape[1:]), data.train.classes)
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
        f"{len(data.test.labels)} test samples, batch 16, 5 steps; median of {given.repeats} rounds; {work.kernel_name}"
    )
    print(f"{'':10}{'inline':>12}{'batched':>12}   CPU us per node {'ratio':>6}")
    for name in seconds[True][0]:
        inline, stacked = (
            statistics.median(row[name] for row in seconds[how][1:]) / given.nodes * 1e6 for how in (False, True)
        )
        print(f"{name:10}{inline:12.1f}{stacked:12.1f}{inline / stacked:23.2f}")
    if given.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(18)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--model", choices=CASES)
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--check", action="store_true", help="fail where a kernel is wrong")
    arguments.add_argument("--round", action="store_true", help="time whole rounds of many nodes")
    arguments.add_argument("--nodes", type=int, default=1000)
    arguments.add_argument("--samples", type=int, default=0)
    arguments.add_argument("--profile", action="store_true", help="show where the batched rounds spend their time")
    given = arguments.parse_args()
    prepare_torch()
    if given.round:
        rounds(given)
    elif not tables(given) and given.check:
        sys.exit(1)


if __name__ == "__main__":
    main()
