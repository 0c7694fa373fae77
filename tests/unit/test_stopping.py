"""When a cohort stops, which checkpoint it keeps, and when enough cohorts have stopped."""

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from node.cohorts import Quantile, Round, Stopping, StoppingSection, teacher_weights
from node.cohorts.stopping import Drift, slope
from node.errors import ConfigError

GOLDEN = [2.0, 1.5, 1.2, 1.0, 0.9, 0.95, 0.85, 0.9, 0.88, 0.87, 0.9, 0.86, 0.91, 0.93, 0.9, 0.95]

losses = st.lists(st.one_of(st.floats(0, 10), st.none()), max_size=60)


def run(values, **section):
    """The rule after it has stopped, or after all rounds; and the round after which it stopped, or None."""
    rule = Stopping(StoppingSection(**section))
    for round, loss in enumerate(values):
        if rule.step(Round(loss)):
            return rule, round
    return rule, None


# Patience on the moving average


@pytest.mark.parametrize(
    ("window", "patience", "after", "best_round", "best"), [(1, 3, 9, 6, 0.85), (3, 3, 11, 8, 0.876667)]
)
def test_stopping_is_golden(window, patience, after, best_round, best):
    rule, stopped = run(GOLDEN, window=window, patience=patience)
    assert (stopped, rule.best_round) == (after, best_round)
    assert rule.best == pytest.approx(best, abs=1e-6)


def recounted(values, window, patience, min_delta, warmup):
    """The rule as it is defined, from the beginning for every round."""
    for end in range(1, len(values) + 1):
        heard = [(round, loss) for round, loss in enumerate(values[:end]) if loss is not None]
        averages = [
            (heard[i][0], statistics.fmean([loss for _, loss in heard[max(0, i + 1 - window) : i + 1]]))
            for i in range(len(heard))
        ]
        best, best_round, bad = math.inf, None, 0
        for round, average in averages[warmup:]:
            if average < best - min_delta:
                best, best_round, bad = average, round, 0
            else:
                bad += 1
        if bad >= patience:
            return end - 1, best_round, best
    return None, best_round if values else None, best if values else math.inf


@given(losses, st.integers(1, 8), st.integers(1, 8), st.sampled_from([0.0, 0.1, 1.0]), st.integers(0, 5))
def test_stopping_is_what_a_recount_says(values, window, patience, min_delta, warmup):
    rule, stopped = run(values, window=window, patience=patience, min_delta=min_delta, warmup_rounds=warmup)
    assert (stopped, rule.best_round, rule.best) == recounted(values, window, patience, min_delta, warmup)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 5), st.data())
def test_rounds_that_nobody_answered_count_neither_for_nor_against(values, window, patience, data):
    plain, stopped = run(values, window=window, patience=patience)
    gaps = [data.draw(st.integers(0, 2)) for _ in values]
    sparse = list(itertools.chain.from_iterable([*[None] * gap, loss] for gap, loss in zip(gaps, values, strict=True)))
    rule, later = run(sparse, window=window, patience=patience)
    assert rule.best == plain.best
    assert (stopped is None) == (later is None)
    if stopped is not None:
        assert later == stopped + sum(gaps[: stopped + 1])
    assert sparse[rule.best_round] == values[plain.best_round]


def test_silence_alone_never_stops_a_cohort():
    rule, stopped = run([None] * 500, window=1, patience=1)
    assert stopped is None
    assert rule.best_round is None
    assert math.isinf(rule.best)


def test_a_new_leader_that_hears_the_rounds_so_far_is_where_the_last_one_was():
    section = StoppingSection(window=3, patience=3)
    first, second = Stopping(section), Stopping(section)
    for loss in GOLDEN[:7]:
        first.step(Round(loss))
    for loss in GOLDEN[:7]:
        second.step(Round(loss))
    ends = [[rule.step(Round(loss)) for loss in GOLDEN[7:]] for rule in (first, second)]
    assert ends[0] == ends[1]
    assert (first.best, first.best_round) == (second.best, second.best_round)


