"""The serving loop's state machines: admission, fairness, queues and what a step does."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.batching.admission import Budget, Footprint, peak_tokens
from node.batching.fairness import TokenCounter
from node.batching.job import Job
from node.batching.queues import Queues, State
from node.batching.scheduler import Rules, Scheduler

BUDGET = Budget(tokens=1_000, running=8, adapters=4)
footprints = st.lists(st.builds(Footprint, st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=7)


def job(id, *adapters, client="c", tokens=(10, 10), at=0.0):
    return Job(id, client, adapters, *tokens, at)


def scheduler(*jobs, budget=BUDGET, resident=(), **options):
    made = Scheduler(budget, Rules(**options.pop("rules", {})), **options)
    for adapter in resident:
        made.queues.came(adapter)
    assert all(made.arrive(each) for each in jobs)
    return made


def begun(step):
    return [each.id for each in step.begin]


# Admission


def replayed_peak(requests):
    """The most tokens kept at once, by playing all of it: whoever has no more to generate is gone."""
    alive, peak = [list(each) for each in requests], sum(each.kept_tokens for each in requests)
    while alive:
        alive = [[kept + 1, left - 1] for kept, left in alive if left]
        peak = max(peak, sum(kept for kept, _ in alive))
    return peak


@given(footprints)
def test_the_peak_is_the_greatest_sum_of_any_moment(requests):
    assert peak_tokens(requests) == replayed_peak(requests)


def test_by_hand():
    assert peak_tokens([]) == 0
    assert peak_tokens([Footprint(10, 5)]) == 15
    assert peak_tokens([Footprint(10, 5), Footprint(20, 1)]) == 32  # 10 + 20 + one each; later 15 alone


@given(footprints, st.integers(0, 100))
def test_more_requests_never_fit_where_fewer_do_not(requests, adapter_tokens):
    budget = Budget(tokens=150, running=5, adapters=4)
    if budget.has_room(requests, adapter_tokens):
        assert budget.has_room(requests[1:], adapter_tokens)


def test_adapters_take_their_room():
    assert Budget(16, 1, 1).has_room([Footprint(10, 5)], 0)
    assert not Budget(16, 1, 1).has_room([Footprint(10, 5)], 1)
    assert not Budget(100, 1, 1).has_room([Footprint(1, 1)] * 2, 0)


# Fairness


def test_two_backlogged_clients_differ_by_no_more_than_one_request():
    """Whatever their requests cost: no more than what one request can."""
    counter, largest = TokenCounter(), 2 * 40.0
    for client in ("a", "b"):
        counter.arrived(client)
    costs = itertools.cycle([(40, 20), (1, 1), (7, 30)])
    for input_tokens, output_tokens in itertools.islice(costs, 300):
        client = min(("a", "b"), key=counter.served)
        counter.charge(client, input_tokens, output_tokens)
        assert abs(counter.served("a") - counter.served("b")) <= largest


def test_a_client_that_idled_has_saved_nothing_up():
    counter = TokenCounter()
    counter.arrived("busy")
    counter.charge("busy", 100)
    counter.arrived("late")
    assert counter.served("late") == counter.served("busy") == 100


def test_a_client_that_was_served_more_keeps_its_count_when_it_returns():
    counter = TokenCounter()
    counter.arrived("greedy")
    counter.charge("greedy", 100)
    counter.left("greedy")
    counter.arrived("other")
    counter.arrived("greedy")
    assert counter.served("greedy") == 100
    assert counter.served("other") == 0


def test_a_weight_of_two_pays_half_and_output_costs_twice():
    counter = TokenCounter({"a": 2.0})
    counter.charge("a", input_tokens=10, output_tokens=5)
    counter.charge("b", input_tokens=10, output_tokens=5)
    assert (counter.served("a"), counter.served("b")) == (10, 20)


# Queues


def test_an_adapter_is_remote_then_on_its_way_then_there_then_gone():
    queues = Queues(most_fetches=2)
    queues.add(job(1, "a"))
    assert queues.state("a") is State.REMOTE
    assert queues.to_fetch(0.0) == ["a"]
    assert queues.state("a") is State.FETCHING
    queues.came("a")
    assert queues.state("a") is State.RESIDENT
    assert [each.id for each in queues.ready()] == [1]
    queues.went("a")
    assert queues.state("a") is State.REMOTE


def test_one_fetch_serves_all_who_want_it_and_the_oldest_come_first():
    queues = Queues(most_fetches=2)
    for id, adapter in enumerate("abacd"):
        queues.add(job(id, adapter))
    assert queues.to_fetch(0.0) == ["a", "b"]
    assert queues.to_fetch(0.0) == []
    queues.came("b")
    assert queues.to_fetch(0.0) == ["c"]


def test_an_error_ends_those_who_wait_and_expires():
    queues = Queues(most_fetches=2)
    for id, adapter in enumerate("aba"):
        queues.add(job(id, adapter))
    queues.to_fetch(0.0)
    assert [each.id for each in queues.failed("a", retry_at_s=5.0)] == [0, 2]
    assert queues.state("a") is State.ERRORED
    queues.add(job(9, "a"))
    assert queues.to_fetch(4.9) == []
    assert queues.to_fetch(5.0) == ["a"]
    queues.came("a")
    assert queues.state("a") is State.RESIDENT


def test_a_job_of_several_adapters_waits_for_all():
    queues = Queues(most_fetches=4)
    queues.add(job(1, "a", "b"))
    assert queues.to_fetch(0.0) == ["a", "b"]
    queues.came("a")
    assert queues.ready() == []
    queues.came("b")
    assert [each.id for each in queues.ready()] == [1]


# Steps


def test_the_base_model_needs_nothing():
    step = scheduler(job(1), job(2)).step(0.0)
    assert begun(step) == [1, 2]
    assert step.fetch == ()


def test_a_slow_adapter_delays_only_its_own_requests():
    made = scheduler(job(1, "slow"), job(2, "fast"), job(3), resident=["fast"])
    step = made.step(0.0)
    assert begun(step) == [2, 3]
    assert step.fetch == ("slow",)
    assert begun(made.step(1.0)) == []
    made.queues.came("slow")
    assert begun(made.step(2.0)) == [1]


def test_requests_for_what_the_batch_has_come_first_then_by_adapter():
    made = scheduler(job(1, "a"), resident=["a", "b", "c"])
    made.step(0.0)
    for each in (job(2, "b"), job(3, "c"), job(4, "a"), job(5, "b")):
        made.arrive(each)
    assert begun(made.step(0.0)) == [4, 2, 5, 3]


def test_a_batch_has_no_more_adapters_than_it_may():
    budget = Budget(tokens=1_000, running=8, adapters=2)
    made = scheduler(*[job(i, a) for i, a in enumerate("abca")], job(9), budget=budget, resident="abc")
    assert begun(made.step(0.0)) == [0, 3, 1, 9]
    made.end(1)
    assert begun(made.step(0.0)) == [2]


def test_what_does_not_fit_now_waits_and_smaller_ones_go_ahead():
    made = scheduler(job(1, tokens=(400, 100)), job(2, tokens=(400, 200)), job(3, tokens=(10, 10)))
    assert begun(made.step(0.0)) == [1, 3]
    made.end(1)
    assert begun(made.step(0.0)) == [2]


def test_what_can_never_fit_is_refused_at_once():
    made = Scheduler(BUDGET)
    assert not made.arrive(job(1, tokens=(900, 100)))
    assert not made.arrive(job(2, *"abcde"))
    assert len(made.queues) == 0


def test_room_of_adapters_counts_once_per_adapter():
    made = scheduler(*[job(i, "a") for i in range(3)], job(3, "b"), resident="ab", adapter_tokens=lambda _: 500)
    assert begun(made.step(0.0)) == [0, 1, 2]


def test_the_oldest_goes_first_once_it_has_waited_too_long():
    made = scheduler(job(0, tokens=(500, 10)), job(1, tokens=(900, 10)), rules={"age_limit_s": 5.0})
    assert begun(made.step(0.0)) == [0]
    made.arrive(job(2, tokens=(10, 10), at=6.0))
    assert begun(made.step(6.0)) == []  # 2 would fit, but 1 would then wait longer
    made.end(0)
    assert begun(made.step(7.0)) == [1]
    assert begun(made.step(7.0)) == [2]


def test_nothing_is_fetched_before_the_adapter_of_the_oldest():
    made = scheduler(job(0, "a"), rules={"age_limit_s": 5.0, "most_fetches": 1})
    assert made.step(0.0).fetch == ("a",)
    assert made.failed("a", retry_at_s=1.0) == [job(0, "a")]
    for each in (job(1, "b", at=1.0), job(2, "a", at=1.0), job(3, "c", at=1.0)):
        made.arrive(each)
    assert made.step(1.0).fetch == ("b",)
    made.queues.came("b")
    made.end(1)
    assert made.step(9.0).fetch == ("a",)


def test_while_an_old_request_waits_for_a_slow_adapter_the_others_go_on():
    made = scheduler(job(0, "slow"), job(1, "b"), rules={"age_limit_s": 5.0}, resident="b")
    made.step(0.0)
    made.arrive(job(2, "b", at=50.0))
    made.arrive(job(3, "c", at=50.0))
    step = made.step(60.0)
    assert begun(step) == [2]
    assert step.fetch == ("c",)


def test_who_would_be_served_too_late_is_refused_where_that_is_asked_for():
    made = scheduler(
        job(1, "a", tokens=(100, 1)), job(2, "a", tokens=(10, 1)),
        rules={"ttft_limit_s": 2.0}, prefill_s=lambda tokens: tokens / 100,
    )  # fmt: skip
    assert [each.id for each in made.step(1.5).refuse] == [1]
    assert [each.id for each in made.queues] == [2]


def test_fair_turns_between_a_flood_and_a_trickle():
    jobs = [job(i, client="flood") for i in range(6)] + [job(9, client="trickle")]
    made = scheduler(*jobs, budget=Budget(1_000, 2, 4), rules={"order": "fair"})
    assert begun(made.step(0.0)) == [0, 9]


def test_served_tokens_of_two_backlogged_clients_stay_close():
    made = Scheduler(Budget(10_000, 4, 4), Rules(order="fair"))
    numbers, gap = itertools.count(), []
    sizes = {"a": (5, 3), "b": (50, 20)}
    served = dict.fromkeys(sizes, 0)
    for _ in range(400):
        for client, size in sizes.items():
            waiting = sum(each.client == client for each in made.queues)
            for _ in range(4 - waiting):
                made.arrive(job(next(numbers), client=client, tokens=size))
        for each in made.step(0.0).begin:
            served[each.client] += each.input_tokens
        made.generated([each.id for each in made.running])
        for each in made.running:
            served[each.client] += 2
        for each in made.running:
            if made._running[each.id].generated == each.most_output_tokens:
                made.end(each.id)
        gap.append(abs(served["a"] - served["b"]))
    assert max(gap) <= 2 * 4 * (50 + 2 * 20)
    assert max(gap[200:]) <= 1.5 * max(gap[:200])


class OneSlot:
    """A place for one adapter, given to whoever has asked first once nobody uses it."""

    def __init__(self, made):
        self.made, self.resident, self.wanted = made, None, []

    def want(self, adapters):
        for adapter in adapters:
            self.wanted.append(adapter)
            self.made.queues.block(adapter)

    def turn(self):
        in_use = any(self.resident in each.adapters for each in self.made.running)
        if self.wanted and not in_use:
            if self.resident is not None:
                self.made.queues.went(self.resident)
            self.resident = self.wanted.pop(0)
            self.made.queues.came(self.resident)


@given(
    st.lists(st.tuples(st.sampled_from(["", "a", "b", "c"]), st.integers(1, 60)), max_size=40),
    st.randoms(),
    st.sampled_from(["oldest", "fair"]),
)
def test_every_request_that_fits_is_served_in_the_end_with_one_slot(wanted, random, order):
    made = scheduler(budget=Budget(200, 3, 1), rules={"age_limit_s": 3.0, "order": order})
    slot, done, now_s = OneSlot(made), 0, 0.0
    for id, (adapter, tokens) in enumerate(wanted):
        assert made.arrive(job(id, *adapter, tokens=(tokens, tokens), at=float(id)))
    while done < len(wanted):
        now_s += 1.0
        assert now_s < 2_000, "somebody is never served"
        slot.want(made.step(now_s).fetch)
        slot.turn()
        for each in made.running:
            if random.random() < 0.5:
                made.end(each.id)
                done += 1


def test_a_popular_adapter_that_is_always_in_use_lets_an_old_request_have_its_slot():
    made = scheduler(rules={"age_limit_s": 3.0}, budget=Budget(1_000, 4, 4))
    slot, numbers = OneSlot(made), itertools.count(1)
    slot.want(["popular"])
    slot.turn()
    made.arrive(job(0, "rare"))
    for now_s in range(50):
        made.arrive(job(next(numbers), "popular", at=float(now_s)))
        slot.want(made.step(float(now_s)).fetch)
        slot.turn()
        if any(each.id == 0 for each in made.running):
            return
        for each in made.running[:-1]:  # one of them always still runs
            made.end(each.id)
        if now_s > 3:
            for each in made.running:
                made.end(each.id)
    pytest.fail("the rare adapter never had its turn")


def test_the_client_of_a_job_that_was_given_up_is_not_active_any_more():
    made = scheduler(job(1, "a", client="x"), job(2, client="y"), rules={"order": "fair"})
    made.end(1)
    made.end(1)
    assert len(made.queues) == 1
    made.step(0.0)
    made.end(2)
    assert made._counter._active == {}


def test_generating_uses_up_what_may_still_come():
    made = scheduler(job(1, tokens=(10, 5)))
    made.step(0.0)
    made.generated([1, 1])
    assert made._running[1].footprint == Footprint(12, 3)


@pytest.mark.parametrize("order", ["oldest", "fair"])
def test_no_more_run_than_may(order):
    made = scheduler(*[job(i) for i in range(20)], rules={"order": order})
    assert len(made.step(0.0).begin) == 8
    assert made.step(0.0).begin == ()
