"""Uploads that give samples away: centroids, decoders, distilled batches, and how close they come to real samples."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, one_hot

from node import ConfigError
from node.config import ModelSection
from node.learn import models
from node.learn.oneshot.centroids import Centroids, centroids
from node.learn.oneshot.distilled import DOSFL, Lessons, replayed
from node.learn.oneshot.generators import FedCVAE, FedCVAEKD, Network, reconstruction
from node.learn.oneshot.given import nearest_distances
from node.learn.workload import prepare_torch
from oneshot_clients import handmade, untrained
from oneshots import Run, checked, mod

LITTLE = {"latent": 3, "hidden": 16, "client_epochs": 5, "made": 60, "steps": 20}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    prepare_torch()


@functools.cache
def two_clients():
    """Two clients of the digits, one with a single class."""
    world = untrained("iid", 0).world
    features, labels = world.data[1]
    data = [world.data[0], (features[labels == 6], labels[labels == 6])]
    return world._replace(data=data, models=world.models[:2])


def columns(clients=2, samples=24):
    """Clients with measurements around 0 in place of images."""
    model = models.build(ModelSection(name="mlp", hidden=(8,)), (5,), 3)
    world = handmade(model, (5,), 3, clients, samples)
    return world._replace(data=[(3 * features - 1.5, labels) for features, labels in world.data])


# How near


def test_distances_are_those_to_the_nearest():
    others = torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]]])
    samples = torch.tensor([[[0.0, 1.0]], [[3.0, 4.0]], [[3.0, 0.0]]])
    assert nearest_distances(samples, others).tolist() == [1.0, 0.0, 3.0]


def test_centroids_come_nearer_to_samples_than_fresh_samples_do_and_distilled_ones_do_not():
    found = untrained("dirichlet-0.1", 0)
    world = found.world._replace(data=found.world.data[:1], models=found.world.models[:1])
    own = world.data[0][0]
    fresh = float(nearest_distances(found.features, own).median())
    near = {}
    for kind in (Centroids(), FedCVAE(), DOSFL(DOSFL.Config(client_steps=10))):
        samples, labels = kind.samples(world.uploads(kind), world.assets(kind))
        assert samples.shape[1:] == (1, 8, 8)
        assert len(samples) == len(labels)
        near[type(kind)] = float(nearest_distances(samples, own).median())
    assert near[Centroids] < fresh
    assert near[FedCVAE] < fresh
    assert near[DOSFL] > fresh


def test_a_class_of_one_sample_is_told_as_it_is():
    world = two_clients()._replace(data=[tuple(part[:1] for part in two_clients().data[0])], models=[None])
    own = Centroids()
    samples, _ = own.samples(world.uploads(own), world.assets(own))
    assert nearest_distances(samples, world.data[0][0]).tolist() == [0.0]


# Centroids


@pytest.mark.parametrize(
    ("count", "expected"), [(0, 0), (1, 1), (4, 1), (5, 1), (9, 1), (10, 2), (14, 2), (15, 3), (400, 3)]
)
def test_how_many_centroids_a_class_has(count, expected):
    assert Centroids().centroids(count) == expected


@given(st.lists(st.integers(0, 30), min_size=10, max_size=10))
def test_centroids_take_the_bytes_of_the_formula(counts):
    own, task = Centroids(), untrained("iid", 0).world.task
    wanted = sum(min(3, max(1, count // 5)) for count in counts if count)
    assert sum(spec.size_bytes for spec in own.parts(task, counts).values()) == 4 * 64 * wanted


def test_one_centroid_is_the_mean_and_several_are_of_clusters():
    world, own = two_clients(), Centroids()
    features, labels = world.data[0]
    samples, classes = own.samples(world.uploads(own)[:1], world.assets(own))
    assert classes.tolist() == sorted(classes.tolist())
    for label in range(10):
        mine, told = features[labels == label].flatten(1), samples[classes == label].flatten(1)
        assert len(told) == own.centroids(len(mine))
        if len(told) == 1:
            assert torch.allclose(told[0], mine.mean(0))
        else:
            nearest = torch.cdist(mine, told).argmin(1)
            for i, centroid in enumerate(told):
                assert torch.allclose(centroid, mine[nearest == i].mean(0), atol=1e-5)


def test_equal_samples_have_equal_centroids():
    found = centroids(torch.ones(12, 4), 3, 0)
    assert torch.equal(found, torch.ones(3, 4))


@pytest.mark.parametrize(("partition", "expected"), [("iid", 93.0), ("dirichlet-0.1", 92.5), ("shards", 91.8)])
def test_reference_accuracy_of_centroids(partition, expected):
    """93.0+-0.4, 92.5+-1.3, 91.8+-1.4; a band is three points to each side at least."""
    assert abs(untrained(partition, 0).accuracy(Centroids()) - expected) < 4.2


# Decoders


def test_a_network_is_two_layers():
    network = Network(2, 3, 1)
    flat = torch.arange(13.0) - 6
    assert network.dimension == len(flat)
    first, shift, second, bias = flat[:6].view(3, 2), flat[6:9], flat[9:12], flat[12]
    inputs = torch.tensor([[1.0, -2.0], [0.5, 4.0]])
    assert torch.equal(network(flat, inputs)[:, 0], (inputs @ first.mT + shift).relu() @ second + bias)
    start = Network(100, 50, 4).initial(torch.Generator().manual_seed(0))
    assert float(start[: 50 * 100].abs().max()) <= 0.1
    assert float(start[-4:].abs().max()) <= 1 / 50**0.5


def test_a_decoder_takes_the_bytes_of_the_reference():
    """b P_decoder + 4C: 87,336."""
    task = untrained("iid", 0).world.task
    assert FedCVAE().fitted(task).size_bytes + 4 * 10 == 87_336
    assert FedCVAEKD().fitted(task) == FedCVAE().fitted(task)


def test_an_autoencoder_s_loss_falls_where_it_has_learned():
    world, loss = two_clients(), reconstruction(untrained("iid", 0).world.task)
    features, labels = world.data[0]

    def told(epochs):
        own = FedCVAE(FedCVAE.Config(latent=3, hidden=32, client_epochs=epochs))
        members = torch.cat([torch.zeros(len(labels), 3), one_hot(labels, 10).float()], 1)
        return float(loss(own.decoder(world.task)(own.fit(world.client(own, 0)), members), features.flatten(1)))

    assert told(60) < 0.9 * told(1)


@pytest.mark.parametrize("kind", [FedCVAE, FedCVAEKD])
def test_samples_are_of_clients_and_classes_by_how_many_they_have(kind):
    own, world = kind(kind.Config(**LITTLE | {"made": 600})), two_clients()
    samples, labels = own.samples(world.uploads(own), world.assets(own))
    counts = sum(torch.bincount(labels, minlength=10) for _, labels in world.data)
    assert len(samples) == len(labels) == 600
    assert 0 <= float(samples.min()) <= float(samples.max()) <= 1
    assert torch.allclose(torch.bincount(labels, minlength=10) / 600, counts / counts.sum(), atol=0.06)


def test_latent_vectors_are_truncated():
    own, world = FedCVAE(FedCVAE.Config(**LITTLE)), two_clients()
    latent, _ = own.drawn(torch.ones(10), 4000, 1.0, world.assets(own))
    assert latent.shape == (4000, 3)
    assert float(latent.abs().max()) <= 1
    assert float(latent.std()) == pytest.approx(0.54, abs=0.02)  # of a normal distribution cut at 1


def test_a_client_without_share_makes_nothing():
    own, world = FedCVAE(FedCVAE.Config(**LITTLE | {"made": 1})), two_clients()
    samples, labels = own.samples(world.uploads(own), world.assets(own))
    assert len(samples) == len(labels) == 1


def test_the_one_decoder_makes_what_the_others_make():
    """Of a single client there is nothing to make one; the distilled decoder nears it with the number of lessons."""
    world = two_clients()._replace(data=two_clients().data[:1], models=[None])

    def gap(epochs):
        own = FedCVAEKD(FedCVAEKD.Config(**LITTLE | {"lessons": 1000, "lesson_epochs": epochs}))
        uploads, assets = world.uploads(own), world.assets(own)
        latent, labels = own.drawn(torch.ones(10), 200, 1.0, assets)
        made = [own.made(flat, latent, labels, assets) for flat in (uploads[0].model, own.distilled(uploads, assets))]
        return float((made[0] - made[1]).abs().mean())

    assert gap(20) < 0.5 * gap(1)


@pytest.mark.parametrize("kind", [FedCVAE, FedCVAEKD])
def test_measurements_are_made_too(kind):
    world, own = columns(), kind(kind.Config(**LITTLE))
    samples, _ = own.samples(world.uploads(own), world.assets(own))
    assert samples.shape[1:] == (5,)
    assert float(samples.min()) < 0
    assert torch.isfinite(world.aggregated(own)).all()


def test_what_comes_out_follows_from_the_seed():
    own, world = FedCVAE(FedCVAE.Config(**LITTLE)), two_clients()
    assert torch.equal(world.aggregated(own), world.aggregated(own))


def test_reference_accuracy_of_decoders():
    """86.2+-1.8; the band is three standard deviations to each side. The same classes one by one do as well."""
    assert abs(untrained("dirichlet-0.1", 2).accuracy(FedCVAE()) - 86.2) < 5.4


# Distilled batches


def test_lessons_take_the_bytes_of_the_formula():
    """b S B (dim + C) and S rates."""
    task = untrained("iid", 0).world.task
    for steps, batch in ((1, 1), (10, 10), (3, 7)):
        own = DOSFL(DOSFL.Config(steps=steps, batch=batch))
        assert own.fitted(task).size_bytes == 4 * (steps * batch * (64 + 10) + steps)


def made_up(task, steps, seed=0):
    draws = torch.Generator().manual_seed(seed)
    samples = torch.rand(steps, 4, *task.shape, generator=draws)
    labels = torch.rand(steps, 4, task.classes, generator=draws).softmax(2)
    return Lessons(samples, labels, torch.linspace(0.1, 0.3, steps))


@pytest.mark.parametrize("detached", [True, False])
def test_replaying_is_plain_gradient_descent(detached):
    world = columns()
    model, lessons = world.task.model, made_up(world.task, 3)
    flat = world.start.clone()
    for samples, labels, rate in zip(*lessons, strict=True):
        leaf = flat.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model.logits(leaf, samples), labels), leaf)
        flat = flat - rate * gradient
    learned = replayed(world.task, model.named(world.start), lessons, detached)
    assert torch.allclose(torch.cat([part.detach().flatten() for part in learned.values()]), flat, atol=1e-6)
    assert any(part.requires_grad for part in learned.values()) is not detached


def test_gradients_through_replaying_are_those_of_small_changes():
    world = columns()
    lessons = made_up(world.task, 3)
    features, labels = world.data[0]

    def loss(rates):
        learned = replayed(world.task, world.task.model.named(world.start), lessons._replace(rates=rates))
        return cross_entropy(world.task.model.forward(learned, features), labels)

    def plain(rates):
        return float(loss(rates).detach())

    rates = lessons.rates.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(rates), rates)
    for i in range(3):
        moved = torch.zeros(3)
        moved[i] = 0.05
        slope = (plain(lessons.rates + moved) - plain(lessons.rates - moved)) / 0.1
        assert float(gradient[i]) == pytest.approx(slope, rel=0.05, abs=1e-4)


def test_improved_batches_teach_more_than_noise():
    world = two_clients()._replace(data=two_clients().data[:1], models=[None])
    features, labels = world.data[0]

    def loss(steps):
        own = DOSFL(DOSFL.Config(client_steps=steps, epochs=1))
        flat = world.aggregated(own)
        return float(cross_entropy(world.task.logits(flat, features), labels))

    assert loss(40) < 0.9 * loss(1)


def test_what_is_given_away_are_the_samples_and_their_surest_class():
    own, world = DOSFL(DOSFL.Config(client_steps=1, steps=2, batch=3)), two_clients()
    uploads = world.uploads(own)
    samples, labels = own.samples(uploads, world.assets(own))
    assert samples.shape == (12, 1, 8, 8)
    assert labels[6:].tolist() == [6] * 6
    (told, *_) = [own.lessons(upload, world.task) for upload in uploads]
    assert torch.equal(told.flat(), uploads[0].model)
    assert torch.allclose(told.labels.sum(2), torch.ones(2, 3))


def test_batches_of_all_clients_teach_one_model():
    """No figure is given; with all its steps this reaches 87 here, and 71 where clients lack classes."""
    own = DOSFL(DOSFL.Config(client_steps=20, steps=5))
    assert untrained("iid", 0).accuracy(own) > 50


# In runs


@pytest.mark.parametrize(
    ("algorithm", "options", "cell"),
    [
        ("centroids", {"steps": 100}, "R5 D0 W0 H1 M1 F1 S0"),
        ("fedcvae", LITTLE, "R4 D0 W1 H1 M1 F1 S0"),
        ("fedcvae-kd", LITTLE | {"lessons": 50}, "R4 D0 W1 H1 M1 F1 S0"),
        ("dosfl", {"client_steps": 2}, "R4 D0 W1W2 H0 M1 F1 S0"),
    ],
)
def test_runs(algorithm, options, cell):
    run = Run(nodes=3, protocol={"algorithm": algorithm, "options": options}, data={"partition": "shards"})
    assert (run.summary["status"], run.summary["error"]) == ("finished", None)
    assert run.own["cell"] == cell
    assert run.metric("client_s", 1) > 0
    assert 0 in run.models  # a model like the clients' own
    assert run.own["uploaded_bytes"]["model" if algorithm != "centroids" else "parts"]["total"] > 0


def test_a_claim_that_is_cut_takes_no_centroid_away():
    options = {"algorithm": "centroids", "options": {"steps": 20}, "most_samples": 30}
    run = Run(nodes=4, protocol=options, mods=[mod("Changing", 1, what="claims", factor=1)])
    assert (run.summary["status"], run.missing) == ("finished", {})


def test_half_precision_halves_a_decoder():
    full, half = (
        Run(nodes=3, protocol={"algorithm": "fedcvae", "options": LITTLE, "upload": precision})
        for precision in ("float32", "float16")
    )
    sizes = [run.own["uploaded_bytes"]["model"]["most"] for run in (full, half)]
    assert sizes[0] == 2 * sizes[1]


@pytest.mark.parametrize(
    ("protocol", "says"),
    [
        ({"algorithm": "fedcvae", "reveal": "statistics"}, "'fedcvae' needs clients to reveal 'generator'"),
        ({"algorithm": "centroids", "reveal": "generator"}, "'centroids' needs clients to reveal 'samples'"),
        ({"algorithm": "dosfl", "options": {"rate": 0}}, "protocol.options.rate"),
        ({"algorithm": "centroids", "options": {"share": 0}}, "protocol.options.share"),
        ({"algorithm": "fedcvae", "options": {"truncation": -1}}, "protocol.options.truncation"),
    ],
)
def test_what_is_forbidden_or_wrong_is_refused(protocol, says):
    with pytest.raises(ConfigError, match=says):
        checked(protocol=protocol)


def test_time_counts_what_clients_go_through():
    task = two_clients().task
    one, seven = (FedCVAE(FedCVAE.Config(client_epochs=epochs)).fit_samples(task, 10) for epochs in (1, 7))
    assert seven == pytest.approx(7 * one)
    assert 60 < one < 100  # an autoencoder of 46,000 parameters, for a model of 7,510
    own = DOSFL(DOSFL.Config(steps=2, batch=3, client_steps=5, client_batch_size=8))
    assert own.fit_samples(task, 100) == 5 * (3 * 2 * 3 + 8)
    assert own.fit_samples(task, 4) == 5 * (3 * 2 * 3 + 4)
    assert np.isclose(own.aggregation_flops(task, 2, 0) * 2, own.aggregation_flops(task, 4, 0))
