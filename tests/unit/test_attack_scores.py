"""Membership scores, and the two likelihood attacks that compare with reference models."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import norm

from node.attack import lira, rmia, scores
from node.attack.metrics import auc
from node.errors import ConfigError

P = np.log([[0.7, 0.2, 0.1]])
RIGHT = np.array([0])
WRONG = np.array([2])
LOGITS = arrays.arrays(np.float64, (5, 4), elements=st.floats(-1000, 1000))
LABELS = np.array([0, 1, 2, 3, 0])


# Scores of one model


def test_golden_values():
    assert scores.phi(P, RIGHT)[0] == pytest.approx(0.8472978604, abs=1e-9)
    assert scores.modified_entropy(P, RIGHT)[0] == pytest.approx(-0.1621672450, abs=1e-9)
    assert scores.modified_entropy(P, WRONG)[0] == pytest.approx(-2.9597362570, abs=1e-9)
    assert scores.entropy(P, RIGHT)[0] == pytest.approx(-0.8018185525, abs=1e-9)
    assert scores.loss(P, RIGHT)[0] == pytest.approx(np.log(0.7))
    assert scores.gap(P, RIGHT).tolist() == [1]
    assert scores.gap(P, WRONG).tolist() == [0]
    assert scores.label_probability(P, WRONG)[0] == pytest.approx(0.1)


@pytest.mark.parametrize("name", scores.SCORES)
@given(logits=LOGITS)
def test_scores_are_finite_whatever_the_logits(name, logits):
    found = scores.SCORES[name](logits, LABELS)
    assert found.shape == (5,)
    assert found.dtype == np.float64
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", scores.SCORES)
@given(logits=arrays.arrays(np.float64, (5, 4), elements=st.integers(-20, 20)), shift=st.integers(-100, 100))
def test_scores_do_not_depend_on_what_is_added_to_all_logits(name, logits, shift):
    score = scores.SCORES[name]
    np.testing.assert_allclose(score(logits + shift, LABELS), score(logits, LABELS), rtol=1e-12)


@pytest.mark.parametrize("name", scores.SCORES)
@given(logits=LOGITS, order=st.permutations(range(4)))
def test_scores_do_not_depend_on_the_numbers_of_the_classes(name, logits, order):
    where = np.argsort(order)
    score = scores.SCORES[name]
    if name == "gap" and any(len(set(row)) < 4 for row in logits.tolist()):
        return  # of equal logits the first one counts as the guess
    np.testing.assert_allclose(score(logits[:, order], where[LABELS]), score(logits, LABELS), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", scores.SCORES)
def test_a_stack_of_models_is_scored_model_by_model(name):
    logits = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    stacked = scores.SCORES[name](logits, LABELS)
    assert stacked.shape == (3, 5)
    for model, row in zip(logits, stacked, strict=True):
        np.testing.assert_array_equal(scores.SCORES[name](model, LABELS), row)


@pytest.mark.parametrize("name", ["loss", "modified-entropy", "phi"])
def test_a_surer_right_answer_scores_higher(name):
    surer = np.stack([np.array([gain, 0.0, 1.0]) for gain in np.linspace(-40, 40, 81)])
    found = scores.SCORES[name](surer, np.zeros(81, dtype=int))
    assert (np.diff(found) >= 0).all()
    assert found[-1] > found[40] > found[0]


def test_confident_models_keep_apart_what_one_minus_p_would_round_away():
    sure = np.array([[50.0, 0.0, 0.0], [60.0, 0.0, 0.0], [200.0, 0.0, 0.0]])
    found = scores.phi(sure, np.zeros(3, dtype=int))
    np.testing.assert_allclose(found[:2], [50 - np.log(2), 60 - np.log(2)])
    assert found[1] < found[2] < 104
    wrong = scores.modified_entropy(sure[:2], np.ones(2, dtype=int))
    np.testing.assert_allclose(wrong, [-100 + np.log(2), -103.6 - 16.4 + np.log(2)], rtol=0.01)


def test_identical_samples_score_alike_wherever_they_stand():
    logits = np.tile(np.random.default_rng(1).normal(size=10), (1000, 1))
    for score in scores.SCORES.values():
        assert len(np.unique(score(logits, np.full(1000, 3)))) == 1


# Series of losses


def series(members, rounds=26, seed=0):
    rng = np.random.default_rng(seed)
    falling = np.exp(-np.arange(rounds) / 8)
    return rng.normal(size=(len(members), rounds)) * 0.3 + np.where(members[:, None], falling, 1)


def test_a_network_learns_which_series_are_members():
    members = np.arange(300) % 2 == 0
    known = np.random.default_rng(1).random(300) < 0.7
    found = scores.trajectory(series(members), members, known, seed=0)
    assert auc(found[~known], members[~known]) > 0.9
    np.testing.assert_array_equal(found, scores.trajectory(series(members), members, known, seed=0))


def test_a_network_needs_both_kinds_to_learn_from():
    members = np.arange(20) < 10
    with pytest.raises(ConfigError, match="known: needs members and non-members"):
        scores.trajectory(series(members), members, known=members, seed=0)


# LiRA


INSIDE = np.array([[True, False], [True, False], [True, False], [False, True], [False, True], [False, True]])
STATISTICS = np.array([[3.0, 0.0], [4.0, 1.0], [5.0, 2.0], [0.0, 3.0], [1.0, 5.0], [2.0, 7.0]])


def test_online_is_the_logarithm_of_two_normal_densities_about_the_medians():
    target = np.array([4.5, 0.5])
    deviation = STATISTICS[:3, 0].std()
    assert deviation == STATISTICS[3:, 0].std()
    expected = norm.logpdf(4.5, 4, deviation) - norm.logpdf(4.5, 1, deviation)
    per_sample = lira.online(target, STATISTICS, INSIDE, fixed_variance=False)
    assert per_sample[0] == pytest.approx(expected)
    wide = np.sqrt(np.mean([1, 0, 1, 4, 0, 4]))
    narrow = np.sqrt(np.mean([1, 0, 1, 1, 0, 1]))
    fixed = lira.online(target, STATISTICS, INSIDE)
    assert fixed[0] == pytest.approx(norm.logpdf(4.5, 4, wide) - norm.logpdf(4.5, 1, narrow))
    assert fixed[1] == pytest.approx(norm.logpdf(0.5, 5, wide) - norm.logpdf(0.5, 1, narrow))


def test_offline_is_one_sided():
    far = [lira.offline(np.full(2, value), STATISTICS, INSIDE)[0] for value in (-10.0, 0.0, 1.0, 2.0, 10.0)]
    assert far == sorted(far)
    assert far[0] == pytest.approx(0, abs=1e-9)
    assert far[2] == pytest.approx(0.5)
    assert far[4] == pytest.approx(1)


def test_offline_reads_only_models_that_never_saw_the_sample():
    changed = np.where(INSIDE, 1e6, STATISTICS)
    target = np.array([0.3, 0.4])
    np.testing.assert_array_equal(lira.offline(target, changed, INSIDE), lira.offline(target, STATISTICS, INSIDE))
    np.testing.assert_array_equal(lira.calibrated(target, changed, INSIDE), lira.calibrated(target, STATISTICS, INSIDE))


def test_calibration_subtracts_what_other_models_make_of_a_sample():
    np.testing.assert_allclose(lira.calibrated(np.array([1.5, 1.5]), STATISTICS, INSIDE), [0.5, 0.5])


def test_lira_tells_members_whose_difficulty_differs():
    rng = np.random.default_rng(2)
    difficulty = rng.normal(0, 5, 500)
    inside = rng.random((33, 500)) < 0.5
    seen = difficulty + 1.5 * inside + rng.normal(size=inside.shape)
    members, references = inside[0], (seen[1:], inside[1:])
    assert auc(lira.online(seen[0], *references), members) > 0.8
    assert auc(lira.offline(seen[0], *references), members) > 0.8
    assert auc(seen[0], members) < 0.65


@pytest.mark.parametrize("attack", [lira.online, lira.offline, lira.calibrated])
def test_a_sample_without_references_is_refused(attack):
    inside = np.array([[True, True], [False, True]])
    with pytest.raises(ConfigError, match="inside: sample 1 has no 'out' model among 2 references"):
        attack(np.zeros(2), np.zeros((2, 2)), inside)


def test_constant_references_give_finite_scores():
    found = lira.online(np.array([1.0, 1.0]), np.ones((6, 2)), INSIDE)
    assert np.isfinite(found).all()


# RMIA


def test_golden_marginal():
    assert rmia.offline_marginal(np.array(0.4), 0.3) == pytest.approx(0.61)
    assert 0.9 / rmia.offline_marginal(np.array(0.4), 0.3) == pytest.approx(1.4754098361)


def test_a_score_is_the_share_of_the_population_that_is_exceeded():
    population = rmia.Population(np.array([0.1, 0.2, 0.3, 0.4]), np.full((2, 4), 0.5))
    references, inside = np.full((2, 3), 0.5), np.array([[True] * 3, [False] * 3])
    target = np.array([0.25, 0.4, 0.9])
    assert rmia.online(target, references, inside, population).tolist() == [0.5, 0.75, 1]
    assert rmia.offline(target, references, inside, population).tolist() == [0.5, 0.75, 1]
    assert rmia.online(target, references, inside, population, gamma=2.0).tolist() == [0.25, 0.25, 1]


def test_online_weighs_both_kinds_of_references_alike():
    population = rmia.Population(np.linspace(0.01, 1, 100), np.ones((3, 100)))
    references, inside = np.array([[0.9], [0.3], [0.3]]), np.array([[True], [False], [False]])
    assert rmia.online(np.array([0.3]), references, inside, population)[0] == pytest.approx(0.49, abs=0.011)


def test_offline_reads_only_models_that_never_saw_the_sample_in_rmia():
    rng = np.random.default_rng(3)
    population = rmia.Population(rng.random(50), rng.random((6, 50)))
    target, references = rng.random(2), rng.random((6, 2))
    changed = np.where(INSIDE, 0.0, references)
    one, other = (rmia.offline(target, values, INSIDE, population) for values in (references, changed))
    np.testing.assert_array_equal(one, other)


def test_tuning_finds_the_a_that_separates_a_reference_best():
    rng = np.random.default_rng(4)
    inside = np.repeat(rng.random((4, 400)) < 0.5, 2, axis=0)
    inside[1::2] = ~inside[1::2]
    hard = rng.random(400)
    p = np.clip(np.where(inside, 0.5 + hard / 2, hard) + rng.normal(size=inside.shape) * 0.05, 0.01, 1)
    of_population = np.tile(rng.random(100), (8, 1))
    best = rmia.tuned_a(p, inside, of_population)

    def quality(a):
        stand_in = rmia.Population(of_population[0], of_population[2:])
        return auc(rmia.offline(p[0], p[2:], inside[2:], stand_in, a=a), inside[0])

    assert best in rmia.CANDIDATES_A
    assert quality(best) == max(quality(a) for a in rmia.CANDIDATES_A)


def test_tuning_needs_a_pair_beside_the_one_it_attacks():
    with pytest.raises(ConfigError, match="references: 2 models"):
        rmia.tuned_a(np.ones((2, 3)), np.ones((2, 3), dtype=bool), np.ones((2, 3)))


def test_rmia_refuses_samples_without_references():
    population = rmia.Population(np.ones(3), np.ones((2, 3)))
    inside = np.array([[True, True], [True, False]])
    with pytest.raises(ConfigError, match="sample 0 has no 'out' model"):
        rmia.offline(np.ones(2), np.ones((2, 2)), inside, population)
    with pytest.raises(ConfigError, match="sample 1 has no 'in' model"):
        rmia.online(np.ones(2), np.ones((2, 2)), np.array([[True, False], [True, False]]), population)
