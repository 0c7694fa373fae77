"""Fisher information of whole layers: its factors, and models merged by it in two ways."""

import numpy as np
import pytest
import torch
from torch import nn

from node.errors import ConfigError
from node.learn.models import Dense
from node.learn.oneshot.averaging import WeightedAverage
from node.learn.oneshot.catalogue import configured
from node.learn.oneshot.grams import gram, layers
from node.learn.oneshot.kronecker import Curvature, KroneckerFedFisher, errors
from node.learn.oneshot.lpa import FedLPA
from node.learn.oneshot.merging import Fisher
from node.learn.workload import prepare_torch
from oneshot_clients import handmade, sequence, trained

MLP = Dense("mlp", (6, 5, 3))
BOTH = (KroneckerFedFisher, FedLPA)


@pytest.fixture(autouse=True)
def _one_thread():
    prepare_torch()


@pytest.fixture
def small():
    return handmade(MLP, (6,), 3)


def option(kind, **options):
    return kind(kind.Config(**options))


def linear():
    """Clients of one dense layer, and that layer."""
    world = handmade(Dense("softmax", (4, 3)), (4,), 3, samples=30)
    return world, layers(world.task.model)[0]


def matrix(world, layer, flat):
    return layer.matrix(world.task.model.named(flat), True).double()


def factors(world, own, uploads, layer):
    """Curvature of all clients by their shares, and what their models pull to."""
    samples = torch.tensor([upload.samples for upload in uploads], dtype=torch.float64)
    backs, inputs = (
        torch.stack([upload.part(f"{layer.name}/{side}").double() for upload in uploads])
        for side in ("errors", "inputs")
    )
    curvature = Curvature(backs * (samples / samples.sum())[:, None, None], inputs)
    return curvature, curvature.times(torch.stack([matrix(world, layer, upload.model) for upload in uploads]))


# Factors


def test_the_factors_of_a_last_layer_make_its_exact_information_of_one_sample():
    """For one sample the Fisher matrix of a last layer is a Kronecker product, whose diagonal is known."""
    model, features = Dense("softmax", (3, 4)), torch.tensor([[0.5, -1.0, 2.0]])
    world = handmade(model, (3,), 4, clients=1)._replace(data=[(features, torch.tensor([0]))])
    flat, (layer,) = world.models[0], layers(model)
    p = model.logits(flat, features).double().softmax(1)[0]
    found = errors(model, flat, features, layer)
    assert torch.allclose(found, p.diag() - p[:, None] * p, atol=1e-6)
    diagonal = torch.outer(found.diagonal(), gram(model, flat, features, layer, True).diagonal())
    exact = layer.matrix(model.named(Fisher().part("fisher", world.client(Fisher(), 0), flat)), True)
    assert torch.allclose(diagonal.float(), exact, atol=1e-6)


def test_errors_of_a_hidden_layer_are_the_expectation_over_the_models_own_classes(small):
    features, flat = small.data[0][0], small.models[0]
    first = layers(MLP)[0]
    parameters = MLP.named(flat)
    expected = torch.zeros(5, 5, dtype=torch.float64)
    for sample in features:
        hidden = (parameters["1.weight"] @ sample + parameters["1.bias"]).requires_grad_()
        logs = (parameters["3.weight"] @ hidden.relu() + parameters["3.bias"]).log_softmax(0)
        for label in range(3):
            (row,) = torch.autograd.grad(logs[label], hidden, retain_graph=True)
            expected += float(logs[label].detach().exp()) * torch.outer(row, row).double()
    assert torch.allclose(errors(MLP, flat, features, first), expected / len(features), atol=1e-7)


def test_the_errors_of_a_convolution_over_the_whole_image_are_those_of_a_dense_layer():
    wide = sequence(lambda: (nn.Conv2d(1, 3, 4), nn.Flatten()))
    dense = sequence(lambda: (nn.Flatten(), nn.Linear(16, 3)))
    features, flat = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1)), wide.initial(0)
    ours, theirs = (errors(model, flat, features, layers(model)[0]) for model in (wide, dense))
    assert torch.allclose(ours, theirs, atol=1e-7)


def test_curvature_times_a_matrix_is_the_kronecker_product_times_its_elements():
    chance = torch.Generator().manual_seed(4)
    rows = [torch.randn(2, 7, size, generator=chance, dtype=torch.float64) for size in (3, 4)]
    backs, inputs = (each.mT @ each for each in rows)
    flat = torch.randn(12, generator=chance, dtype=torch.float64)
    whole = sum(torch.kron(back, into) for back, into in zip(backs, inputs, strict=True))
    curvature = Curvature(backs, inputs)
    assert torch.allclose(curvature.times(flat.view(3, 4)).flatten(), whole @ flat)
    assert curvature.mean == pytest.approx(float(whole.trace()) / 12)


