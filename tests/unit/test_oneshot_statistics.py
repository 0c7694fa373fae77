"""Heads from summed statistics: the same whoever holds which sample, whoever comes first, and whoever has left."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge as PlainRidge
from sklearn.neighbors import NearestCentroid

from node import ConfigError
from node.learn.oneshot.features import random_features
from node.learn.oneshot.statistics import GaussianHead, Prototypes, Ridge
from node.learn.workload import prepare_torch
from oneshot_clients import CLIENTS, PARTITIONS, untrained
from oneshots import NODES, Run, checked

KINDS = {
    "ridge": Ridge,
    "total": GaussianHead,
    "within": GaussianHead,
    "prototypes": Prototypes,
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    prepare_torch()


def built(kind, **options):
    """An algorithm; ``total`` and ``within`` are the two covariances of a Gaussian head."""
    if kind in ("total", "within"):
        options["covariance"] = kind
    return KINDS[kind](KINDS[kind].Config(**options))


def close(one, other, most=1e-6):
    """Whether two tensors differ by no more than a share of their largest value; infinities must be the same."""
    finite = torch.isfinite(other)
    assert torch.equal(torch.isfinite(one), finite)
    return float((one - other)[finite].abs().max()) <= most * float(other[finite].abs().max())


def summed(own, world, clients, uploads=None):
    """The state to which clients' uploads have been added in this order."""
    uploads, assets = uploads or world.uploads(own), world.assets(own)
    state = own.nothing(world.task)
    for i in clients:
        state = own.add(state, uploads[i], assets)
    return state


@functools.cache
def small(kind, partition):
    """An algorithm with few features, its clients and their uploads."""
    own, world = built(kind, units=20), untrained(partition, 0).world
    return own, world, world.uploads(own)


# Random features


def test_features_are_those_of_the_formula_and_the_same_for_all_with_one_seed():
    samples = torch.rand(7, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    features = random_features(samples, 4000, 5)
    assert (features.shape, features.dtype) == ((7, 4000), torch.float64)
    assert torch.equal(features, random_features(samples.view(7, 6), 4000, 5))
    assert torch.allclose(features[2:4], random_features(samples[2:4], 4000, 5), rtol=1e-12)
    assert not torch.equal(features, random_features(samples, 4000, 6))
    shifts = random_features(torch.zeros(1, 6), 4000, 5)
    assert float((shifts**2).mean()) == pytest.approx(0.09 / 2, rel=0.1)  # half of a normal distribution
    unit = torch.zeros(1, 6)
    unit[0, 0] = 1e6
    weights = random_features(unit, 4000, 5) / 1e6
    assert float((weights**2).mean()) == pytest.approx((2**2 / 6) / 2, rel=0.1)


# What is exact


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numbers", ["float32", "float64"])
def test_the_head_is_the_same_however_samples_are_divided(kind, numbers):
    own = built(kind, numbers=numbers, units=40)
    pooled = untrained("iid", 0).world
    everything = tuple(torch.cat(parts) for parts in zip(*pooled.data, strict=True))
    central = pooled._replace(data=[everything], models=pooled.models[:1])
    reference = own.finish(summed(own, central, [0]), central.assets(own))
    for partition in PARTITIONS:
        found = untrained(partition, 0)
        head = own.finish(summed(own, found.world, range(CLIENTS)), found.world.assets(own))
        assert close(head, reference, 1e-6 if numbers == "float64" else 1e-4)
        told = [own.predict(each, found.features, found.world.assets(own)).argmax(1) for each in (head, reference)]
        assert torch.equal(*told)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sums_are_the_same_to_a_millionth_in_single_precision(kind):
    own = built(kind, units=40)
    states = [summed(own, untrained(partition, 1).world, range(CLIENTS)) for partition in PARTITIONS]
    assert all(close(state, states[0]) for state in states)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(CLIENTS)), st.sampled_from([*KINDS]))
def test_the_order_of_arrival_makes_no_difference(order, kind):
    own, world, uploads = small(kind, "dirichlet-0.1")
    assert close(summed(own, world, order, uploads), summed(own, world, range(CLIENTS), uploads), 1e-12)


