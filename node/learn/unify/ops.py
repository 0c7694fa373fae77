"""What a workload knows of its models for several to become one, as ops for ``ctx.unify``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from node.errors import ComputeError
from node.learn import batches, stacked
from node.learn.cost import inference_flops, training_flops
from node.learn.data import Federation
from node.learn.evaluation import METRICS
from node.learn.layers import network
from node.learn.models import Dense, Model
from node.learn.training import EVALUATION_SAMPLES
from node.learn.unify import combining, distillation, fisher, generation
from node.op import Key, Op, Spec, Static, Task
from node.unifiers import Generation

_AGREEMENT = Spec((1,), "float64", ("agreement",))
_FAMILIARITY = Spec((2,), "float64", ("confidence", "consensus"))
_LEAST_PROBABILITY = 1e-12
_MOST_HALF = torch.finfo(torch.float16).max


class Unification:
    """The ops of :class:`node.unify.UnifyOps` for one experiment.

    Args:
        student: what learns from teachers; None: the model.
        device: where everything is computed.
        basis: what a value follows from besides its task (:attr:`node.op.Op.basis`).
    """

    def __init__(
        self,
        federation: Federation,
        model: Model,
        student: Model | None,
        seed: int,
        device: torch.device,
        basis: Callable[[Key], bytes],
    ) -> None:
        self._federation = federation
        self._model = model
        self._student = student or model
        self._seed = seed
        self._device = device
        self._basis = basis
        self.public = federation.public
        self._features = None if self.public is None else self.public.features.to(device)
        self.has_other_student = student is not None
        spoken = Spec((self.public_samples, self.classes))
        self.logits = self._op("logits", self._logits, spoken, self._logits_of_many)
        self.halved = self._op("halved", self._halved, spoken._replace(dtype="float16"))
        self.combined = self._op("combined", self._combined, spoken)
        self.familiarity = self._op("familiarity", lambda task: combining.familiarity(self._here(task)), _FAMILIARITY)
        self.fresh = self._op("student", self._fresh, self._student.spec)
        self.distil = self._op("distil", self._distil, self._student.spec, seeded=True)
        self.generated = self._op("generated", self._generated, self._student.spec, seeded=True)
        self.agreement = self._op("agreement", self._agreement, _AGREEMENT)
        self.judge = self._op("judge", self._judge, METRICS)
        self.judge_student = self._op("judge-student", self._judge_student, METRICS)
        self.fisher = self._op("fisher", self._fisher, model.spec, seeded=True)
        self.fisher_mean = self._op("fisher-mean", self._fisher_mean, model.spec)

    def _op(
        self,
        name: str,
        solve: Callable[[Task], Tensor | dict[str, float]],
        spec: Spec,
        many: Callable[[Sequence[Task]], list[Tensor]] | None = None,
        seeded: bool = False,
    ) -> Op[...]:
        def promised(inputs: Sequence[Spec], static: Static) -> Spec:
            return spec

        return Op(f"learn:unify-{name}", solve, many, promised, seeded, self._basis)

    @property
    def ops(self) -> tuple[Op[...], ...]:
        """All of them."""
        said = (self.logits, self.halved, self.combined, self.familiarity)
        students = (self.fresh, self.distil, self.generated, self.agreement)
        return (*said, *students, self.judge, self.judge_student, self.fisher, self.fisher_mean)

    # What it amounts to

    @property
    def classes(self) -> int:
        """How many there are."""
        return self._federation.train.classes

    @property
    def public_samples(self) -> int:
        """How many public samples there are; 0 for none."""
        return 0 if self.public is None else len(self.public.features)

    @property
    def check_samples(self) -> int:
        """How many of them no student learns from."""
        return 0 if self.public is None else self.public.check_samples

    @property
    def _taught(self) -> int:
        """How many of them students learn from: the first ones."""
        return self.public_samples - self.check_samples

    @cached_property
    def training_flops(self) -> float:
        """FLOPs of training the model on one sample."""
        return training_flops(self._model, self._shape)

    @cached_property
    def inference_flops(self) -> float:
        """FLOPs of the model for what it says of one sample."""
        return inference_flops(self._model, self._shape)

    @cached_property
    def student_flops(self) -> float:
        """FLOPs of training a student on one sample."""
        return training_flops(self._student, self._shape)

    @property
    def _shape(self) -> tuple[int, ...]:
        return tuple(self._federation.train.features.shape[1:])

    def samples(self, steps: int, batch_size: int) -> int:
        """Samples that so many steps of a student process."""
        return batches.samples(self._taught, batch_size, steps)

    def generation_samples(self, models: int, how: Generation) -> tuple[int, int]:
        """Samples that go through models, and that a student learns from, in a generation with so many models."""
        generating = how.epochs * how.steps * how.batch_size
        return models * generating, generating + how.batch_size * how.epochs * (how.epochs + 1) // 2

    def fisher_samples(self, node: int, samples: int) -> int:
        """Samples that a node's Fisher information is the mean over, where so many are asked for."""
        return min(samples, self._federation.shards.size(node))

    # One task

    def _logits(self, task: Task) -> Tensor:
        (flat,) = self._here(task)
        return self._said(self._model, flat, self._shown)

    def _halved(self, task: Task) -> Tensor:
        (logits,) = self._here(task)
        return logits.clamp(-_MOST_HALF, _MOST_HALF).half()

    def _combined(self, task: Task) -> Tensor:
        return combining.combined(self._here(task), task.static["rule"], task.static["weights"])

    def _fresh(self, task: Task) -> Tensor:
        drawn = np.random.default_rng([self._seed, task.static["draw"], *b"student"]).integers(2**63)
        return self._student.initial(int(drawn)).to(self._device)

    def _distil(self, task: Task) -> Tensor:
        start, targets = self._here(task)
        static = task.static
        objective = distillation.objective(static["loss"], static["rule"], targets, static["temperature"])
        how = {name: static[name] for name in ("steps", "batch_size", "lr")}
        return distillation.distil(self._student, start, self._shown[: self._taught], objective, task.key, **how)

    def _generated(self, task: Task) -> Tensor:
        start, *flats = self._here(task)
        train, how = self._federation.train, Generation(**task.static)
        teachers = generation.Teachers(self._model, flats)
        kind = self._shape, self.classes, train.is_standardised
        return generation.generated(self._student, start, teachers, *kind, task.key, how)

    def _agreement(self, task: Task) -> dict[str, float]:
        student, targets = self._here(task)
        kept = slice(self._taught, None)
        return distillation.agreement(self._said(self._student, student, self._shown[kept]), targets[kept])

    def _judge(self, task: Task) -> dict[str, float]:
        features = self._federation.test.features.to(self._device)
        said = [self._said(self._model, flat, features) for flat in self._here(task)]
        rule = task.static["rule"]
        return self._judged(combining.combined(said, rule, task.static["weights"]), rule == "logits")

    def _judge_student(self, task: Task) -> dict[str, float]:
        (flat,) = self._here(task)
        return self._judged(self._said(self._student, flat, self._federation.test.features.to(self._device)), True)

    def _judged(self, scores: Tensor, are_logits: bool) -> dict[str, float]:
        """Accuracy and mean loss of what is said of the test samples."""
        labels = self._federation.test.labels.to(self._device)
        logs = scores.log_softmax(1) if are_logits else scores.clamp_min(_LEAST_PROBABILITY).log()
        right = int((scores.argmax(1) == labels).sum())
        return {"accuracy": right / len(labels), "loss": float(nll_loss(logs, labels))}

    def _fisher(self, task: Task) -> Tensor:
        shard = self._federation.shards.of(task.key.node)
        if not len(shard):
            raise ComputeError(f"fisher: node {task.key.node} has no data: its role is not learner")
        chosen = task.key.rng().permutation(shard)[: task.static["samples"]]
        features = self._federation.train.features[np.sort(chosen)].to(self._device)
        (flat,) = self._here(task)
        return fisher.diagonal(self._model, flat, features)

    def _fisher_mean(self, task: Task) -> Tensor:
        tensors = self._here(task)
        count = len(tensors) // 2
        return fisher.fisher_mean(tensors[:count], tensors[count:], task.static["weights"])

    # What they need

    @property
    def _shown(self) -> Tensor:
        """All public samples."""
        if self._features is None:
            raise ComputeError("there are no public samples; set public.name")
        return self._features

    def _here(self, task: Task) -> list[Tensor]:
        """A task's tensors on the device in single precision, each where a matrix product rounds as everywhere."""
        tensors = [tensor.to(self._device, torch.float32) for tensor in task.inputs]
        return [tensor.clone() if tensor.data_ptr() % 64 else tensor for tensor in tensors]

    @torch.no_grad()
    def _said(self, model: Model, flat: Tensor, features: Tensor) -> Tensor:
        """Logits [samples, classes]."""
        parameters = list(model.named(flat).values())
        passes = network(model)
        return torch.cat([passes.logits(parameters, part) for part in torch.split(features, EVALUATION_SAMPLES)])

    # Many tasks

    def _logits_of_many(self, tasks: Sequence[Task]) -> list[Tensor]:
        """Of models of the stacked kind side by side, of all others one by one."""
        model = self._model
        if not isinstance(model, Dense) or len(tasks) == 1:
            return [self._logits(task) for task in tasks]
        return stacked.logits(model, [tensor for task in tasks for tensor in self._here(task)], self._shown)
