"""Private training against a model that makes the gradients of some records infinite, undefined or badly rounded."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from node.config import ModelSection, PrivacySection, TrainingSection
from node.errors import ComputeError
from node.learn.models import Model, build
from node.learn.training import Guide
from node.learn.workload import prepare_torch
from node.op import Key, Task
from node.privacy import ghost
from node.privacy.clipping import clipped, noised, noised_update
from node.privacy.dpsgd import PrivateTrainer, VmapGradients, clip_factors
from node.privacy.ghost import GhostGradients
from node.privacy.noise import Seeded, seeded
from node.privacy.training import PrivateTraining

METHODS = pytest.mark.parametrize("method", ["ghost", "vmap"])
NETWORKS = {
    "linear": (lambda: nn.Linear(6, 3), (6,)),
    "over positions": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Flatten(), nn.Linear(15, 3)), (3, 6)),
    "few positions": (lambda: nn.Sequential(nn.Conv2d(2, 16, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)), (2, 5, 5)),
    "many positions": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 2), nn.GroupNorm(1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)),
        (2, 5, 5),
    ),
}


@pytest.fixture(autouse=True)
def _deterministic():
    prepare_torch()


def samples(count, shape, classes=3):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, *shape, generator=generator), torch.randint(0, classes, (count,), generator=generator)


def network(name):
    make, shape = NETWORKS[name]
    return Model(name, make), shape


def gradients_of(model, method):
    return GhostGradients(model) if method == "ghost" else VmapGradients(model)


def parameters(model, flat=None):
    return list(model.named(model.initial(0) if flat is None else flat).values())


def private(model, method="ghost", noise_multiplier=5.0, batch_size=4, local_steps=1):
    section = PrivacySection(mechanism="record", noise_multiplier=noise_multiplier, gradients=method, view="T5")
    training = TrainingSection(lr=0.1, batch_size=batch_size, local_steps=local_steps)
    return PrivateTraining(model, training, section, "seeded")


# What one record may add


@METHODS
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_record_without_a_finite_gradient_adds_exactly_nothing(name, value, method):
    model, shape = network(name)
    features, labels = samples(5, shape)
    features[2] = value
    trainer = PrivateTrainer(model, TrainingSection(lr=0.1), 0.1, 0.0, method)
    others = torch.tensor([0, 1, 3, 4])
    found = trainer._clipped_sum(parameters(model), features, labels)
    expected = trainer._clipped_sum(parameters(model), features[others], labels[others])
    for part, other in zip(found, expected, strict=True):
        torch.testing.assert_close(part, other)
    assert any(part.abs().max() > 0 for part in found)


@METHODS
def test_a_batch_of_nothing_finite_is_no_sum_at_all(method):
    model, shape = network("many positions")
    features, labels = samples(5, shape)
    trainer = PrivateTrainer(model, TrainingSection(lr=0.1), 1.0, 0.0, method)
    for part in trainer._clipped_sum(parameters(model), features * math.nan, labels):
        assert torch.equal(part, torch.zeros_like(part))


def test_a_masked_model_leaves_such_a_record_out_too():
    model, shape = network("linear")
    features, labels = samples(5, shape)
    features[2] = math.nan
    start = model.initial(0)
    trainer = PrivateTrainer(model, TrainingSection(lr=0.1, batch_size=5), 1.0, 0.0)
    guide = Guide(mask=(torch.arange(model.dimension) % 2).float())
    rng = np.random.default_rng(0)
    found = trainer.train(start, features, labels, 1.0, 1, 0.1, rng, Seeded(Key(0, 0, 0)), guide=guide)
    assert found.isfinite().all()
    assert not torch.equal(found, start)


@METHODS
def test_the_bits_of_a_batch_of_finite_gradients_are_those_of_plain_products(method):
    model, shape = network("few positions")
    features, labels = samples(5, shape)
    factors = torch.tensor([1.0, 0.5, 0.25, 1.0, 0.125])
    with torch.no_grad():
        found = gradients_of(model, method).at(parameters(model), features, labels).weighted(factors)
        one = [
            gradients_of(model, method).at(parameters(model), features[i : i + 1], labels[i : i + 1])
            for i in range(len(labels))
        ]
    for place, part in enumerate(found):
        expected = sum(each.weighted(factors[i : i + 1])[place] for i, each in enumerate(one))
        torch.testing.assert_close(part, expected)


def test_factors_are_zero_where_there_is_no_bound():
    squares = torch.tensor([0.0, 1.0, 4.0, math.inf, math.nan, -1e-9, 3e38])
    factors = clip_factors(squares, 1.0)
    torch.testing.assert_close(factors[:3], torch.tensor([1.0, 1.0, 0.5]))
    assert factors[3:6].tolist() == [0.0, 0.0, 0.0]
    assert 0 < float(factors[6]) * math.sqrt(3e38) <= 1
    assert clip_factors(squares, math.inf).tolist() == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0]


@METHODS
def test_a_finite_gradient_whose_norm_overflows_adds_nothing(method):
    model = Model("linear", lambda: nn.Linear(2, 2, bias=False))
    features = torch.tensor([[1e25, 0.0], [0.0, 1.0]])
    with torch.no_grad():
        at = gradients_of(model, method).at([torch.zeros(2, 2)], features, torch.tensor([0, 1]))
    assert at.squares.tolist()[0] == math.inf
    (found,) = at.weighted(clip_factors(at.squares, 1.0))
    assert found[:, 0].tolist() == [0.0, 0.0]
    assert found[:, 1].tolist() == pytest.approx([0.5, -0.5])


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(NETWORKS)),
    st.sampled_from(["ghost", "vmap"]),
    st.integers(0, 2**31),
    st.floats(0, 38),
    st.floats(1e-3, 10),
)
def test_no_model_makes_one_record_add_more_than_the_bound(name, method, seed, magnitude, clip):
    model, shape = network(name)
    rng = np.random.default_rng(seed)
    flat = rng.standard_normal(model.dimension) * 10 ** rng.uniform(-magnitude, magnitude, model.dimension)
    features, labels = samples(1, shape)
    trainer = PrivateTrainer(model, TrainingSection(lr=0.1), clip, 0.0, method)
    found = trainer._clipped_sum(parameters(model, torch.from_numpy(flat).float()), features, labels)
    norm = math.sqrt(sum(float(part.double().square().sum()) for part in found))
    assert norm <= clip * (1 + 1e-4)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_positions_that_cancel_hide_no_gradient_from_the_ghost_norm(scale):
    """Two positions with opposite errors: of the inputs' huge common part nothing stays but what is rounded."""
    generator = torch.Generator().manual_seed(3)
    inputs = scale * (1e3 + torch.rand(16, 1, 4, 2, generator=generator))
    errors = torch.rand(16, 1, 5, 1, generator=generator) * torch.tensor([1.0, -1.0])
    gradients = torch.matmul(errors, inputs.mT)
    squares = ghost._ghost_squares(inputs, errors)
    assert (gradients.double().square().sum((1, 2, 3)) <= squares.double() * (1 + 1e-5)).all()


