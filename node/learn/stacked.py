"""Training and evaluating many models of one architecture in one call.

The models of a call are the rows of a slab [models, dimension], of which a few at a time are trained in place. A row's
result never depends on the rows beside it: each call has at least four (with fewer, libraries choose other kernels),
the rows of every buffer start at one alignment (which matrix products round by), and a gap between them keeps
element-wise loops from running across rows. Against the reference in :mod:`node.learn.training` results differ by
rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol as Interface
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from node.config import TrainingSection
from node.learn.models import Dense, Model
from node.learn.training import ADAM_BETAS, ADAM_EPSILON, EVALUATION_SAMPLES

T = TypeVar("T")

LEAST_ROWS = 4
"""Models (and samples of a batch) that every stacked call has, filled up where there are fewer."""

_CACHE_BYTES = 2 << 20
_VMAP_PARAMETERS = 25_000
_VMAP_ROWS = 32
_TRIAL_ROWS = 20
_EVALUATION_ROWS = 8
_threshold_backward = torch.ops.aten.threshold_backward.grad_input


@dataclass(frozen=True, slots=True, eq=False)
class StackedBatches:
    """What some models train on, step by step."""

    features: Tensor
    """float32 [samples, *shape]: the whole training set."""
    labels: Tensor
    """int64 [samples]."""
    rows: Tensor
    """int64 [steps, models, width]: samples of each batch; any sample beyond a batch's own size."""
    sizes: Tensor
    """int64 [steps, models]: samples that a batch really holds."""

    def weights(self) -> Tensor:
        """Each sample's share of its batch's mean loss, 0 for the ones that only fill up: [steps, models, width]."""
        real = torch.arange(self.rows.shape[2]) < self.sizes.unsqueeze(2)
        return real / self.sizes.unsqueeze(2)

    def step(self, number: int) -> Tensor:
        """The features of one step, [models, width, *shape]."""
        rows = self.rows[number]
        return self.features.index_select(0, rows.flatten()).view(*rows.shape, *self.features.shape[1:])


class Kernel(Interface):
    """Trains the models of a call."""

    most_rows: int
    """Models that one call should have at most, for speed alone."""

    def train(self, slab: Tensor, batches: StackedBatches, lr: Tensor, proximal: Tensor) -> None:
        """Train the rows of a slab [models, dimension] in place; ``lr`` and ``proximal`` are [models, 1]."""
        ...


def kernel(model: Model, section: TrainingSection, shape: tuple[int, ...]) -> Kernel | None:
    """The fastest stacked kernel for a model; None where looping over the reference is faster."""
    if isinstance(model, Dense):
        return DenseKernel(model, section)
    if model.dimension < _VMAP_PARAMETERS and not model.is_convolutional:
        candidate = VmapKernel(model, section)
        return candidate if candidate.supports(shape) else None
    return None


