"""Merging layer by layer in one shot: by Gram matrices of what goes into each, and by what clients have seen."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import unfold

from node.learn.models import Dense
from node.learn.oneshot.algorithm import Measuring
from node.learn.oneshot.averaging import Average, Dare
from node.learn.oneshot.grams import gram, layers, symmetric, upper
from node.learn.oneshot.merging import FedFisher, Fisher
from node.learn.oneshot.regression import MaEcho, RegMean, damped, harmonized, regressed
from node.learn.workload import prepare_torch
from oneshot_clients import handmade, sequence


@pytest.fixture(autouse=True)
def _one_thread():
    prepare_torch()


def option(kind, **options):
    return kind(kind.Config(**options))


def least_squares(features, targets):
    return torch.linalg.lstsq(features, targets).solution.T


def test_the_regression_mean_of_least_squares_is_that_of_all_data():
    chance = torch.Generator().manual_seed(3)
    sets = [torch.randn(n, 4, generator=chance, dtype=torch.float64) for n in (9, 20, 6)]
    targets = [torch.randn(len(each), 2, generator=chance, dtype=torch.float64) for each in sets]
    weights, moments = [least_squares(*pair) for pair in zip(sets, targets, strict=True)], [x.T @ x for x in sets]
    pulled = sum(weight @ moment for weight, moment in zip(weights, moments, strict=True))
    merged = regressed(torch.stack(weights).mean(0), pulled, sum(moments))
    assert torch.allclose(merged, least_squares(torch.cat(sets), torch.cat(targets)), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("share", "expected"), [(1.0, (0.532326, 1.010076)), (0.0, (1 / 3, 0.875))])
def test_golden_regression_means(share, expected):
    moments = [torch.tensor(m, dtype=torch.float64) for m in ([[2, 0.5], [0.5, 1]], [[1, -0.2], [-0.2, 3]])]
    weights = [torch.tensor([w], dtype=torch.float64) for w in ([1, 2], [-1, 0.5])]
    kept = [damped(moment, share) for moment in moments]
    pulled = sum(weight @ moment for weight, moment in zip(weights, kept, strict=True))
    merged = regressed(torch.stack(weights).mean(0), pulled, sum(kept))
    assert merged[0].tolist() == pytest.approx(expected, abs=1e-6)


@given(share=st.floats(0, 1), seed=st.integers(0, 1000), dead=st.integers(0, 4))
def test_equal_weights_are_their_own_mean_whatever_share_counts(share, seed, dead):
    chance = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, 4, generator=chance, dtype=torch.float64)
    features = [torch.randn(3, 4, generator=chance, dtype=torch.float64) for _ in range(2)]
    for each in features:
        each[:, :dead] = 0
    kept = [damped(each.T @ each, share) for each in features]
    merged = regressed(weight, sum(weight @ moment for moment in kept), sum(kept))
    assert torch.allclose(merged, weight, atol=1e-8, rtol=0)


def test_inputs_that_nobody_has_seen_stay_averaged():
    moments = [torch.diag(torch.tensor([1.0, 0.0, 2.0])).double(), torch.diag(torch.tensor([3.0, 0.0, 0.0])).double()]
    weights = [torch.tensor([[1.0, 4.0, 5.0]]).double(), torch.tensor([[5.0, 6.0, 9.0]]).double()]
    pulled = sum(weight @ moment for weight, moment in zip(weights, moments, strict=True))
    assert regressed(torch.stack(weights).mean(0), pulled, sum(moments)).tolist() == [pytest.approx([4.0, 5.0, 5.0])]


def linear_world(outputs=3):
    """Clients whose models are the least squares of their own data, with a constant input."""
    model = Dense("softmax", (4, outputs))
    world = handmade(model, (4,), outputs, samples=30)
    models = []
    for features, labels in world.data:
        targets = nn.functional.one_hot(labels, outputs).double()
        fit = least_squares(torch.cat([features, torch.ones(len(features), 1)], 1).double(), targets)
        models.append(torch.cat([fit[:, :4].flatten(), fit[:, 4]]).float())
    return world._replace(models=models)


@pytest.mark.parametrize("triangles", [False, True])
def test_regmean_of_linear_models_is_the_model_of_all_data(triangles):
    world = linear_world()
    features, labels = (torch.cat(each) for each in zip(*world.data, strict=True))
    targets = nn.functional.one_hot(labels, 3).double()
    pooled = least_squares(torch.cat([features, torch.ones(len(features), 1)], 1).double(), targets)
    merged = world.aggregated(option(RegMean, share=1.0, triangles=triangles))
    assert torch.allclose(merged.double(), torch.cat([pooled[:, :4].flatten(), pooled[:, 4]]), atol=1e-4)


@given(st.integers(1, 6), st.integers(0, 99))
def test_a_triangle_holds_a_symmetric_matrix(width, seed):
    half = torch.randn(width, width, generator=torch.Generator().manual_seed(seed))
    matrix = half + half.T
    assert len(upper(matrix)) == width * (width + 1) // 2
    assert torch.equal(symmetric(upper(matrix), width), matrix)


def sent_bytes(own, model):
    parts = own.parts(handmade(model, (64,), 10, clients=1).task, [1] * 10) if isinstance(own, Measuring) else {}
    return model.spec.size_bytes + sum(spec.size_bytes for spec in parts.values())


@pytest.mark.parametrize(
    ("own", "size_bytes"),
    [
        (Fisher(), 60_080),
        (FedFisher(), 60_080),
        (RegMean(), 87_744),
        (option(RegMean, triangles=True), 30_040 + 29_184),
        (MaEcho(), 30_040 + 4 * (64**2 + 100**2)),
        (Dare(), 30_040),
    ],
)
def test_what_a_client_sends_is_what_the_formulas_say(own, size_bytes):
    assert sent_bytes(own, Dense("mlp", (64, 100, 10))) == size_bytes


def test_a_convolution_regresses_on_its_patches():
    model = sequence(lambda: (nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2)))
    features = torch.rand(5, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    first, last = layers(model)
    assert (first.inputs, first.outputs, last.inputs, last.outputs) == (18, 3, 48, 2)
    patches = unfold(features, 3, padding=1, stride=2).mT.reshape(-1, 18).double()
    patches = torch.cat([patches, torch.ones(len(patches), 1)], 1)
    flat = model.initial(0)
    assert torch.allclose(gram(model, flat, features, first, True), patches.T @ patches)
    assert torch.allclose(gram(model, flat, features, first, False), (patches.T @ patches)[:18, :18])
    outputs = patches.float() @ first.matrix(model.named(flat), True).T
    convolved = nn.functional.conv2d(features, *list(model.named(flat).values())[:2], stride=2, padding=1)
    assert torch.allclose(outputs, convolved.flatten(2).mT.reshape(-1, 3), atol=1e-5)


def test_a_convolution_over_the_whole_image_is_a_dense_layer():
    wide = sequence(lambda: (nn.Conv2d(1, 3, 4), nn.Flatten()))
    dense = sequence(lambda: (nn.Flatten(), nn.Linear(16, 3)))
    apart = handmade(wide, (1, 4, 4), 3)
    same = handmade(dense, (1, 4, 4), 3)._replace(models=apart.models)
    assert torch.allclose(apart.aggregated(RegMean()), same.aggregated(RegMean()), atol=1e-5)


def test_layers_without_bias_and_other_parameters():
    model = sequence(lambda: (nn.Conv2d(1, 4, 3, bias=False), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2)))
    world = handmade(model, (1, 4, 4), 2)
    merged, mean = model.named(world.aggregated(RegMean())), model.named(world.aggregated(Average()))
    assert torch.allclose(merged["1.weight"], mean["1.weight"])
    assert not torch.allclose(merged["0.weight"], mean["0.weight"], atol=1e-3)
    widths = {name: spec.shape[0] for name, spec in RegMean().parts(world.task, [1, 1]).items()}
    assert widths == {"0": 9, "3": 17}


def test_a_grouped_convolution_is_averaged():
    model = sequence(lambda: (nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 2)))
    assert [layer.name for layer in layers(model)] == ["2"]


# Common harmonized optima


def test_a_projector_is_that_on_the_span_of_a_clients_inputs():
    model = Dense("softmax", (5, 2))
    world = handmade(model, (5,), 2, clients=1, samples=3)
    own = option(MaEcho, ridge=0.5)
    features = world.data[0][0].double()
    expected = features.T @ torch.linalg.inv(features @ features.T + 0.5 * torch.eye(3)) @ features
    (name,) = own.parts(world.task, [1, 1])
    found = own.part(name, world.client(own, 0), world.models[0])
    assert torch.allclose(found.double(), expected, atol=1e-6)


def test_a_harmonized_matrix_does_to_each_clients_inputs_what_its_own_does():
    chance = torch.Generator().manual_seed(2)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=chance, dtype=torch.float64)).Q
    spans = [basis[:, part] @ basis[:, part].T for part in (slice(0, 2), slice(2, 3), slice(3, 5))]
    weights = [torch.randn(2, 6, generator=chance, dtype=torch.float64) for _ in spans]
    merged = harmonized(weights, spans, steps=200, rate=1.0, yielding=0.5)
    for weight, span in zip(weights, spans, strict=True):
        assert torch.allclose(merged @ span, weight @ span, atol=1e-9)
    unseen = basis[:, 5]
    assert torch.allclose(merged @ unseen, torch.stack(weights).mean(0) @ unseen, atol=1e-9)


def test_one_step_of_harmonizing_by_hand():
    weights = [torch.tensor([[1.0]]), torch.tensor([[5.0]])]
    spans = [torch.tensor([[0.5]]), torch.tensor([[1.0]])]
    # 3 - .5 (.5 (3 - 1) + 1 (3 - 5)) / 2; the first anchor gives way by 1 * (3.25 - 1) * .5, the second not at all.
    assert float(harmonized(weights, spans, 1, 0.5, 1.0)) == pytest.approx(3.25)
    assert float(harmonized(weights, spans, 2, 0.5, 1.0)) == pytest.approx(3.25 - 0.25 * (0.5 * 1.125 - 1.75))
