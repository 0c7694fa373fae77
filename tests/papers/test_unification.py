"""Ten clients that each train alone, and what one predictor of them all is worth: scikit-learn's digits.

Dirichlet partitions, one multilayer perceptron each from a common start, 40 epochs; 200 public samples of their kind.
The published orderings: ensembles above averages (Guha et al., 2019; Lin et al., NeurIPS 2020), weights by label above
even ones (Gong et al., AAAI 2022), Fisher information above plain averages (Matena and Raffel, NeurIPS 2022).
"""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from node.cohorts import teacher_weights
from node.config import ModelSection
from node.learn.layers import network
from node.learn.models import build
from node.learn.training import SGD
from node.learn.unify import combined, diagonal, distil, fisher_mean, objective
from node.learn.workload import prepare_torch
from node.op import Key

CLIENTS, CLASSES, EPOCHS, BATCH = 10, 10, 40, 32
MODEL = build(ModelSection(hidden=(100,)), (64,), CLASSES)
HOW = {"steps": 1200, "batch_size": 64, "lr": 1e-3}

# Accuracy in percent, mean and standard deviation over five seeds, by Dirichlet concentration
BANDS = {
    "average": {0.5: (82.3, 1.9), 0.1: (56.2, 9.5)},
    "fisher": {0.5: (91.3, 2.1), 0.1: (81.4, 5.7)},
    "logits": {0.5: (87.0, 2.8), 0.1: (48.9, 17.5)},
    "probabilities": {0.5: (92.3, 1.4), 0.1: (75.1, 4.1)},
    "votes": {0.5: (91.6, 1.1), 0.1: (74.0, 4.4)},
    "label logits": {0.5: (93.9, 0.7), 0.1: (81.0, 9.5)},
    "label probabilities": {0.5: (95.1, 0.7), 0.1: (89.4, 1.5)},
    "kd-uniform": {0.5: (86.3, 2.1), 0.1: (48.0, 17.3)},
    "kd-label-logit": {0.5: (93.5, 0.8), 0.1: (78.1, 10.7)},
    "kd-label-prob": {0.5: (88.1, 1.9), 0.1: (72.1, 5.4)},
    "kd-hard": {0.5: (90.7, 1.3), 0.1: (88.1, 1.4)},
    "kd-hard from the average": {0.5: (91.2, 1.2), 0.1: (88.2, 1.7)},
    "kd-prob from the average": {0.5: (89.8, 1.2), 0.1: (76.1, 3.0)},
}


class Federated(NamedTuple):
    """Clients that have trained, and samples that they have not seen."""

    models: list[torch.Tensor]
    counts: dict[int, np.ndarray]
    shards: list[tuple[torch.Tensor, torch.Tensor]]
    public: torch.Tensor
    test: tuple[torch.Tensor, torch.Tensor]


def divided(labels, alpha, rng):
    """Rows of each client: every class cut in proportions, drawn again until each client has ten samples."""
    while True:
        parts = [[] for _ in range(CLIENTS)]
        for label in range(CLASSES):
            own = rng.permutation(np.flatnonzero(labels == label))
            cuts = (np.cumsum(rng.dirichlet([alpha] * CLIENTS))[:-1] * len(own)).astype(int)
            for part, rows in zip(parts, np.split(own, cuts), strict=True):
                part += rows.tolist()
        if min(map(len, parts)) >= 10:
            return parts


@torch.no_grad()
def trained(start, features, labels, rng):
    """SGD with momentum, gradients no longer than 5."""
    flat = start.clone()
    views = list(MODEL.named(flat).values())
    differentiate, rule = network(MODEL).at(views), SGD(0.9)
    for _ in range(EPOCHS):
        for rows in torch.from_numpy(rng.permutation(len(labels))).split(BATCH):
            gradients = differentiate(features[rows], labels[rows])
            length = float(torch.cat([part.flatten() for part in gradients]).norm())
            torch._foreach_mul_(gradients, min(1.0, 5 / length))
            rule.step(views, gradients, 0.05)
    return flat


