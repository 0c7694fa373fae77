"""Training and evaluating one model at a time: the reference that every stacked kernel is held to.

The optimizers are functional: their state is born and dies within one call of :meth:`Trainer.train`, so it never lives
in a worker, and a discarded update leaves nothing behind. Bit for bit they are ``torch.optim``'s, whose first use would
import a compiler stack.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from typing import Protocol as Interface

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from node.config import TrainingSection
from node.learn.layers import network
from node.learn.models import Model
from node.op import Key

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
EVALUATION_SAMPLES = 512
"""Samples evaluated at once, so that activations stay in the cache."""
_LEAST_IMAGES = 32
_IMAGE_ELEMENTS = 1 << 15


class Optimizer(Interface):
    """Changes parameters in place, given their gradients; one instance serves one call of :meth:`Trainer.train`."""

    def step(self, parameters: list[Tensor], gradients: list[Tensor], lr: float) -> None:
        """Take one step; may overwrite the gradients."""
        ...


class SGD:
    """Stochastic gradient descent, with heavy-ball momentum where it is not 0."""

    def __init__(self, momentum: float) -> None:
        self._momentum = momentum
        self._velocity: list[Tensor] | None = None

    def step(self, parameters: list[Tensor], gradients: list[Tensor], lr: float) -> None:
        """Move along the gradients, or along their running sum."""
        if self._momentum:
            if self._velocity is None:
                self._velocity = gradients
            else:
                torch._foreach_mul_(self._velocity, self._momentum)
                torch._foreach_add_(self._velocity, gradients)
            gradients = self._velocity
        torch._foreach_add_(parameters, gradients, alpha=-lr)


class Adam:
    """Adam with bias correction (Kingma and Ba, ICLR 2015)."""

    def __init__(self, betas: tuple[float, float] = ADAM_BETAS) -> None:
        self._betas = betas
        self._steps = 0
        self._first: list[Tensor] = []
        self._second: list[Tensor] = []

    def step(self, parameters: list[Tensor], gradients: list[Tensor], lr: float) -> None:
        """Move along the mean gradients, scaled by the root of the mean squares."""
        if not self._steps:
            self._first = [torch.zeros_like(gradient) for gradient in gradients]
            self._second = [torch.zeros_like(gradient) for gradient in gradients]
        self._steps += 1
        beta1, beta2 = self._betas
        torch._foreach_lerp_(self._first, gradients, 1 - beta1)
        torch._foreach_mul_(self._second, beta2)
        torch._foreach_addcmul_(self._second, gradients, gradients, value=1 - beta2)
        scale = torch._foreach_sqrt(self._second)
        torch._foreach_div_(scale, math.sqrt(1 - beta2**self._steps))
        torch._foreach_add_(scale, ADAM_EPSILON)
        torch._foreach_addcdiv_(parameters, self._first, scale, value=-lr / (1 - beta1**self._steps))


def optimizer(section: TrainingSection) -> Optimizer:
    """A fresh optimizer, as the experiment says."""
    return Adam() if section.optimizer == "adam" else SGD(section.momentum)


@dataclass(frozen=True, slots=True, eq=False)
class Guide:
    """What leads training elsewhere than the data alone would."""

    toward: Tensor | None = None
    """Flat model that a proximal term pulls to, in place of the start."""
    mask: Tensor | None = None
    """Of the model's shape: gradients are multiplied by it, weight decay's included."""
    correction: Tensor | None = None
    """Of the model's shape: added to every gradient, before the mask."""
    part: Literal["all", "core", "head"] = "all"
    """Which parameters move: those before the cut, or from there on; the others are frozen."""
    cut: int = 0


class PrivateTraining(Interface):
    """Trains one model at a time without telling much of any single record; :mod:`node.privacy` has the real one."""

    digest: bytes
    """What its results follow from besides the arguments of :meth:`train`: for values that are kept on disk."""

    def train(
        self,
        start: Tensor,
        features: Tensor,
        labels: Tensor,
        key: Key,
        steps: int,
        lr: float,
        proximal: float,
        guide: Guide | None,
    ) -> Tensor:
        """Take steps from the flat vector ``start`` on; gives a new vector.

        Draws its own batches of all records of a node: features [n, *shape], labels [n]. ``key`` is the task's.
        """
        ...


