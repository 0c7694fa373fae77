"""What is reported of an attack."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from node.attack import metrics
from node.errors import ConfigError

SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.55, 0.54, 0.53, 0.51, 0.5, 0.4])
MEMBERS = np.array([1, 1, 0, 1, 1, 0, 0, 1, 0, 0], dtype=bool)


@st.composite
def trials(draw):
    """Scores with ties, and who is a member."""
    count = draw(st.integers(2, 40))
    scores = draw(st.lists(st.integers(-5, 5), min_size=count, max_size=count))
    members = draw(st.lists(st.booleans(), min_size=count, max_size=count).filter(lambda bits: 0 < sum(bits) < count))
    return np.array(scores, dtype=float), np.array(members)


def gaussian(mu, count, seed=0):
    """The best attack on mu-GDP: what it sees of members and of others is one normal each, mu apart."""
    members = np.arange(2 * count) < count
    quantiles = norm.ppf((np.arange(count) + 0.5) / count)
    return np.concatenate([quantiles + mu, quantiles]), members


# Curves


def test_golden_values():
    curve = metrics.curve(SCORES, MEMBERS)
    assert curve.auc == pytest.approx(0.8)
    assert curve.balanced_accuracy == pytest.approx(0.8)
    assert curve.tpr_at(0.0) == pytest.approx(0.4)
    assert curve.tpr_at(0.1) == pytest.approx(0.4)
    assert curve.tpr_at(0.2) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("mu", "auc", "at_01", "at_1", "balanced"),
    [
        (0.25, 0.57015810, 0.00225403, 0.01893089, 0.54973822),
        (0.5, 0.63816320, 0.00479556, 0.03389894, 0.59870633),
        (1.0, 0.76024994, 0.01829847, 0.09236225, 0.69146246),
        (4.0, 0.99766113, 0.81852748, 0.95290051, 0.97724987),
    ],
)
def test_the_curves_of_gaussian_mechanisms(mu, auc, at_01, at_1, balanced):
    curve = metrics.curve(*gaussian(mu, 50_000))
    assert curve.auc == pytest.approx(auc, abs=2e-5)
    assert curve.balanced_accuracy == pytest.approx(balanced, abs=5e-5)
    assert curve.tpr_at(0.001) == pytest.approx(at_01, rel=0.02)
    assert curve.tpr_at(0.01) == pytest.approx(at_1, rel=0.01)


@given(trials())
def test_auc_is_the_chance_that_a_member_scores_higher(trial):
    scores, members = trial
    differences = scores[members][:, None] - scores[~members]
    expected = np.mean((differences > 0) + (differences == 0) / 2)
    assert metrics.auc(scores, members) == pytest.approx(expected)
    assert metrics.auc(scores, members) == pytest.approx(roc_auc_score(members, scores))


@given(trials())
def test_turned_scores_turn_the_curve(trial):
    scores, members = trial
    assert metrics.auc(-scores, members) == pytest.approx(1 - metrics.auc(scores, members))
    assert metrics.auc(np.exp(scores), members) == metrics.auc(scores, members)


@given(trials())
def test_every_distinct_score_is_a_point(trial):
    scores, members = trial
    curve = metrics.curve(scores, members)
    assert curve.thresholds[1:].tolist() == sorted(set(scores.tolist()), reverse=True)
    for fpr, tpr, threshold in zip(curve.fpr, curve.tpr, curve.thresholds, strict=True):
        assert tpr == pytest.approx(np.mean(scores[members] >= threshold))
        assert fpr == pytest.approx(np.mean(scores[~members] >= threshold))


@given(trials(), st.floats(0, 1))
def test_tpr_at_a_rate_is_the_best_of_all_thresholds(trial, fpr):
    scores, members = trial
    thresholds = [np.inf, *np.unique(scores)]
    allowed = [np.mean(scores[members] >= t) for t in thresholds if np.mean(scores[~members] >= t) <= fpr]
    assert metrics.curve(scores, members).tpr_at(fpr) == pytest.approx(max(allowed))


@given(trials())
def test_balanced_accuracy_is_the_best_of_all_thresholds(trial):
    scores, members = trial
    found = metrics.curve(scores, members).balanced_accuracy
    thresholds = [np.inf, *np.unique(scores)]
    each = [(np.mean(scores[members] >= t) + np.mean(scores[~members] < t)) / 2 for t in thresholds]
    assert found == pytest.approx(max(each))
    assert found >= 0.5


def test_points_on_a_straight_piece_are_kept():
    scores = np.arange(8.0)
    members = np.array([0, 0, 0, 0, 1, 1, 1, 1], dtype=bool)
    assert len(metrics.curve(scores, members).fpr) == 9


def test_constant_scores_say_nothing():
    constant = metrics.measure(np.zeros(3000), np.arange(3000) < 1000)
    assert constant.auc == 0.5
    assert constant.balanced_accuracy == 0.5
    assert constant.tpr_at_1_percent == constant.tpr_at_01_percent == 0


def test_log_log_points_lie_on_the_curve_and_leave_zero_out():
    curve = metrics.curve(*gaussian(1.0, 2000))
    fpr, tpr = curve.log_log(30)
    assert fpr[0] == pytest.approx(1 / 2000)
    assert fpr[-1] == 1
    assert tpr[-1] == 1
    assert (tpr > 0).all()
    assert (np.diff(fpr) > 0).all()
    assert tpr.tolist() == pytest.approx([curve.tpr_at(rate * (1 + 1e-12)) for rate in fpr])


# Figures


def test_rates_that_the_non_members_cannot_resolve_are_not_given():
    rng = np.random.default_rng(0)
    for outside, at_1, at_01 in ((99, False, False), (100, True, False), (999, True, False), (1000, True, True)):
        members = np.arange(50 + outside) < 50
        found = metrics.measure(rng.random(50 + outside), members)
        assert (found.tpr_at_1_percent is not None, found.tpr_at_01_percent is not None) == (at_1, at_01)
        assert (found.members, found.non_members) == (50, outside)


def test_measure_agrees_with_the_curve():
    scores, members = gaussian(1.0, 1500)
    found, curve = metrics.measure(scores, members), metrics.curve(scores, members)
    assert found[:2] == (curve.auc, curve.balanced_accuracy)
    assert found.tpr_at_01_percent == curve.tpr_at(0.001)


def test_groups_are_measured_by_themselves():
    groups = np.array([3, 3, 3, 3, 1, 1, 1, 1, 2, 2])
    scores = np.array([4.0, 3, 2, 1, 1, 2, 3, 4, 0, 0])
    members = np.array([1, 1, 0, 0, 1, 1, 0, 0, 1, 1], dtype=bool)
    found = metrics.by_group(scores, members, groups)
    assert list(found) == [1, 3]
    assert (found[1].auc, found[3].auc) == (0.0, 1.0)
    assert metrics.worst(found) == 3


def test_shuffled_members_cannot_be_told():
    scores, members = gaussian(4.0, 2000)
    assert metrics.shuffled_auc(scores, members, np.random.default_rng(5)) == pytest.approx(0.5, abs=0.05)


# Intervals


def test_golden_clopper_pearson():
    assert metrics.clopper_pearson(50, 1000) == pytest.approx((0.0373353976, 0.0653904879), abs=1e-9)
    assert metrics.clopper_pearson(5, 1000) == pytest.approx((0.0016254195, 0.0116294706), abs=1e-9)
    assert metrics.clopper_pearson(0, 1000) == pytest.approx((0, 0.0036820839), abs=1e-9)


@given(st.integers(1, 500).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials))))
def test_clopper_pearson_holds_the_rate_and_is_symmetric(counts):
    successes, trials = counts
    low, high = metrics.clopper_pearson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert metrics.clopper_pearson(trials - successes, trials) == pytest.approx((1 - high, 1 - low))
    assert metrics.clopper_pearson(successes, trials, 0.99)[0] <= low


def test_clopper_pearson_covers_as_often_as_it_says():
    drawn = np.random.default_rng(6).binomial(200, 0.03, 2000)
    intervals = {count: metrics.clopper_pearson(count, 200) for count in set(drawn.tolist())}
    assert np.mean([intervals[count][0] <= 0.03 <= intervals[count][1] for count in drawn.tolist()]) >= 0.95


@pytest.mark.parametrize("counts", [(-1, 5), (6, 5), (0, 0)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ConfigError, match="successes"):
        metrics.clopper_pearson(*counts)


FIGURES = {"auc": lambda curve: curve.auc, "tpr": lambda curve: curve.tpr_at(0.1)}


def test_intervals_hold_the_estimates_and_depend_on_their_seed_alone():
    scores, members = gaussian(1.0, 200)
    found = metrics.intervals(FIGURES, scores, members, np.random.default_rng(7), resamples=200)
    assert found["auc"].estimate == metrics.auc(scores, members)
    assert found["tpr"].estimate == metrics.curve(scores, members).tpr_at(0.1)
    assert all(figure.low < figure.estimate < figure.high for figure in found.values())
    # The standard error of this AUC is about 0.024 (Hanley and McNeil, Radiology 1982).
    assert found["auc"].high - found["auc"].low == pytest.approx(4 * 0.024, rel=0.3)
    assert found == metrics.intervals(FIGURES, scores, members, np.random.default_rng(7), resamples=200)
    assert found != metrics.intervals(FIGURES, scores, members, np.random.default_rng(8), resamples=200)


def test_the_interval_of_a_figure_is_the_same_whatever_is_measured_beside_it():
    scores, members = gaussian(1.0, 100)
    both = metrics.intervals(FIGURES, scores, members, np.random.default_rng(7), resamples=50)
    alone = metrics.intervals({"tpr": FIGURES["tpr"]}, scores, members, np.random.default_rng(7), resamples=50)
    assert both["tpr"] == alone["tpr"]
    wide = metrics.intervals(FIGURES, scores, members, np.random.default_rng(7), resamples=50, level=0.999)
    assert wide["auc"].low < both["auc"].low < both["auc"].high < wide["auc"].high


def test_intervals_need_members_and_others():
    with pytest.raises(ConfigError, match="need members and others"):
        metrics.intervals(FIGURES, np.zeros(2), np.array([True, True]), np.random.default_rng(0))


# Bad input


def test_members_and_scores_must_fit():
    with pytest.raises(ConfigError, match=r"members: bool\[3\] for scores \[2\]"):
        metrics.curve(np.zeros(2), np.array([True, False, True]))
    with pytest.raises(ConfigError, match=r"members: int64\[2\]"):
        metrics.curve(np.zeros(2), np.array([1, 0]))


@pytest.mark.parametrize("members", [[True, True], [False, False]])
def test_members_and_others_are_needed(members):
    with pytest.raises(ConfigError, match="need members and others"):
        metrics.curve(np.zeros(2), np.array(members))


def test_a_score_that_is_no_number_is_named():
    with pytest.raises(ConfigError, match="sample 1 has no number"):
        metrics.measure(np.array([0.0, np.nan, 1.0]), np.array([True, False, True]))


# Intervals of means


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        clusters = np.repeat(np.arange(30), 4)
        values = rng.normal(0.6, 0.1, 30)[clusters] + rng.normal(0, 0.02, 120)
        found = metrics.mean_interval(values, clusters, rng)
        assert found.low <= found.estimate <= found.high
        covered += found.low <= 0.6 <= found.high
    assert 0.87 <= covered / 200 <= 0.99


def test_messages_of_one_victim_count_as_one():
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(10), 50)
    values = rng.normal(0.6, 0.1, 10)[clusters]
    together = metrics.mean_interval(values, clusters, rng)
    apart = metrics.mean_interval(values, np.arange(500), rng)
    assert together.high - together.low > 4 * (apart.high - apart.low)
    assert together.estimate == apart.estimate == pytest.approx(values.mean())


@pytest.mark.parametrize(
    ("values", "told"), [([], None), ([0.5], (0.5, None, None)), ([0.5, 0.75], (0.625, None, None))]
)
def test_a_single_victim_has_a_mean_without_interval(values, told):
    found = metrics.mean_interval(np.array(values), np.zeros(len(values), dtype=int), np.random.default_rng(0))
    assert found == told
