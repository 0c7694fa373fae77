"""Training and evaluating many fully connected models in one call.

Against the reference in :mod:`node.learn.training` results differ by rounding.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from node.config import TrainingSection
from node.learn.models import Dense
from node.learn.slabs import (
    LEAST_ROWS,
    UNGUIDED,
    Guides,
    SlabOptimizer,
    StackedBatches,
    aligned,
    chunks,
    filled,
    gather,
)
from node.learn.training import EVALUATION_SAMPLES

_EVALUATION_ROWS = 8
_threshold_backward = torch.ops.aten.threshold_backward.grad_input


class DenseKernel:
    """Fully connected layers with ReLU: forward and backward written out as batched matrix products."""

    least_rows = LEAST_ROWS

    def __init__(self, model: Dense, section: TrainingSection, most_rows: int) -> None:
        self.name = f"stacked-{most_rows}"
        self.most_rows = most_rows
        self._model = model
        self._section = section
        self._is_plain = section.optimizer == "sgd" and not section.momentum and not section.weight_decay

    def train(
        self, slab: Tensor, batches: StackedBatches, lr: Tensor, proximal: Tensor, guides: Guides = UNGUIDED
    ) -> None:
        """Train the rows of a slab [models, dimension] in place; ``lr`` and ``proximal`` are float64 [models, 1]."""
        lr = lr.to(slab)
        is_led = guides.mask is not None or guides.correction is not None or bool(proximal.any())
        is_plain = self._is_plain and not is_led
        # The gradient is linear in the samples' weights, so plain SGD needs no gradient at all: the learning rate goes
        # into the weights, and every product is subtracted from the parameters where it arises.
        weights = batches.weights().unsqueeze(2)
        if is_plain:
            weights.mul_(lr.unsqueeze(2))
        classes = self._model.widths[-1]
        targets = weights.new_zeros(*weights.shape[:2], classes, weights.shape[3])
        targets.scatter_(2, batches.labels[batches.rows].unsqueeze(2), weights)
        gradient = slab if is_plain else aligned(*slab.shape, device=slab.device)
        rule = SlabOptimizer(self._section, slab, proximal, guides)
        network = _Network(slab, gradient, self._model.widths, weights.shape[3], guides)
        for step in range(len(weights)):
            network.differentiate(batches.step(step).flatten(2), weights[step], targets[step])
            if not is_plain:
                rule.step(gradient, lr)


class _Network:
    """The layers of a slab's models as views, and the buffers of one pass, used again at every step."""

    def __init__(self, slab: Tensor, gradient: Tensor, widths: tuple[int, ...], width: int, guides: Guides) -> None:
        models = len(slab)
        self._is_in_place = gradient is slab
        self._layers = _layers(slab, widths)
        self._moving = _moving(widths, guides)
        self._gradients = _layers(gradient, widths)
        self._activations = [aligned(models, width, units, device=slab.device) for units in widths[:-1]]
        self._errors = [aligned(models, width, units, device=slab.device) for units in widths[:-1]]
        self._logits = aligned(models, widths[-1], width, device=slab.device)

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
        for i in reversed(range(self._moving.start, len(self._layers))):
            propagated = error
            if i > self._moving.start:
                inputs = torch.bmm(error.transpose(1, 2), self._layers[i][0], out=self._errors[i])
                propagated = _threshold_backward(inputs, activations[i], 0, grad_input=inputs).transpose(1, 2)
            if i in self._moving:
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


def _moving(widths: tuple[int, ...], guides: Guides) -> range:
    """The layers that are not frozen."""
    sizes = [(inputs + 1) * outputs for inputs, outputs in itertools.pairwise(widths)]
    begins = list(itertools.accumulate(sizes, initial=0))
    start, stop, _ = guides.moving.indices(begins[-1])
    return range(begins.index(start), begins.index(stop))


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
        layers = _layers(gather(filled(chunk), features.device), model.widths)
        models = len(layers[0][0])
        right = torch.zeros(models, dtype=torch.int64, device=features.device)
        loss = torch.zeros(models, dtype=torch.float64, device=features.device)
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


@torch.no_grad()
def logits(model: Dense, flats: Sequence[Tensor], features: Tensor) -> list[Tensor]:
    """What each of many models says of the same samples: logits [samples, classes]."""
    said: list[Tensor] = []
    for chunk in chunks(flats, _EVALUATION_ROWS):
        layers = _layers(gather(filled(chunk), features.device), model.widths)
        parts = [_logits(layers, part.flatten(1).t()) for part in torch.split(features, EVALUATION_SAMPLES)]
        said += [rows.t().contiguous() for rows in torch.cat(parts, 2)[: len(chunk)]]
    return said


def _logits(layers: Sequence[tuple[Tensor, Tensor]], features: Tensor) -> Tensor:
    """Logits [models, classes, samples] of every model, for features [inputs, samples]: samples last throughout."""
    models, samples = len(layers[0][0]), features.shape[1]
    activation = features.expand(models, *features.shape)
    for i, (weight, bias) in enumerate(layers):
        outputs = aligned(models, weight.shape[1], samples, device=features.device)
        torch.baddbmm(bias.unsqueeze(2), weight, activation.relu_() if i else activation, out=outputs)
        activation = outputs
    return activation
