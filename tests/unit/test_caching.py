"""The cache itself: bytes, pins, wants that wait, and what it says of itself."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from node.caching.cache import Cache, Decision, Outcome
from node.caching.lru import LRU
from node.caching.policies import POLICIES
from node.errors import ConfigError, Missing


def outcomes(decisions):
    return [(decision.key, decision.outcome) for decision in decisions]


# Hits and misses


def test_a_miss_is_admitted_and_then_hit():
    cache = Cache(10, LRU)
    assert cache.access("a", 4) == Decision("a", Outcome.ADMITTED)
    assert cache.access("a", 4) == Decision("a", Outcome.HIT)
    assert cache.access("b", 4).victims == ()
    assert cache.access("c", 5).victims == ("a",)
    assert (list(cache), cache.used_bytes, len(cache)) == (["b", "c"], 9, 2)


def test_as_many_go_as_it_takes():
    cache = Cache(10, LRU)
    for key in "abcde":
        cache.access(key, 2)
    assert cache.access("large", 7).victims == ("a", "b", "c", "d")


def test_what_is_larger_than_the_cache_is_refused_and_evicts_nothing():
    cache = Cache(10, LRU)
    cache.access("a", 10)
    for call in (cache.access, cache.acquire):
        assert call("b", 11) == Decision("b", Outcome.REFUSED)
    assert list(cache) == ["a"]


def test_stats_count_requests_and_bytes():
    cache = Cache(10, LRU)
    for key, size in [("a", 6), ("b", 4), ("a", 6), ("c", 4), ("large", 11)]:
        cache.access(key, size)
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.hit_bytes, stats.missed_bytes) == (1, 4, 6, 25)
    assert (stats.evicted, stats.evicted_bytes) == (1, 4)
    assert stats.hit_ratio == pytest.approx(1 / 5)
    assert stats.byte_hit_ratio == pytest.approx(6 / 31)


def test_stats_are_a_copy_and_begin_at_nothing():
    cache = Cache(10, LRU)
    before = cache.stats()
    cache.access("a", 1)
    assert (before.misses, before.hit_ratio, before.byte_hit_ratio) == (0, 0, 0)
    assert cache.stats().misses == 1


@pytest.mark.parametrize("size_bytes", [0, -1])
def test_a_size_is_positive(size_bytes):
    with pytest.raises(ConfigError, match=f"^size_bytes of 'a' is {size_bytes}; allowed: at least 1$"):
        Cache(10).access("a", size_bytes)


def test_a_capacity_is_not_negative():
    with pytest.raises(ConfigError, match=r"^capacity_bytes of a cache is -1; allowed: 0 and more$"):
        Cache(-1)


# Pins


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_a_pinned_entry_is_never_evicted(name):
    cache = Cache(6, POLICIES[name])
    for key in range(6):
        cache.access(key, 1)
    cache.pin(0)
    cache.pin(3)
    for key in range(10, 60):
        decision = cache.access(key, 1)
        assert decision.outcome is Outcome.ADMITTED
        assert not {0, 3} & set(decision.victims)
        assert cache.next_victim() not in (0, 3)
    assert {0, 3} <= set(cache)


def test_pins_are_counted():
    cache = Cache(2, LRU)
    cache.acquire("a", 2)
    cache.acquire("a", 2)
    cache.unpin("a")
    assert cache.access("b", 1).outcome is Outcome.REFUSED
    cache.unpin("a")
    assert cache.access("b", 1).victims == ("a",)


def test_pinning_what_is_not_there_and_unpinning_what_is_not_pinned():
    cache = Cache(2, LRU)
    with pytest.raises(Missing, match="'a' is not in the cache"):
        cache.pin("a")
    cache.access("a", 1)
    with pytest.raises(Missing, match="'a' is not pinned"):
        cache.unpin("a")


# Waiting


def test_with_all_pinned_a_want_waits_and_goes_on_with_the_unpin():
    cache = Cache(2, LRU)
    cache.acquire("a", 2)
    assert cache.acquire("b", 1).outcome is Outcome.WAITING
    assert cache.waiting() == ["b"]
    assert cache.next_victim() is None
    assert cache.unpin("a") == (Decision("b", Outcome.ADMITTED, ("a",)),)
    assert [(entry.key, entry.pins) for entry in cache.residents()] == [("b", 1)]
    assert cache.waiting() == []


def test_wants_go_on_in_order_of_arrival_and_small_ones_do_not_overtake():
    cache = Cache(4, LRU)
    cache.acquire("a", 2)
    cache.acquire("b", 2)
    for key, size in [("large", 4), ("small", 1), ("other", 1)]:
        assert cache.acquire(key, size).outcome is Outcome.WAITING
    assert cache.unpin("a") == ()
    # There is room for it now, but the large one waits for that.
    assert cache.access("prefetched", 1).outcome is Outcome.REFUSED
    assert outcomes(cache.unpin("b")) == [("large", Outcome.ADMITTED)]
    assert outcomes(cache.unpin("large")) == [("small", Outcome.ADMITTED), ("other", Outcome.ADMITTED)]


def test_several_wants_for_one_key_are_admitted_as_one_with_a_pin_for_each():
    cache = Cache(1, LRU)
    cache.acquire("a", 1)
    cache.acquire("b", 1)
    cache.acquire("b", 1)
    cache.acquire("c", 1)
    assert outcomes(cache.unpin("a")) == [("b", Outcome.ADMITTED)]
    assert cache.unpin("b") == ()
    assert outcomes(cache.unpin("b")) == [("c", Outcome.ADMITTED)]


def test_who_does_not_wait_is_refused_while_all_is_pinned():
    cache = Cache(1, LRU)
    cache.acquire("a", 1)
    assert cache.access("b", 1).outcome is Outcome.REFUSED
    assert cache.waiting() == []


def test_a_hit_never_waits():
    cache = Cache(2, LRU)
    cache.acquire("a", 2)
    cache.acquire("b", 1)
    assert cache.acquire("a", 2).outcome is Outcome.HIT


def test_a_want_can_be_given_up_one_by_one_or_all_at_once():
    cache = Cache(2, LRU)
    cache.acquire("a", 1)
    cache.acquire("large", 2)
    cache.acquire("large", 2)
    cache.acquire("small", 1)
    assert cache.unpin("large") == ()
    assert cache.waiting() == ["large", "small"]
    # Who comes behind does not wait for one that has gone.
    assert outcomes(cache.unpin("large")) == [("small", Outcome.ADMITTED)]
    cache.acquire("b", 2)
    cache.acquire("b", 2)
    assert cache.remove("b") == ()
    assert cache.waiting() == []


def test_every_want_is_counted_as_a_miss_once():
    cache = Cache(1, LRU)
    cache.acquire("a", 1)
    cache.acquire("b", 1)
    cache.unpin("a")
    assert (cache.stats().misses, cache.stats().hits) == (2, 0)


# Removal


def test_what_is_removed_makes_room():
    cache = Cache(2, LRU)
    cache.access("a", 2)
    assert cache.remove("a") == ()
    assert (list(cache), cache.used_bytes) == ([], 0)
    assert cache.access("b", 2).victims == ()
    assert cache.stats().evicted == 0


def test_removing_what_is_not_there_is_nothing():
    cache = Cache(2, LRU)
    assert cache.remove("a") == ()


def test_what_is_removed_in_use_leaves_with_its_last_pin():
    cache = Cache(2, LRU)
    cache.acquire("a", 1)
    cache.acquire("a", 1)
    cache.acquire("b", 1)
    cache.acquire("c", 1)
    cache.remove("a")
    assert cache.unpin("a") == ()
    assert "a" in cache
    assert cache.unpin("a") == (Decision("c", Outcome.ADMITTED),)
    assert list(cache) == ["b", "c"]


def test_what_is_wanted_again_before_it_leaves_stays():
    cache = Cache(2, LRU)
    cache.acquire("a", 1)
    cache.remove("a")
    assert cache.acquire("a", 1).outcome is Outcome.HIT
    cache.unpin("a")
    cache.unpin("a")
    assert "a" in cache


def test_a_failed_fetch_is_taken_back_and_tried_again():
    cache = Cache(2, LRU)
    assert cache.acquire("a", 1).outcome is Outcome.ADMITTED
    cache.remove("a")
    cache.unpin("a")
    assert cache.acquire("a", 1).outcome is Outcome.ADMITTED


# What an operator sees


def test_residents_show_sizes_pins_and_scores():
    cache = Cache(10, POLICIES["lfu"])
    cache.acquire("a", 4)
    cache.access("a", 4)
    cache.access("b", 5)
    assert [tuple(entry) for entry in cache.residents()] == [("a", 4, 1, 2), ("b", 5, 0, 1)]
    assert cache.next_victim() == "b"


def test_an_empty_cache_has_no_victim():
    assert Cache(10).next_victim() is None


def test_the_policy_is_w_tinylfu_unless_told_otherwise():
    cache = Cache(50)
    for key in [*list(range(40)) * 10, *range(1000, 1400)]:
        cache.access(key, 1)
    assert sum(key < 40 for key in cache) >= 36


# Whatever happens


class AnyUse(RuleBasedStateMachine):
    """A cache under random use, next to the plainest account of it."""

    @initialize(name=st.sampled_from(sorted(POLICIES)), capacity=st.integers(0, 12))
    def begin(self, name, capacity):
        self.cache = Cache(capacity, POLICIES[name])
        self.pins = {}
        self.wants = {}

    def take(self, decisions):
        for decision in decisions:
            assert decision.outcome is Outcome.ADMITTED
            assert decision.key == next(iter(self.wants))
            assert not set(decision.victims) & set(self.pins)
            self.pins[decision.key] = self.wants.pop(decision.key)

    @rule(key=st.integers(0, 9))
    def access(self, key):
        was_there = key in self.cache
        decision = self.cache.access(key, 1 + key % 4)
        assert (decision.outcome is Outcome.HIT) == was_there
        assert not set(decision.victims) & set(self.pins)

    @rule(key=st.integers(0, 9))
    def acquire(self, key):
        decision = self.cache.acquire(key, 1 + key % 4)
        assert not set(decision.victims) & set(self.pins)
        if decision.outcome is Outcome.WAITING:
            self.wants[key] = self.wants.get(key, 0) + 1
        elif decision.outcome is not Outcome.REFUSED:
            self.pins[key] = self.pins.get(key, 0) + 1

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data):
        key = data.draw(st.sampled_from(sorted(self.pins)))
        self.pins[key] -= 1
        if not self.pins[key]:
            del self.pins[key]
        self.take(self.cache.unpin(key))

    @precondition(lambda self: self.wants)
    @rule(data=st.data())
    def give_up(self, data):
        key = data.draw(st.sampled_from(sorted(self.wants)))
        self.wants[key] -= 1
        if not self.wants[key]:
            del self.wants[key]
        self.take(self.cache.unpin(key))

    @rule(key=st.integers(0, 9))
    def remove(self, key):
        self.wants.pop(key, None)
        self.take(self.cache.remove(key))

    @invariant()
    def accounts_agree(self):
        residents = self.cache.residents()
        assert sum(entry.size_bytes for entry in residents) == self.cache.used_bytes <= self.cache.capacity_bytes
        assert {entry.key: entry.pins for entry in residents if entry.pins} == self.pins
        assert self.cache.waiting() == list(self.wants)

    @invariant()
    def nobody_waits_for_room_that_could_be_made(self):
        for key in self.cache.waiting()[:1]:
            pinned = sum(entry.size_bytes for entry in self.cache.residents() if entry.pins)
            assert pinned + 1 + key % 4 > self.cache.capacity_bytes

    @invariant()
    def the_next_victim_is_there_and_not_in_use(self):
        victim = self.cache.next_victim()
        evictable = [key for key in self.cache if key not in self.pins]
        assert victim in evictable if evictable else victim is None


TestAnyUse = AnyUse.TestCase
TestAnyUse.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
