"""Samples and labels back from gradients and updates."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from node.attack import images, inversion
from node.attack.inversion import DLG, CosineMatching, Leak, LocalSteps
from node.errors import ComputeError, ConfigError
from node.learn.models import Dense, Model
from node.learn.workload import prepare_torch

FEATURES, LABELS = load_digits(return_X_y=True)
FEATURES = torch.from_numpy(FEATURES / 16).view(-1, 1, 8, 8)
LABELS = torch.from_numpy(LABELS)
IMAGES = 12


@pytest.fixture(autouse=True, scope="module")
def _deterministic():
    prepare_torch()


def rng(seed=0):
    return np.random.default_rng(seed)


def convolutional(activation):
    """Three 3x3 convolutions of 12 channels, and a fully connected layer."""

    def make():
        shapes = [(1, 1), (12, 2), (12, 1)]
        layers = [part for inputs, stride in shapes for part in (nn.Conv2d(inputs, 12, 3, stride, 1), activation())]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(192, 10))

    return Model("convolutional", make)


SMOOTH = convolutional(nn.Sigmoid)
ANGULAR = convolutional(nn.ReLU)
START = torch.from_numpy(rng().uniform(-0.5, 0.5, SMOOTH.dimension))
MLP = Dense("mlp", (64, 32, 10))


def leaked(model, rows, start=START, noise=0.0, steps=None):
    """What an attacker holds of some samples."""
    update = inversion.update_of(model.logits, start, FEATURES[rows], LABELS[rows], steps).detach()
    return Leak(start, update + noise * torch.from_numpy(rng(9).standard_normal(len(update))), steps=steps)


def thinned(leak, k, seed=0):
    """A leak of 1/k of each tensor's coordinates."""
    generator = rng(seed)
    sizes = [(part.start, part.stop - part.start) for _, part, _ in SMOOTH.parts]
    kept = [start + np.sort(generator.permutation(size)[: max(1, size // k)]) for start, size in sizes]
    places = torch.from_numpy(np.concatenate(kept))
    return replace(leak, update=leak.update[places], places=places)


def decibels(model, leaks, row, method, seed=0, **options):
    found = inversion.invert(model.logits, leaks, (1, 1, 8, 8), LABELS[row : row + 1], method, rng(seed), **options)
    return images.compare(FEATURES[row : row + 1].numpy(), found.features.numpy()).psnr_db[0]


# Labels


def bias_of(model, flat, rows):
    return inversion.output_bias(model, inversion.update_of(model.logits, flat, FEATURES[rows], LABELS[rows]).detach())


def test_the_label_of_one_sample_is_always_found():
    flat = MLP.initial(0).double()
    assert [inversion.labels_of(bias_of(MLP, flat, [row]), 1)[0] for row in range(50)] == LABELS[:50].tolist()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_labels_of_a_batch_are_exact_where_the_mean_prediction_is_known(labels):
    logits = torch.from_numpy(rng(1).normal(size=(len(labels), 10)))
    p = logits.softmax(1).mean(0)
    counts = torch.bincount(torch.tensor(labels), minlength=10)
    found = inversion.labels_of(p - counts / len(labels), len(labels), p.numpy())
    assert sorted(found.tolist()) == sorted(labels)


def test_labels_of_a_batch_are_mostly_right_for_an_untrained_model():
    flat = MLP.initial(3).double()
    right = 0
    for batch in range(20):
        rows = list(range(16 * batch, 16 * batch + 16))
        found = np.bincount(inversion.labels_of(bias_of(MLP, flat, rows), 16), minlength=10)
        right += np.minimum(found, np.bincount(LABELS[rows], minlength=10)).sum()
    assert right / 320 > 0.9


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=10), st.integers(1, 20))
def test_there_are_as_many_labels_as_samples_and_negative_entries_are_among_them(gradient, samples):
    found = inversion.labels_of(torch.tensor(gradient), samples)
    assert len(found) == samples
    negative = {label for label, entry in enumerate(torch.tensor(gradient).tolist()) if entry < 0}
    assert len(negative & set(found.tolist())) == min(samples, len(negative))


def test_a_model_without_a_last_bias_hides_its_labels():
    model = Model("unbiased", lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False)))
    with pytest.raises(ConfigError, match=r"'unbiased' ends with '1.weight' \[10, 64\]"):
        inversion.output_bias(model, model.initial(0))