def chunks(items: Sequence[T], most: int) -> Iterator[Sequence[T]]:
    """Runs of about equal length, of at most so many items."""
    count = math.ceil(len(items) / most)
    for i in range(count):
        yield items[i * len(items) // count : (i + 1) * len(items) // count]


def filled(items: Sequence[T]) -> list[T]:
    """The items, the last one repeated until there are enough for a stacked call."""
    return [*items, *[items[-1]] * (LEAST_ROWS - len(items))]


def aligned(models: int, *shape: int) -> Tensor:
    """A new buffer [models, *shape] of zeros, whose rows start at multiples of 64 bytes and have a gap between them."""
    elements = math.prod(shape)
    return torch.zeros(models, (elements // 16 + 1) * 16)[:, :elements].view(models, *shape)


def gather(flats: Sequence[Tensor]) -> Tensor:
    """Copy models into the rows of a new slab [models, dimension]."""
    slab = aligned(len(flats), len(flats[0]))
    torch._foreach_copy_(list(slab.unbind()), list(flats))
    return slab


class _SlabOptimizer:
    """The rules of :mod:`node.learn.training`, on a slab with a learning rate for each row.

    Adam divides a gradient by its own size, so it magnifies the rounding of gradients that are nearly zero.
    """

    def __init__(self, section: TrainingSection, slab: Tensor, proximal: Tensor) -> None:
        self._section = section
        self._proximal = proximal if bool(proximal.any()) else None
        self._start = slab.clone() if self._proximal is not None else None
        self._steps = 0
        stateful = section.optimizer == "adam" or section.momentum
        self._first = aligned(*slab.shape) if stateful else slab
        self._second = aligned(*slab.shape) if section.optimizer == "adam" else slab

    def step(self, slab: Tensor, gradient: Tensor, lr: Tensor) -> None:
        """Change a slab [models, dimension] in place; overwrites the gradient, [models, dimension]."""
        if self._start is not None and self._proximal is not None:
            gradient.addcmul_(slab - self._start, self._proximal)
        if self._section.weight_decay:
            gradient.add_(slab, alpha=self._section.weight_decay)
        if self._section.optimizer == "adam":
            self._adam(slab, gradient, lr)
            return
        if self._section.momentum:
            gradient = self._first.mul_(self._section.momentum).add_(gradient)
        slab.addcmul_(gradient, lr, value=-1)

    def _adam(self, slab: Tensor, gradient: Tensor, lr: Tensor) -> None:
        self._steps += 1
        beta1, beta2 = ADAM_BETAS
        self._first.lerp_(gradient, 1 - beta1)
        self._second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = torch.sqrt(self._second, out=gradient)
        scale.div_(math.sqrt(1 - beta2**self._steps)).add_(ADAM_EPSILON)
        slab.addcmul_(torch.div(self._first, scale, out=scale), lr, value=-1 / (1 - beta1**self._steps))


class VmapKernel:
    """Any small module, with its gradient vectorised by ``torch.func``."""

    most_rows = _VMAP_ROWS

    def __init__(self, model: Model, section: TrainingSection) -> None:
        def loss(flat: Tensor, features: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
            return cross_entropy(model.logits(flat, features), labels, reduction="none") @ weights

        self._model = model
        self._section = section
        self._gradient = torch.func.vmap(torch.func.grad(loss))

    def supports(self, shape: tuple[int, ...]) -> bool:
        """Whether the module can be vectorised with rows that do not depend on their place, found by trying.

        Inside ``vmap`` nobody can align buffers, so modules with layers of odd sizes may fail.
        """
        slab = gather([self._model.initial(seed) for seed in range(_TRIAL_ROWS)])
        generator = torch.Generator().manual_seed(0)
        try:
            for width in (LEAST_ROWS, max(LEAST_ROWS, self._section.batch_size)):
                samples = torch.randn(_TRIAL_ROWS, width, *shape, generator=generator)
                labels = torch.zeros(_TRIAL_ROWS, width, dtype=torch.int64)
                trial = (slab, samples, labels, torch.ones(_TRIAL_ROWS, width))
                whole = self._gradient(*trial)
                for first in range(1, _TRIAL_ROWS - LEAST_ROWS):
                    part = [tensor[first:].clone() for tensor in trial[1:]]
                    if not torch.equal(self._gradient(gather(slab[first:].unbind()), *part), whole[first:]):
                        return False
        except (RuntimeError, ValueError, TypeError):
            return False
        return True

    def train(self, slab: Tensor, batches: StackedBatches, lr: Tensor, proximal: Tensor) -> None:
        """Train the rows of a slab [models, dimension] in place; ``lr`` and ``proximal`` are [models, 1]."""
        weights = batches.weights()
        rule = _SlabOptimizer(self._section, slab, proximal)
        for step, rows in enumerate(batches.rows):
            gradient = self._gradient(slab, batches.step(step), batches.labels[rows], weights[step])
            rule.step(slab, gradient, lr)


class DenseKernel:
    """Fully connected layers with ReLU: forward and backward written out as batched matrix products."""

    def __init__(self, model: Dense, section: TrainingSection) -> None:
        self._model = model
        self._section = section
        self._is_plain = section.optimizer == "sgd" and not section.momentum and not section.weight_decay
        self.most_rows = min(max(_CACHE_BYTES // (4 * model.dimension), 8), 64)

    def train(self, slab: Tensor, batches: StackedBatches, lr: Tensor, proximal: Tensor) -> None:
        """Train the rows of a slab [models, dimension] in place; ``lr`` and ``proximal`` are [models, 1]."""
        is_plain = self._is_plain and not bool(proximal.any())
        # The gradient is linear in the samples' weights, so plain SGD needs no gradient at all: the learning rate goes
        # into the weights, and every product is subtracted from the parameters where it arises.
        weights = batches.weights().unsqueeze(2)
        if is_plain:
            weights.mul_(lr.unsqueeze(2))
        classes = self._model.widths[-1]
        targets = torch.zeros(*weights.shape[:2], classes, weights.shape[3])
        targets.scatter_(2, batches.labels[batches.rows].unsqueeze(2), weights)
        gradient = slab if is_plain else aligned(*slab.shape)
        rule = _SlabOptimizer(self._section, slab, proximal)
        network = _Network(slab, gradient, self._model.widths, weights.shape[3])
        for step in range(len(weights)):
            network.differentiate(batches.step(step).flatten(2), weights[step], targets[step])
            if not is_plain:
                rule.step(slab, gradient, lr)


class _Network:
    """The layers of a slab's models as views, and the buffers of one pass, used again at every step."""

    def __init__(self, slab: Tensor, gradient: Tensor, widths: tuple[int, ...], width: int) -> None:
        models = len(slab)
        self._is_in_place = gradient is slab
        self._layers = _layers(slab, widths)
        self._gradients = _layers(gradient, widths)
        self._activations = [aligned(models, width, units) for units in widths[:-1]]
        self._errors = [aligned(models, width, units) for units in widths[:-1]]
        self._logits = aligned(models, widths[-1], width)

    def differentiate(self, features: Tensor, weights: Tensor, targets: Tensor) -> None:
        """Write the gradient of the weighted loss over the gradient slab, or subtract it from the models themselves.

        ``features`` [models, width, inputs], ``weights`` [models, 1, width], ``targets`` [models, classes, width]: the
        weight at each sample's label.
        """
        activations = self._activations
        activations[0].copy_(features)
        for (weight, bias), (inputs, outputs) in zip(self._layers, itertools.pairwise(activations), strict=False):
            torch.baddbmm(bias.unsqueeze(1), inputs, weight.transpose(1, 2), out=outputs).relu_()
        weight, bias = self._layers[-1]
        logits = torch.baddbmm(bias.unsqueeze(2), weight, activations[-1].transpose(1, 2), out=self._logits)
        error = torch.softmax(logits, 1, out=logits).mul_(weights).sub_(targets)
        for i in reversed(range(len(self._layers))):
            propagated = error
            if i:
                inputs = torch.bmm(error.transpose(1, 2), self._layers[i][0], out=self._errors[i])
                propagated = _threshold_backward(inputs, activations[i], 0, grad_input=inputs).transpose(1, 2)
            self._accumulate(i, error, activations[i])
            error = propagated

    def _accumulate(self, layer: int, error: Tensor, inputs: Tensor) -> None:
        """Turn a layer's error [models, outputs, width] into the gradient of its parameters."""
        weight, bias = self._gradients[layer]
        if self._is_in_place:
            weight.baddbmm_(error, inputs, alpha=-1)
            bias.sub_(error.sum(2))
        else:
            weight.baddbmm_(error, inputs, beta=0)
            torch.sum(error, 2, out=bias)


def _layers(slab: Tensor, widths: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Weights [models, outputs, inputs] and biases [models, outputs] of each layer, as views of a slab."""
    layers, start = [], 0
    for inputs, outputs in itertools.pairwise(widths):
        end = start + inputs * outputs
        layers.append((slab[:, start:end].view(-1, outputs, inputs), slab[:, end : end + outputs]))
        start = end + outputs
    return layers


def evaluate(model: Dense, flats: Sequence[Tensor], features: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """What :func:`node.learn.training.evaluate` gives, for many models on the same samples."""
    results: list[dict[str, float]] = []
    samples = len(labels)
    for chunk in chunks(flats, _EVALUATION_ROWS):
        layers = _layers(gather(filled(chunk)), model.widths)
        models = len(layers[0][0])
        right, loss = torch.zeros(models, dtype=torch.int64), torch.zeros(models, dtype=torch.float64)
        for start in range(0, samples, EVALUATION_SAMPLES):
            part = slice(start, start + EVALUATION_SAMPLES)
            logits = _logits(layers, features[part].flatten(1).t())
            right += (logits.max(1).indices == labels[part]).sum(1)
            chosen = labels[part].expand(models, 1, -1)
            loss -= logits.log_softmax(1).gather(1, chosen).sum((1, 2))
        counts = zip(right.tolist(), loss.tolist(), strict=True)
        found = [{"accuracy": count / samples, "loss": total / samples} for count, total in counts]
        results += found[: len(chunk)]
    return results


def _logits(layers: Sequence[tuple[Tensor, Tensor]], features: Tensor) -> Tensor:
    """Logits [models, classes, samples] of every model, for features [inputs, samples]: samples last throughout."""
    models, samples = len(layers[0][0]), features.shape[1]
    activation = features.expand(models, *features.shape)
    for i, (weight, bias) in enumerate(layers):
        outputs = aligned(models, weight.shape[1], samples)
        torch.baddbmm(bias.unsqueeze(2), weight, activation.relu_() if i else activation, out=outputs)
        activation = outputs
    return activation
