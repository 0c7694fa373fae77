"""Cache policies: fixtures that are exact, and what is known of each."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.caching.belady import belady_hits
from node.caching.cache import Cache, Outcome
from node.caching.gdsf import GDSF, LFUDA, LatencyGDSF
from node.caching.lfu import LFU
from node.caching.policies import DEFAULT_POLICY, POLICIES, policy_named
from node.caching.policy import Policy
from node.caching.regret import Access, replay
from node.errors import ConfigError

OF_THE_TABLE = ("fifo", "lru", "lfu", "gdsf", "sieve", "s3-fifo", "arc", "w-tinylfu")
every_policy = pytest.mark.parametrize("name", sorted(POLICIES))
traces = st.lists(st.integers(0, 9), max_size=80)


def hits(name, keys, capacity):
    return replay([Access(key) for key in keys], Cache(capacity, POLICIES[name]))


def pattern(name, keys, capacity):
    return "".join(".H"[hit] for hit in hits(name, keys, capacity))


def fixture_keys(accesses=5000):
    """A linear congruential generator, cubed, so that small keys are popular; the same on every platform."""
    x, keys = 1, []
    for _ in range(accesses):
        x = (1103515245 * x + 12345) % 2**31
        u = x / 2**31
        keys.append(int(200 * (u * u * u)))
    return keys


# Fixtures


def test_the_fixture_is_the_one_that_the_figures_are_of():
    keys = fixture_keys()
    assert keys[:12] == [27, 1, 5, 30, 170, 1, 69, 2, 24, 0, 0, 11]
    assert len(set(keys)) == 200


FIXTURE_HITS = {
    10: (1034, 1186, 1754, 1404, 1577, 1628, 1479, 1679),
    20: (1446, 1641, 2224, 1884, 2043, 2068, 1911, 2150),
    50: (2381, 2582, 2968, 2844, 2906, 2818, 2702, 2910),
}


@pytest.mark.parametrize("capacity", FIXTURE_HITS)
def test_hits_of_the_fixture_are_exact(capacity):
    found = tuple(sum(hits(name, fixture_keys(), capacity)) for name in OF_THE_TABLE)
    assert found == FIXTURE_HITS[capacity]


@pytest.mark.parametrize("capacity", FIXTURE_HITS)
def test_lfu_with_dynamic_aging_has_the_hits_of_gdsf_on_entries_of_one_size(capacity):
    assert hits("lfu-da", fixture_keys(), capacity) == hits("gdsf", fixture_keys(), capacity)


BY_HAND = {
    "fifo": ("...HH...H.........", "...HH.H.....HH...."),
    "lru": ("...HH.H.H.........", "...HH.H.HH..HH..HH"),
    "lfu": ("...HH.H.HH..HH..HH", "...HH.H.HH..HH..HH"),
    "gdsf": ("...HH.H.H...H...H.", "...HH.H.HH..HH..HH"),
    "sieve": ("...HH.H.H...H...H.", "...HH.H.HH..HH..HH"),
    "s3-fifo": ("...HH...H...HH..HH", "...HH.H.H...HH..HH"),
    "arc": ("...HH.H.HH..HH..HH", "...HH.H.HH..HH..HH"),
    "w-tinylfu": ("...HH.H.HH..HH..HH", "...HH.H.HH..HHH.HH"),
}


@pytest.mark.parametrize("name", OF_THE_TABLE)
def test_a_sequence_gone_through_by_hand(name):
    assert tuple(pattern(name, "ABCABDAEABFGABCDAB", capacity) for capacity in (3, 4)) == BY_HAND[name]


# What holds for all


@every_policy
@given(trace=traces, capacity=st.integers(0, 12))
@settings(max_examples=30, deadline=None)
def test_no_policy_has_more_hits_than_belady_with_bypass(name, trace, capacity):
    assert sum(hits(name, trace, capacity)) <= belady_hits(trace, capacity)


@every_policy
@given(trace=traces, spare=st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_with_room_for_all_only_the_first_access_of_a_key_misses(name, trace, spare):
    distinct = len(set(trace))
    assert len(trace) - sum(hits(name, trace, distinct + spare)) == distinct


@every_policy
def test_without_capacity_there_are_no_hits(name):
    cache = Cache(0, POLICIES[name])
    assert replay([Access(0)] * 50, cache) == [False] * 50
    assert len(cache) == cache.used_bytes == 0


@every_policy
@given(
    trace=st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=80),
    capacity=st.integers(1, 60),
)
@settings(max_examples=30, deadline=None)
def test_entries_of_many_sizes_never_take_more_than_there_is(name, trace, capacity):
    cache = Cache(capacity, POLICIES[name])
    for key, is_removed in trace:
        cache.access(key, 1 + 7 * key)
        if is_removed:
            cache.remove(key)
        sizes = [resident.size_bytes for resident in cache.residents()]
        assert cache.used_bytes == sum(sizes) <= capacity


@every_policy
@given(trace=traces, capacity=st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_a_key_that_was_let_in_is_hit_next(name, trace, capacity):
    cache = Cache(capacity, POLICIES[name])
    for key in trace:
        cache.access(key, 1)
        assert cache.access(key, 1).outcome is Outcome.HIT


CHANGED_BY_AN_ACCESS = {"arc", "lfru", "w-tinylfu"}
"""Whom these evict depends on whether they know the newcomer, on its coming as time that passes, or as a halving."""


@every_policy
@given(trace=traces, capacity=st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_asking_who_is_next_tells_the_truth_and_changes_nothing(name, trace, capacity):
    asked, left_alone = Cache(capacity, POLICIES[name]), Cache(capacity, POLICIES[name])
    for key in trace:
        foreseen = asked.next_victim()
        decision = asked.access(key, 1)
        assert decision == left_alone.access(key, 1)
        if decision.victims and name not in CHANGED_BY_AN_ACCESS:
            assert decision.victims[0] == foreseen


@every_policy
def test_the_same_accesses_have_the_same_hits(name):
    assert hits(name, fixture_keys(800), 20) == hits(name, fixture_keys(800), 20)


@every_policy
@pytest.mark.parametrize("slot_bytes", [2, 1 << 20])
def test_places_may_be_counted_in_bytes(name, slot_bytes):
    # 40 places: every share of the capacity is then a whole number of them.
    places = hits(name, fixture_keys(2000), 40)
    entries = [Access(key, slot_bytes) for key in fixture_keys(2000)]
    if name != "gdsf-latency":
        assert replay(entries, Cache(40 * slot_bytes, POLICIES[name])) == places


@every_policy
def test_every_resident_has_a_score(name):
    cache = Cache(20, POLICIES[name])
    replay([Access(key) for key in fixture_keys(300)], cache)
    scores = [resident.score for resident in cache.residents()]
    assert len(scores) == 20
    assert all(np.isfinite(score) and score >= 0 for score in scores)
    assert len(set(scores)) > 1


def test_w_tinylfu_foresees_that_the_window_makes_room_for_an_entry_as_large_as_the_last():
    cache = Cache(100, POLICIES["w-tinylfu"])
    for key in range(10):
        cache.access(key, 10)
    assert cache.next_victim() == 9
    assert cache.access(10, 10).victims == (9,)


def test_an_unknown_policy_is_refused_in_one_line():
    with pytest.raises(ConfigError, match=r"^cache policy 'mru' is unknown; allowed: arc, fifo, .*, w-tinylfu$"):
        policy_named("mru")


def test_policies_are_found_by_name():
    assert all(policy_named(name) is POLICIES[name] and issubclass(POLICIES[name], Policy) for name in POLICIES)
    assert DEFAULT_POLICY == "w-tinylfu"


# What is known of some


@pytest.mark.parametrize("name", ["fifo", "lru"])
@pytest.mark.parametrize("capacity", [1, 5, 9])
def test_a_cyclic_scan_longer_than_the_capacity_is_never_hit(name, capacity):
    assert not any(hits(name, list(range(10)) * 20, capacity))


@given(traces)
@settings(max_examples=40, deadline=None)
def test_lru_has_no_fewer_hits_in_a_larger_cache(trace):
    by_capacity = [sum(hits("lru", trace, capacity)) for capacity in range(12)]
    assert by_capacity == sorted(by_capacity)


def test_fifo_may_have_fewer_hits_in_a_larger_cache():
    trace = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5]
    assert [len(trace) - sum(hits("fifo", trace, capacity)) for capacity in (3, 4)] == [9, 10]


@pytest.mark.parametrize("name", ["lru", "fifo", "lfu", "sieve"])
def test_uniform_accesses_hit_as_often_as_the_cache_is_large(name):
    keys, capacity, warm_up = 200, 50, 2000
    trace = np.random.default_rng(15).integers(0, keys, 12_000).tolist()
    measured = hits(name, trace, capacity)[warm_up:]
    share = capacity / keys
    assert abs(np.mean(measured) - share) < 3 * np.sqrt(share * (1 - share) / len(measured))


@given(trace=st.lists(st.integers(0, 9), max_size=80), capacity=st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_gdsf_whose_cost_is_the_size_is_lfu_with_dynamic_aging(trace, capacity):
    class CostIsSize(GDSF):
        def cost(self, size_bytes):
            return size_bytes

    entries = [Access(key, 1 + key) for key in trace]
    one, other = Cache(capacity, CostIsSize), Cache(capacity, LFUDA)
    assert [one.access(*entry) for entry in entries] == [other.access(*entry) for entry in entries]


def test_gdsf_prefers_many_small_entries_and_its_latency_cost_prefers_them_less():
    # A large entry used twice, then small ones used once each, and one more that needs room.
    def victims(policy):
        cache = Cache(100, policy)
        for key, size in [("large", 60), ("large", 60), ("small", 20), ("other", 20)]:
            cache.access(key, size)
        return cache.access("new", 20).victims

    assert victims(GDSF) == ("large",)
    assert victims(LFUDA) == ("small",)
    assert victims(lambda capacity: LatencyGDSF(capacity, rtt_s=0.0, bandwidth_bytes_per_s=1.0)) == ("small",)
    assert victims(lambda capacity: LatencyGDSF(capacity, rtt_s=1e6, bandwidth_bytes_per_s=1.0)) == ("large",)


def test_lfu_remembers_what_it_evicted_and_in_cache_lfu_does_not():
    trace = ["a", "a", "a", "b", "c", "a", "b", "a"]
    # At capacity 1, b and c push a out; when a is back, LFU knows of its three uses.
    cache = Cache(1, LFU)
    replay([Access(key) for key in trace], cache)
    assert cache.residents()[0].score == 5
    cache = Cache(1, POLICIES["in-cache-lfu"])
    replay([Access(key) for key in trace], cache)
    assert cache.residents()[0].score == 1


def test_the_age_of_gdsf_lets_the_once_popular_go():
    old_hero = ["hero"] * 50 + [key for key in range(200) for _ in range(2)]
    assert pattern("lfu", [*old_hero, "hero"], 4)[-1] == "H"
    assert pattern("gdsf", [*old_hero, "hero"], 4)[-1] == "."


def test_sieve_keeps_the_visited_where_they_are_and_its_hand_goes_on():
    cache = Cache(3, POLICIES["sieve"])
    for key in "abca":
        cache.access(key, 1)
    # The hand clears a and takes b; from c it goes on next time, and not from a again.
    assert cache.access("d", 1).victims == ("b",)
    assert cache.access("e", 1).victims == ("c",)
    assert cache.access("f", 1).victims == ("d",)
    assert "a" in cache


def test_removing_what_the_hand_of_sieve_is_at_moves_it_on():
    cache = Cache(3, POLICIES["sieve"])
    for key in "abcad":
        cache.access(key, 1)
    cache.remove("c")
    cache.access("e", 1)
    assert cache.access("f", 1).victims == ("d",)


def test_s3_fifo_lets_in_main_only_what_is_wanted_again():
    cache = Cache(20, POLICIES["s3-fifo"])
    for key in range(20):
        cache.access(key, 1)
        cache.access(key, 1)
        cache.access(key, 1)
    for key in range(100, 150):
        cache.access(key, 1)
    # Of the fifty that came once, all but the small queue's share went again.
    assert sum(key < 20 for key in cache) >= 18


def test_a_scan_leaves_the_default_policy_with_what_is_popular():
    popular = list(range(40)) * 10
    scan = list(range(1000, 1400))

    def survivors(name):
        cache = Cache(50, POLICIES[name])
        replay([Access(key) for key in popular + scan], cache)
        return sum(key < 40 for key in cache)

    assert survivors("lru") == 0
    assert survivors("w-tinylfu") >= 36


def test_while_the_window_has_room_the_main_part_gives_way():
    cache = Cache(100, POLICIES["w-tinylfu"])
    for key, size in [("large", 95)] * 5 + [("a", 5)]:
        cache.access(key, size)
    # The window is 10: b fits beside a, and it is not a's turn to be compared.
    assert cache.access("b", 5).victims == ("large",)


def test_the_counts_of_w_tinylfu_stay_few():
    policy = POLICIES["w-tinylfu"](10)
    for key in range(10_000):
        policy.on_access(key, 1)
        assert len(policy._counts) <= 100


def test_a_ranking_stays_in_proportion_to_its_keys():
    cache = Cache(10, LFU)
    replay([Access(key % 7) for key in range(10_000)], cache)
    assert len(cache._policy._residents._heap) <= 2 * 7 + 64 + 1


def test_lfru_weighs_how_often_against_how_long_ago():
    cache = Cache(2, POLICIES["lfru"])
    replay([Access(key) for key in ["often", "often", "often", "often", "once"]], cache)
    assert cache.access("new", 1).victims == ("once",)
    by_key = {resident.key: resident.score for resident in cache.residents()}
    # Four uses, the first decayed three times more than the last, two accesses ago.
    decayed = sum(0.99**age for age in (2, 3, 4, 5))
    assert by_key == pytest.approx({"often": decayed / 3, "new": 1.0})


def test_lfru_forgets_uses_of_long_ago():
    trace = ["old"] * 20 + ["new", "other"] * 60
    cache = Cache(3, POLICIES["lfru"])
    replay([Access(key) for key in trace], cache)
    assert cache.access("last", 1).victims == ("old",)
