"""Reference models: what models look like that were, and were not, trained on a sample.

An attacker trains them on random halves of a pool that nobody else trains on, in complementary pairs, so that every
sample is inside exactly half of them (Carlini et al., S&P 2022). They are trained at once, by the stacked kernels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from node.config import TrainingSection
from node.errors import ConfigError
from node.learn import batches, kernels
from node.learn.models import Dense, Model
from node.learn.slabs import Kernel, StackedBatches, chunks, filled, gather
from node.learn.vectorised import VmapKernel
from node.op import Key

_LOGIT_SAMPLES = 4096


def complementary_halves(pool: int, pairs: int, rng: np.random.Generator) -> np.ndarray:
    """Who is trained on what, bool [2 * pairs, pool]: model 2m on a random half, model 2m + 1 on the other."""
    if pool < 2 or pairs < 1:
        raise ConfigError(f"references: {pairs} pairs on a pool of {pool}; need a pair, and 2 samples")
    halves = np.zeros((2 * pairs, pool), dtype=np.bool_)
    for pair in range(pairs):
        halves[2 * pair, rng.permutation(pool)[: pool // 2]] = True
    halves[1::2] = ~halves[::2]
    return halves


def without_pair(models: int, target: int) -> np.ndarray:
    """The models that serve as references when one of them is attacked: all but it and its complement, int64."""
    pair = target // 2
    return np.array([model for model in range(models) if model // 2 != pair], dtype=np.int64)


def label_marginal(labels: np.ndarray, classes: int) -> np.ndarray:
    """Share of each label [classes]: of a victim's samples for an attacker of knowledge K1, of everybody's for K0."""
    return np.bincount(labels, minlength=classes) / len(labels)


def matching_rows(
    labels: np.ndarray, marginal: np.ndarray, rng: np.random.Generator, size: int | None = None
) -> np.ndarray:
    """Rows of a pool whose labels follow a marginal, in random order and none twice.

    Args:
        labels: of the pool, int64 [samples].
        marginal: share of each label [classes].
        size: how many rows; absent: as many as the pool has for this marginal.

    Raises ConfigError where the pool has too few samples of a label.
    """
    held = np.bincount(labels, minlength=len(marginal))
    most = int(np.floor((held[marginal > 0] / marginal[marginal > 0]).min() + 1e-9))
    size = most if size is None else size
    if not 1 <= size <= most:
        raise ConfigError(f"references: {size} rows with this label marginal; the pool allows 1 to {most}")
    parts = [
        rng.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in enumerate(apportioned(marginal, size))
    ]
    return rng.permutation(np.concatenate(parts))


def apportioned(shares: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers [classes] in proportion to shares that sum to 1, by largest remainder (the first of equals)."""
    exact = shares * total
    counts = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(counts - exact, kind="stable")
    counts[order[: total - counts.sum()]] += 1
    return counts


def train(
    model: Model,
    training: TrainingSection,
    features: Tensor,
    labels: Tensor,
    inside: np.ndarray,
    epochs: int,
    seed: int,
) -> Tensor:
    """Train one model on each row of ``inside``, from an initialisation of its own.

    Args:
        model: the architecture.
        training: optimizer, learning rate and batch size; optimizer state lives through all epochs.
        features: float32 [pool, *shape].
        labels: int64 [pool].
        inside: bool [models, pool].
        epochs: passes over each model's samples; 0 leaves the initialisation.
        seed: of all initialisations and batches; a model's result does not depend on the others'.

    Returns: the trained models, float32 [models, dimension].
    """
    if not inside.any(axis=1).all():
        raise ConfigError(f"inside: model {int((~inside.any(axis=1)).argmax())} has no samples to be trained on")
    starts = [model.initial(seed + number) for number in range(len(inside))]
    if not epochs:
        return torch.stack(starts)
    kernel = _kernel(model, training, tuple(features.shape[1:]))
    steps = epochs * batches.batches_per_pass(int(inside.sum(axis=1).max()), training.batch_size)
    trained: list[Tensor] = []
    for numbers in chunks(range(len(inside)), kernel.most_rows):
        rows = filled(numbers, kernel.least_rows)
        slab = gather([starts[number] for number in rows])
        drawn = _draw(rows, inside, training.batch_size, steps, seed)
        rates = torch.full((len(rows), 1), training.lr, dtype=torch.float64)
        with torch.no_grad():
            kernel.train(slab, StackedBatches(features, labels, *drawn), rates, torch.zeros_like(rates))
        trained += slab[: len(numbers)].unbind()
    return torch.stack(trained)


@torch.no_grad()
def logits(model: Model, flats: Tensor, features: Tensor) -> np.ndarray:
    """What each model says of each sample: float64 [models, samples, classes]."""
    parts = torch.split(features, _LOGIT_SAMPLES)
    said = torch.stack([torch.cat([model.logits(flat, part) for part in parts]) for flat in flats.unbind()])
    return said.double().numpy()


def _kernel(model: Model, training: TrainingSection, shape: tuple[int, ...]) -> Kernel:
    """The kernel for an architecture; never found by a trial, so that results do not depend on the machine's load."""
    cpu = torch.device("cpu")
    if isinstance(model, Dense):
        return kernels.pinned("stacked", model, training, shape, cpu)
    if VmapKernel(model, training, 1).supports(shape):
        return kernels.pinned("vmap", model, training, shape, cpu)
    return kernels.pinned(kernels.LOOP, model, training, shape, cpu)


def _draw(rows: list[int], inside: np.ndarray, batch_size: int, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Batches of some models: rows of the pool int64 [steps, models, width], and sizes int64 [steps, models]."""
    members = [np.flatnonzero(inside[row]) for row in rows]
    sizes = np.array([len(member) for member in members])
    drawn = batches.draw([Key(seed, row, 0) for row in rows], sizes, batch_size, steps, batch_size)
    places = np.stack([member[drawn.places[:, i]] for i, member in enumerate(members)], axis=1)
    return torch.from_numpy(places), torch.from_numpy(drawn.sizes)
