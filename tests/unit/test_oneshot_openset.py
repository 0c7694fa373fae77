"""Models that know what they do not know: outliers, the loss that they are for, and votes without the ignorant."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.config import ModelSection
from node.errors import ConfigError
from node.learn.models import Dense, build, with_classes
from node.learn.oneshot.catalogue import configured
from node.learn.oneshot.ensembles import ProbabilityEnsemble
from node.learn.oneshot.openset import FedOV, _OpenSet
from node.learn.oneshot.outliers import _OF_IMAGES, _OF_VECTORS, destroyed
from node.learn.workload import prepare_torch
from oneshot_clients import handmade, trained

MLP = Dense("mlp", (6, 5, 3))


@pytest.fixture(autouse=True)
def _one_thread():
    prepare_torch()


@pytest.fixture
def small():
    return handmade(MLP, (6,), 3)


def option(**options):
    return FedOV(FedOV.Config(**options))


def rng(seed=0):
    return np.random.default_rng(seed)


def images(count=40, shape=(1, 8, 8)):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


# Outliers


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 5), (1, 1, 1), (6,), (30,)])
def test_samples_are_destroyed_and_the_given_ones_are_not(shape):
    given_ = images(40, shape)
    before = given_.clone()
    damaged = destroyed(given_, rng())
    assert torch.equal(given_, before)
    assert (damaged.shape, damaged.dtype) == (given_.shape, given_.dtype)
    assert torch.isfinite(damaged).all()
    assert torch.equal(damaged, destroyed(given_, rng()))
    if np.prod(shape) > 1:
        changed = (damaged != given_).flatten(1).any(1)
        assert float(changed.float().mean()) > 0.9


@given(seed=st.integers(0, 10_000))
def test_destroyed_images_stay_between_0_and_1(seed):
    damaged = destroyed(images(10, (2, 6, 9)), rng(seed))
    assert float(damaged.min()) >= -1e-6
    assert float(damaged.max()) <= 1 + 1e-6


@pytest.mark.parametrize("damage", [*_OF_IMAGES, *_OF_VECTORS])
def test_each_way_changes_every_sample_and_none_in_place(damage):
    whole = images(20) if damage in _OF_IMAGES else images(20, (12,))
    before = whole.clone()
    after = damage(whole, rng(2))
    assert torch.equal(whole, before)
    assert after.shape == whole.shape
    assert (after != before).flatten(1).any(1).all()


def test_an_erased_part_is_a_third_to_a_half():
    for seed in range(20):
        erased = _OF_IMAGES[2](images(4, (1, 20, 20)), rng(seed))
        share = float((erased != images(4, (1, 20, 20))).float().mean())
        assert 0.28 < share < 0.55


# Training


def test_a_model_gets_one_class_more_and_keeps_its_own_architecture(small):
    wide = with_classes(MLP, (6,), 4)
    assert isinstance(wide, Dense)
    assert wide.widths == (6, 5, 4)
    assert wide.module is not with_classes(MLP, (6,), 4).module
    assert FedOV().fitted(small.task).shape == (MLP.dimension + 5 + 1,)
    lenet = build(ModelSection(name="lenet"), (1, 8, 8), 10)
    assert with_classes(lenet, (1, 8, 8), 11).dimension == lenet.dimension + 64 + 1


@pytest.mark.parametrize(
    ("name", "shape"), [("mlp", (1, 8, 8)), ("softmax", (6,)), ("lenet", (1, 8, 8)), ("resnet8", (1, 8, 8))]
)
def test_every_architecture_has_a_loss_and_a_gradient(name, shape):
    model = build(ModelSection(name=name, hidden=(7,)), shape, 4)
    open_set = _OpenSet(model)
    parameters = list(model.named(model.initial(3)).values())
    gradients = open_set.gradients(parameters, images(6, shape), torch.tensor([0, 1, 2, 0, 1, 2]), rng())
    assert [gradient.shape for gradient in gradients] == [parameter.shape for parameter in parameters]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert float(gradients[-1].abs().sum()) > 0


def test_a_client_of_one_class_learns_too(small):
    features, labels = small.data[0]
    alone = small._replace(models=small.models[:1], data=[(features, torch.zeros_like(labels))])
    own = option(epochs=2)
    assert torch.isfinite(alone.aggregated(own)).all()


def test_attacked_outliers_move_little_and_towards_none_of_these(small):
    model = with_classes(MLP, (6,), 4)
    open_set, parameters = _OpenSet(model), list(model.named(model.initial(3)).values())
    outliers = images(20, (6,))
    attacked = open_set._attacked(parameters, outliers)
    assert 0 < float((attacked - outliers).abs().max()) <= 5 * 0.002 + 1e-6

    def unknown(features):
        return model.logits(model.initial(3), features).softmax(1)[:, -1]

    assert (unknown(attacked) > unknown(outliers)).all()


def test_training_follows_from_the_clients_key_and_its_data_alone(small):
    own = option(epochs=2, batch_size=8)
    once, again = own.fit(small.client(own, 0)), own.fit(small.client(own, 0))
    assert torch.equal(once, again)
    assert not torch.equal(once, own.fit(small.client(own, 1)))
    assert own.fit_samples(small.task, 20) == 2 * 20 * 8
    with pytest.raises(ConfigError, match="common initial model"):
        _ = small.client(own, 0).start


# Votes


def constant(model, logits):
    """A model that says the same of everything."""
    flat = torch.zeros(model.dimension)
    model.named(flat)[model.parts[-1][0]].copy_(torch.tensor(logits))
    return flat


def votes(small, voters, *logits):
    wide = with_classes(MLP, (6,), 4)
    state = torch.cat([constant(wide, each) for each in logits])
    own = option(voters=voters)
    return own.predict(state, images(5, (6,)), small.assets(own))


def test_those_who_know_a_sample_decide(small):
    knows, ignorant = [0.0, 2.0, 0.0, -9.0], [8.0, 0.0, 0.0, 9.0]
    one = votes(small, 1, ignorant, knows, ignorant)
    assert torch.allclose(one[0], torch.tensor([0.0, 2.0, 0.0]).softmax(0), atol=1e-4)
    everybody = votes(small, 0, ignorant, knows, ignorant)
    assert int(everybody[0].argmax()) == 1  # what the others believe is mostly that they do not know
    assert torch.allclose(votes(small, 99, ignorant, knows), votes(small, 0, ignorant, knows))


@given(voters=st.integers(0, 4))
def test_copies_of_one_model_are_that_model(voters):
    said = [0.3, -1.0, 2.0, 0.5]
    copies = votes(handmade(MLP, (6,), 3), voters, said, said, said)
    assert torch.allclose(copies, torch.tensor(said[:3]).softmax(0).expand(5, -1), atol=1e-6)


def test_what_it_needs_and_what_it_weighs(small):
    own = configured("fedov", "{}")
    assert own.declares.cell == "R0 D0 W1 H1 M2 F1 S0"
    assert own.result(small.task, 4).shape == (4 * (MLP.dimension + 6),)
    task = trained("shards", 0).world.task
    assert own.fitted(task).size_bytes == 30_444


@pytest.mark.parametrize(
    ("partition", "seed", "mean", "spread"), [("dirichlet-0.1", 1, 79.5, 6.0), ("shards", 0, 82.5, 3.5)]
)
def test_on_digits_it_is_as_good_as_its_figures_and_better_than_closed_models(partition, seed, mean, spread):
    cell = trained(partition, seed)
    open_set, closed = cell.accuracy(FedOV()), cell.accuracy(ProbabilityEnsemble())
    assert open_set == pytest.approx(mean, abs=3 * spread)
    assert open_set > closed + 5
