"""What the nodes of one experiment learn, as ops on models: initialise, train, evaluate, mix.

Each op solves one task, which is the reference, or many tasks of any nodes in one call. Whose data a task reads, and
in which order, follows from its key alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import deterministic

from node.config import TrainingSection
from node.errors import ComputeError
from node.learn import batches, stacked, training
from node.learn.data import Federation
from node.learn.models import Dense, Model
from node.op import Key, Op, Spec, Task

_METRICS = Spec((2,), "float64", ("accuracy", "loss"))
_MIXED_AT_ONCE = 32


def prepare_torch() -> None:
    """Make this process's torch deterministic: one thread, and no algorithm whose result varies.

    Call it before any work. More threads would change the order of sums, and slow small models down.
    """
    torch.set_num_threads(1)
    # torch.use_deterministic_algorithms would do the same, and import a compiler stack: 75 MB and over a CPU-second.
    torch._C._set_deterministic_algorithms(True)
    # Every buffer here is written before it is read; filling it first would cost more than some of the kernels.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


class Workload:
    """Data, model and training of one experiment, as ops.

    ``train`` takes one model and the static arguments steps, lr and proximal; the optimizer's state starts anew with
    every call. ``evaluate`` takes one model and the static argument on ("test", "local" or "train"), and gives accuracy
    and loss. ``mix`` takes models and their weights, and adds them up in the order given. ``init`` takes nothing.
    """

    def __init__(self, federation: Federation, model: Model, training: TrainingSection, seed: int) -> None:
        self._federation = federation
        self._model = model
        self._training = training
        self._seed = seed
        self._initial: Tensor | None = None
        self._kernel = stacked.kernel(model, training, tuple(federation.train.features.shape[1:]))
        self.model_spec = model.spec
        self.init: Op[...] = Op("learn:init", self._init, spec=lambda inputs, static: model.spec)
        self.train: Op[...] = Op("learn:train", self._train, self._train_many, seeded=True)
        self.evaluate: Op[...] = Op(
            "learn:evaluate", self._evaluate, self._evaluate_many, lambda inputs, static: _METRICS, seeded=True
        )
        self.mix: Op[...] = Op("learn:mix", _mix, _mix_many)

    # What a node's training amounts to

    def shard_size(self, node: int) -> int:
        """Samples that a node trains on."""
        return self._federation.shards.size(node)

    def label_histogram(self, node: int) -> np.ndarray:
        """How many samples of each class a node trains on, int64 [classes]."""
        train = self._federation.train
        return np.bincount(train.labels.numpy()[self._federation.shards.of(node)], minlength=train.classes)

    def steps(self, node: int) -> int:
        """Steps of one default ``train``: ``local_steps``, or ``local_epochs`` passes over the node's shard."""
        section = self._training
        if not section.local_epochs:
            return section.local_steps
        return section.local_epochs * batches.batches_per_pass(self.shard_size(node), section.batch_size)

    def samples(self, node: int, steps: int) -> int:
        """Samples that so many steps process."""
        return batches.samples(self.shard_size(node), self._training.batch_size, steps)

    def lr(self, call: int) -> float:
        """Learning rate of a node's ``call``-th train, counted from 0.

        Cosine annealing without restarts: Loshchilov and Hutter, ICLR 2017.
        """
        section = self._training
        match section.schedule:
            case "step":
                return section.lr * section.schedule_factor ** (call // section.schedule_rounds)
            case "cosine":
                done = min(call / section.schedule_rounds, 1.0)
                return section.lr * (1 + math.cos(math.pi * done)) / 2
            case _:
                return section.lr

    def warm_up(self) -> None:
        """Solve one small task of everything, so that what torch sets up on first use is set up before a fork."""
        model = self._init(Task((), {}, Key(self._seed, 0, 0)))
        learner = int(np.argmax(self._federation.shards.sizes))  # a server, say, has no data to train on
        static = {"steps": 1, "lr": self._training.lr, "proximal": 0.0}
        train = Task((model,), static, Key(self._seed, learner, 0))
        evaluate = train._replace(static={"on": "test"})
        mix = train._replace(inputs=(model, model), static={"weights": (0.5, 0.5)})
        for op, task in ((self.train, train), (self.evaluate, evaluate), (self.mix, mix)):
            op.solve(task)
            if op.solve_batch is not None:
                op.solve_batch([task] * stacked.LEAST_ROWS)

    # One task

    def _init(self, task: Task) -> Tensor:
        if self._initial is None:  # made once, so that forked nodes share it
            self._initial = self._model.initial(self._seed)
        return self._initial

    def _train(self, task: Task) -> Tensor:
        (start,) = task.inputs
        size = min(self._training.batch_size, self.shard_size(task.key.node))
        rows, sizes = self._draw([task], task.static["steps"], size)
        data = self._federation.train
        steps = [row[0, : size[0]] for row, size in zip(rows, sizes.tolist(), strict=True)]
        pairs = ((data.features.index_select(0, row), data.labels.index_select(0, row)) for row in steps)
        return training.train(self._model, start, pairs, self._training, task.static["lr"], task.static["proximal"])

    def _evaluate(self, task: Task) -> dict[str, float]:
        features, labels = self._held(task.static["on"], task.key.node)
        return training.evaluate(self._model, task.inputs[0], features, labels)

    def _draw(self, tasks: Sequence[Task], steps: int, width: int) -> tuple[Tensor, Tensor]:
        """The samples [steps, tasks, width] and sizes [steps, tasks] of some tasks' batches."""
        shards = self._federation.shards
        nodes = np.array([task.key.node for task in tasks])
        starts = shards.offsets[nodes]
        shard_sizes = shards.offsets[nodes + 1] - starts
        places, sizes = batches.draw([task.key for task in tasks], shard_sizes, self._training.batch_size, steps, width)
        return torch.from_numpy(shards.indices[starts[:, None] + places]), torch.from_numpy(sizes)

    def _held(self, on: str, node: int) -> tuple[Tensor, Tensor]:
        """Features and labels of one of a node's sets of samples."""
        federation = self._federation
        if on == "test":
            return federation.test.features, federation.test.labels
        if on not in ("local", "train"):
            raise ComputeError(f"evaluate on {on!r}: there are 'test', 'local' and 'train'")
        rows = (federation.shards if on == "train" else federation.local_tests).of(node)
        if not len(rows):
            raise ComputeError(f"evaluate on 'local': node {node} holds out no samples; raise data.local_test_fraction")
        return federation.train.features[rows], federation.train.labels[rows]

    # Many tasks

    def _train_many(self, tasks: Sequence[Task]) -> list[Tensor]:
        kernel = self._kernel
        if kernel is None:
            return [self._train(task) for task in tasks]

        def shape(task: Task) -> Hashable:
            return task.static["steps"], self._width(task.key.node), task.static["proximal"] != 0

        def solve(group: Sequence[Task]) -> list[Tensor]:
            return [
                row for chunk in stacked.chunks(group, kernel.most_rows) for row in self._train_chunk(kernel, chunk)
            ]

        return _by_group(tasks, shape, solve)

    def _width(self, node: int) -> int:
        """Samples that each of a node's stacked batches is filled up to: it depends on nothing but the node's shard."""
        largest = min(self._training.batch_size, self.shard_size(node))
        return max(stacked.LEAST_ROWS, min(self._training.batch_size, 1 << (largest - 1).bit_length()))

    def _train_chunk(self, kernel: stacked.Kernel, tasks: Sequence[Task]) -> list[Tensor]:
        """Train some models whose tasks agree in steps, width, and in having a proximal term or none."""
        stack = stacked.filled(tasks)
        data = self._federation.train
        rows, sizes = self._draw(stack, stack[0].static["steps"], self._width(stack[0].key.node))
        rates = torch.tensor([(task.static["lr"], task.static["proximal"]) for task in stack])
        with torch.no_grad():
            slab = stacked.gather([task.inputs[0] for task in stack])
            todo = stacked.StackedBatches(data.features, data.labels, rows, sizes)
            kernel.train(slab, todo, rates[:, :1], rates[:, 1:])
        return list(slab.unbind()[: len(tasks)])

    def _evaluate_many(self, tasks: Sequence[Task]) -> list[dict[str, float]]:
        model = self._model

        def solve(group: Sequence[Task]) -> list[dict[str, float]]:
            if isinstance(model, Dense) and group[0].static["on"] == "test":
                flats = [task.inputs[0] for task in group]
                return stacked.evaluate(model, flats, *self._held("test", 0))
            return [self._evaluate(task) for task in group]

        return _by_group(tasks, lambda task: task.static["on"], solve)


def _mix(task: Task) -> Tensor:
    """The weighted sum of models, in the order given, so that its bits never depend on what was ready first."""
    first, *others = zip(task.inputs, task.static["weights"], strict=True)
    mixed: Tensor = first[0] * first[1]
    for model, weight in others:
        mixed.add_(model, alpha=weight)
    return mixed


def _mix_many(tasks: Sequence[Task]) -> list[Tensor]:
    """The same sums, bit for bit: neighbourhoods with the same weights are added up side by side."""

    def solve(group: Sequence[Task]) -> list[Tensor]:
        if len(group) == 1:
            return [_mix(group[0])]
        return [mixed for chunk in stacked.chunks(group, _MIXED_AT_ONCE) for mixed in _mix_chunk(chunk)]

    return _by_group(tasks, lambda task: task.static["weights"], solve)


def _mix_chunk(tasks: Sequence[Task]) -> list[Tensor]:
    weights = tasks[0].static["weights"]
    columns = [list(column) for column in zip(*[task.inputs for task in tasks], strict=True)]
    mixed = list(torch._foreach_mul(columns[0], weights[0]))
    for column, weight in zip(columns[1:], weights[1:], strict=True):
        torch._foreach_add_(mixed, column, alpha=weight)
    return mixed


def _by_group(
    tasks: Sequence[Task], shape: Callable[[Task], Hashable], solve: Callable[[Sequence[Task]], list[Any]]
) -> list[Any]:
    """Solve tasks in groups of one shape, and give the values in the tasks' order."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for i, task in enumerate(tasks):
        groups[shape(task)].append(i)
    values: list[Any] = [None] * len(tasks)
    for members in groups.values():
        for i, value in zip(members, solve([tasks[i] for i in members]), strict=True):
            values[i] = value
    return values
