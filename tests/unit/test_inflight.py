"""One fetch for all who want the same, and errors that are forgotten."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.caching.cache import Cache, Outcome
from node.caching.inflight import Errored, Fetch, Inflight
from node.caching.lru import LRU

RETRY_S = 5.0


@pytest.fixture
def inflight():
    return Inflight(RETRY_S)


def test_many_wants_are_one_fetch(inflight):
    answers = [inflight.want("a", waiter, now_s=waiter) for waiter in range(100)]
    assert answers == [Fetch.STARTED] + [Fetch.JOINED] * 99
    assert "a" in inflight
    assert inflight.arrived("a") == list(range(100))
    assert "a" not in inflight


def test_keys_are_apart(inflight):
    assert inflight.want("a", 1, 0) is inflight.want("b", 2, 0) is Fetch.STARTED
    assert inflight.arrived("a") == [1]
    assert inflight.arrived("b") == [2]


def test_what_arrives_unasked_wakes_nobody(inflight):
    assert inflight.arrived("a") == []
    assert inflight.failed("b", "gone", 0) == []


def test_after_it_arrived_the_next_want_is_a_new_fetch(inflight):
    inflight.want("a", 1, 0)
    inflight.arrived("a")
    assert inflight.want("a", 2, 1) is Fetch.STARTED


def test_a_failure_is_told_to_all_and_to_those_who_come_soon_after(inflight):
    inflight.want("a", 1, 0)
    inflight.want("a", 2, 0)
    assert inflight.failed("a", "no holder answers", now_s=10.0) == [1, 2]
    assert inflight.want("a", 3, now_s=14.9) == Errored("no holder answers", 15.0)
    assert "a" not in inflight


def test_an_error_expires_and_then_it_is_tried_again(inflight):
    inflight.want("a", 1, 0)
    inflight.failed("a", "no holder answers", now_s=10.0)
    assert inflight.want("a", 2, now_s=15.0) is Fetch.STARTED
    assert inflight.want("a", 3, now_s=15.0) is Fetch.JOINED
    assert inflight.arrived("a") == [2, 3]
    assert inflight.want("a", 4, now_s=15.1) is Fetch.STARTED


def test_without_a_wait_the_next_want_tries_again():
    inflight = Inflight(retry_after_s=0)
    inflight.want("a", 1, 0)
    inflight.failed("a", "gone", now_s=1.0)
    assert inflight.want("a", 2, now_s=1.0) is Fetch.STARTED


def test_a_success_from_elsewhere_ends_an_error(inflight):
    inflight.want("a", 1, 0)
    inflight.failed("a", "gone", 0)
    inflight.arrived("a")
    assert inflight.want("a", 2, 1) is Fetch.STARTED


def test_errors_do_not_pile_up(inflight):
    for key in range(1000):
        inflight.want(key, 0, float(key))
        inflight.failed(key, "gone", float(key))
        assert len(inflight._errors) <= RETRY_S


def test_a_fetch_that_nobody_wants_any_more_may_be_cancelled(inflight):
    inflight.want("a", 1, 0)
    inflight.want("a", 2, 0)
    assert not inflight.give_up("a", 1)
    assert inflight.give_up("a", 2)
    assert "a" not in inflight
    assert inflight.want("a", 3, 0) is Fetch.STARTED


def test_giving_up_what_one_does_not_wait_for_is_nothing(inflight):
    assert not inflight.give_up("a", 1)
    inflight.want("a", 1, 0)
    assert not inflight.give_up("a", 2)
    assert inflight.arrived("a") == [1]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["want", "arrived", "failed"])), max_size=60))
@settings(max_examples=60, deadline=None)
def test_every_waiter_is_told_exactly_once_and_no_two_fetches_run_at_a_time(steps):
    inflight = Inflight(RETRY_S)
    running, waiting, told = set(), [], []
    for now_s, (key, what) in enumerate(steps):
        if what == "want":
            answer = inflight.want(key, now_s, now_s)
            assert (answer is Fetch.STARTED) <= (key not in running)
            assert (answer is Fetch.JOINED) == (key in running)
            if not isinstance(answer, Errored):
                running.add(key)
                waiting.append(now_s)
        elif what == "arrived":
            told += inflight.arrived(key)
            running.discard(key)
        else:
            told += inflight.failed(key, "gone", now_s)
            running.discard(key)
    for key in "abc":
        told += inflight.arrived(key)
    assert sorted(told) == waiting


def test_cache_and_fetches_together():
    """Three requests for one adapter, the first fetch of which fails: one fetch at a time, and nothing is left over."""
    cache, inflight = Cache(1, LRU), Inflight(retry_after_s=0)
    for request in range(3):
        if cache.acquire("adapter", 1).outcome is Outcome.ADMITTED:
            assert inflight.want("adapter", request, 0) is Fetch.STARTED
        else:
            assert inflight.want("adapter", request, 0) is Fetch.JOINED
    cache.remove("adapter")
    for _ in inflight.failed("adapter", "gone", 0):
        cache.unpin("adapter")
    assert len(cache) == 0
    assert cache.acquire("adapter", 1).outcome is Outcome.ADMITTED
    assert inflight.want("adapter", 4, 0) is Fetch.STARTED
    assert inflight.arrived("adapter") == [4]
    assert cache.acquire("adapter", 1).outcome is Outcome.HIT