def test_a_single_position_has_no_norm_but_its_own():
    inputs, errors = torch.rand(4, 1, 6, 1), torch.rand(4, 1, 3, 1)
    expected = torch.matmul(errors, inputs.mT).square().sum((1, 2, 3))
    torch.testing.assert_close(ghost._ghost_squares(inputs, errors), expected)


# The check of ghost norms


class Watched(nn.Module):
    """Its bias counts twice: no ghost norm knows that."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, features):
        return self.layer(features) + self.layer.bias


def test_the_check_of_norms_waits_for_a_model_that_has_any():
    model = Model("odd", Watched)
    trainer = PrivateTrainer(model, TrainingSection(lr=0.1), 1.0, 0.0)
    data, rng = samples(8, (6,)), np.random.default_rng(0)
    trainer.train(model.initial(0) * math.nan, *data, 1.0, 1, 0.1, rng, Seeded(Key(0, 0, 0)))
    with pytest.raises(ComputeError, match="norms of 'odd' are not those of its gradients"):
        trainer.train(model.initial(0), *data, 1.0, 1, 0.1, rng, Seeded(Key(0, 0, 1)))


def test_the_check_of_norms_looks_at_no_record():
    model, shape = network("linear")
    features, labels = samples(8, shape)
    trainer = PrivateTrainer(model, TrainingSection(lr=0.1), 1.0, 0.0)
    asked = []
    at = trainer._reference.at
    trainer._reference.at = lambda parameters, *data: asked.append(data) or at(parameters, *data)
    for scale in (1.0, 2.0):
        trainer._is_checked = False
        rng, noise = np.random.default_rng(0), Seeded(Key(0, 0, 0))
        trainer.train(model.initial(0), scale * features, labels, 1.0, 1, 0.1, rng, noise)
    assert torch.equal(asked[0][0], asked[1][0])
    assert asked[0][1].tolist() == [0, 0, 0, 0]


# End to end


@METHODS
def test_a_model_of_a_neighbour_does_not_tell_whether_a_record_is_there(method):
    """Weights that overflow for a record with one pixel lit, and for no other."""
    model = build(ModelSection(name="softmax"), (1, 8, 8), 10)
    start = torch.zeros(model.dimension)
    start[:640].view(10, 64)[:, 6:8] = 3e38
    features, labels = samples(40, (1, 8, 8), 10)
    features[:, 0, 0, 6:8] = 0.0
    present = features.clone()
    present[13, 0, 0, 6:8] = 1.0
    training = private(model, method, batch_size=40)
    sent = [training.train(start, data, labels, Key(1, 0, 1), 1, 0.1, 0.0, None) for data in (features, present)]
    assert sent[0].isfinite().all()
    assert sent[1].isfinite().all()
    without = [i for i in range(40) if i != 13]
    expected = training.train(start, features[without], labels[without], Key(1, 0, 1), 1, 0.1, 0.0, None)
    torch.testing.assert_close(sent[1], expected)


@METHODS
def test_a_deep_model_that_overflows_late_tells_nothing(method):
    model = build(ModelSection(name="mlp"), (1, 8, 8), 10)
    flat = torch.zeros(model.dimension)
    first, bias, second, *_ = model.named(flat).values()
    first[0, 7], bias[0], second[0, 0] = 1e22, -9e21, 1e20
    features, labels = samples(50, (1, 8, 8), 10)
    features[:, 0, 0, 7] *= 0.8
    features[13, 0, 0, 7] = 1.0
    training = private(model, method, noise_multiplier=20.0, batch_size=64)
    for counter in range(3):
        sent = training.train(0.25 * flat, features, labels, Key(1, 0, counter), 1, 0.1, 0.0, None)
        assert sent.isfinite().all()


# Node-level privacy


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_none(value):
    update = torch.tensor([1.0, value, 3.0])
    assert clipped(update, 1.0).tolist() == [0.0, 0.0, 0.0]
    assert clipped(update, math.inf).tolist() == [0.0, 0.0, 0.0]
    before, after, none = torch.ones(3), torch.tensor([1.0, value, 2.0]), torch.ones(3)
    noise = [Seeded(Key(1, 0, 1)) for _ in range(2)]
    assert torch.equal(noised(before, after, 1.0, 5.0, noise[0]), noised(before, none, 1.0, 5.0, noise[1]))


def test_a_finite_update_whose_squares_overflow_is_scaled_right():
    torch.testing.assert_close(clipped(torch.tensor([3e30, 4e30]), 1.0), torch.tensor([0.6, 0.8]))
    assert clipped(torch.full((2,), 3e38) - torch.full((2,), -3e38), 1.0).tolist() == [0.0, 0.0]


def test_what_a_node_sends_is_finite_whatever_it_has_learned():
    before = torch.zeros(8)
    for value in (math.nan, math.inf, 3e38):
        task = Task((before, torch.full((8,), value)), {"clip": 1.0, "noise_multiplier": 1.0}, Key(0, 1, 2))
        assert noised_update(seeded).solve(task).isfinite().all()
