"""DP-SGD: per-sample gradients by two methods, clipping, Poisson batches, noise."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from node.config import ModelSection, TrainingSection
from node.errors import ComputeError, ConfigError
from node.learn.models import Model, build
from node.learn.training import Guide, Trainer
from node.learn.workload import prepare_torch
from node.op import Key, Task
from node.privacy import dpsgd, ghost
from node.privacy.clipping import check_clipping, clipped, noised, noised_update
from node.privacy.dpsgd import PrivateTrainer, VmapGradients, clip_factors
from node.privacy.ghost import GhostGradients
from node.privacy.noise import Seeded, seeded

PLAIN = TrainingSection(lr=0.1)


def of(records, section=PLAIN):
    """The same training, in batches of so many records."""
    return section.model_copy(update={"batch_size": records})


@pytest.fixture(autouse=True)
def _deterministic():
    prepare_torch()


class Silence:
    """No noise, but a count of what was asked for."""

    def __init__(self):
        self.counts = []

    def normals(self, count):
        self.counts.append(count)
        return np.zeros(count)


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.last = nn.Linear(6, 3)

    def forward(self, features):
        return self.last(torch.tanh(self.one(features) + self.two(features)) + features)


class Positions(nn.Module):
    def __init__(self, bias=True, positions=3):
        super().__init__()
        self.each, self.last = nn.Linear(6, 5, bias=bias), nn.Linear(5 * positions, 3)

    def forward(self, features):
        return self.last(torch.relu(self.each(features)).flatten(1))


def sequential(*layers, shape=(2, 8, 8)):
    module = nn.Sequential(*layers)
    with torch.no_grad():
        module(torch.zeros(2, *shape))  # lazy layers find their sizes
    return module


def convolution(**options):
    layers = [nn.Conv2d(2, 4, 3, **options), nn.GroupNorm(2, 4), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return sequential(*layers, nn.Flatten(), nn.LazyLinear(3))


MODELS = {
    "linear": (lambda: nn.Linear(6, 3), (6,)),
    "linear without bias": (lambda: nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 3)), (6,)),
    "linear of one output": (lambda: nn.Sequential(nn.Linear(6, 1), nn.ReLU(), nn.Linear(1, 3)), (6,)),
    "linear over positions": (Positions, (3, 6)),
    "linear over many positions": (lambda: Positions(positions=40), (40, 6)),
    "linear over positions without bias": (lambda: Positions(bias=False), (3, 6)),
    "branches": (Branches, (6,)),
    "convolution": (convolution, (2, 8, 8)),
    "convolution without bias": (lambda: convolution(bias=False), (2, 8, 8)),
    "strides and padding": (lambda: convolution(stride=2, padding=(1, 2)), (2, 8, 8)),
    "dilation": (lambda: convolution(dilation=2, padding=2), (2, 8, 8)),
    "groups": (lambda: convolution(groups=2), (2, 8, 8)),
    "few positions": (lambda: sequential(nn.Conv2d(2, 64, 7), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)), (2, 8, 8)),
    "few positions in groups": (
        lambda: sequential(nn.Conv2d(2, 64, 7, groups=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)),
        (2, 8, 8),
    ),
    "norm first": (lambda: nn.Sequential(nn.GroupNorm(1, 2), nn.Flatten(), nn.Linear(128, 3)), (2, 8, 8)),
    "norm of a vector": (lambda: nn.Sequential(nn.Linear(6, 4), nn.GroupNorm(2, 4), nn.Linear(4, 3)), (6,)),
    "norm without parameters": (
        lambda: nn.Sequential(nn.GroupNorm(1, 2, affine=False), nn.Flatten(), nn.Linear(128, 3)),
        (2, 8, 8),
    ),
}


def samples(count, shape, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator), torch.randint(0, classes, (count,), generator=generator)


def made(name):
    make, shape = MODELS[name]
    return Model(name, make), shape


def bundled(name="mlp", shape=(1, 8, 8)):
    return build(ModelSection(name=name, hidden=(16,)), shape, 10)


def parameters(model, seed=0):
    return list(model.named(model.initial(seed)).values())


def one_by_one(model, features, labels):
    """Every sample's gradient, flat, from a pass of its own; [samples, dimension]."""
    at = [parameter.requires_grad_() for parameter in parameters(model)]
    names = [name for name, _, _ in model.parts]
    rows = []
    for i in range(len(labels)):
        loss = cross_entropy(model.forward(dict(zip(names, at, strict=True)), features[i : i + 1]), labels[i : i + 1])
        rows.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, at)]))
    return torch.stack(rows)


