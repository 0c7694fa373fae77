"""Students that learn from samples which a generator makes up, where there is no public data.

Zhang, Chen, Li, Lyu, Wu, Ding, Shen, Wu: DENSE: Data-Free One-Shot Federated Learning, NeurIPS 2022. Its term that
compares running statistics is absent: no model here has any. Its generator is fully connected here, for samples of
every shape.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, cross_entropy, kl_div, leaky_relu, linear

from node.learn.models import Model
from node.learn.training import SGD, Adam
from node.op import Key
from node.unifiers import Generation

_LATENT = 256
_HIDDEN = 256
_DEVIATION = 0.02
"""Of a generator's first weights."""
_BETAS = (0.5, 0.999)
MOMENTUM = 0.9
"""Of a student that learns from made-up samples."""


class Generator:
    """Makes samples of noise [b, 256]: one hidden layer, normalised over the batch.

    Args:
        shape: of one sample.
        is_standardised: whether values are around 0; otherwise they are between 0 and 1.
    """

    def __init__(self, shape: tuple[int, ...], is_standardised: bool, draws: torch.Generator) -> None:
        self._shape = shape
        self._is_standardised = is_standardised
        widths = (_LATENT, _HIDDEN, math.prod(shape))
        self.parameters: list[Tensor] = []
        for inputs, outputs in itertools.pairwise(widths):
            self.parameters += [torch.randn(outputs, inputs, generator=draws) * _DEVIATION, torch.zeros(outputs)]

    def samples(self, noise: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Samples [b, *shape] of noise [b, 256]."""
        first, shift, second, bias = parameters
        hidden = leaky_relu(batch_norm(linear(noise, first, shift), None, None, training=True), 0.2)
        drawn = linear(hidden, second, bias)
        values = batch_norm(drawn, None, None, training=True) if self._is_standardised else drawn.sigmoid()
        return values.view(-1, *self._shape)


class Teachers:
    """Several models whose logits are averaged, or summed by weights."""

    def __init__(self, model: Model, flats: Sequence[Tensor]) -> None:
        self._model = model
        self._parameters = [model.named(flat) for flat in flats]

    def logits(self, features: Tensor, weights: Tensor | None = None) -> Tensor:
        """What they say together, [samples, classes]; ``weights`` [models], or none for the mean."""
        said = torch.stack([self._model.forward(each, features) for each in self._parameters])
        return said.mean(0) if weights is None else torch.einsum("m,msc->sc", weights, said)


def generated(
    student: Model,
    start: Tensor,
    teachers: Teachers,
    shape: tuple[int, ...],
    classes: int,
    is_standardised: bool,
    key: Key,
    how: Generation,
) -> Tensor:
    """A student, from the flat vector ``start`` on, that has learned what teachers say of made-up samples.

    Each epoch trains a new generator, adds its best batch to a pool, and lets the student go through the pool once.
    Gives a new vector.
    """
    draws = torch.Generator().manual_seed(int(key.rng().integers(2**63)))
    trained, rule = start.clone(), SGD(MOMENTUM)
    known = student.named(trained)
    pool: list[tuple[Tensor, Tensor]] = []

    def loss(samples: Tensor, labels: Tensor) -> Tensor:
        said, learned = teachers.logits(samples), student.forward(known, samples)
        return cross_entropy(said, labels) - _disagreement(learned, said)

    for _ in range(how.epochs):
        batch, _ = best_batch(Generator(shape, is_standardised, draws), loss, classes, draws, how)
        with torch.no_grad():
            pool.append((batch, teachers.logits(batch)))
        for place in torch.randperm(len(pool), generator=draws).tolist():
            learn(student, trained, rule, *pool[place], temperature=how.temperature, lr=how.student_lr)
    return trained


def best_batch(
    generator: Generator,
    loss: Callable[[Tensor, Tensor], Tensor],
    classes: int,
    draws: torch.Generator,
    how: Generation,
) -> tuple[Tensor, Tensor]:
    """What a generator makes once it, and its noise, have been trained: the samples with the lowest loss on the way.

    ``loss`` is of samples and the classes that they are to be of; these, drawn at random, come with the samples.
    """
    noise = torch.randn(how.batch_size, _LATENT, generator=draws)
    labels = torch.randint(classes, (how.batch_size,), generator=draws)
    leaves = [leaf.requires_grad_() for leaf in (*generator.parameters, noise)]
    rule = Adam(_BETAS)
    best, lowest = noise.new_zeros(0), math.inf
    for _ in range(how.steps):
        with torch.enable_grad():
            samples = generator.samples(leaves[-1], leaves[:-1])
            value = loss(samples, labels)
            gradients = torch.autograd.grad(value, leaves)
        if best.numel() == 0 or float(value.detach()) < lowest:
            best, lowest = samples.detach(), float(value.detach())
        with torch.no_grad():
            rule.step(leaves, list(gradients), how.lr)
    return best, labels


def _disagreement(learned: Tensor, said: Tensor) -> Tensor:
    """How far a student is from its teachers, over the samples that it puts into another class than they."""
    divergence = kl_div(learned.log_softmax(1), said.softmax(1), reduction="none").sum(1)
    return (divergence * (learned.argmax(1) != said.argmax(1))).mean()


def learn(
    student: Model,
    flat: Tensor,
    rule: SGD,
    features: Tensor,
    said: Tensor,
    *,
    temperature: float,
    lr: float,
    longest: float = math.inf,
) -> None:
    """One step of a student, in place, towards what teachers say: their logits [samples, classes].

    A gradient is cut to the length ``longest``.
    """
    names = [name for name, _, _ in student.parts]
    parameters = list(student.named(flat).values())
    leaves = [parameter.detach().requires_grad_() for parameter in parameters]
    with torch.enable_grad():
        logits = student.forward(dict(zip(names, leaves, strict=True)), features) / temperature
        soft = (said / temperature).softmax(1)
        loss = kl_div(logits.log_softmax(1), soft, reduction="batchmean") * temperature**2
        gradients = list(torch.autograd.grad(loss, leaves, materialize_grads=True))
    with torch.no_grad():
        length = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
        if length > longest:
            torch._foreach_mul_(gradients, longest / length)
        rule.step(parameters, gradients, lr)
