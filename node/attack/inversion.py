"""Training samples back from an update: in closed form where there is one, else by matching gradients.

Sources: DLG, Zhu, Liu and Han, NeurIPS 2019; iDLG, Zhao, Mopuri and Bilen, arXiv 2001.02610; cosine matching, Geiping,
Bauermeister, Dröge and Moeller, NeurIPS 2020; labels of batches, Wainakh et al., PoPETs 2022; imprinted layers, Fowl et
al., ICLR 2022; several local steps, Yue et al., USENIX Security 2023.

DLG needs smooth activations (sigmoid, tanh); cosine matching works with ReLU, and fails on sigmoid networks.
Coordinates that were not observed are left out of the match: filled with zeros and matched too, they would make a
sparse message look far safer than it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from typing import Protocol as Interface

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from node.attack.linkability import Logits
from node.errors import ComputeError, ConfigError
from node.learn.models import Model
from node.learn.training import Adam


class LocalSteps(NamedTuple):
    """The steps of plain SGD that an update is known to come from."""

    lr: float
    batches: tuple[tuple[int, ...], ...]
    """Which of the samples each step read, as places among those to be found."""


@dataclass(frozen=True, slots=True, eq=False)
class Leak:
    """One update that an attacker holds; several of the same samples are matched together."""

    model: Tensor
    """The model that the update started from, [dimension]."""
    update: Tensor
    """``(start - end)/lr``, a gradient where it was one step: [observed]."""
    places: Tensor | None = None
    """Which coordinates were observed, int64 [observed]; absent: all."""
    steps: LocalSteps | None = None
    """Absent: one step on all samples."""


class Inversion(NamedTuple):
    """What was found."""

    features: Tensor
    """float64 [samples, *shape], not clamped."""
    labels: Tensor
    """int64 [samples]."""
    objective: float
    """What is left of the difference; the least among the restarts."""


# Closed forms


def output_bias(model: Model, update: Tensor) -> Tensor:
    """The last layer's bias [classes] in a flat update. Raises ConfigError where the model has none."""
    name, part, shape = model.parts[-1]
    if len(shape) != 1:
        raise ConfigError(f"model.name: {model.name!r} ends with {name!r} {list(shape)}; labels leak through a bias")
    return update[part]


def labels_of(bias_gradient: Tensor, samples: int, predicted: np.ndarray | None = None) -> np.ndarray:
    """The labels of a batch, surest first: int64 [samples].

    A negative entry proves its label; beyond that, labels are given out one by one to where most is left of the mean
    prediction less the gradient (LLG).

    Args:
        bias_gradient: of the last layer, [classes].
        samples: in the batch.
        predicted: the model's mean prediction [classes]; absent: all classes alike, as an untrained model has them.
    """
    gradient = bias_gradient.double().numpy()
    left = (np.full(len(gradient), 1 / len(gradient)) if predicted is None else predicted) - gradient
    order = np.argsort(gradient, kind="stable")
    labels = [int(label) for label in order if gradient[label] < 0][:samples]
    left[labels] -= 1 / samples
    while len(labels) < samples:
        labels.append(int(left.argmax()))
        left[labels[-1]] -= 1 / samples
    return np.array(labels, dtype=np.int64)


def analytic_input(weight_gradient: Tensor, bias_gradient: Tensor) -> Tensor:
    """What a fully connected layer was fed, exactly, from a gradient of one sample: ``dW_j / db_j``, [inputs].

    Takes the row [outputs, inputs] whose bias gradient [outputs] is largest. Raises ComputeError where all are 0.
    """
    row = int(bias_gradient.abs().argmax())
    if bias_gradient[row] == 0:
        raise ComputeError("no unit of the layer was active: its gradient does not say what it was fed")
    return weight_gradient[row] / bias_gradient[row]


