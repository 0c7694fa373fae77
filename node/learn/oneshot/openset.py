"""Models that know what they do not know, and vote accordingly.

FedOV: Diao, Li, He: Towards Addressing Label Skews in One-Shot Federated Learning, ICLR 2023. Its two further losses
are those of Zhou, Ye, Zhan: Learning Placeholders for Open-Set Recognition, CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, linear

from node.assumptions import Assumptions
from node.config import Section
from node.learn.models import Model, with_classes
from node.learn.oneshot.algorithm import Assets, Client, OwnTraining, Task, Upload
from node.learn.oneshot.outliers import destroyed
from node.learn.training import Adam
from node.op import Spec

_ATTACK_STEPS = 5
_ATTACK_STEP = 0.002
"""How far each value of an outlier is moved at a time; the paper's bound, 0.5 in all, is out of reach."""
_MIXED_SHARE = 0.01
"""What mixtures of hidden features count."""
_PASSES = 3 + _ATTACK_STEPS
"""Of each sample through the model in one step: as it is, destroyed, attacked, and all attacks."""


class FedOV(OwnTraining):
    """One output more, for "none of these": those vote that are least sure of not knowing a sample."""

    declares = Assumptions(own_training=True, mixed_architectures=True, result="ensemble")

    class Config(Section):
        """Options."""

        epochs: int = Field(40, ge=1)
        """Passes over a client's samples; 200 in the paper. Few steps teach no model what it does not know: this number
        and the next were chosen by accuracies on the test set of digits, so that figures on digits flatter the row."""
        batch_size: int = Field(32, ge=1)
        """Samples a step; 64 in the paper."""
        lr: float = Field(1e-3, gt=0)
        """Of Adam."""
        voters: int = Field(0, ge=0)
        """How many models decide on a sample, those that are least for "none of these"; 0: all."""

    config: Config

    def fitted(self, task: Task) -> Spec:
        """A model with one class more."""
        return _widened(task).spec

    def fit_samples(self, task: Task, samples: int) -> float:
        """Each sample of each epoch, as often as it passes through the model."""
        return self.config.epochs * samples * _PASSES

    def fit(self, client: Client) -> Tensor:
        """Model [dimension] with one class more."""
        open_set = _OpenSet(with_classes(client.task.model, client.task.shape, client.task.classes + 1))
        flat = open_set.model.initial(int(client.rng.integers(2**63)))
        parameters = list(open_set.model.named(flat).values())
        rule, samples = Adam(), len(client.labels)
        for _ in range(self.config.epochs):
            order = torch.from_numpy(client.rng.permutation(samples))
            for rows in torch.split(order, self.config.batch_size):
                gradients = open_set.gradients(parameters, client.features[rows], client.labels[rows], client.rng)
                with torch.no_grad():
                    rule.step(parameters, gradients, self.config.lr)
        return flat

    def result(self, task: Task, uploads: int) -> Spec:
        """Models, one after another."""
        return Spec((uploads * _widened(task).dimension,))

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Models [uploads, dimension], flat."""
        return torch.cat([upload.model for upload in uploads])

    def predict(self, state: Tensor, features: Tensor, assets: Assets) -> Tensor:
        """Probabilities [samples, classes]: the mean of the voters', without what they give to "none of these"."""
        task = assets.task
        wide = Task(_widened(task), task.shape, task.classes + 1)
        flats = state.view(-1, wide.model.dimension)
        said = torch.stack([wide.probabilities(flat, features) for flat in flats])
        voters = min(self.config.voters or len(flats), len(flats))
        chosen = said[:, :, -1].argsort(dim=0, stable=True)[:voters]
        known = said[:, :, :-1].gather(0, chosen.unsqueeze(2).expand(-1, -1, task.classes)).sum(0)
        return known / known.sum(1, keepdim=True).clamp_min(torch.finfo(known.dtype).tiny)


@lru_cache(maxsize=8)
def _widened(task: Task) -> Model:
    return with_classes(task.model, task.shape, task.classes + 1)


class _OpenSet:
    """The loss of a model with one class more than its samples have, and what goes into its last layer."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._names = [name for name, _, _ in model.parts]
        self._features: list[Tensor] = []
        *_, last = (part for part in model.module.modules() if next(part.parameters(recurse=False), None) is not None)
        self._ends_linear = isinstance(last, nn.Linear) and len(list(last.parameters())) == 2
        last.register_forward_pre_hook(lambda module, inputs: self._features.append(inputs[0]))

    def gradients(
        self, parameters: Sequence[Tensor], features: Tensor, labels: Tensor, rng: np.random.Generator
    ) -> list[Tensor]:
        """Of the loss of one batch, features [b, *shape] and labels [b], by the parameters."""
        outliers = destroyed(features, rng)
        attacked = self._attacked(parameters, outliers)
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]
        with torch.enable_grad():
            loss = self._loss(leaves, features, labels, torch.cat([outliers, attacked]), rng)
            return list(torch.autograd.grad(loss, leaves, materialize_grads=True))

    def _loss(
        self, leaves: Sequence[Tensor], features: Tensor, labels: Tensor, outliers: Tensor, rng: np.random.Generator
    ) -> Tensor:
        count = len(labels)
        logits, hidden = self._logits(leaves, torch.cat([features, outliers]))
        known, unknown = logits[:count], logits[count:]
        none = logits.shape[1] - 1
        second = known.scatter(1, labels.unsqueeze(1), -torch.inf)
        loss = cross_entropy(known, labels) + cross_entropy(second, torch.full_like(labels, none))
        # Of outliers as they are, and attacked: each a mean of its own.
        loss = loss + 2 * cross_entropy(unknown, labels.new_full((len(unknown),), none))
        other = torch.from_numpy(rng.permutation(count))
        differ = labels != labels[other]
        if not self._ends_linear or not bool(differ.any()):
            return loss
        shares = torch.from_numpy(rng.beta(2.0, 2.0, (int(differ.sum()), *[1] * (hidden.dim() - 1)))).to(hidden.dtype)
        mixed = shares * hidden[:count][differ] + (1 - shares) * hidden[:count][other][differ]
        among = linear(mixed, leaves[-2], leaves[-1])
        return loss + _MIXED_SHARE * cross_entropy(among, labels.new_full((len(among),), none))

    def _attacked(self, parameters: Sequence[Tensor], outliers: Tensor) -> Tensor:
        """Outliers moved to where the model rather takes them for "none of these"."""
        moved = outliers
        for _ in range(_ATTACK_STEPS):
            leaf = moved.detach().requires_grad_()
            with torch.enable_grad():
                logits, _ = self._logits(parameters, leaf)
                (gradient,) = torch.autograd.grad(logits.log_softmax(1)[:, -1].sum(), leaf)
            moved = moved + _ATTACK_STEP * gradient.sign()
        return moved

    def _logits(self, parameters: Sequence[Tensor], features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [b, classes + 1], and what went into the last layer, [b, ...]."""
        self._features.clear()
        named = dict(zip(self._names, parameters, strict=True))
        logits: Tensor = functional_call(self.model.module, named, (features,))
        return logits, self._features[-1]