def test_once_stopped_it_stays_so():
    rule, _ = run(GOLDEN, window=1, patience=3)
    assert rule.step(Round(0.0))
    assert rule.is_stopped


def test_a_lucky_first_average_ends_a_cohort_early_and_a_warm_up_helps():
    """The first loss is of few samples; with a window, no later average beats it."""
    values = [0.5, *np.linspace(2.0, 0.6, 60)]
    lucky, stopped = run(values, window=10, patience=20)
    assert (stopped, lucky.best_round) == (20, 0)
    warm, stopped = run(values, window=10, patience=20, warmup_rounds=10)
    assert stopped is None
    assert warm.best_round == 60


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", ["patience", "exponential", "one-standard-error", "slope"])
def test_a_loss_that_is_not_finite_is_no_improvement(rule, bad):
    found, stopped = run([1.0, 1.0, *[bad] * 10], rule=rule, window=2, patience=3)
    assert stopped is not None
    assert stopped <= 4
    assert found.best == 1.0
    assert found.best_round == 0


def test_one_infinite_loss_is_forgotten_with_its_window():
    rule, stopped = run([3.0, math.nan, *np.linspace(2, 1, 20)], window=3, patience=5)
    assert stopped is None
    assert rule.best_round == 21


def test_a_small_fall_is_no_improvement_where_more_is_asked():
    values = [1 - 0.001 * round for round in range(50)]
    assert run(values, window=1, patience=5)[1] is None
    rule, stopped = run(values, window=1, patience=5, min_delta=0.01)
    assert (stopped, rule.best_round) == (5, 0)


# Other rules


def test_the_exponential_average_weighs_all_losses_so_far():
    rule = Stopping(StoppingSection(rule="exponential", decay=0.5, patience=2))
    averages = []
    for loss in [4.0, 2.0, 2.0, 9.0]:
        rule.step(Round(loss))
        averages.append(rule.average)
    assert averages == [4.0, 3.0, 2.5, 5.75]
    assert (rule.best, rule.best_round, rule.is_stopped) == (2.5, 2, False)
    assert rule.step(Round(9.0))


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30))
def test_the_slope_is_that_of_least_squares(values):
    assert slope(values) == pytest.approx(np.polyfit(range(len(values)), values, 1)[0], abs=1e-9)


@given(st.lists(st.floats(0, 5), max_size=40), st.integers(2, 6), st.integers(1, 4), st.sampled_from([0.0, 0.2]))
def test_flat_slopes_in_a_row_stop(values, window, patience, least):
    flat = [i + 1 >= window and slope(values[i + 1 - window : i + 1]) >= -least for i in range(len(values))]
    expected = next((i for i in range(len(values)) if i + 1 >= patience and all(flat[i + 1 - patience : i + 1])), None)
    assert run(values, rule="slope", window=window, patience=patience, least_slope=least)[1] == expected


def test_a_slope_stops_on_the_plateau_and_not_before():
    values = [max(1.0, 3 - 0.1 * round) for round in range(60)]
    rule, stopped = run(values, rule="slope", window=5, patience=3)
    assert 20 < stopped <= 30
    assert rule.best == pytest.approx(1.0)


def test_one_standard_error_must_be_won():
    """Averages that creep down by less than their own noise are no improvement."""
    noise = itertools.cycle([0.2, -0.2])
    values = [1 - 0.002 * round + next(noise) for round in range(100)]
    assert run(values, window=10, patience=20)[1] is None
    assert run(values, rule="one-standard-error", window=10, patience=20)[1] is not None
    steep = [5 - 0.5 * round + next(noise) for round in range(40)]
    assert run(steep, rule="one-standard-error", window=3, patience=5)[1] is None


def test_one_standard_error_is_that_of_the_window():
    rule = Stopping(StoppingSection(rule="one-standard-error", window=4, min_delta=0.01))
    for loss in [1.0, 2.0, 3.0, 6.0]:
        rule.step(Round(loss))
    assert rule._margin() == pytest.approx(statistics.stdev([1, 2, 3, 6]) / 2)
    for _ in range(4):
        rule.step(Round(2.0))
    assert rule._margin() == 0.01