# Closed forms


def first_layer(model, update):
    named = list(model.named(update).values())
    return named[0], named[1]


def test_a_fully_connected_layer_gives_its_input_away():
    flat = MLP.initial(0)
    for row in range(50):
        sample = FEATURES[row : row + 1].float()
        update = inversion.update_of(MLP.logits, flat, sample, LABELS[row : row + 1]).detach()
        found = inversion.analytic_input(*first_layer(MLP, update))
        assert (found - sample.flatten()).abs().max() < 1e-5


def test_a_layer_that_was_not_active_gives_nothing_away():
    with pytest.raises(ComputeError, match="no unit"):
        inversion.analytic_input(torch.zeros(3, 4), torch.zeros(3))


def test_an_imprinted_layer_gives_every_sample_away_that_is_alone_in_its_bin():
    model, samples = Dense("mlp", (64, 400, 10)), FEATURES[:8]
    named = model.named(flat := model.initial(0).double())
    weight, bias, output, _ = named.values()
    weight.fill_(1 / 64)
    bias.copy_(-torch.linspace(0.2, 0.5, 400, dtype=torch.float64))
    output.copy_(output[:, :1].expand_as(output))
    update = inversion.update_of(model.logits, flat, samples, LABELS[:8]).detach()
    found = inversion.imprinted_inputs(*first_layer(model, update))
    assert len(found) == 8
    assert images.compare(samples[:, 0].numpy(), found.view(-1, 8, 8).numpy()).psnr_db.min() > 100


# Updates


def test_an_update_of_one_step_is_the_gradient():
    flat = MLP.initial(0).double().requires_grad_()
    (expected,) = torch.autograd.grad(cross_entropy(MLP.logits(flat, FEATURES[:4]), LABELS[:4]), flat)
    one_step = LocalSteps(0.1, ((0, 1, 2, 3),))
    for steps in (None, one_step):
        found = inversion.update_of(MLP.logits, flat.detach(), FEATURES[:4], LABELS[:4], steps)
        torch.testing.assert_close(found, expected)


def test_several_steps_are_those_of_plain_sgd():
    start = MLP.initial(0).double()
    steps = LocalSteps(0.05, ((0, 1), (2, 3), (1, 2, 3)))
    model = start
    for batch in steps.batches:
        rows = list(batch)
        model = model - 0.05 * inversion.update_of(MLP.logits, model, FEATURES[rows], LABELS[rows]).detach()
    found = inversion.update_of(MLP.logits, start, FEATURES[:4], LABELS[:4], steps)
    torch.testing.assert_close(found, (start - model) / 0.05)


@settings(max_examples=10)
@given(st.integers(0, 1000))
def test_updates_are_differentiable_in_features_and_soft_labels(seed):
    start = MLP.initial(seed).double()
    features = FEATURES[:2].clone().requires_grad_()
    targets = torch.from_numpy(rng(seed).dirichlet(np.ones(10), 2)).requires_grad_()
    steps = LocalSteps(0.1, ((0, 1), (1,)))

    def total(features, targets):
        return (inversion.update_of(MLP.logits, start, features, targets, steps) ** 2).sum()

    slopes = torch.autograd.grad(total(features, targets), (features, targets))
    for values, slope in zip((features, targets), slopes, strict=True):
        direction = torch.from_numpy(rng(seed + 1).standard_normal(values.shape)) * 1e-6
        moved = [(v + sign * direction if v is values else v) for sign in (1, -1) for v in (features, targets)]
        expected = (total(*moved[:2]) - total(*moved[2:])).detach() / 2
        assert (slope * direction).sum().item() == pytest.approx(expected.item(), rel=1e-3, abs=1e-9)