def federated(alpha, seed=0):
    prepare_torch()
    features, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(1000 + seed).permutation(len(labels))
    features, labels = torch.from_numpy((features / 16).astype(np.float32))[order], torch.from_numpy(labels)[order]
    test, public, rest = slice(400), slice(400, 600), slice(600, None)
    start, shards = MODEL.initial(seed), []
    for rows in divided(labels[rest].numpy(), alpha, np.random.default_rng(seed)):
        shards.append((features[rest][rows], labels[rest][rows]))
    return Federated(
        [trained(start, *shard, np.random.default_rng([seed, i])) for i, shard in enumerate(shards)],
        {i: np.bincount(own.numpy(), minlength=CLASSES) for i, (_, own) in enumerate(shards)},
        shards,
        features[public],
        (features[test], labels[test]),
    )


def accuracy(scores, clients):
    return 100 * float((scores.argmax(1) == clients.test[1]).double().mean())


def weights_of(counts, most_over_median=None):
    found = teacher_weights(counts, most_over_median)
    return [found[client].tolist() for client in sorted(found)]


def measured(clients):
    """The accuracy of every way that has a band."""
    weights = weights_of(clients.counts)
    sizes = np.array([len(labels) for _, labels in clients.shards], dtype=float)
    shares = (sizes / sizes.sum()).tolist()
    average = sum(model * share for model, share in zip(clients.models, shares, strict=True))
    chosen = [features[:128] for features, _ in clients.shards]
    fishers = [diagonal(MODEL, model, own) for model, own in zip(clients.models, chosen, strict=True)]
    seen, unseen = ([MODEL.logits(model, on) for model in clients.models] for on in (clients.public, clients.test[0]))

    def student(start, rule, loss, weights=()):
        said = objective(loss, rule, combined(seen, rule, weights))
        return MODEL.logits(distil(MODEL, start, clients.public, said, Key(0, 0, 1), **HOW), clients.test[0])

    fresh = MODEL.initial(77)
    scores = {
        "average": MODEL.logits(average, clients.test[0]),
        "fisher": MODEL.logits(fisher_mean(clients.models, fishers, shares), clients.test[0]),
        **{rule: combined(unseen, rule) for rule in ("logits", "probabilities", "votes")},
        **{f"label {rule}": combined(unseen, rule, weights) for rule in ("logits", "probabilities")},
        "kd-uniform": student(fresh, "logits", "l1"),
        "kd-label-logit": student(fresh, "logits", "l1", weights),
        "kd-label-prob": student(fresh, "probabilities", "kl", weights),
        "kd-hard": student(fresh, "probabilities", "hard", weights),
        "kd-hard from the average": student(average, "probabilities", "hard", weights),
        "kd-prob from the average": student(average, "probabilities", "kl"),
    }
    return {name: accuracy(each, clients) for name, each in scores.items()}


@pytest.fixture(scope="module", params=[0.5, 0.1], ids=lambda alpha: f"alpha-{alpha}")
def run(request):
    clients = federated(request.param)
    return request.param, clients, measured(clients)


@pytest.mark.parametrize("name", BANDS)
def test_accuracy_is_within_its_band(run, name):
    alpha, _, found = run
    mean, deviation = BANDS[name][alpha]
    assert abs(found[name] - mean) <= max(3 * deviation, 3.0)


def test_ensembles_are_above_averages_and_weights_by_label_above_even_ones(run):
    alpha, _, found = run
    assert found["probabilities"] - found["average"] > (5 if alpha == 0.5 else 0)
    assert found["label probabilities"] - found["probabilities"] > (1 if alpha == 0.5 else 4)
    assert found["label probabilities"] >= found["label logits"]
    assert found["fisher"] > found["average"] + 5


def test_a_student_is_within_points_of_its_teacher(run):
    _, _, found = run
    assert abs(found["kd-label-logit"] - found["label logits"]) < 4
    assert abs(found["kd-uniform"] - found["logits"]) < 4
    assert found["label probabilities"] - found["kd-hard"] < 8


def test_a_client_that_claims_a_hundred_times_every_class_is_held_to_its_share(run):
    """Unclipped claims pull the ensemble down to the liar's own accuracy."""
    _, clients, found = run
    unseen = [MODEL.logits(model, clients.test[0]) for model in clients.models]
    liar = min(range(CLIENTS), key=lambda i: accuracy(unseen[i], clients))
    alone = accuracy(unseen[liar], clients)
    size = clients.counts[liar].sum()
    claimed = {**clients.counts, liar: np.full(CLASSES, 100 * size)}
    believed, clipped = (
        accuracy(combined(unseen, "probabilities", weights_of(claimed, most)), clients) for most in (None, 1.0)
    )
    assert believed < alone + 20
    assert found["label probabilities"] - clipped <= 2.0