def drifts(values, tolerance):
    """Page's and Hinkley's sum less its minimum, from the beginning for every value."""
    changes = np.diff(values)
    sums = [0.0]
    for count in range(1, len(changes) + 1):
        sums.append(sums[-1] + changes[count - 1] - changes[:count].mean() - tolerance)
    return [sums[i] - min(sums[: i + 1]) for i in range(len(sums))]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.sampled_from([0.0, 0.1]))
def test_the_drift_is_what_a_recount_says(values, tolerance):
    drift = Drift(tolerance)
    assert [drift.step(value) for value in values] == pytest.approx(drifts(values, tolerance), abs=1e-9)


def test_drift_is_found_where_losses_stop_falling():
    falling = [10 - 0.1 * round for round in range(50)]
    assert run(falling, rule="page-hinkley", threshold=0.5)[1] is None
    rule, stopped = run([*falling, *[5.0] * 50], rule="page-hinkley", threshold=0.5, window=1)
    assert 50 <= stopped < 70
    assert rule.best == pytest.approx(5.0)
    assert run([1.0, math.nan], rule="page-hinkley")[1] == 1


# Budgets


@pytest.mark.parametrize("rule", ["patience", "budget"])
def test_budgets_end_what_the_rule_would_not(rule):
    falling = [10 - 0.1 * round for round in range(90)]
    assert run(falling, rule=rule, most_rounds=7)[1] == 6
    assert run([None] * 20, rule=rule, most_rounds=7)[1] == 6
    for budget, seen in (
        ({"most_time_s": 30.0}, [Round(1 / (round + 1), time_s=10.0 * round) for round in range(9)]),
        ({"most_bytes": 3000}, [Round(1 / (round + 1), size_bytes=1000 * round) for round in range(9)]),
    ):
        stopping = Stopping(StoppingSection(rule=rule, **budget))
        assert [stopping.step(each) for each in seen] == [round >= 3 for round in range(9)]


def test_budgets_alone_do_not_look_at_losses_but_keep_the_best():
    rule, stopped = run([1.0, 0.5, *[9.0] * 300], rule="budget", most_rounds=250, patience=1, window=1)
    assert (stopped, rule.best_round, rule.best) == (249, 1, 0.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rule": "budget"},
        {"rule": "slope", "window": 1},
        {"window": 0},
        {"patience": 0},
        {"min_delta": -1},
        {"decay": 1.0},
        {"rule": "luck"},
        {"most_rounds": -1},
        {"min_delta": math.nan},
    ],
    ids=str,
)
def test_rules_without_meaning_are_refused(wrong):
    with pytest.raises(ValidationError):
        StoppingSection(**wrong)


# The quantile


@pytest.mark.parametrize(
    ("quantile", "cohorts", "needed"),
    [(1.0, 4, 4), (0.75, 4, 3), (0.55, 20, 11), (0.07, 100, 7), (0.01, 4, 1), (0.5, 5, 3), (1.0, 1, 1)],
)
def test_so_many_cohorts_must_have_stopped(quantile, cohorts, needed):
    rule = Quantile(cohorts, quantile)
    assert rule.needed == needed
    starts = [rule.stop(cohort, 10.0 * cohort) for cohort in range(cohorts)]
    assert starts == [cohort == needed - 1 for cohort in range(cohorts)]
    assert rule.start_s == 10.0 * (needed - 1)
    assert rule.in_time == tuple(range(needed))
    assert rule.late == tuple(range(needed, cohorts))


def test_late_teachers_come_in_their_order():
    rule = Quantile(5, 0.4)
    assert [rule.stop(cohort, 0.0) for cohort in (4, 2, 0, 3, 1)] == [False, True, False, False, False]
    assert rule.in_time == (2, 4)
    assert rule.late == (0, 3, 1)