# DLG, on the reference network: slow, some three seconds together


def test_exact_gradients_give_the_image_away():
    found = [decibels(SMOOTH, [leaked(SMOOTH, [row])], row, DLG(), row) for row in range(IMAGES)]
    assert sum(psnr >= 60 for psnr in found) >= 10


def test_strong_noise_hides_it_and_weak_noise_does_not():
    def found(row, noise):
        return decibels(SMOOTH, [leaked(SMOOTH, [row], noise=noise)], row, DLG(iterations=60))

    assert max(found(row, 1e-1) for row in range(2)) <= 10
    assert found(0, 1e-4) >= 50


def test_a_sixteenth_of_the_coordinates_is_enough():
    for row in range(2):
        assert decibels(SMOOTH, [thinned(leaked(SMOOTH, [row]), 16)], row, DLG(iterations=150)) > 50


def test_zeros_in_place_of_missing_coordinates_would_look_like_a_defence():
    leak = leaked(SMOOTH, [0])
    thin = thinned(leak, 8)
    filled = torch.zeros_like(leak.update).index_copy(0, thin.places, thin.update)
    method = DLG(iterations=100)
    assert decibels(SMOOTH, [replace(leak, update=filled)], 0, method) < 20 < decibels(SMOOTH, [thin], 0, method)


def test_repeated_rounds_average_noise_out():
    exact = leaked(SMOOTH, [1])
    noise = torch.from_numpy(0.02 * rng().standard_normal((6, SMOOTH.dimension)))
    noisy = [replace(exact, update=exact.update + one) for one in noise]
    one, many = (decibels(SMOOTH, leaks, 1, DLG(iterations=40)) for leaks in (noisy[:1], noisy))
    assert many > one + 5


def test_a_prior_on_images_helps_against_noise():
    leaks = [leaked(SMOOTH, [2], noise=0.1)]
    plain, smooth = (decibels(SMOOTH, leaks, 2, DLG(iterations=60, tv=tv)) for tv in (0.0, 2.0))
    assert smooth > plain + 2


def test_unknown_labels_are_found_with_the_image():
    found = [
        inversion.invert(SMOOTH.logits, [leaked(SMOOTH, [row])], (1, 1, 8, 8), None, DLG(), rng(row))
        for row in range(2)
    ]
    assert [int(inverted.labels[0]) for inverted in found] == LABELS[:2].tolist()
    assert all(inverted.features.dtype == torch.float64 for inverted in found)


def test_a_batch_comes_back_in_some_order():
    rows = [0, 1]
    found = inversion.invert(SMOOTH.logits, [leaked(SMOOTH, rows)], (2, 1, 8, 8), LABELS[rows], DLG(), rng(1))
    assert images.compare(FEATURES[rows].numpy(), found.features.numpy()).recovered == 1


def test_local_steps_are_unrolled():
    steps = LocalSteps(0.1, ((0,),) * 3)
    leak = leaked(SMOOTH, [3], steps=steps)
    assert decibels(SMOOTH, [leak], 3, DLG()) > 60
    assert decibels(SMOOTH, [replace(leak, steps=None)], 3, DLG(iterations=200)) < 40


def test_float32_models_and_updates_are_matched_in_float64():
    leak = leaked(SMOOTH, [4], start=START.float().double())
    single = Leak(leak.model.float(), leak.update.float())
    assert decibels(SMOOTH, [single], 4, DLG()) > 50