def imprinted_inputs(weight_gradient: Tensor, bias_gradient: Tensor) -> Tensor:
    """What fell into each bin of an imprinted layer, [bins with a gradient, inputs].

    Such a layer has one weight vector and falling biases, so a sample is active in all rows up to its bin's, and
    differences of neighbouring rows belong to one bin: exact where it holds one sample, a weighted mean otherwise.
    """
    weights, biases = (
        torch.diff(rows, dim=0, append=torch.zeros_like(rows[:1])) for rows in (weight_gradient, bias_gradient)
    )
    full = biases.abs() > 1e-6 * bias_gradient.abs().max()
    return weights[full] / biases[full, None]


# Matching


def update_of(
    logits: Logits, model: Tensor, features: Tensor, targets: Tensor, steps: LocalSteps | None = None
) -> Tensor:
    """The update [dimension] that some samples lead to, differentiable in features and targets.

    Args:
        logits: the model's function.
        model: where training starts, [dimension].
        features: [samples, *shape].
        targets: labels int64 [samples], or probabilities [samples, classes].
        steps: absent: the gradient of the mean loss over all samples.
    """
    if steps is None:
        return _gradient(logits, model, features, targets)
    trained = model
    for batch in steps.batches:
        rows = torch.tensor(batch)
        trained = trained - steps.lr * _gradient(logits, trained, features[rows], targets[rows])
    return (model - trained) / steps.lr


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels, in both directions, of images [..., height, width]."""
    down, right = images.diff(dim=-2).abs(), images.diff(dim=-1).abs()
    return down.mean() + right.mean()


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """What a candidate for the samples is judged by; all in float64."""

    logits: Logits
    leaks: tuple[Leak, ...]
    shape: tuple[int, ...]
    """[samples, *shape]."""
    labels: Tensor | None
    """int64 [samples]; absent: to be found as well."""
    classes: int

    def pairs(self, features: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What a candidate leads to, beside what was observed, for each leak: both [observed]."""
        found = []
        for leak in self.leaks:
            update = update_of(self.logits, leak.model, features, targets, leak.steps)
            found.append((update if leak.places is None else update[leak.places], leak.update))
        return found


class Method(Interface):
    """A way to search for samples that explain what was observed."""

    @property
    def tv(self) -> float:
        """Weight of the total variation: a prior on images, against noise."""
        ...

    def search(self, problem: Problem, rng: np.random.Generator) -> Inversion:
        """Search once, from a random start."""
        ...


@dataclass(frozen=True, slots=True)
class DLG:
    """``min_x sum ||g(x) - g*||^2`` by L-BFGS; finds unknown labels too, as probabilities."""

    iterations: int = 1200
    tolerance: float = 1e-9
    """Stop where the objective is below it."""
    tv: float = 0.0

    def search(self, problem: Problem, rng: np.random.Generator) -> Inversion:
        """Search once, from a standard normal start."""
        pixels = math.prod(problem.shape)
        unknown_labels = 0 if problem.labels is not None else problem.shape[0] * problem.classes

        def split(variables: Tensor) -> tuple[Tensor, Tensor]:
            features = variables[:pixels].view(problem.shape)
            if problem.labels is not None:
                return features, problem.labels
            return features, variables[pixels:].view(-1, problem.classes).softmax(1)

        def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
            variables = torch.from_numpy(point.copy()).requires_grad_()
            features, targets = split(variables)
            errors = [((made - seen) ** 2).sum() for made, seen in problem.pairs(features, targets)]
            total = _with_prior(torch.stack(errors).sum(), features, self.tv)
            (slope,) = torch.autograd.grad(total, variables)
            return total.item(), slope.numpy()

        def stop_when_matched(intermediate_result: OptimizeResult) -> None:
            if intermediate_result.fun < self.tolerance:
                raise StopIteration

        start = rng.standard_normal(pixels + unknown_labels)
        options = {"maxiter": self.iterations, "maxfun": 2 * self.iterations, "maxcor": 20, "ftol": 0.0, "gtol": 1e-12}
        found = minimize(objective, start, jac=True, method="L-BFGS-B", callback=stop_when_matched, options=options)
        features, targets = split(torch.from_numpy(found.x))
        return Inversion(features, targets if targets.dim() == 1 else targets.argmax(1), float(found.fun))


