"""What robust mixing saves, and plain averaging loses, on digits: 16 nodes of which 4 lie, on the complete graph.

Independent and identically distributed data, 5 local steps a round. Liars go on from the mix of an honest node, and
know all honest models.
"""

import functools

import pytest
import torch
from torch.nn.functional import cross_entropy

from node.attack.byzantine import View, lie
from node.attack.poisoning import with_flipped_labels
from node.config import DataSection, ModelSection, TrainingSection
from node.learn.data import federate
from node.learn.models import build
from node.learn.robust import aggregate
from node.learn.workload import Workload, prepare_torch
from node.op import Key, Task

NODES, LIARS, ROUNDS, SEED = 16, 4, 50, 3
HONEST = range(LIARS, NODES)
FEDERATION = federate(DataSection(), NODES, SEED)
MODEL = build(ModelSection(name="mlp", hidden=(32,)), (1, 8, 8), 10)


@pytest.fixture(autouse=True)
def _deterministic():
    prepare_torch()


@functools.cache
def workload(flipped=False):
    federation = with_flipped_labels(FEDERATION, range(LIARS)) if flipped else FEDERATION
    training = TrainingSection(lr=0.1, batch_size=16, local_steps=5)
    return Workload(federation, MODEL, training, SEED, kernel="stacked")


def run(rule, attack="", **options):
    """Mean accuracy of the honest nodes after all rounds."""
    learned = workload(flipped=attack == "label-flip")
    mixes = [learned.init.solve(Task((), {}, Key(SEED, 0, 0)))] * NODES
    static = {"steps": 5, "lr": 0.1, "proximal": 0.0}
    for round in range(ROUNDS):
        models = torch.stack(
            learned.train.solve_batch([Task((m,), static, Key(SEED, i, 1 + round)) for i, m in enumerate(mixes)])
        )
        sent = models.clone()
        for liar in range(LIARS):
            sent[liar] = told(models, liar, round, attack, **options)
        mixed = [mix(rule, node, models, sent, round / ROUNDS) for node in HONEST]
        mixes = [mixed[0]] * LIARS + mixed
    tasks = [Task((mixes[i],), {"on": "test"}, Key(SEED, i, 0)) for i in HONEST]
    return sum(measured["accuracy"] for measured in learned.evaluate.solve_batch(tasks)) / len(HONEST)


def told(models, liar, round, attack, **options):
    """What a liar sends to everyone."""
    if attack in ("", "label-flip"):
        return models[liar]
    view = View(models[liar], models[LIARS:], NODES, LIARS)
    return lie(view, attack, Key(SEED, liar, 100 + round).rng(), **options)


def mix(rule, node, models, sent, progress):
    """What an honest node makes of its own model and all that it has heard."""
    rows = torch.cat([models[node : node + 1], sent[[i for i in range(NODES) if i != node]]])
    if rule == "balance":
        return aggregate(rows, rule, LIARS, progress=progress)
    return aggregate(rows, rule, LIARS, losses=losses(rows, node) if rule == "ubar" else None)


def losses(rows, node):
    """Of each model on the node's own data."""
    held = FEDERATION.shards.of(node)
    features, labels = FEDERATION.train.features[held], FEDERATION.train.labels[held]
    logits = torch.func.vmap(MODEL.logits, (0, None))(rows, features)
    return [float(cross_entropy(each, labels)) for each in logits]


def test_without_liars_they_learn():
    assert run("mean") >= 0.9


@pytest.mark.parametrize("attack", ["gaussian", "ipm"])
def test_plain_averaging_is_lost(attack):
    """Reference: .166 under noise of standard deviation 10, .089 under inner product manipulation."""
    assert run("mean", attack) <= 0.4


@pytest.mark.parametrize(
    ("rule", "attack"),
    [
        ("balance", "gaussian"),
        ("balance", "ipm"),
        ("balance", "label-flip"),
        ("monna", "gaussian"),
        ("monna", "foe"),
        ("monna", "label-flip"),
        ("ubar", "gaussian"),
    ],
)
def test_rules_anchored_on_the_own_model_hold(rule, attack):
    """Reference: at least .90 on the complete graph; the band is .88."""
    assert run(rule, attack) >= 0.88


def test_a_little_is_harmless_at_this_scale():
    """Reference: ALIE needs long runs or heterogeneous data; with z = 1.5 even the plain mean learns."""
    assert run("mean", "alie", z=1.5) >= 0.85