def close(found, expected, tolerance=1e-5):
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * scale)


def assert_same_gradients(model, features, labels):
    expected = one_by_one(model, features, labels)
    factors = torch.linspace(0.1, 1.0, len(labels))
    for method in (GhostGradients(model), VmapGradients(model)):
        with torch.no_grad():
            found = method.at(parameters(model), features, labels)
            summed = found.weighted(factors)
        close(found.squares.sqrt(), expected.norm(dim=1))
        assert [part.shape for part in summed] == [shape for _, _, shape in model.parts]
        close(torch.cat([part.flatten() for part in summed]), factors @ expected)


# Per-sample gradients


@pytest.mark.parametrize("name", MODELS)
def test_both_methods_give_every_samples_gradient(name):
    model, shape = made(name)
    assert_same_gradients(model, *samples(5, shape))


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet8"])
def test_both_methods_agree_on_the_bundled_models(name):
    assert_same_gradients(bundled(name), *samples(4, (1, 8, 8), 10))


@given(
    st.sampled_from([1, 2]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 2),
    st.booleans(),
    st.integers(1, 6),
    st.integers(0, 9),
)
@settings(max_examples=15, deadline=None)
def test_any_convolution_has_its_norms(groups, kernel, stride, padding, bias, count, seed):
    def make():
        layer = nn.Conv2d(2, 4, kernel, stride, padding, groups=groups, bias=bias)
        return sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3), shape=(2, 5, 6))

    assert_same_gradients(Model("any", make), *samples(count, (2, 5, 6), seed=seed))


def test_both_ways_to_a_norm_are_taken_and_agree():
    layer = nn.Linear(6, 5)
    generator = torch.Generator().manual_seed(1)
    for positions in (1, 2, 3, 40):
        inputs, errors = (torch.randn(4, positions, size, generator=generator) for size in (6, 5))
        gradients = torch.einsum("nsi,nso->noi", inputs, errors)
        share = ghost._linear(layer, inputs, errors)
        close(share.squares, gradients.square().sum((1, 2)) + errors.sum(1).square().sum(1))
        close(share.weighted(torch.ones(4))[0], gradients.sum(0))


def test_norms_are_of_each_loss_itself_however_many_samples_there_are():
    model, shape = made("convolution")
    features, labels = samples(8, shape)
    method = GhostGradients(model)
    alone = method.at(parameters(model), features[:1], labels[:1]).squares
    close(method.at(parameters(model), features, labels).squares[:1], alone)


def test_the_model_itself_is_left_as_it_was():
    model, shape = made("convolution")
    before = one_by_one(model, *samples(2, shape))
    GhostGradients(model).at(parameters(model), *samples(3, shape))
    assert any(getattr(part, "inplace", False) for part in model.module.modules())
    assert not any(part._forward_hooks for part in model.module.modules())
    assert torch.equal(one_by_one(model, *samples(2, shape)), before)