def test_hearing_a_stop_again_counts_once():
    rule = Quantile(2)
    assert not rule.stop(0, 1.0)
    assert not rule.stop(0, 2.0)
    assert rule.in_time == rule.late == ()
    assert rule.start_s is None
    assert rule.stop(1, 3.0)
    assert not rule.stop(1, 4.0)
    assert rule.start_s == 3.0


def test_a_cohort_that_is_gone_is_not_waited_for():
    rule = Quantile(3)
    rule.stop(0, 1.0)
    rule.stop(2, 2.0)
    assert rule.lose(1, 5.0)
    assert (rule.in_time, rule.start_s) == ((0, 2), 5.0)
    assert not rule.stop(1, 6.0)
    assert rule.late == ()


def test_a_cohort_that_has_stopped_stays_a_teacher_when_it_goes():
    rule = Quantile(2)
    rule.stop(0, 1.0)
    assert not rule.lose(0, 2.0)
    assert rule.needed == 2
    assert rule.stop(1, 3.0)
    assert rule.in_time == (0, 1)


def test_where_all_are_gone_nothing_starts():
    rule = Quantile(2)
    assert not rule.lose(0, 1.0)
    assert not rule.lose(1, 1.0)
    assert rule.start_s is None


@pytest.mark.parametrize("quantile", [0.0, -0.5, 1.1, math.nan])
def test_a_quantile_without_meaning_is_refused(quantile):
    with pytest.raises(ConfigError, match=r"protocol\.quantile"):
        Quantile(4, quantile)


# Weights of teachers


def test_teachers_count_by_their_share_of_each_class():
    weights = teacher_weights({0: [30, 0, 0], 3: [10, 5, 0]})
    assert weights[0].tolist() == [0.75, 0, 0.5]
    assert weights[3].tolist() == [0.25, 1, 0.5]


counts = st.lists(st.integers(0, 1000), min_size=3, max_size=3)


@given(st.dictionaries(st.integers(0, 9), counts, min_size=1), st.sampled_from([None, 1.0, 3.0]))
def test_weights_of_a_class_sum_to_1_over_whoever_is_present(claimed, clip):
    weights = teacher_weights(claimed, clip)
    assert list(weights) == sorted(claimed)
    assert np.sum(list(weights.values()), axis=0) == pytest.approx(np.ones(3))
    assert min(row.min() for row in weights.values()) >= 0


def test_a_late_teacher_changes_the_weights_of_the_others_in_proportion():
    early = teacher_weights({0: [30, 1], 1: [10, 1]})
    late = teacher_weights({0: [30, 1], 1: [10, 1], 2: [40, 0]})
    assert early[0][0] / early[1][0] == pytest.approx(late[0][0] / late[1][0])
    assert late[2].tolist() == [0.5, 0]


@pytest.mark.parametrize("teachers", [2, 3, 4, 8])
def test_a_cohort_that_claims_a_hundred_times_too_much_is_held_to_a_bound(teachers):
    claimed = {cohort: [50.0, 50.0] for cohort in range(teachers)}
    claimed[1] = [5000.0, 5000.0]
    assert teacher_weights(claimed)[1].min() > 0.92
    assert teacher_weights(claimed, most_over_median=2)[1] == pytest.approx(np.full(2, 2 / (teachers + 1)))


def test_honest_cohorts_of_unlike_labels_are_not_clipped():
    claimed = {0: [100.0, 0.0, 0.0], 1: [0.0, 90.0, 0.0], 2: [0.0, 10.0, 110.0]}
    plain, clipped = teacher_weights(claimed), teacher_weights(claimed, most_over_median=2)
    assert all(np.array_equal(plain[cohort], clipped[cohort]) for cohort in claimed)


def test_counts_that_cannot_be_are_none():
    weights = teacher_weights({0: [math.nan, -5, math.inf, 2], 1: [1, 1, 1, 2]})
    assert weights[0].tolist() == [0, 0, 0, 0.5]
    assert weights[1].tolist() == [1, 1, 1, 0.5]