def test_the_best_of_several_starts_is_kept():
    leak = leaked(SMOOTH, [5], noise=0.01)
    shape, labels, method = (1, 1, 8, 8), LABELS[5:6], DLG(iterations=8)
    generator = rng(2)
    each = [inversion.invert(SMOOTH.logits, [leak], shape, labels, method, generator) for _ in range(3)]
    best = inversion.invert(SMOOTH.logits, [leak], shape, labels, method, rng(2), restarts=3)
    assert len({inverted.objective for inverted in each}) == 3
    assert best.objective == min(inverted.objective for inverted in each)


def test_an_inversion_depends_on_its_seed_alone():
    leak = leaked(SMOOTH, [6])
    one, other = (inversion.invert(SMOOTH.logits, [leak], (1, 1, 8, 8), LABELS[6:7], DLG(), rng(3)) for _ in range(2))
    assert torch.equal(one.features, other.features)


# Cosine matching, on the same network with ReLU


def test_cosine_matching_works_with_relu_and_fails_with_sigmoid():
    rows = (1, 5)
    relu = [decibels(ANGULAR, [leaked(ANGULAR, [row])], row, CosineMatching(600), row) for row in rows]
    assert np.mean(relu) > 24
    assert decibels(SMOOTH, [leaked(SMOOTH, [1])], 1, CosineMatching(150), 1) < 16


def test_cosine_matching_stays_within_the_range_and_ignores_the_size_of_the_update():
    leak = leaked(ANGULAR, [0])
    one, larger = (
        inversion.invert(ANGULAR.logits, [seen], (1, 1, 8, 8), LABELS[:1], CosineMatching(10), rng(0))
        for seen in (leak, replace(leak, update=leak.update * 1024))
    )
    assert torch.equal(one.features, larger.features)
    assert one.features.min() >= 0
    assert one.features.max() <= 1


def test_cosine_matching_matches_observed_coordinates_only():
    leak = thinned(leaked(ANGULAR, [0]), 4)
    short, long = (
        inversion.invert(ANGULAR.logits, [leak], (1, 1, 8, 8), LABELS[:1], CosineMatching(n), rng(0)) for n in (2, 80)
    )
    assert long.objective < short.objective / 2


def test_total_variation_is_the_mean_step_between_neighbours():
    ramp = (torch.arange(4.0) * 2).expand(3, 1, 5, 4)
    assert float(inversion.total_variation(ramp)) == 2
    assert float(inversion.total_variation(ramp.transpose(-1, -2))) == 2
    assert float(inversion.total_variation(torch.ones(1, 8, 8))) == 0


# Bad input


def test_cosine_matching_needs_labels():
    with pytest.raises(ConfigError, match="labels: cosine matching needs them"):
        inversion.invert(ANGULAR.logits, [leaked(ANGULAR, [0])], (1, 1, 8, 8), None, CosineMatching(1), rng())


def test_an_update_must_fit_its_model_or_places():
    leak = leaked(SMOOTH, [0])
    for broken in (replace(leak, update=leak.update[1:]), replace(leak, places=torch.arange(5))):
        with pytest.raises(ConfigError, match="leaks: update 1 has"):
            inversion.invert(SMOOTH.logits, [leak, broken], (1, 1, 8, 8), LABELS[:1], DLG(), rng())


def test_there_must_be_something_to_search():
    with pytest.raises(ConfigError, match="0 updates"):
        inversion.invert(SMOOTH.logits, [], (1, 1, 8, 8), LABELS[:1], DLG(), rng())
    with pytest.raises(ConfigError, match="0 restarts"):
        inversion.invert(SMOOTH.logits, [leaked(SMOOTH, [0])], (1, 1, 8, 8), LABELS[:1], DLG(), rng(), restarts=0)


def test_a_prior_on_images_needs_images():
    leak = Leak(MLP.initial(0), MLP.initial(0))
    with pytest.raises(ConfigError, match=r"tv: features \[1, 64\] are no images"):
        inversion.invert(MLP.logits, [leak], (1, 64), LABELS[:1], CosineMatching(1), rng())