class Trainer:
    """Trains one model at a time.

    ``channels_last`` keeps images, and the weights that they are convolved with, in the order that pooling and
    convolutions are fastest in; the results then differ from the reference's by rounding.
    """

    def __init__(self, model: Model, section: TrainingSection, channels_last: bool = False) -> None:
        self._model = model
        self._section = section
        self._arranged = _channels_last if channels_last else _as_it_is
        self._network = network(model)

    @torch.no_grad()
    def train(
        self,
        start: Tensor,
        batches: Iterable[tuple[Tensor, Tensor]],
        lr: float,
        proximal: float = 0.0,
        guide: Guide | None = None,
    ) -> Tensor:
        """Take one step for each batch (features [b, *shape], labels [b]), from the flat vector ``start`` on.

        ``proximal`` is the strength of the pull back to ``start`` (FedProx: Li et al., MLSys 2020), or to the guide's
        model. Gives a new vector.
        """
        section = self._section
        trained = start.clone()
        views = list(self._model.named(trained).values())
        parameters = [self._arranged(view) for view in views]
        anchors = self._anchors(parameters, guide) if proximal else []
        moving = moving_of(self._model, guide)
        masks = [] if guide is None else self._aligned(guide.mask)
        corrections = [] if guide is None else self._aligned(guide.correction)
        rule = optimizer(section)
        differentiate = self._network.at(parameters)
        for features, labels in batches:
            gradients = differentiate(self._arranged(features), labels)
            if proximal:
                torch._foreach_add_(gradients, torch._foreach_sub(parameters, anchors), alpha=proximal)
            if section.weight_decay:
                torch._foreach_add_(gradients, parameters, alpha=section.weight_decay)
            if corrections:
                torch._foreach_add_(gradients, corrections)
            if masks:
                torch._foreach_mul_(gradients, masks)
            rule.step(parameters[moving], gradients[moving], lr)
        for view, parameter in zip(views, parameters, strict=True):
            if view is not parameter:
                view.copy_(parameter)
        return trained

    def _named(self, flat: Tensor) -> list[Tensor]:
        return list(self._model.named(flat).values())

    def _aligned(self, flat: Tensor | None) -> list[Tensor]:
        """As the parameters lie, for each of them; none of nothing."""
        return [] if flat is None else [self._arranged(view) for view in self._named(flat)]

    def _anchors(self, parameters: list[Tensor], guide: Guide | None) -> list[Tensor]:
        if guide is None or guide.toward is None:
            return [parameter.clone() for parameter in parameters]
        return self._aligned(guide.toward)

    @torch.no_grad()
    def evaluate(self, flat: Tensor, features: Tensor, labels: Tensor) -> dict[str, float]:
        """Share of samples whose highest logit is their label's (the first one, where several are), and the mean loss.

        Matrix products round by alignment, and a buffer from the network may have any: such a one is copied first.
        """
        named = self._model.named(flat.clone() if flat.data_ptr() % 64 else flat)
        parameters = [self._arranged(view) for view in named.values()]
        right, loss = 0, 0.0
        at_once = self._samples_at_once(features)
        for start in range(0, len(labels), at_once):
            part = slice(start, start + at_once)
            logits = self._network.logits(parameters, self._arranged(features[part]))
            right += int((logits.argmax(1) == labels[part]).sum())
            loss += float(cross_entropy(logits, labels[part], reduction="sum"))
        return {"accuracy": right / len(labels), "loss": loss / len(labels)}

    def _samples_at_once(self, features: Tensor) -> int:
        """Fewer where they are images, whose activations are many times their own size."""
        if not self._model.is_convolutional:
            return EVALUATION_SAMPLES
        return min(EVALUATION_SAMPLES, max(_LEAST_IMAGES, _IMAGE_ELEMENTS // math.prod(features.shape[1:])))


def moving_of(model: Model, guide: Guide | None) -> slice:
    """Which of a model's parameters a guide lets move."""
    if guide is None or guide.part == "all":
        return slice(None)
    frozen = sum(part.start < guide.cut for _, part, _ in model.parts)
    return slice(frozen) if guide.part == "core" else slice(frozen, None)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _channels_last(tensor: Tensor) -> Tensor:
    """A copy whose channels lie side by side, if it has any; ``contiguous`` would leave a single channel as it is."""
    if tensor.dim() != 4:
        return tensor
    return torch.empty(tensor.shape, device=tensor.device, memory_format=torch.channels_last).copy_(tensor)
