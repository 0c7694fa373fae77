"""Placement: rendezvous hashing, replicas by popularity, bounded loads, two choices."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import ConfigError, Missing
from node.placement.balance import bounded, two_choices
from node.placement.rendezvous import equally, hash64, preference, unit_interval
from node.placement.replicas import Popularity, ReplicaRule, adjust

keys = st.text(max_size=8)
node_sets = st.sets(st.integers(0, 50), min_size=1, max_size=12)
weights_of = st.dictionaries(st.integers(0, 50), st.floats(0.1, 10), min_size=1, max_size=12)


# Rendezvous hashing


def test_hashes_are_exact():
    assert hash64(0, 0) == 0x435AC69A50224E5D
    assert hash64("a", "n1") == 0x8E30731EDF4AD2B4


def test_owners_and_orders_are_exact():
    eight, four = equally(list(range(8))), equally(list(range(4)))
    assert [preference(key, eight)[0] for key in range(12)] == [4, 0, 7, 2, 2, 3, 2, 7, 3, 2, 2, 2]
    orders = ["".join(map(str, preference(key, four))) for key in range(4)]
    assert orders == ["3210", "0321", "1320", "2301"]


def test_equal_weights_rank_by_the_hash_alone():
    nodes = list(range(20))
    for key in range(50):
        by_hash = sorted(nodes, key=lambda node: -hash64(key, node))
        assert preference(key, dict.fromkeys(nodes, 3.5)) == by_hash


@pytest.mark.parametrize("bits", [0, 1, 2**12, 2**63, 2**64 - 2**11, 2**64 - 1])
def test_every_hash_has_a_logarithm_that_is_not_0(bits):
    assert 0 < unit_interval(bits) < 1
    assert -math.inf < math.log(unit_interval(bits)) < 0


@given(keys, node_sets)
@settings(max_examples=60)
def test_an_order_has_every_node_once_whatever_order_they_are_told_in(key, nodes):
    order = preference(key, equally(sorted(nodes)))
    assert sorted(order) == sorted(nodes)
    assert order == preference(key, equally(sorted(nodes, reverse=True)))


@given(weights_of, st.integers(51, 60), st.floats(0.1, 10))
@settings(max_examples=60)
def test_a_node_that_joins_moves_only_what_it_wins_and_no_others_change_places(weights, joining, weight):
    after = {**weights, joining: weight}
    for key in range(40):
        order = preference(key, after)
        assert [node for node in order if node != joining] == preference(key, weights)


def test_a_node_that_joins_wins_one_key_in_as_many_as_there_are_nodes():
    before, after = equally(list(range(9))), equally(list(range(10)))
    count = 4000
    moved = sum(preference(key, before)[0] != preference(key, after)[0] for key in range(count))
    assert abs(moved / count - 0.1) < 4 * math.sqrt(0.1 * 0.9 / count)


def test_shares_follow_the_weights():
    weights = {0: 1.0, 1: 2.0, 2: 4.0, 3: 1.0}
    count = 6000
    owned = Counter(preference(key, weights)[0] for key in range(count))
    for node, weight in weights.items():
        share = weight / 8
        assert abs(owned[node] / count - share) < 4 * math.sqrt(share * (1 - share) / count)


@given(weights_of, st.floats(1.1, 10))
@settings(max_examples=40)
def test_a_node_that_gets_heavier_only_moves_up(weights, factor):
    node = min(weights)
    heavier = {**weights, node: weights[node] * factor}
    for key in range(20):
        assert preference(key, heavier).index(node) <= preference(key, weights).index(node)


@pytest.mark.parametrize("weight", [0, -1.0, math.nan, math.inf])
def test_a_weight_is_a_positive_number(weight):
    with pytest.raises(ConfigError, match=r"^weight of storage node 3 is .*; allowed: positive numbers$"):
        preference("key", {1: 1.0, 3: weight})


def test_without_nodes_there_is_no_order():
    assert preference("key", {}) == []


# Bounded loads and two choices


@given(st.integers(1, 12), st.integers(0, 200), st.sampled_from([0.05, 0.25, 1.0]))
@settings(max_examples=40, deadline=None)
def test_no_node_ever_exceeds_its_bound(nodes, requests, slack):
    loads = dict.fromkeys(range(nodes), 0)
    weights = equally(list(range(nodes)))
    for request in range(requests):
        # A third of all requests are for one key.
        loads[bounded(preference(request * (request % 3 > 0), weights), loads, slack)] += 1
        assert max(loads.values()) <= math.ceil((1 + slack) * (request + 1) / nodes)


def test_while_all_are_idle_the_first_is_taken():
    assert bounded([3, 1, 2], {}) == 3


def test_who_is_over_its_bound_is_passed_over():
    # Ten under way on four nodes: 1.25 * 11 / 4 = 3.4.
    assert bounded([0, 1, 2, 3], {0: 4, 1: 4, 2: 1, 3: 1}) == 2
    assert bounded([0, 1, 2, 3], {0: 3, 1: 5, 2: 1, 3: 1}) == 0


def test_of_the_first_two_the_less_loaded():
    assert two_choices([5, 6, 7], {5: 2, 6: 1, 7: 0}) == 6
    assert two_choices([5, 6, 7], {5: 1, 6: 1}) == 5
    assert two_choices([5], {5: 100}) == 5


def test_two_at_random_are_two_and_any_two():
    rng = np.random.default_rng(3)
    loads = {node: node for node in range(5)}
    chosen = Counter(two_choices(range(5), loads, rng) for _ in range(2000))
    # The most loaded never is the less loaded of two; node 0 is whenever it is drawn, 2 times in 5.
    assert 4 not in chosen
    assert abs(chosen[0] / 2000 - 0.4) < 4 * math.sqrt(0.4 * 0.6 / 2000)


def test_two_choices_balance_far_better_than_one():
    rng = np.random.default_rng(4)
    one, two = Counter(), Counter()
    for _ in range(4000):
        one[int(rng.integers(40))] += 1
        two[two_choices(range(40), two, rng)] += 1
    assert max(two.values()) - 100 <= 4
    assert max(one.values()) - 100 > 10


@pytest.mark.parametrize("choose", [bounded, two_choices])
def test_there_has_to_be_somebody_to_ask(choose):
    with pytest.raises(Missing, match="no node to ask"):
        choose([], {})


# Popularity


def test_a_steady_demand_is_its_rate():
    popularity = Popularity(time_constant_s=60)
    for second in range(1200):
        popularity.demand("key", 5, second)
    assert popularity.rate("key", 1200) == pytest.approx(5, rel=0.02)


def test_demand_decays_with_the_time_constant():
    popularity = Popularity(time_constant_s=60)
    popularity.demand("key", 600, 0)
    assert popularity.rate("key", 0) == pytest.approx(10)
    assert popularity.rate("key", 60) == pytest.approx(10 / math.e)


def test_shares_are_of_the_whole_and_of_nothing_before_anything_is_asked_for():
    popularity = Popularity(60)
    assert popularity.shares(0) == {}
    for key, amount in [("a", 3), ("b", 1)]:
        popularity.demand(key, amount, 0)
    assert popularity.shares(100) == pytest.approx({"a": 0.75, "b": 0.25})
    popularity.forget("a")
    popularity.forget("unheard of")
    assert popularity.shares(100) == pytest.approx({"b": 1.0})


def test_demand_of_very_long_ago_is_no_share():
    popularity = Popularity(1)
    popularity.demand("a", 1, 0)
    assert popularity.shares(1e6) == {"a": 0.0}
    assert popularity.rate("unheard of", 5) == 0


@pytest.mark.parametrize("time_constant_s", [0, -1, math.nan])
def test_a_time_constant_is_positive(time_constant_s):
    with pytest.raises(ConfigError, match=r"^time_constant_s of a popularity is .*; allowed: more than 0$"):
        Popularity(time_constant_s)


# Replicas


def test_replicas_of_a_new_key_follow_its_share():
    rule = ReplicaRule(least=2, most=8)
    assert [rule.first(share, nodes=20) for share in (0, 0.1, 0.101, 0.3, 0.9)] == [2, 2, 3, 6, 8]


def test_there_are_never_more_replicas_than_nodes():
    assert ReplicaRule(least=2, most=8).first(1.0, nodes=1) == 1
    assert ReplicaRule(least=2, most=8).next(5, 1.0, nodes=3) == 3


def test_one_is_added_above_and_one_dropped_below_and_between_nothing_moves():
    rule = ReplicaRule(least=1, most=100)
    assert [rule.next(10, target / 100, nodes=100) for target in (5.9, 6.1, 10, 12.9, 13.1, 50)] == [
        9,
        10,
        10,
        10,
        11,
        11,
    ]


@given(st.integers(1, 8), st.floats(0, 1), st.integers(1, 40))
@settings(max_examples=80)
def test_a_demand_that_stays_comes_to_rest_and_within_the_band(present, share, nodes):
    rule = ReplicaRule(least=1, most=8)
    counts = [present]
    for _ in range(20):
        counts.append(rule.next(counts[-1], share, nodes))
    assert len(set(counts[10:])) == 1
    steps = np.diff(counts[1:])
    assert (steps >= 0).all() or (steps <= 0).all()


def test_all_keys_are_adjusted_at_once():
    popularity = Popularity(60)
    for key, amount in [("hot", 95), ("warm", 5)]:
        popularity.demand(key, amount, 0)
    rule = ReplicaRule(least=1, most=8)
    counts = adjust({"hot": 3, "gone": 4}, ["hot", "warm", "cold"], popularity, rule, nodes=10, now_s=0)
    assert counts == {"hot": 4, "warm": 1, "cold": 1}


@pytest.mark.parametrize("wrong", [{"least": 0}, {"least": 3, "most": 2}, {"budget": 0}])
def test_a_rule_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ConfigError, match="allowed: "):
        ReplicaRule(**wrong)
