"""What the nodes of one experiment learn, as ops on models: initialise, train, evaluate, mix.

Each op solves one task, which is the reference, or many tasks of any nodes in one call. Whose data a task reads, and
in which order, follows from its key alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils import deterministic

from node.aggregation import Aggregation
from node.config import TrainingSection
from node.errors import ComputeError
from node.learn import batches, kernels, parts
from node.learn.basis import Basis
from node.learn.data import Federation
from node.learn.device import find as device_of
from node.learn.evaluation import METRICS, RISK, UTILITY, Evaluation
from node.learn.models import Model
from node.learn.oneshot import OneShotOps
from node.learn.slabs import LEAST_ROWS, UNGUIDED, Guides, Kernel, StackedBatches, chunks, filled, gather
from node.learn.sparse import Sparsity
from node.learn.tasks import by_shape
from node.learn.training import Guide, PrivateTraining, Trainer
from node.learn.unify import Unification
from node.op import Key, Op, Spec, Static, Task, Value

_MIXED_AT_ONCE = 32
_CACHE_BYTES = 2 << 20
_GUIDING = ("guides", "part", "cut", "repeats")


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
    every call. ``adapt`` also takes the tensors of a :class:`node.learn.training.Guide` that the static guides name,
    its part and cut, and in repeats how often each batch is used in a row.

    ``evaluate`` takes one model and the static argument on ("test", "own", "local" or "train"), and gives
    accuracy and loss; ``confusion`` takes one model, and counts what its node's own test samples are, and are taken for
    (:meth:`node.learn.evaluation.Evaluation.confusion`). ``mix`` takes models and their weights, and adds them up in
    the order given. ``init`` takes nothing.
    """

    def __init__(
        self,
        federation: Federation,
        model: Model,
        training: TrainingSection,
        seed: int,
        kernel: str = "auto",
        device: str = "cpu",
        private: PrivateTraining | None = None,
        aggregation: Aggregation | None = None,
        student: Model | None = None,
    ) -> None:
        """``kernel`` says how many models are trained at once, ``device`` where everything is computed.

        ``private`` trains in place of all kernels, one model at a time, on batches of its own. ``aggregation`` is the
        rule by which nodes make one model of what they hear; None: the protocol's mean. ``student`` learns from others;
        None: one like them.

        Raises ConfigError for a kernel that does not exist for the model, or a device that is not there.
        """
        self._device = device_of(device)
        self._federation = federation
        self._model = model
        self._training = training
        self._seed = seed
        train = federation.train
        self._train_set = train.features.to(self._device), train.labels.to(self._device)
        self._evaluation = Evaluation(federation, model, self._train_set, self._device)
        self._initial: Tensor | None = None
        self._trainer = Trainer(model, training)
        self._private = private
        self._kernel: Kernel | None = None
        if kernel != "auto":
            shape = tuple(federation.train.features.shape[1:])
            self._kernel = kernels.pinned(kernel, model, training, shape, self._device)
        self.model_spec = model.spec
        self.aggregation = aggregation
        self.init: Op[...] = Op("learn:init", self._init, spec=lambda inputs, static: model.spec)
        self._basis: Basis | None = None
        self.train = self._training_by("train", self._train)
        judge = self._evaluation
        self.evaluate = self._judging("evaluate", self._evaluate, METRICS, self._evaluate_many)
        self.confusion = self._judging("confusion", judge.confusion, judge.confusion_spec())
        self.risk = self._judging("risk", judge.risk, RISK)
        self.utility: Op[...] = Op(
            "learn:utility",
            self._utility,
            spec=lambda inputs, static: UTILITY,
            seeded=True,
            basis=lambda key: self.basis.of_train(key),
        )
        self.mix: Op[...] = Op("learn:mix", self._mix, self._mix_many, basis=lambda key: self.basis.of_mix(key))
        fresh, spec = self._fresh, model.spec
        self.fresh: Op[...] = Op("learn:fresh", fresh, None, lambda i, s: spec, basis=lambda k: self.basis.of_fresh(k))
        self.adapt = self._training_by("adapt", self._adapt)
        self.part, self.join = parts.part, parts.join
        self.sparse = Sparsity(model, self._one_batch, lambda key: self.basis.of_train(key))
        self._student = student
        self.unify = Unification(federation, model, student, seed, self._device, lambda k: self.basis.of_unification(k))
        self.oneshot = OneShotOps(federation, model, seed, lambda key: self.basis.of_unification(key))

    def _training_by(self, name: str, solve: Callable[[Task], Tensor]) -> Op[...]:
        """An op that trains: many models at once, where nothing is private."""
        many = self._train_many if self._private is None else None
        return Op(f"learn:{name}", solve, many, seeded=True, basis=lambda key: self.basis.of_train(key))

    def _judging(
        self,
        name: str,
        solve: Callable[[Task], Value],
        spec: Spec,
        many: Callable[[Sequence[Task]], list[Value]] | None = None,
    ) -> Op[...]:
        """An op that judges a model on what its task's node is tested on, or holds."""
        name = f"learn:{name}"
        return Op(name, solve, many, lambda inputs, static: spec, True, lambda key: self.basis.of_evaluate(key))

    @property
    def kernel_name(self) -> str:
        """How models were trained: the numeric class of the results. Until many were at once, the reference."""
        name = self._kernel.name if self._kernel is not None else kernels.LOOP
        return name if self._device.type == "cpu" else f"{name} {self._device.type}"

    def arithmetic(self, batched: bool) -> None:
        """Say whether many tasks are solved at once, so that :attr:`basis` can name the kernel; chooses it."""
        name = self._chosen().name if batched else kernels.LOOP
        arithmetic = f"{name} {self._device.type} {'batched' if batched else 'inline'}"
        private = b"" if self._private is None else self._private.digest
        self._basis = Basis(self._federation, self._model, self._training, arithmetic, private, self._student)

    @property
    def basis(self) -> Basis:
        """What the ops' values follow from besides their tasks. Raises ComputeError before :meth:`arithmetic`."""
        if self._basis is None:
            raise ComputeError("the kernel is not known yet: call Workload.arithmetic first")
        return self._basis

    @property
    def ops(self) -> tuple[Op[...], ...]:
        """All of them."""
        made = self.init, self.fresh, self.train, self.adapt, self.mix, self.part, self.join
        judged = self.evaluate, self.confusion, self.risk, self.utility
        return (*made, *judged, *self.sparse.ops, *self.unify.ops, *self.oneshot.ops)

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

    @property
    def groups(self) -> int:
        """How many groups of nodes there are, by kind of data."""
        return self._federation.groups

    def group_of(self, node: int) -> int:
        """The group that a node belongs to; 0 where there are none, -1 for a node without data where there are some."""
        return self._federation.group_of(node)

    def steps(self, node: int) -> int:
        """Steps of one default ``train``: ``local_steps``, or ``local_epochs`` passes over the node's shard."""
        section = self._training
        if not section.local_epochs:
            return section.local_steps
        return section.local_epochs * batches.batches_per_pass(self.shard_size(node), section.batch_size)

    def samples(self, node: int, steps: int) -> int:
        """Samples that so many steps process; where training is private, on average."""
        if self._private is not None:
            return steps * min(self.shard_size(node), self._training.batch_size)
        return batches.samples(self.shard_size(node), self._training.batch_size, steps)

    def cut(self, layers: int) -> int:
        """Where a model's last ``layers`` layers begin. Raises ConfigError where it has no more than these."""
        return self._model.cut(layers)

    def held_samples(self, node: int, on: str) -> int:
        """Samples that an evaluation of a node on ``test``, ``own``, ``local`` or ``train`` goes through."""
        return self._evaluation.held_samples(node, on)

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
        if not self._federation.shards.sizes.any():
            return
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

    def _fresh(self, task: Task) -> Tensor:
        drawn = Key(self._seed, 0, task.static["draw"]).rng().integers(2**63)
        return self._model.initial(int(drawn)).to(self._device)

    def _train(self, task: Task) -> Tensor:
        (start,) = self._here(task.inputs)
        if self._private is not None:
            return self._train_privately(self._private, task, start)
        return self._trainer.train(start, self._batches(task), task.static["lr"], task.static["proximal"])

    def _adapt(self, task: Task) -> Tensor:
        start, *guides = self._here(task.inputs)
        static = task.static
        guide = Guide(**dict(zip(static["guides"], guides, strict=True)), part=static["part"], cut=static["cut"])
        if self._private is not None:
            return self._train_privately(self._private, task, start, guide, static["repeats"])
        batches = (batch for batch in self._batches(task) for _ in range(static["repeats"]))
        return self._trainer.train(start, batches, static["lr"], static["proximal"], guide)

    def _train_privately(
        self, private: PrivateTraining, task: Task, start: Tensor, guide: Guide | None = None, repeats: int = 1
    ) -> Tensor:
        """Train on the node's records; each repetition draws anew: what it costs is known of independent batches."""
        static = task.static
        rows = torch.from_numpy(self._federation.shards.of(task.key.node)).to(self._device)
        features, labels = (tensor.index_select(0, rows) for tensor in self._train_set)
        steps = static["steps"] * repeats
        return private.train(start, features, labels, task.key, steps, static["lr"], static["proximal"], guide)

    def _batches(self, task: Task) -> Iterator[tuple[Tensor, Tensor]]:
        """Features and labels of each of a task's steps."""
        size = min(self._training.batch_size, self.shard_size(task.key.node))
        rows, sizes = self._draw([task], task.static["steps"], size)
        features, labels = self._train_set
        for row, held in zip(rows, sizes.tolist(), strict=True):
            chosen = row[0, : held[0]]
            yield features.index_select(0, chosen), labels.index_select(0, chosen)

    def _one_batch(self, key: Key) -> tuple[Tensor, Tensor]:
        return next(self._batches(Task((), {"steps": 1}, key)))

    def _evaluate(self, task: Task) -> dict[str, float]:
        return self._evaluation.one(task, self._trainer)

    def _utility(self, task: Task) -> dict[str, float]:
        return self._evaluation.utility(task, self._one_batch(task.key))

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

    # Many tasks

    def _chosen(self) -> Kernel:
        """The kernel for many models; an automatic choice is made when it is first needed."""
        if self._kernel is None:
            self._kernel = kernels.automatic(self._model, self._training, *self._train_set)
        return self._kernel

    def _train_many(self, tasks: Sequence[Task]) -> list[Tensor]:
        """Of ``train``, and of ``adapt``."""
        kernel = self._chosen()

        def shape(task: Task) -> Hashable:
            static = task.static
            return self._width(task.key.node), static["steps"], static["proximal"] != 0, *map(static.get, _GUIDING)

        def solve(group: Sequence[Task]) -> list[Tensor]:
            return [row for chunk in chunks(group, kernel.most_rows) for row in self._train_chunk(kernel, chunk)]

        return by_shape(tasks, shape, solve)

    def _width(self, node: int) -> int:
        """Samples that each of a node's stacked batches is filled up to: it depends on nothing but the node's shard."""
        largest = min(self._training.batch_size, self.shard_size(node))
        return max(LEAST_ROWS, min(self._training.batch_size, 1 << (largest - 1).bit_length()))

    def _train_chunk(self, kernel: Kernel, tasks: Sequence[Task]) -> list[Tensor]:
        """Train some models whose tasks agree in steps, width, guides, and in having a proximal term or none."""
        stack = filled(tasks, kernel.least_rows)
        static = stack[0].static
        drawn = self._draw(stack, static["steps"], self._width(stack[0].key.node))
        rows, sizes = (tensor.repeat_interleave(static.get("repeats", 1), 0) for tensor in drawn)
        rates = torch.tensor(
            [(task.static["lr"], task.static["proximal"]) for task in stack], dtype=torch.float64, device=self._device
        )
        columns = zip(*[task.inputs for task in stack], strict=True)
        with torch.no_grad():
            slab, *slabs = [gather(column, self._device) for column in columns]
            guides = _guides(static, slabs) if "guides" in static else UNGUIDED
            kernel.train(slab, StackedBatches(*self._train_set, rows, sizes), rates[:, :1], rates[:, 1:], guides)
        return list(slab.unbind()[: len(tasks)])

    def _evaluate_many(self, tasks: Sequence[Task]) -> list[dict[str, float]]:
        kernel = self._chosen() if self._model.is_convolutional else None
        trainer = kernel.trainer if isinstance(kernel, kernels.OneByOne) else self._trainer
        return self._evaluation.many(tasks, trainer)

    def _mix_many(self, tasks: Sequence[Task]) -> list[Tensor]:
        """The same sums, bit for bit: neighbourhoods with the same weights are added up side by side, in the cache."""

        def solve(group: Sequence[Task]) -> list[Tensor]:
            if len(group) == 1:
                return [self._mix(group[0])]
            fitting = _CACHE_BYTES // (4 * max(group[0].inputs[0].numel(), 1))
            at_once = min(max(fitting, 2), _MIXED_AT_ONCE)
            return [mixed for chunk in chunks(group, at_once) for mixed in self._mix_chunk(chunk)]

        return by_shape(tasks, lambda task: (task.static["weights"], task.inputs[0].numel()), solve)

    def _mix_chunk(self, tasks: Sequence[Task]) -> list[Tensor]:
        weights = tasks[0].static["weights"]
        columns = [list(self._here(column)) for column in zip(*[task.inputs for task in tasks], strict=True)]
        mixed = list(torch._foreach_mul(columns[0], weights[0]))
        for column, weight in zip(columns[1:], weights[1:], strict=True):
            torch._foreach_add_(mixed, column, alpha=weight)
        return mixed


def _guides(static: Static, slabs: Sequence[Tensor]) -> Guides:
    """What leads some tasks of ``adapt`` that agree in its kinds, whose tensors are the rows of a slab for each."""
    named = dict(zip(static["guides"], slabs, strict=True))
    return Guides(**named, part=static["part"], cut=static["cut"])