@settings(max_examples=10, deadline=None)
@given(st.sets(st.integers(0, CLIENTS - 1), min_size=1, max_size=CLIENTS - 1), st.sampled_from([*KINDS]))
def test_who_is_taken_out_has_never_been_there(gone, kind):
    own, world, uploads = small(kind, "dirichlet-0.5")
    assets = world.assets(own)
    state = summed(own, world, range(CLIENTS), uploads)
    for i in gone:
        state = own.remove(state, uploads[i], assets)
    rest = [i for i in range(CLIENTS) if i not in gone]
    never = own.aggregate([uploads[i] for i in rest], assets)
    assert torch.equal(own.finish(summed(own, world, rest, uploads), assets), never)
    assert close(state, summed(own, world, rest, uploads), 1e-10)
    assert close(own.finish(state, assets), never)


def test_removing_leaves_the_old_state_as_it_is():
    own, world, uploads = small("ridge", "iid")
    state = summed(own, world, [0, 1], uploads)
    before = state.clone()
    own.remove(state, uploads[1], world.assets(own))
    assert torch.equal(state, before)


# What heads are


def pooled_features(own, world):
    """Features and labels of all clients, as arrays."""
    features = torch.cat([features for features, _ in world.data])
    return own.features(features, world.assets(own)).numpy(), torch.cat([labels for _, labels in world.data]).numpy()


def test_ridge_is_least_squares_with_a_penalty():
    own, world = built("ridge", numbers="float64", units=40, penalty=0.7), untrained("shards", 0).world
    features, labels = pooled_features(own, world)
    inputs = np.concatenate([features, np.ones((len(features), 1))], 1)
    plain = PlainRidge(alpha=0.7, fit_intercept=False, solver="cholesky").fit(inputs, np.eye(10)[labels])
    found = own.aggregate(world.uploads(own), world.assets(own)).view(10, -1)
    assert np.allclose(found, plain.coef_, atol=1e-9)


def test_a_score_of_one_among_zeros_is_almost_sure():
    told = built("ridge").confidence(torch.eye(10)[:1])
    assert float(told[0, 0]) == pytest.approx(0.943, abs=1e-3)


def test_the_gaussian_head_within_classes_is_discriminant_analysis():
    own, found = built("within", numbers="float64", units=40, shrinkage=1e-12), untrained("shards", 0)
    features, labels = pooled_features(own, found.world)
    plain = LinearDiscriminantAnalysis(solver="lsqr").fit(features, labels)
    head, assets = own.aggregate(found.world.uploads(own), found.world.assets(own)), found.world.assets(own)
    told = own.predict(head, found.features, assets).numpy()
    assert np.allclose(told, plain.predict_proba(own.features(found.features, assets).numpy()), atol=1e-5)


def test_the_gaussian_head_of_the_total_covariance_is_the_formula():
    own, world = built("total", numbers="float64", units=15, shrinkage=0.03), untrained("shards", 0).world
    features, labels = pooled_features(own, world)
    inverse = np.linalg.inv(np.cov(features.T, bias=True) + 0.03 * np.eye(15))
    head = own.aggregate(world.uploads(own), world.assets(own)).view(10, -1).numpy()
    for label in range(10):
        mean = features[labels == label].mean(0)
        constant = np.log((labels == label).mean()) - mean @ inverse @ mean / 2
        assert np.allclose(head[label], [*(mean @ inverse), constant], rtol=1e-6, atol=1e-7)


def test_prototypes_are_the_nearest_means():
    own, found = built("prototypes", numbers="float64", units=40), untrained("shards", 0)
    assets = found.world.assets(own)
    plain = NearestCentroid().fit(*pooled_features(own, found.world))
    told = own.predict(own.aggregate(found.world.uploads(own), assets), found.features, assets).argmax(1)
    assert told.tolist() == plain.predict(own.features(found.features, assets).numpy()).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_that_nobody_has_is_never_chosen(kind):
    own, found = built(kind, units=30), untrained("iid", 0)
    kept = [(features[labels != 3], labels[labels != 3]) for features, labels in found.world.data]
    world = found.world._replace(data=kept)
    assets = world.assets(own)
    told = own.predict(own.aggregate(world.uploads(own), assets).float(), found.features, assets)
    assert torch.isfinite(told).all()
    assert torch.allclose(told.sum(1), torch.ones(len(told), dtype=told.dtype))
    assert float(told[:, 3].max()) < 0.2
    assert 3 not in told.argmax(1)


@pytest.mark.parametrize("kind", KINDS)
def test_one_class_a_client_is_enough(kind):
    own, found = built(kind, units=60), untrained("iid", 0)
    features, labels = (torch.cat(parts) for parts in zip(*found.world.data, strict=True))
    world = found.world._replace(data=[(features[labels == label], labels[labels == label]) for label in range(10)])
    assert world.accuracy(own, found.features, found.labels) == found.accuracy(own)