class Tied(nn.Module):
    """The first layer's weights are used a second time, behind the layer's back."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, features):
        return self.two(self.one(features) @ self.one.weight)


class Shared(Tied):
    """Two layers own one and the same weight."""

    def __init__(self):
        super().__init__()
        self.again = nn.Linear(6, 6)
        self.again.weight = self.one.weight

    def forward(self, features):
        return self.two(self.again(self.one(features)))


class Twice(Tied):
    def forward(self, features):
        return self.two(self.one(self.one(features)))


class Mixes(Tied):
    """Every sample is seen relative to the others of its batch."""

    def forward(self, features):
        return self.two(self.one(features - features.mean(0)))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(6, 3), nn.Parameter(torch.ones(3))

    def forward(self, features):
        return self.layer(features) * self.scale


def run(trainer, features, labels, rate=1.0, steps=1, lr=0.1, seed=0, noise=None, proximal=0.0):
    start = trainer._model.initial(0)
    rng = np.random.default_rng(seed)
    return trainer.train(start, features, labels, rate, steps, lr, rng, noise or Silence(), proximal)


@pytest.mark.parametrize("kind", [Tied, Shared, Mixes], ids=lambda kind: kind.__name__)
def test_norms_that_are_not_the_gradients_are_refused(kind):
    trainer = PrivateTrainer(Model("odd", kind), PLAIN, 1.0, 1.0)
    with pytest.raises(ComputeError, match=r"norms of 'odd' are not those of its gradients.*'vmap'"):
        run(trainer, *samples(8, (6,)))


def test_a_layer_that_is_called_twice_is_refused():
    with pytest.raises(ComputeError, match="more than once, or never; use the method 'vmap'"):
        run(PrivateTrainer(Model("twice", Twice), PLAIN, 1.0, 1.0), *samples(8, (6,)))


@pytest.mark.parametrize("kind", [Tied, Shared, Twice, Scaled], ids=lambda kind: kind.__name__)
def test_the_reference_method_trains_what_has_no_ghost_norms(kind):
    model = Model("odd", kind)
    found = run(PrivateTrainer(model, of(8), math.inf, 0.0, "vmap"), *samples(8, (6,)))
    close(found, Trainer(model, PLAIN).train(model.initial(0), [samples(8, (6,))], 0.1))


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (Scaled, "scale"),
        (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding="same"), nn.Flatten()), "0.weight"),
        (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.Flatten()), "0.weight"),
        (lambda: nn.Sequential(nn.LayerNorm(6)), "0.weight"),
    ],
)
def test_a_parameter_without_ghost_norms_is_named(make, parameter):
    with pytest.raises(ConfigError, match=f"ghost: parameter '{parameter}' of model 'odd'.*use the method 'vmap'"):
        GhostGradients(Model("odd", make))


@pytest.mark.parametrize("method", ["ghost", "vmap"])
def test_batch_norm_is_refused_even_without_running_statistics(method):
    model = Model("bn", lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, track_running_stats=False)))
    with pytest.raises(ConfigError, match=r"model.name: 'bn' has BatchNorm1d, which mixes records; use GroupNorm"):
        PrivateTrainer(model, PLAIN, 1.0, 1.0, method)


# Clipping


@given(st.floats(1e-3, 1e3), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_no_gradient_is_longer_than_the_bound(clip, seed):
    gradients = torch.randn(6, 20, generator=torch.Generator().manual_seed(seed)) * torch.logspace(-3, 3, 6)[:, None]
    norms = gradients.norm(dim=1)
    short = clip_factors(gradients.square().sum(1), clip) * norms
    assert (short <= clip * (1 + 1e-6)).all()
    assert torch.equal(short[norms < clip * 0.99 - 1e-5], norms[norms < clip * 0.99 - 1e-5])


def test_clipping_is_by_one_norm_over_all_parameters():
    model, shape = made("convolution")
    features, labels = samples(5, shape)
    rows = one_by_one(model, features, labels)
    clip = float(rows.norm(dim=1).median())
    expected = (rows * (clip / rows.norm(dim=1)).clamp(max=1)[:, None]).sum(0)
    moved = run(PrivateTrainer(model, of(5), clip, 0.0), features, labels, lr=1.0) - model.initial(0)
    close(moved, -expected / 5)


def test_one_record_changes_the_sum_by_no_more_than_the_bound():
    model = bundled()
    features, labels = samples(20, (1, 8, 8), 10)
    trainer = PrivateTrainer(model, PLAIN, 0.3, 0.0)
    at = parameters(model)
    with torch.no_grad():
        everything = trainer._clipped_sum(at, features, labels)
        for gone in range(20):
            kept = [i for i in range(20) if i != gone]
            others = trainer._clipped_sum(at, features[kept], labels[kept])
            apart = math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(everything, others, strict=True)))
            assert apart <= 0.3 * (1 + 1e-4)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_batch_in_parts_is_a_batch(monkeypatch, size):
    model = bundled()
    data = samples(7, (1, 8, 8), 10)
    whole = run(PrivateTrainer(model, PLAIN, 0.5, 0.0), *data)
    monkeypatch.setattr(dpsgd, "AT_ONCE", size)
    close(run(PrivateTrainer(model, PLAIN, 0.5, 0.0), *data), whole, 1e-6)


# Steps


SECTIONS = {
    "sgd": TrainingSection(),
    "momentum and decay": TrainingSection(momentum=0.9, weight_decay=0.01),
    "adam": TrainingSection(optimizer="adam"),
}


@pytest.mark.parametrize("method", ["ghost", "vmap"])
@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_without_clipping_and_noise_it_is_plain_training(method, section):
    model, lr = bundled(), 0.01
    data = samples(12, (1, 8, 8), 10)
    found = run(PrivateTrainer(model, of(12, section), math.inf, 0.0, method), *data, steps=4, lr=lr, proximal=0.5)
    close(found, Trainer(model, section).train(model.initial(0), [data] * 4, lr, 0.5), 1e-4)


def test_batches_are_of_independent_records_and_divided_by_the_batch_size():
    model, (features, labels), rate = bundled(), samples(40, (1, 8, 8), 10), 0.3
    found = run(PrivateTrainer(model, of(12), math.inf, 0.0), features, labels, rate, steps=3, seed=5)
    draws = np.random.default_rng(5)
    batches = [np.flatnonzero(draws.random(40) < rate) for _ in range(3)]
    assert len({len(batch) for batch in batches}) > 1
    expected = model.initial(0)
    for batch in batches:
        one = [(features[batch], labels[batch])]
        expected = Trainer(model, PLAIN).train(expected, one, 0.1 * len(batch) / 12)
    close(found, expected)


@pytest.mark.parametrize("method", ["ghost", "vmap"])
def test_an_empty_batch_is_noise_alone_and_counts(method):
    model = bundled()
    data, rate, clip, multiplier = samples(5, (1, 8, 8), 10), 1e-9, 0.5, 2.0
    found = run(PrivateTrainer(model, PLAIN, clip, multiplier, method), *data, rate, 2, noise=Seeded(Key(1, 2, 3)))
    normals = Seeded(Key(1, 2, 3))
    noise = normals.normals(model.dimension) + normals.normals(model.dimension)
    moved = (found - model.initial(0)).double()
    torch.testing.assert_close(
        moved, torch.from_numpy(-0.1 * clip * multiplier * noise / PLAIN.batch_size), rtol=1e-4, atol=1e-6
    )


def test_every_step_draws_noise_for_every_parameter():
    model, noise = bundled(), Silence()
    run(PrivateTrainer(model, PLAIN, 1.0, 1.0), *samples(9, (1, 8, 8), 10), 0.5, 7, noise=noise)
    assert noise.counts == [model.dimension] * 7
    run(PrivateTrainer(model, PLAIN, 1.0, 0.0), *samples(9, (1, 8, 8), 10), 0.5, 7, noise=noise)
    assert len(noise.counts) == 7


def test_noise_has_the_deviation_that_the_accountant_is_told():
    model = bundled()
    features, labels = samples(10, (1, 8, 8), 10)
    quiet, loud = (PrivateTrainer(model, of(10), 0.5, sigma) for sigma in (0.0, 4.0))
    still = run(quiet, features, labels, lr=1.0)
    noisy = run(loud, features, labels, lr=1.0, noise=Seeded(Key(9, 9, 9)))
    assert float((noisy - still).std()) == pytest.approx(4.0 * 0.5 / 10, rel=0.1)


def test_the_size_of_the_noise_does_not_tell_how_many_records_there_are():
    """Also where a node holds fewer than a batch, and every step takes all of them."""
    trainer = PrivateTrainer(bundled(), of(64), 1.0, 2.0)
    deviations = []
    for count in (9, 10, 40):
        data = samples(count, (1, 8, 8), 10)
        noisy = run(trainer, *data, lr=1.0, noise=Seeded(Key(3, 0, 0)))
        deviations.append(float((noisy - run(trainer, *data, lr=1.0)).std()))
    assert deviations == pytest.approx([deviations[0]] * 3, rel=1e-4)
    assert deviations[0] == pytest.approx(2.0 / 64, rel=0.1)


# What does not move


def limited(model, clip, guide, data, method="ghost", multiplier=0.0, noise=None):
    """What one step at rate 1 moves, a sum of clipped gradients."""
    trainer, start = PrivateTrainer(model, of(1), clip, multiplier, method), model.initial(0)
    rng = np.random.default_rng(0)
    return trainer.train(start, *data, 1.0, 1, 1.0, rng, noise or Silence(), guide=guide) - start


@pytest.mark.parametrize("method", ["ghost", "vmap"])
@pytest.mark.parametrize("part", ["core", "head"])
@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_only_what_moves_is_clipped_and_noised(name, part, method):
    model = bundled(name)
    cut = model.cut(1)
    free = slice(cut) if part == "core" else slice(cut, None)
    features, labels = samples(3, (1, 8, 8), 10)
    rows, guide = one_by_one(model, features, labels)[:, free], Guide(part=part, cut=cut)
    norms = rows.norm(dim=1)
    clip = float(norms.median())
    moved = limited(model, clip, guide, (features, labels), method)
    expected = (rows * (clip / norms).clamp(max=1)[:, None]).sum(0)
    close(moved[free], -expected, 1e-4)
    counts = Silence()
    limited(model, 1.0, guide, (features, labels), method, 1.0, counts)
    assert counts.counts == [len(rows[0])]


@pytest.mark.parametrize("method", ["ghost", "vmap"])
def test_a_short_clip_is_used_up_by_what_moves(method):
    """A frozen core, or what a mask holds still, takes nothing of it."""
    model, data = bundled(), samples(1, (1, 8, 8), 10)
    mask = (torch.arange(model.dimension) % 7 == 0).float()
    guides = (None, Guide(part="head", cut=model.cut(1)), Guide(part="core", cut=model.cut(1)), Guide(mask=mask))
    for guide in guides:
        assert float(limited(model, 0.01, guide, data, method).norm()) == pytest.approx(0.01, rel=1e-3)


def test_a_mask_of_a_head_is_both():
    model, data = bundled(), samples(2, (1, 8, 8), 10)
    cut = model.cut(1)
    mask = (torch.arange(model.dimension) % 2).float()
    moved = limited(model, math.inf, Guide(mask=mask, part="head", cut=cut), data)
    assert not moved[:cut].any()
    assert not moved[mask == 0].any()
    close(moved[cut:], -(one_by_one(model, *data).sum(0) * mask)[cut:], 1e-4)


def test_the_same_draws_give_the_same_bits_and_others_do_not():
    model, data = bundled(), samples(9, (1, 8, 8), 10)
    trainer = PrivateTrainer(model, PLAIN, 1.0, 1.0)

    def trained(seed, counter):
        return run(trainer, *data, 0.5, 3, seed=seed, noise=Seeded(Key(0, 0, counter)))

    assert torch.equal(trained(1, 1), trained(1, 1))
    assert not torch.equal(trained(1, 1), trained(2, 1))
    assert not torch.equal(trained(1, 1), trained(1, 2))


def test_what_it_starts_from_is_left_as_it_was():
    model, data = bundled(), samples(9, (1, 8, 8), 10)
    start = model.initial(0)
    PrivateTrainer(model, PLAIN, 1.0, 1.0).train(start, *data, 0.5, 3, 0.1, np.random.default_rng(0), Silence())
    assert torch.equal(start, model.initial(0))


def test_it_learns():
    model = bundled()
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 10
    centres, around = (torch.randn(count, 1, 8, 8, generator=generator) for count in (10, 200))
    features = centres[labels] + 0.3 * around
    trainer = PrivateTrainer(model, PLAIN, 1.0, 1.0)
    flat = run(trainer, features, labels, 0.3, 40, 0.5, noise=Seeded(Key(0, 0, 0)))
    assert Trainer(model, PLAIN).evaluate(flat, features, labels)["accuracy"] > 0.9


# Bad input


@pytest.mark.parametrize(
    ("clip", "multiplier", "message"),
    [
        (0.0, 1.0, "clip: 0.0; allowed are numbers above 0"),
        (-1.0, 1.0, "clip: -1.0; allowed"),
        (math.nan, 1.0, "clip: nan; allowed"),
        (math.inf, 1.0, "clip: infinity with noise"),
        (1.0, -1.0, "noise_multiplier: -1.0; allowed are finite numbers from 0"),
        (1.0, math.inf, "noise_multiplier: inf; allowed"),
        (1.0, math.nan, "noise_multiplier: nan; allowed"),
    ],
)
def test_bounds_and_noise_without_a_meaning_are_refused(clip, multiplier, message):
    for refuse in (
        lambda: PrivateTrainer(bundled(), PLAIN, clip, multiplier),
        lambda: check_clipping(clip, multiplier),
    ):
        with pytest.raises(ConfigError, match=message):
            refuse()


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_rates_without_a_meaning_are_refused(rate):
    with pytest.raises(ConfigError, match=f"rate: {rate} of 9 records; allowed are rates above 0, up to 1"):
        run(PrivateTrainer(bundled(), PLAIN, 1.0, 1.0), *samples(9, (1, 8, 8), 10), rate)


def test_a_node_without_records_is_refused():
    with pytest.raises(ConfigError, match=r"rate: 1\.0 of 0 records"):
        run(PrivateTrainer(bundled(), PLAIN, 1.0, 1.0), *samples(0, (1, 8, 8), 10))


# Node-level clipping


@given(st.integers(1, 50), st.floats(1e-3, 1e3), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_an_update_is_shortened_and_never_turned(dimension, clip, seed):
    update = torch.randn(dimension, generator=torch.Generator().manual_seed(seed)) * 10
    short = clipped(update, clip)
    assert float(short.norm()) <= clip * (1 + 1e-5)
    if float(update.norm()) <= clip:
        assert torch.equal(short, update)
    else:
        close(short * (update.norm() / clip), update)


def test_what_is_sent_is_the_model_before_the_clipped_update_and_noise():
    before, after = torch.ones(4), torch.ones(4) + torch.tensor([3.0, 0.0, 4.0, 0.0])
    torch.testing.assert_close(noised(before, after, 1.0, 0.0, Silence()), torch.tensor([1.6, 1.0, 1.8, 1.0]))
    sent = noised(before, after, 1.0, 2.0, Seeded(Key(1, 2, 3)))
    normals = torch.from_numpy(2 * Seeded(Key(1, 2, 3)).normals(4)).float()
    torch.testing.assert_close(sent, torch.tensor([1.6, 1.0, 1.8, 1.0]) + normals)


def test_the_op_sends_the_same_and_follows_its_key():
    before, after = torch.zeros(50), torch.ones(50)
    static = {"clip": 1.0, "noise_multiplier": 1.0}
    solve = noised_update(seeded).solve
    sent = [solve(Task((before, after), static, Key(0, 1, counter))) for counter in (0, 0, 1)]
    assert torch.equal(sent[0], sent[1])
    assert not torch.equal(sent[0], sent[2])
    assert torch.equal(sent[0], noised(before, after, 1.0, 1.0, Seeded(Key(0, 1, 0))))
    assert noised_update(seeded).seeded
    assert torch.equal(before, torch.zeros(50))
