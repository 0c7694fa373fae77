"""What the best cache could have done, and the regret of others."""

from functools import cache as remembered
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.caching.belady import belady_hits, next_uses, relaxed_hits
from node.caching.cache import Cache
from node.caching.policies import POLICIES
from node.caching.regret import Access, Regret, regret, replay

short_traces = st.lists(st.integers(0, 4), max_size=9)
traces = st.lists(st.integers(0, 9), max_size=80)
sized_traces = st.lists(st.integers(0, 5), max_size=9)


def fixture_keys():
    x, keys = 1, []
    for _ in range(5000):
        x = (1103515245 * x + 12345) % 2**31
        u = x / 2**31
        keys.append(int(200 * (u * u * u)))
    return keys


def most_hits(keys, sizes, capacity, bypass):
    """By trying all: after every access, any of the residents and the newcomer that fit may be kept."""

    @remembered
    def best(position, residents):
        if position == len(keys):
            return 0
        key = keys[position]
        if key in residents:
            return 1 + best(position + 1, residents)
        outcomes = [best(position + 1, residents)] if bypass or sizes[key] > capacity else []
        for kept in range(len(residents) + 1):
            for some in combinations(sorted(residents), kept):
                if sum(sizes[other] for other in (*some, key)) <= capacity:
                    outcomes.append(best(position + 1, frozenset((*some, key))))
        return max(outcomes)

    return best(0, frozenset())


# Belady


def test_hits_of_the_fixture_are_exact():
    keys = fixture_keys()
    found = {places: (belady_hits(keys, places), belady_hits(keys, places, bypass=False)) for places in (10, 20, 50)}
    assert found == {10: (2287, 2233), 20: (2856, 2829), 50: (3696, 3684)}


def test_a_sequence_gone_through_by_hand():
    sequence = "ABCABDAEABFGABCDAB"
    assert [belady_hits(sequence, 3), belady_hits(sequence, 3, bypass=False)] == [10, 9]
    assert [belady_hits(sequence, 4), belady_hits(sequence, 4, bypass=False)] == [11, 10]


@given(short_traces, st.integers(1, 4), st.booleans())
@settings(max_examples=150, deadline=None)
def test_it_is_the_most_that_an_exhaustive_search_finds(trace, places, bypass):
    assert belady_hits(trace, places, bypass) == most_hits(trace, [1] * 5, places, bypass)


@given(traces, st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_bypass_never_hurts_and_places_never_do(trace, places):
    assert belady_hits(trace, places) >= belady_hits(trace, places, bypass=False)
    assert belady_hits(trace, places + 1) >= belady_hits(trace, places)


@given(traces)
@settings(max_examples=30, deadline=None)
def test_with_room_for_all_only_first_accesses_miss(trace):
    distinct = len(set(trace))
    assert belady_hits(trace, distinct) == len(trace) - distinct


@pytest.mark.parametrize("places", [0, -1])
def test_without_places_there_are_no_hits(places):
    assert belady_hits([1, 1, 1], places) == 0


def test_a_cyclic_scan_can_be_hit_all_the_same():
    # Nine of ten keys stay where they are with bypass: each comes once a round.
    assert belady_hits(list(range(10)) * 20, 9) == 9 * 19


def test_next_uses():
    infinite = float("inf")
    assert next_uses("abab") == [2, 3, infinite, infinite]
    assert next_uses("") == []


# Different sizes


@given(sized_traces, st.lists(st.integers(1, 5), min_size=6, max_size=6), st.integers(0, 12))
@settings(max_examples=150, deadline=None)
def test_no_cache_has_more_hits_than_the_relaxed_bound(trace, sizes, capacity):
    bound = relaxed_hits(trace, [sizes[key] for key in trace], capacity)
    assert bound >= most_hits(trace, sizes, capacity, bypass=True)


@given(traces, st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_the_relaxed_bound_is_no_tighter_than_the_exact_one(trace, places):
    assert relaxed_hits(trace, [1] * len(trace), places) >= belady_hits(trace, places)


def test_the_relaxed_bound_knows_what_is_larger_than_the_cache_and_what_is_used_once():
    assert relaxed_hits("aaaa", [5] * 4, 4) == 0
    assert relaxed_hits("abcd", [1] * 4, 4) == 0
    assert relaxed_hits("aaaa", [4] * 4, 4) == 3
    assert relaxed_hits("", [], 4) == 0


def test_the_relaxed_bound_counts_bytes_over_time():
    # Both would have to stay for three accesses: 2 x 3 x 3 bytes, of which 4 x 3 and 5 x 3 are too few.
    assert [relaxed_hits("axxa", [3] * 4, 1)] == [0]
    assert relaxed_hits("abab", [3] * 4, 3) == 1
    assert relaxed_hits("abab", [3] * 4, 4) == 2


def test_sizes_and_keys_are_of_one_length():
    with pytest.raises(ValueError):
        relaxed_hits("ab", [1], 4)


# Regret


def test_regret_is_what_could_still_be_won():
    trace = [Access(key) for key in fixture_keys()]
    hits = sum(replay(trace, Cache(20, POLICIES["lru"])))
    judged = regret(trace, hits, 20)
    assert (judged.hits, judged.best_hits, judged.is_exact) == (1641, 2856, True)
    assert judged.hit_ratio == pytest.approx(0.3282)
    assert judged.regret == pytest.approx((2856 - 1641) / 5000)


def test_regret_with_entries_of_one_size_is_by_places():
    keys = fixture_keys()
    trace = [Access(key, 1000) for key in keys]
    assert regret(trace, 0, 20_999).best_hits == belady_hits(keys, 20)


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(trace=traces, capacity=st.integers(0, 40))
@settings(max_examples=15, deadline=None)
def test_regret_is_never_negative(name, trace, capacity):
    accesses = [Access(key, 1 + key) for key in trace]
    hits = sum(replay(accesses, Cache(capacity, POLICIES[name])))
    judged = regret(accesses, hits, capacity)
    assert judged.regret >= 0
    assert judged.is_exact == (len(set(trace)) <= 1)


def test_regret_of_one_access():
    assert Regret(1, 1, 1, True).hit_ratio == Regret(1, 0, 1, True).regret == 1


def test_regret_of_nothing():
    assert regret([], 0, 10) == Regret(0, 0, 0, True)
    assert regret([], 0, 10).regret == regret([], 0, 10).best_hit_ratio == 0
