"""Times of requests and their summaries, by hand and by property."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.workloads import latencies
from node.workloads.latencies import Objective, Served

THREE = Served(sent_s=1.0, token_s=(1.5, 1.75, 2.25))
ONE = Served(sent_s=0.0, token_s=(4.0,))

served = st.builds(
    lambda sent, gaps: Served(sent, tuple((sent + np.cumsum(gaps)).tolist())),
    st.floats(0, 1e3),
    st.lists(st.floats(1e-3, 10), min_size=1, max_size=8),
)


def test_the_times_of_a_request():
    assert (THREE.ttft_s, THREE.e2e_s, THREE.tpot_s) == (0.5, 1.25, 0.375)
    assert THREE.itl_s == (0.25, 0.5)


def test_a_single_token_has_no_time_between_tokens():
    assert (ONE.ttft_s, ONE.e2e_s, ONE.tpot_s, ONE.itl_s) == (4.0, 4.0, 0.0, ())


@given(served)
def test_the_definitions_agree_with_each_other(each):
    assert each.ttft_s <= each.e2e_s
    assert each.tpot_s * (len(each.token_s) - 1) + each.ttft_s == pytest.approx(each.e2e_s)
    assert sum(each.itl_s) + each.ttft_s == pytest.approx(each.e2e_s)


def test_an_objective_is_met_when_all_of_it_is():
    assert Objective().met(ONE)
    assert Objective(ttft_s=0.5, tpot_s=0.375, e2e_s=1.25).met(THREE)
    assert not Objective(ttft_s=0.4).met(THREE)
    assert not Objective(tpot_s=0.3).met(THREE)
    assert not Objective(ttft_s=1.0, e2e_s=1.0).met(THREE)


def test_throughput_goodput_and_attainment():
    both = [THREE, ONE]
    assert latencies.throughput(both) == 0.5
    assert latencies.goodput(both, Objective(ttft_s=1.0)) == 0.25
    assert latencies.attainment(both, Objective(ttft_s=1.0), asked=4) == 0.25


def test_where_nothing_was_served_nothing_was_good():
    assert latencies.throughput([]) == latencies.goodput([], Objective()) == 0.0
    assert latencies.attainment([], Objective(), asked=0) == 0.0


@given(st.lists(served, min_size=1, max_size=10), st.floats(0, 20))
def test_goodput_never_exceeds_throughput(many, limit):
    assert latencies.goodput(many, Objective(ttft_s=limit)) <= latencies.throughput(many)


def test_satisfaction_falls_with_the_square_of_the_wait():
    assert latencies.satisfaction(Served(0.0, (0.0,))) == 1.0
    assert latencies.satisfaction(Served(0.0, (3.0,))) == 0.75
    assert latencies.satisfaction(Served(0.0, (60.0,))) == 0.0


def test_a_percentile_lies_in_its_interval_which_narrows_with_the_sample():
    sample = np.random.default_rng(0).exponential(size=4_000)
    few, many = (latencies.percentile(part, 95, np.random.default_rng(1)) for part in (sample[:100], sample))
    assert few.low <= few.value <= few.high
    assert many.low <= many.value <= many.high
    assert many.high - many.low < (few.high - few.low) / 2


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    truth, hits = np.log(2), 0
    for seed in range(100):
        sample = np.random.default_rng(seed).exponential(size=100)
        found = latencies.percentile(sample, 50, np.random.default_rng(seed))
        hits += found.low <= truth <= found.high
    assert 86 <= hits <= 100  # 95 expected; 86 is four deviations below


def test_equal_values_have_no_spread_and_none_no_percentile():
    assert latencies.percentile([2.0, 2.0], 99, np.random.default_rng(0)) == latencies.Estimate(2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="nothing"):
        latencies.percentile([], 50, np.random.default_rng(0))


def test_imbalance():
    assert latencies.imbalance([1, 1, 1]) == 1.0
    assert latencies.imbalance([3, 1, 2]) == 1.5
    assert latencies.imbalance([0, 0]) == 1.0
