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
from node.learn import batches, kernels, stacked
from node.learn.basis import Basis
from node.learn.data import Federation
from node.learn.device import find as device_of
from node.learn.models import Dense, Model
from node.learn.slabs import LEAST_ROWS, Kernel, StackedBatches, chunks, filled, gather
from node.learn.training import Trainer
from node.op import Key, Op, Spec, Task

_METRICS = Spec((2,), "float64", ("accuracy", "loss"))
_MIXED_AT_ONCE = 32
_CACHE_BYTES = 2 << 20


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

    def __init__(
        self,
        federation: Federation,
        model: Model,
        training: TrainingSection,
        seed: int,
        kernel: str = "auto",
        device: str = "cpu",
    ) -> None:
        """``kernel`` says how many models are trained at once, ``device`` where everything is computed.

        Raises ConfigError for a kernel that does not exist for the model, or a device that is not there.
        """
        self._device = device_of(device)
        self._federation = federation
        self._model = model
        self._training = training
        self._seed = seed
        self._train_set, self._test_set = (
            (dataset.features.to(self._device), dataset.labels.to(self._device))
            for dataset in (federation.train, federation.test)
        )
        self._initial: Tensor | None = None
        self._trainer = Trainer(model, training)
        self._kernel: Kernel | None = None
        if kernel != "auto":
            shape = tuple(federation.train.features.shape[1:])
            self._kernel = kernels.pinned(kernel, model, training, shape, self._device)
        self.model_spec = model.spec
        self.init: Op[...] = Op("learn:init", self._init, spec=lambda inputs, static: model.spec)
        self._basis: Basis | None = None
        self.train: Op[...] = Op(
            "learn:train", self._train, self._train_many, seeded=True, basis=lambda key: self.basis.of_train(key)
        )
        self.evaluate: Op[...] = Op(
            "learn:evaluate",
            self._evaluate,
            self._evaluate_many,
            lambda inputs, static: _METRICS,
            seeded=True,
            basis=lambda key: self.basis.of_evaluate(key),
        )
        self.mix: Op[...] = Op("learn:mix", self._mix, self._mix_many, basis=lambda key: self.basis.of_mix(key))

    @property
    def kernel_name(self) -> str:
        """How models were trained: the numeric class of the results. Until many were at once, the reference."""
        name = self._kernel.name if self._kernel is not None else kernels.LOOP
        return name if self._device.type == "cpu" else f"{name} {self._device.type}"

    def arithmetic(self, batched: bool) -> None:
        """Say whether many tasks are solved at once, so that :attr:`basis` can name the kernel; chooses it."""
        name = self._chosen().name if batched else kernels.LOOP
        arithmetic = f"{name} {self._device.type} {'batched' if batched else 'inline'}"
        self._basis = Basis(self._federation, self._model, self._training, arithmetic)

    @property
    def basis(self) -> Basis:
        """What the ops' values follow from besides their tasks. Raises ComputeError before :meth:`arithmetic`."""
        if self._basis is None:
            raise ComputeError("the kernel is not known yet: call Workload.arithmetic first")
        return self._basis

    @property
    def ops(self) -> tuple[Op[...], ...]:
        """All of them."""
        return self.init, self.train, self.evaluate, self.mix

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self._federation.train.features.shape[1:])

    @property
    def classes(self) -> int:
        """How many labels there are."""
        return self._federation.train.classes

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

    def held_samples(self, node: int, on: str) -> int:
        """Samples that an evaluation of a node on ``test``, ``local`` or ``train`` goes through."""
        if on == "test":
            return len(self._federation.test.labels)
        return (self._federation.shards if on == "train" else self._federation.local_tests).size(node)

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

    def warm_up(self, batched: bool = True) -> None:
        """Solve one small task of everything, so that what torch sets up on first use is set up before a fork.

        ``batched`` also solves several at once, which chooses the kernel for all that are forked.
        """
        model = self._init(Task((), {}, Key(self._seed, 0, 0)))
        learner = int(np.argmax(self._federation.shards.sizes))  # a server, say, has no data to train on
        static = {"steps": 1, "lr": self._training.lr, "proximal": 0.0}
        train = Task((model,), static, Key(self._seed, learner, 0))
        evaluate = train._replace(static={"on": "test"})
        mix = train._replace(inputs=(model, model), static={"weights": (0.5, 0.5)})
        for op, task in ((self.train, train), (self.evaluate, evaluate), (self.mix, mix)):
            op.solve(task)
            if batched and op.solve_batch is not None:
                op.solve_batch([task] * LEAST_ROWS)

    # One task

    def _init(self, task: Task) -> Tensor:
        if self._initial is None:  # made once, so that forked nodes share it
            self._initial = self._model.initial(self._seed).to(self._device)
        return self._initial

    def _train(self, task: Task) -> Tensor:
        (start,) = self._here(task.inputs)
        size = min(self._training.batch_size, self.shard_size(task.key.node))
        rows, sizes = self._draw([task], task.static["steps"], size)
        features, labels = self._train_set
        steps = [row[0, : size[0]] for row, size in zip(rows, sizes.tolist(), strict=True)]
        pairs = ((features.index_select(0, row), labels.index_select(0, row)) for row in steps)
        return self._trainer.train(start, pairs, task.static["lr"], task.static["proximal"])

    def _evaluate(self, task: Task) -> dict[str, float]:
        return self._evaluate_with(self._trainer, task)

    def _evaluate_with(self, trainer: Trainer, task: Task) -> dict[str, float]:
        (model,) = self._here(task.inputs)
        return trainer.evaluate(model, *self._held(task.static["on"], task.key.node))

    def _mix(self, task: Task) -> Tensor:
        """The weighted sum of models, in the order given, so that its bits never depend on what was ready first."""
        first, *others = zip(self._here(task.inputs), task.static["weights"], strict=True)
        mixed: Tensor = first[0] * first[1]
        for model, weight in others:
            mixed.add_(model, alpha=weight)
        return mixed

    def _here(self, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        """Tensors on the device; what came over a network, or from a file, may be elsewhere."""
        return tensors if self._device.type == "cpu" else [tensor.to(self._device) for tensor in tensors]

    def _draw(self, tasks: Sequence[Task], steps: int, width: int) -> tuple[Tensor, Tensor]:
        """The samples [steps, tasks, width] and sizes [steps, tasks] of some tasks' batches."""
        shards = self._federation.shards
        nodes = np.array([task.key.node for task in tasks])
        starts = shards.offsets[nodes]
        shard_sizes = shards.offsets[nodes + 1] - starts
        places, sizes = batches.draw([task.key for task in tasks], shard_sizes, self._training.batch_size, steps, width)
        rows = torch.from_numpy(shards.indices[starts[:, None] + places])
        return rows.to(self._device), torch.from_numpy(sizes).to(self._device)

    def _held(self, on: str, node: int) -> tuple[Tensor, Tensor]:
        """Features and labels of one of a node's sets of samples."""
        federation = self._federation
        if on == "test":
            return self._test_set
        if on not in ("local", "train"):
            raise ComputeError(f"evaluate on {on!r}: there are 'test', 'local' and 'train'")
        rows = (federation.shards if on == "train" else federation.local_tests).of(node)
        if not len(rows):
            raise ComputeError(f"evaluate on 'local': node {node} holds out no samples; raise data.local_test_fraction")
        features, labels = self._train_set
        return features[rows], labels[rows]

    # Many tasks

    def _chosen(self) -> Kernel:
        """The kernel for many models; an automatic choice is made when it is first needed."""
        if self._kernel is None:
            self._kernel = kernels.automatic(self._model, self._training, *self._train_set)
        return self._kernel

    def _train_many(self, tasks: Sequence[Task]) -> list[Tensor]:
        kernel = self._chosen()

        def shape(task: Task) -> Hashable:
            return task.static["steps"], self._width(task.key.node), task.static["proximal"] != 0

        def solve(group: Sequence[Task]) -> list[Tensor]:
            return [row for chunk in chunks(group, kernel.most_rows) for row in self._train_chunk(kernel, chunk)]

        return _by_group(tasks, shape, solve)

    def _width(self, node: int) -> int:
        """Samples that each of a node's stacked batches is filled up to: it depends on nothing but the node's shard."""
        largest = min(self._training.batch_size, self.shard_size(node))
        return max(LEAST_ROWS, min(self._training.batch_size, 1 << (largest - 1).bit_length()))

    def _train_chunk(self, kernel: Kernel, tasks: Sequence[Task]) -> list[Tensor]:
        """Train some models whose tasks agree in steps, width, and in having a proximal term or none."""
        stack = filled(tasks, kernel.least_rows)
        rows, sizes = self._draw(stack, stack[0].static["steps"], self._width(stack[0].key.node))
        rates = torch.tensor(
            [(task.static["lr"], task.static["proximal"]) for task in stack], dtype=torch.float64, device=self._device
        )
        with torch.no_grad():
            slab = gather([task.inputs[0] for task in stack], self._device)
            kernel.train(slab, StackedBatches(*self._train_set, rows, sizes), rates[:, :1], rates[:, 1:])
        return list(slab.unbind()[: len(tasks)])

    def _evaluate_many(self, tasks: Sequence[Task]) -> list[dict[str, float]]:
        model = self._model
        kernel = self._chosen() if model.is_convolutional else None
        trainer = kernel.trainer if isinstance(kernel, kernels.OneByOne) else self._trainer

        def solve(group: Sequence[Task]) -> list[dict[str, float]]:
            if isinstance(model, Dense) and group[0].static["on"] == "test":
                flats = [task.inputs[0] for task in group]
                return stacked.evaluate(model, flats, *self._test_set)
            return [self._evaluate_with(trainer, task) for task in group]

        return _by_group(tasks, lambda task: task.static["on"], solve)

    def _mix_many(self, tasks: Sequence[Task]) -> list[Tensor]:
        """The same sums, bit for bit: neighbourhoods with the same weights are added up side by side, in the cache."""

        def solve(group: Sequence[Task]) -> list[Tensor]:
            if len(group) == 1:
                return [self._mix(group[0])]
            fitting = _CACHE_BYTES // (4 * max(group[0].inputs[0].numel(), 1))
            at_once = min(max(fitting, 2), _MIXED_AT_ONCE)
            return [mixed for chunk in chunks(group, at_once) for mixed in self._mix_chunk(chunk)]

        return _by_group(tasks, lambda task: task.static["weights"], solve)

    def _mix_chunk(self, tasks: Sequence[Task]) -> list[Tensor]:
        weights = tasks[0].static["weights"]
        columns = [list(self._here(column)) for column in zip(*[task.inputs for task in tasks], strict=True)]
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
