"""Attributes, properties and labels behind models and updates, beside what could be guessed without them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from node.attack import attribute
from node.errors import ConfigError

SAMPLES = 300
SHARES = arrays.arrays(np.float64, 6, elements=st.floats(0.01, 1)).map(lambda weights: weights / weights.sum())


def people(leak, values=2, seed=0):
    """Other attributes, labels, and a model whose outputs follow the attribute as strongly as told."""
    rng = np.random.default_rng(seed)
    known, labels = rng.normal(size=(SAMPLES, 3)), rng.integers(0, 2, SAMPLES)
    hidden = rng.integers(0, values, SAMPLES)
    logits = rng.normal(size=SAMPLES) + leak * hidden
    p = 1 / (1 + np.exp(-logits))
    learnt = rng.random(SAMPLES) < 0.5
    return known, labels, np.column_stack([1 - p, p]), hidden, learnt


# Outputs


def test_outputs_that_follow_an_attribute_give_it_away():
    found = attribute.from_outputs(*people(leak=4.0), seed=0)
    assert found.accuracy > 0.9
    assert found.accuracy_lift == found.accuracy - found.baseline_accuracy > 0.3
    assert found.auc_lift == found.auc - found.baseline_auc > 0.3


def test_outputs_that_do_not_follow_it_have_no_lift():
    found = attribute.from_outputs(*people(leak=0.0), seed=0)
    assert abs(found.accuracy_lift) < 0.15
    assert abs(found.auc_lift) < 0.15


def test_what_the_other_attributes_tell_is_no_lift():
    """A model that says nothing new: the attribute is one of the known ones."""
    known, labels, outputs, hidden, learnt = people(leak=4.0)
    known = np.column_stack([known, hidden])
    found = attribute.from_outputs(known, labels, outputs, hidden, learnt, seed=0)
    assert found.accuracy > 0.98
    assert abs(found.accuracy_lift) < 0.02


def test_an_attribute_of_many_values_has_an_accuracy_only():
    found = attribute.from_outputs(*people(leak=6.0, values=3), seed=0)
    assert found.auc is found.baseline_auc is found.auc_lift is None
    assert found.accuracy_lift > 0.2


def test_an_attack_depends_on_its_seed_alone():
    assert attribute.from_outputs(*people(1.0), seed=3) == attribute.from_outputs(*people(1.0), seed=3)


@pytest.mark.parametrize("learnt", [np.zeros(SAMPLES, dtype=bool), np.ones(SAMPLES, dtype=bool)])
def test_there_must_be_samples_to_learn_from_and_to_be_judged_on(learnt):
    known, labels, outputs, hidden, _ = people(1.0)
    with pytest.raises(ConfigError, match="learnt"):
        attribute.from_outputs(known, labels, outputs, hidden, learnt, seed=0)


# Losses


def test_every_sample_is_tried_with_every_value():
    features = np.arange(6.0).reshape(2, 3)
    stacked = attribute.candidates(features, 1, np.array([-1.0, 9.0]))
    assert stacked.tolist() == [[[0, -1, 2], [3, -1, 5]], [[0, 9, 2], [3, 9, 5]]]
    assert features.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_the_value_of_least_loss_is_taken():
    losses = np.array([[0.5, 0.1, 0.3], [0.2, 0.4, 0.3]])
    assert attribute.from_losses(losses, np.array([10, 20])).tolist() == [20, 10, 10]


def test_a_model_that_memorised_its_samples_gives_their_attribute_away():
    """The memory: how far a sample is from the nearest that was trained on."""
    rng = np.random.default_rng(4)
    features = np.column_stack([rng.normal(size=(50, 3)), rng.integers(0, 2, 50)])
    tried = attribute.candidates(features, 3, np.array([0.0, 1.0]))
    losses = np.linalg.norm(tried[:, :, None] - features, axis=-1).min(-1)
    found = attribute.lift_of(attribute.from_losses(losses, np.array([0, 1])), features[:, 3].astype(int))
    assert found.accuracy == 1
    assert found.accuracy_lift == 1 - max(features[:, 3].mean(), 1 - features[:, 3].mean())
    assert found.auc_lift is None


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_the_best_constant_guess_has_no_lift(values):
    truth = np.array(values)
    constant = np.full(len(values), np.bincount(truth).argmax())
    assert attribute.lift_of(constant, truth).accuracy_lift == 0


# Properties


def updates(count, seed):
    """Updates of nodes of three clusters, each with a direction of its own."""
    rng = np.random.default_rng(seed)
    clusters = np.arange(count) % 3
    directions = np.random.default_rng(9).normal(size=(3, 100))
    return directions[clusters] + rng.normal(size=(count, 100)), clusters


def test_shadows_teach_the_cluster_of_an_update():
    shadows, known = updates(60, seed=1)
    seen, truth = updates(90, seed=2)
    assert np.mean(attribute.property_of(shadows, known, seen) == truth) > 0.9


def test_shadows_of_no_property_teach_nothing():
    shadows, known = updates(60, seed=1)
    rng = np.random.default_rng(3)
    seen = rng.normal(size=(300, 100))
    assert np.mean(attribute.property_of(shadows, known, seen) == rng.integers(0, 3, 300)) < 0.5


def test_shadows_must_differ():
    with pytest.raises(ConfigError, match="properties: all shadows have the same one"):
        attribute.property_of(np.zeros((3, 4)), np.zeros(3), np.zeros((1, 4)))


# Labels


@given(SHARES, SHARES)
def test_labels_follow_exactly_from_the_bias_gradient_and_the_mean_prediction(shares, predicted):
    found = attribute.label_distribution(predicted - shares, predicted)
    np.testing.assert_allclose(found, shares, atol=1e-12)


@given(arrays.arrays(np.float64, 6, elements=st.floats(-1, 1)))
def test_any_gradient_gives_a_distribution(gradient):
    found = attribute.label_distribution(gradient)
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(1)


def test_a_gradient_that_says_nothing_gives_all_labels_alike():
    assert attribute.label_distribution(np.ones(4)).tolist() == [0.25] * 4
    assert attribute.label_distribution(np.zeros(4)).tolist() == [0.25] * 4


@given(SHARES, SHARES, SHARES)
def test_total_variation_is_a_distance(a, b, c):
    assert attribute.total_variation(a, a) == 0
    assert attribute.total_variation(a, b) == attribute.total_variation(b, a)
    assert 0 <= attribute.total_variation(a, b) <= 1
    direct, around = attribute.total_variation(a, c), attribute.total_variation(a, b) + attribute.total_variation(b, c)
    assert direct <= around + 1e-12


def test_distributions_without_anything_in_common_are_one_apart():
    assert attribute.total_variation(np.array([1.0, 0]), np.array([0, 1.0])) == 1
