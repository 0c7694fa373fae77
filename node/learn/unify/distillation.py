"""Students that learn what teachers say of samples without labels.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015; L1 on logits: Gong et al., AAAI 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from node.learn import batches
from node.learn.models import Model
from node.learn.training import Adam
from node.op import Key
from node.unifiers import Loss, Rule

_LEAST_PROBABILITY = 1e-4
"""What a probability counts as at least, where it is its logarithm that a student learns."""


def objective(loss: Loss, rule: Rule, targets: Tensor, temperature: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    """From a student's logits [b, classes] of some samples, and their numbers [b], to the mean loss.

    ``targets`` [samples, classes] are what the teacher says, logits or probabilities as the rule has it. From
    probabilities, ``l1`` learns logarithms, clipped at 1e-4. ``kl`` weighs by the teacher's probabilities, and is
    multiplied by the square of the temperature, so that gradients do not shrink with it.
    """
    classes = targets.argmax(1)
    if loss == "hard":
        return lambda logits, rows: cross_entropy(logits, classes[rows])
    if loss == "confident":
        sure = sharpened(targets, rule).max(1).values
        return lambda logits, rows: (sure[rows] * cross_entropy(logits, classes[rows], reduction="none")).mean()
    if loss == "l1":
        if rule == "logits":
            return lambda logits, rows: (logits - targets[rows]).abs().mean()
        logs = targets.clamp_min(_LEAST_PROBABILITY).log()
        return lambda logits, rows: (logits.log_softmax(1) - logs[rows]).abs().mean()
    soft = sharpened(targets, rule, 1 / temperature)
    return lambda logits, rows: (
        kl_div((logits / temperature).log_softmax(1), soft[rows], reduction="batchmean") * temperature**2
    )


def sharpened(targets: Tensor, rule: Rule, by: float = 1.0) -> Tensor:
    """A teacher's probabilities [samples, classes], its logits multiplied by ``by``: above 1 surer, below 1 softer."""
    if rule == "logits":
        return (targets * by).softmax(1)
    raised = targets**by
    return raised / raised.sum(1, keepdim=True)


@torch.no_grad()
def lessons(
    student: Model,
    start: Tensor,
    features: Tensor,
    objective: Callable[[Tensor, Tensor], Tensor],
    key: Key,
    *,
    steps: int,
    batch_size: int,
    lr: Callable[[int], float],
) -> Iterator[Tensor]:
    """A student after each of so many steps of Adam on features [samples, *shape], from the flat vector ``start`` on.

    It goes through the samples in passes, each in an order that follows from the key; ``lr`` gives the rate of a step,
    counted from 0. All that is given is one new vector, which the next step changes in place.
    """
    trained = start.clone()
    names = [name for name, _, _ in student.parts]
    parameters = list(student.named(trained).values())
    leaves = [parameter.detach().requires_grad_() for parameter in parameters]
    rule = Adam()
    width = min(batch_size, len(features))
    places, sizes = batches.draw([key], np.array([len(features)]), batch_size, steps, width)
    drawn = zip(torch.from_numpy(places[:, 0]).to(features.device), sizes[:, 0].tolist(), strict=True)
    for step, (row, size) in enumerate(drawn):
        rows = row[:size]
        with torch.enable_grad():
            logits = student.forward(dict(zip(names, leaves, strict=True)), features.index_select(0, rows))
            gradients = torch.autograd.grad(objective(logits, rows), leaves, materialize_grads=True)
        rule.step(parameters, list(gradients), lr(step))
        yield trained


def distil(
    student: Model,
    start: Tensor,
    features: Tensor,
    objective: Callable[[Tensor, Tensor], Tensor],
    key: Key,
    *,
    steps: int,
    batch_size: int,
    lr: float,
) -> Tensor:
    """A student after all of its :func:`lessons`, at one rate. Gives a new vector."""
    how = {"steps": steps, "batch_size": batch_size}
    *_, trained = lessons(student, start, features, objective, key, **how, lr=lambda step: lr)
    return trained


def agreement(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """How often a student's logits and what its teacher says, both [samples, classes], put the same class first."""
    same = int((logits.argmax(1) == targets.argmax(1)).sum())
    return {"agreement": same / len(targets) if len(targets) else math.nan}
