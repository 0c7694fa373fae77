"""Judging models: on the global test set, on the one of a node's own distribution, and on what a node holds itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from node.errors import ComputeError
from node.learn import stacked
from node.learn.data import Dataset, Federation
from node.learn.layers import network
from node.learn.models import Dense, Model
from node.learn.tasks import by_shape
from node.learn.training import EVALUATION_SAMPLES, Trainer
from node.op import Spec, Task

METRICS = Spec((2,), "float64", ("accuracy", "loss"))
RISK = Spec((1,), "float64", ("risk",))
UTILITY = Spec((1,), "float64", ("utility",))


class Evaluation:
    """What the ops ``evaluate``, ``confusion``, ``risk`` and ``utility`` compute.

    Args:
        train_set: features and labels of the federation's training set, on the device.
        device: where everything is computed.
    """

    def __init__(
        self, federation: Federation, model: Model, train_set: tuple[Tensor, Tensor], device: torch.device
    ) -> None:
        self._federation = federation
        self._model = model
        self._network = network(model)
        self._train_set = train_set
        self._device = device
        self._test_set = self._here(federation.test)
        self._own_tests: dict[int, tuple[Tensor, Tensor]] = {}

    def held_samples(self, node: int, on: str) -> int:
        """Samples that an evaluation of a node on one of its sets goes through."""
        federation = self._federation
        match on:
            case "test":
                return len(federation.test.labels)
            case "own":
                return len(federation.own_test(node).labels)
            case "train":
                return federation.shards.size(node)
            case _:
                return federation.local_tests.size(node)

    def one(self, task: Task, trainer: Trainer) -> dict[str, float]:
        """Accuracy and loss of one model."""
        return trainer.evaluate(self._model_of(task), *self._held(task.static["on"], task.key.node))

    def many(self, tasks: Sequence[Task], trainer: Trainer) -> list[dict[str, float]]:
        """The same of many models: those of the stacked kind side by side, where they are judged on one test set."""
        model = self._model

        def solve(alike: Sequence[Task]) -> list[dict[str, float]]:
            on, node = alike[0].static["on"], alike[0].key.node
            if isinstance(model, Dense) and on in ("test", "own"):
                return stacked.evaluate(model, [task.inputs[0] for task in alike], *self._held(on, node))
            return [self.one(task, trainer) for task in alike]

        return by_shape(tasks, lambda task: (task.static["on"], self._group(task)), solve)

    @torch.no_grad()
    def confusion(self, task: Task) -> Tensor:
        """How many test samples of the node's own distribution have each label, and are taken for each.

        int64 [classes * classes], the label's row after row; where logits are equal, the first one counts.
        """
        features, labels = self._own_test(task.key.node)
        parameters = list(self._model.named(self._model_of(task)).values())
        classes = self._federation.test.classes
        counts = torch.zeros(classes * classes, dtype=torch.int64)
        for start in range(0, len(labels), EVALUATION_SAMPLES):
            part = slice(start, start + EVALUATION_SAMPLES)
            taken_for = self._network.logits(parameters, features[part]).argmax(1)
            counts += torch.bincount((labels[part] * classes + taken_for).cpu(), minlength=classes * classes)
        return counts

    def risk(self, task: Task) -> dict[str, float]:
        """AUC - 0.5 of telling what a node trains on from what it holds out by the model's loss on each sample."""
        inside, outside = (self._losses(task, on) for on in ("train", "local"))
        below, upto = (torch.searchsorted(outside.sort().values, inside, right=right) for right in (False, True))
        above = len(outside) - (below + upto).double() / 2  # samples held out with a higher loss; equal ones count half
        return {"risk": float(above.mean()) / len(outside) - 0.5}

    def utility(self, task: Task, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
        """The root mean square of the losses on a batch, features [b, *shape] and labels [b]."""
        return {"utility": float(self._losses_on(task, *batch).double().square().mean().sqrt())}

    def _losses(self, task: Task, on: str) -> Tensor:
        """The loss of a task's model on each sample of one of its node's sets, [samples]."""
        return self._losses_on(task, *self._held(on, task.key.node))

    @torch.no_grad()
    def _losses_on(self, task: Task, features: Tensor, labels: Tensor) -> Tensor:
        parameters = list(self._model.named(self._model_of(task)).values())
        parts = zip(*(torch.split(part, EVALUATION_SAMPLES) for part in (features, labels)), strict=True)
        logits = [(self._network.logits(parameters, some), chosen) for some, chosen in parts]
        return torch.cat([cross_entropy(*part, reduction="none") for part in logits])

    def confusion_spec(self) -> Spec:
        """What :meth:`confusion` gives."""
        return Spec((self._federation.test.classes**2,), "int64")

    def _model_of(self, task: Task) -> Tensor:
        """The task's model; a copy where it lies elsewhere in a cache line, because matrix products round by that."""
        flat: Tensor = task.inputs[0].to(self._device)
        return flat.clone() if flat.data_ptr() % 64 else flat

    def _group(self, task: Task) -> int:
        """The group of a task's node, where it makes a difference."""
        return self._federation.group_of(task.key.node) if task.static["on"] == "own" else 0

    def _held(self, on: str, node: int) -> tuple[Tensor, Tensor]:
        """Features and labels of one of a node's sets of samples."""
        if on in ("test", "own"):
            return self._test_set if on == "test" else self._own_test(node)
        if on not in ("local", "train"):
            raise ComputeError(
                f"evaluate on {on!r}: there are 'test', 'local' and 'train', and 'own', the test set of a node's group"
            )
        federation = self._federation
        rows = (federation.shards if on == "train" else federation.local_tests).of(node)
        if not len(rows):
            raise ComputeError(f"evaluate on 'local': node {node} holds out no samples; raise data.local_test_fraction")
        features, labels = self._train_set
        return features[rows], labels[rows]

    def _own_test(self, node: int) -> tuple[Tensor, Tensor]:
        """The test set of a node's own distribution: one for each group, however many nodes there are."""
        own = self._federation.own_test(node)
        if own is self._federation.test:
            return self._test_set
        group = self._federation.group_of(node)
        if group not in self._own_tests:
            self._own_tests[group] = self._here(own)
        return self._own_tests[group]

    def _here(self, data: Dataset) -> tuple[Tensor, Tensor]:
        return data.features.to(self._device), data.labels.to(self._device)