@dataclass(frozen=True, slots=True)
class CosineMatching:
    """``min_x 1 - cos(g(x), g*) + tv TV(x)`` by Adam on the sign of the gradient, within [0, 1]; labels are known."""

    iterations: int = 4800
    lr: float = 0.1
    """Falls to a tenth after 3/8, 5/8 and 7/8 of the iterations."""
    tv: float = 1e-2

    def search(self, problem: Problem, rng: np.random.Generator) -> Inversion:
        """Search once, from a standard normal start."""
        labels = problem.labels
        if labels is None:
            raise ConfigError("labels: cosine matching needs them; take labels_of the last layer's bias gradient")
        features = torch.from_numpy(rng.standard_normal(problem.shape))
        rule = Adam()
        objective = math.inf
        for iteration in range(self.iterations):
            objective, slope = self._slope(problem, features, labels)
            drops = sum(8 * iteration >= eighths * self.iterations for eighths in (3, 5, 7))
            rule.step([features], [slope.sign()], self.lr * 0.1**drops)
            features.clamp_(0, 1)
        return Inversion(features, labels, objective)

    def _slope(self, problem: Problem, features: Tensor, labels: Tensor) -> tuple[float, Tensor]:
        variables = features.clone().requires_grad_()
        pairs = problem.pairs(variables, labels)
        angles = [1 - cosine_similarity(made, seen, dim=0) for made, seen in pairs]
        total = _with_prior(torch.stack(angles).mean(), variables, self.tv)
        (slope,) = torch.autograd.grad(total, variables)
        return total.item(), slope


def invert(
    logits: Logits,
    leaks: Sequence[Leak],
    shape: tuple[int, ...],
    labels: Tensor | None,
    method: Method,
    rng: np.random.Generator,
    *,
    restarts: int = 1,
) -> Inversion:
    """Search for the samples behind updates; of several starts, the one that explains them best.

    Args:
        logits: the model's function, of any floating type.
        leaks: one update, or several of the same samples: repeated rounds average noise out.
        shape: of the features, [samples, *shape].
        labels: int64 [samples]; None: unknown.
        method: DLG, or cosine matching.
        rng: of the starts.
        restarts: searches, 1 or more.

    Raises ConfigError for a leak whose update and places do not fit, and for a prior on images that are none.
    """
    _check(leaks, shape, method, restarts)
    exact = tuple(Leak(leak.model.double(), leak.update.double(), leak.places, leak.steps) for leak in leaks)
    with torch.no_grad():
        classes = logits(exact[0].model, torch.zeros(shape, dtype=torch.float64)).shape[1]
    problem = Problem(logits, exact, shape, labels, classes)
    found = [method.search(problem, rng) for _ in range(restarts)]
    return min(found, key=lambda inversion: math.inf if math.isnan(inversion.objective) else inversion.objective)


def _gradient(logits: Logits, model: Tensor, features: Tensor, targets: Tensor) -> Tensor:
    weights = model if model.requires_grad else model.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(logits(weights, features), targets), weights, create_graph=True)
    return gradient


def _with_prior(objective: Tensor, features: Tensor, tv: float) -> Tensor:
    return objective + tv * total_variation(features) if tv else objective


def _check(leaks: Sequence[Leak], shape: tuple[int, ...], method: Method, restarts: int) -> None:
    if not leaks or restarts < 1:
        raise ConfigError(f"leaks: {len(leaks)} updates and {restarts} restarts; need one of each")
    for number, leak in enumerate(leaks):
        wanted = leak.model.numel() if leak.places is None else leak.places.numel()
        if leak.update.numel() != wanted:
            raise ConfigError(f"leaks: update {number} has {leak.update.numel()} coordinates for {wanted} places")
    if method.tv and len(shape) < 3:
        raise ConfigError(f"tv: features {list(shape)} are no images; it must be 0")