# What is uploaded, and what comes of it


@pytest.mark.parametrize("units", [1, 7, 500])
@pytest.mark.parametrize(("numbers", "size"), [("float32", 4), ("float64", 8)])
def test_uploads_have_the_bytes_of_the_formulas(units, numbers, size):
    """b(d(d+1)/2 + dC), with a constant as one more feature; b(d(d+1)/2 + dC + C), counts not among them; b dC."""
    task, wide = untrained("iid", 0).world.task, units + 1

    def parts(kind):
        own = built(kind, units=units, numbers=numbers)
        return sum(spec.size_bytes for spec in own.parts(task, [1] * 10).values())

    assert parts("ridge") == size * (wide * (wide + 1) // 2 + wide * 10)
    assert parts("total") == parts("within") == size * (units * (units + 1) // 2 + units * 10)
    assert parts("prototypes") == size * units * 10


def test_reference_sizes():
    task = untrained("iid", 0).world.task
    sizes = {kind: sum(spec.size_bytes for spec in built(kind).parts(task, ()).values()) for kind in KINDS}
    assert sizes["ridge"] == 523_044
    assert sizes["total"] + 4 * 10 == 521_040


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("kind", "expected"), [("ridge", 98.0), ("total", 98.3), ("within", 98.3)])
def test_reference_accuracy(kind, expected, seed):
    """98.0+-0.7 and 98.3+-0.4, in every partition; a band is three points to each side at least."""
    assert abs(untrained("shards", seed).accuracy(built(kind)) - expected) < 3


def test_prototypes_are_behind_those_that_know_how_features_vary():
    found = untrained("dirichlet-0.1", 0)
    assert 80 < found.accuracy(built("prototypes")) < found.accuracy(built("total")) - 5


@pytest.mark.parametrize("kind", ["ridge", "gaussian-head", "prototypes"])
def test_clients_train_nothing_and_keep_what_they_started_from(kind):
    options = {"algorithm": kind, "options": {"units": 20}}
    run = Run(protocol=options, executor={"kind": "inline"})
    average = Run(protocol={"algorithm": "average"})
    assert run.own["cell"] == "R3 D0 W3 H0 M3 F1 S0"
    assert run.own["streams"] is True
    assert run.own["uploaded_bytes"]["model"]["total"] == 0
    assert len({run.models[node] for node in range(1, NODES)}) == 1
    assert 0 < run.metric("client_s", 1) < average.metric("client_s", 1)
    assert run.metric("result_bytes") == 4 * 10 * 21
    assert run.metric("accuracy") > 0.3


def test_time_passes_at_clients_by_what_they_compute():
    seconds = [
        Run(nodes=3, protocol={"algorithm": "ridge", "options": {"units": units}}).metric("client_s", 1)
        for units in (10, 100)
    ]
    flops = [2 * units * 64 + units**2 for units in (10, 100)]
    assert seconds[1] / seconds[0] == pytest.approx(flops[1] / flops[0])


def test_the_aggregator_holds_a_sum_and_no_uploads():
    clients, window = 60, 4
    small = {"data": {"name": "synthetic", "samples": 4 * clients, "partition": "iid"}}
    options = {"algorithm": "ridge", "options": {"units": 20}, "window": window}
    run = Run(nodes=clients + 1, protocol=options, **small)
    upload = run.own["uploaded_bytes"]["parts"]["most"]
    assert upload == 4 * (21 * 22 // 2 + 21 * 10)
    assert run.metric("held_bytes") <= 2 * (window + 2) * upload


@pytest.mark.parametrize(
    ("algorithm", "options", "says"),
    [
        ("ridge", {"units": 0}, "protocol.options.units"),
        ("ridge", {"penalty": 0}, "protocol.options.penalty"),
        ("ridge", {"numbers": "float16"}, "protocol.options.numbers"),
        ("gaussian-head", {"covariance": "full"}, "protocol.options.covariance"),
        ("prototypes", {"penalty": 1}, "options of prototypes: units, numbers"),
    ],
)
def test_wrong_options_are_refused(algorithm, options, says):
    with pytest.raises(ConfigError, match=says):
        checked(protocol={"algorithm": algorithm, "options": options})


def test_statistics_may_be_forbidden():
    with pytest.raises(ConfigError, match="needs clients to reveal 'statistics', and protocol"):
        checked(protocol={"algorithm": "ridge", "reveal": "histogram"})


def test_measuring_is_counted_as_the_products_that_it_takes():
    own, task = built("ridge", units=30), untrained("iid", 0).world.task
    assert own.measuring_flops(task, 5) == 2 * 5 * math.prod(task.shape) * 30 + 5 * 30**2
    assert own.aggregation_flops(task, 7, 0) > 30**3 / 3


# Sums that somebody else adds up


def test_the_pairwise_form_of_afl_gives_what_the_sum_does():
    """Clients' own solutions, each with a penalty, put together one by one; N times the penalty is taken out again."""
    own, world = built("ridge", numbers="float64", units=15, penalty=0.2), untrained("dirichlet-0.1", 0).world
    pieces = []
    for features, labels in world.data:
        inputs = own.features(features, world.assets(own)).numpy()
        inputs = np.concatenate([inputs, np.ones((len(inputs), 1))], 1)
        moments = inputs.T @ inputs + 0.2 * np.eye(16)
        pieces.append((moments, np.linalg.solve(moments, inputs.T @ np.eye(10)[labels.numpy()])))
    total, merged = pieces[0]
    for moments, weights in pieces[1:]:
        total, merged = total + moments, np.linalg.solve(total + moments, total @ merged + moments @ weights)
    once = total - (CLIENTS - 1) * 0.2 * np.eye(16)
    expected = np.linalg.solve(once, total @ merged)
    assert np.allclose(own.aggregate(world.uploads(own), world.assets(own)).view(10, -1).numpy().T, expected, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_what_masks_cancel_out_of_is_the_same_head(kind):
    """Additive sums: with secure aggregation nobody sees a client's own, and the head stays what it is."""
    own, world, uploads = small(kind, "dirichlet-0.1")
    assets, nothing = world.assets(own), own.nothing(world.task)
    told = [own.add(nothing, upload, assets) for upload in uploads]
    chance = torch.Generator().manual_seed(7)
    masks = [torch.randn(len(nothing), generator=chance, dtype=torch.float64) for _ in uploads]
    hidden = [each + mask - masks[i - 1] for i, (each, mask) in enumerate(zip(told, masks, strict=True))]
    assert not any(close(mine, plain, 1e-3) for mine, plain in zip(hidden, told, strict=True))
    plain = own.finish(torch.stack(told).sum(0), assets)
    assert close(own.finish(torch.stack(hidden).sum(0), assets), plain, 1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copies", [2, 5])
def test_clients_that_hold_the_same_are_one_with_more_samples(kind, copies):
    """But for the penalty, which counts for less: the head of copies is that of one with a share of it."""
    key = {"ridge": "penalty", "total": "shrinkage", "within": "shrinkage"}.get(kind)
    alone = untrained("iid", 0).world
    alone = alone._replace(data=alone.data[:1], models=alone.models[:1])
    copied = alone._replace(data=alone.data * copies, models=alone.models * copies)
    one = built(kind, units=12, numbers="float64", **({key: 0.3} if key else {}))
    # Moments are sums, so that their penalty is shared; a covariance is a mean, and its shrinkage is not.
    many = built(kind, units=12, numbers="float64", **({key: 0.3 * (copies if kind == "ridge" else 1)} if key else {}))
    assert close(
        many.aggregate(copied.uploads(many), copied.assets(many)),
        one.aggregate(alone.uploads(one), alone.assets(one)),
        1e-9,
    )


@pytest.mark.parametrize(("kind", "key"), [("ridge", "penalty"), ("total", "shrinkage"), ("within", "shrinkage")])
def test_a_larger_penalty_makes_smaller_weights(kind, key):
    world = untrained("dirichlet-0.5", 0).world
    norms = []
    for size in (1e-3, 1.0, 1e3):
        own = built(kind, units=15, **{key: size})
        norms.append(float(own.aggregate(world.uploads(own), world.assets(own)).view(10, -1)[:, :-1].norm()))
    assert norms == sorted(norms, reverse=True)


@pytest.mark.parametrize("kind", ["ridge", "total"])
def test_who_is_left_is_as_good_as_all_their_samples_in_one_place(kind):
    """Three of ten clients lost: by what is lost with them, and not by how it was divided."""
    own, found = built(kind, units=100), untrained("dirichlet-0.1", 1)
    rest = found.world._replace(data=found.world.data[3:], models=found.world.models[3:])
    pooled = tuple(torch.cat(parts) for parts in zip(*rest.data, strict=True))
    central = rest._replace(data=[pooled], models=rest.models[:1])
    left, together = (world.accuracy(own, found.features, found.labels) for world in (rest, central))
    assert left == pytest.approx(together, abs=0.5)
    assert left <= found.accuracy(own) + 0.5