@pytest.mark.parametrize("kind", BOTH)
def test_a_client_sends_two_factors_a_layer(kind, small):
    parts = kind().parts(handmade(Dense("mlp", (64, 100, 10)), (64,), 10, clients=1).task, [1] * 10)
    assert sum(spec.size_bytes for spec in parts.values()) == 4 * (65**2 + 100**2 + 101**2 + 10**2)
    assert kind().declares.cell == "R3 D0 W2 H0 M1 F1 S0"


def test_factors_are_means_over_so_many_samples_drawn_by_the_client(small):
    own = option(KroneckerFedFisher, samples=4)
    few, again = (own.part("1/errors", small.client(own, 0), small.models[0]) for _ in "ab")
    every = KroneckerFedFisher().part("1/errors", small.client(own, 0), small.models[0])
    assert torch.equal(few, again)
    assert not torch.allclose(few, every, atol=1e-4)
    inputs = KroneckerFedFisher().part("1/inputs", small.client(own, 0), small.models[0])
    assert float(inputs[-1, -1]) == 1  # the mean of a constant


# What is made of them


def test_fedfisher_ends_where_no_layer_gains_anything():
    world, layer = linear()
    own = option(KroneckerFedFisher, steps=20_000)
    uploads = world.uploads(own)
    curvature, pull = factors(world, own, uploads, layer)
    slopes = [
        (curvature.times(matrix(world, layer, world.aggregated(each, uploads if each is own else None))) - pull).norm()
        for each in (own, WeightedAverage())
    ]
    assert slopes[0] < 1e-3 * slopes[1]


def test_fedlpa_solves_its_equation_as_a_dense_solver_does():
    world, layer = linear()
    own = option(FedLPA, prior=0.3)
    uploads = world.uploads(own)
    curvature, pull = factors(world, own, uploads, layer)
    mean = matrix(world, layer, world.aggregated(WeightedAverage()))
    whole = sum(torch.kron(*pair) for pair in zip(curvature.errors, curvature.inputs, strict=True))
    prior = 0.3 * curvature.mean
    right = pull.flatten() + prior * mean.flatten()
    expected = torch.linalg.solve(whole + prior * torch.eye(len(whole), dtype=torch.float64), right).view_as(mean)
    assert torch.allclose(matrix(world, layer, world.aggregated(own, uploads)), expected, atol=1e-5)


@pytest.mark.parametrize("kind", BOTH)
def test_equal_models_are_what_they_are(kind, small):
    alike = small._replace(models=[small.models[0]] * 3)
    assert torch.allclose(alike.aggregated(kind()), small.models[0], atol=1e-5)


def test_a_prior_that_outweighs_all_is_averaging_and_less_of_it_moves_further(small):
    mean = small.aggregated(WeightedAverage())
    moves = [float((small.aggregated(option(FedLPA, prior=prior)) - mean).norm()) for prior in (1e6, 10.0, 0.1)]
    assert moves[0] < 1e-4
    assert moves == sorted(moves)


@pytest.mark.parametrize("kind", BOTH)
def test_parameters_of_no_layer_are_averaged(kind):
    model = sequence(lambda: (nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)))
    world = handmade(model, (1, 4, 4), 2)
    merged, mean = (model.named(world.aggregated(own)) for own in (kind(), WeightedAverage()))
    assert torch.allclose(merged["1.weight"], mean["1.weight"], atol=1e-6)
    assert not torch.allclose(merged["0.weight"], mean["0.weight"], atol=1e-4)


@pytest.mark.parametrize("kind", BOTH)
def test_the_order_of_uploads_makes_no_difference(kind, small):
    own = kind()
    uploads = small.uploads(own)
    assert torch.allclose(small.aggregated(own, uploads), small.aggregated(own, uploads[::-1]), atol=1e-5)


@pytest.mark.parametrize("kind", BOTH)
def test_work_grows_with_clients_and_with_samples_up_to_a_bound(kind, small):
    own = kind()
    assert own.aggregation_flops(small.task, 20, 0) == 10 * own.aggregation_flops(small.task, 2, 0)
    costs = [own.measuring_flops(small.task, samples) for samples in (1, 100, 200, 500)]
    assert 0 < costs[0] < costs[1] < costs[2] == costs[3]


@pytest.mark.parametrize(("name", "key"), [("fedlpa", "prior"), ("fedlpa", "steps"), ("fedfisher-kronecker", "steps")])
def test_bad_options_are_one_line(name, key):
    with pytest.raises(ConfigError, match=rf"^protocol.options.{key}: [^\n]*$"):
        configured(name, f'{{"{key}": 0}}')


def test_information_of_layers_is_worth_twenty_points_under_strong_skew():
    cells = [trained("dirichlet-0.1", seed) for seed in (0, 1)]
    plain, fisher, posterior = (
        np.mean([cell.accuracy(own) for cell in cells]) for own in (WeightedAverage(), KroneckerFedFisher(), FedLPA())
    )
    assert fisher > plain + 20
    assert posterior > plain + 20
