"""A machine that several nodes share: processor sharing against closed forms and against a naive simulation."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.clock import VirtualClock
from node.errors import SimulationError
from node.sim.machine import Machine


class Office:
    """A machine on a clock of its own, and when each of its jobs was done."""

    def __init__(self, cores):
        self.clock = VirtualClock()
        self.machine = Machine(self.clock, cores)
        self.numbers = {}
        self.done = {}

    def start(self, name, core_s, at_s=0.0):
        self.clock.post(at_s, self._start, (name, core_s))

    def cancel(self, name, at_s):
        self.clock.post(at_s, lambda name: self.machine.cancel(self.numbers[name]), name)

    def ends(self):
        """Run until nothing is left to do."""
        self.clock.tell(lambda: ())
        self.clock.post(1e9, lambda _: self.clock.stop(), None)
        self.clock.run_forever()
        self.clock.close()
        return self.done

    def _start(self, arg):
        name, core_s = arg
        self.numbers[name] = self.machine.run(core_s, self._end, name)

    def _end(self, name):
        assert name not in self.done
        self.done[name] = self.clock.now


@pytest.fixture
def office():
    made = []

    def make(cores):
        made.append(Office(cores))
        return made[-1]

    yield make
    for each in made:
        each.clock.close()


class TestClosedForms:
    @pytest.mark.parametrize("cores", [1, 2, 2.5, 64])
    def test_one_job_has_a_core_and_no_more(self, office, cores):
        alone = office(cores)
        alone.start("a", 3.0)
        assert alone.ends() == {"a": 3.0}

    def test_half_a_core_takes_twice_as_long(self, office):
        slow = office(0.5)
        slow.start("a", 3.0)
        assert slow.ends() == {"a": 6.0}

    def test_as_many_jobs_as_cores_do_not_meet(self, office):
        pair = office(2)
        pair.start("a", 1.0)
        pair.start("b", 4.0)
        assert pair.ends() == {"a": 1.0, "b": 4.0}

    def test_three_equal_jobs_on_two_cores_take_half_as_long_again(self, office):
        three = office(2)
        for name in "abc":
            three.start(name, 2.0)
        assert three.ends() == {"a": 3.0, "b": 3.0, "c": 3.0}

    def test_eight_equal_jobs_on_two_cores_take_four_times_as_long(self, office):
        eight = office(2)
        for name in range(8):
            eight.start(name, 0.25)
        assert set(eight.ends().values()) == {1.0}

    def test_unequal_jobs_on_one_core(self, office):
        # 1 and 3 share until 2; then 2 of the 3 are left for a whole core.
        two = office(1)
        two.start("short", 1.0)
        two.start("long", 3.0)
        assert two.ends() == {"short": 2.0, "long": 4.0}

    def test_a_late_start_slows_the_first_down_only_from_then_on(self, office):
        # a is alone until 1, then has half a core for its last second of work; b has 3 of its 4 left then.
        late = office(1)
        late.start("a", 2.0)
        late.start("b", 4.0, at_s=1.0)
        assert late.ends() == {"a": 3.0, "b": 6.0}

    def test_a_late_start_on_two_cores(self, office):
        # Three jobs of 3 on 2 cores from time 1 on: a and b have 2 left, at 2/3 of a core until 4; then c has its last.
        late = office(2)
        late.start("a", 3.0)
        late.start("b", 3.0)
        late.start("c", 3.0, at_s=1.0)
        assert late.ends() == pytest.approx({"a": 4.0, "b": 4.0, "c": 5.0})

    def test_a_fresh_start_after_idleness(self, office):
        again = office(1)
        again.start("a", 1.0)
        again.start("b", 1.0, at_s=10.0)
        again.start("c", 1.0, at_s=10.0)
        assert again.ends() == {"a": 1.0, "b": 12.0, "c": 12.0}

    def test_no_work_is_done_at_once(self, office):
        idle = office(1)
        idle.start("a", 0.0, at_s=5.0)
        idle.start("b", 1.0, at_s=5.0)
        assert idle.ends() == {"a": 5.0, "b": 6.0}

    def test_a_thousand_jobs(self, office):
        # With n = 1000 jobs 1, 2, ..., n on one core, job k ends at k (n - k) + k (k + 1) / 2: what all have received.
        many, n = office(1), 1000
        for k in range(1, n + 1):
            many.start(k, float(k))
        ends = many.ends()
        assert list(ends) == list(range(1, n + 1))
        for k, end_s in ends.items():
            assert end_s == pytest.approx(k * (n - k) + k * (k + 1) / 2, rel=1e-9)


class TestCancelling:
    def test_the_others_get_the_share(self, office):
        # a and b share until 1; then a is alone with 1.5 of its 2 left.
        two = office(1)
        two.start("a", 2.0)
        two.start("b", 5.0)
        two.cancel("b", at_s=1.0)
        assert two.ends() == {"a": 2.5}

    def test_the_last_one(self, office):
        one = office(1)
        one.start("a", 2.0)
        one.cancel("a", at_s=1.0)
        one.start("b", 2.0, at_s=7.0)
        assert one.ends() == {"b": 9.0}

    def test_the_one_that_would_have_ended_first(self, office):
        two = office(1)
        two.start("a", 1.0)
        two.start("b", 2.0)
        two.cancel("a", at_s=1.0)
        assert two.ends() == {"b": 2.5}

    def test_what_is_done_or_was_never_there_changes_nothing(self, office):
        one = office(1)
        one.start("a", 1.0)
        one.start("b", 3.0)
        one.cancel("a", at_s=2.5)
        one.clock.post(0.5, one.machine.cancel, 99)
        assert one.ends() == {"a": 2.0, "b": 4.0}

    def test_twice(self, office):
        two = office(1)
        two.start("a", 1.0)
        two.start("b", 1.0)
        two.cancel("a", at_s=1.0)
        two.cancel("a", at_s=1.25)
        assert two.ends() == {"b": 1.5}


class TestFromWithin:
    def test_a_job_may_begin_the_next(self, office):
        chain = office(1)

        def again(left):
            chain.done[left] = chain.clock.now
            if left:
                chain.machine.run(1.0, again, left - 1)

        chain.machine.run(1.0, again, 3)
        assert chain.ends() == {3: 1.0, 2: 2.0, 1: 3.0, 0: 4.0}

    def test_of_two_that_end_together_the_first_may_not_undo_the_second(self, office):
        two, ended = office(2), []
        numbers = {}

        def end(name):
            ended.append(name)
            two.machine.cancel(numbers["b"])

        numbers["a"] = two.machine.run(1.0, end, "a")
        numbers["b"] = two.machine.run(1.0, end, "b")
        two.ends()
        assert ended == ["a", "b"]

    @pytest.mark.parametrize("core_s", [-1.0, math.nan, math.inf])
    def test_an_impossible_amount_of_work_is_refused(self, office, core_s):
        with pytest.raises(SimulationError, match=r"core-seconds; it is at least 0, and finite"):
            office(1).machine.run(core_s, print, None)


JOBS = st.lists(
    st.tuples(st.floats(0, 50), st.floats(0, 20), st.none() | st.floats(0, 60)), min_size=1, max_size=12
).map(lambda jobs: [(start, work, start + cut if cut is not None else None) for start, work, cut in jobs])


def stepwise(jobs, cores):
    """When each job ends, found by going from change to change and updating all jobs at each."""
    now, left, ends = 0.0, {}, {}
    waiting = dict(enumerate(jobs))
    while waiting or left:
        speed = min(1.0, cores / len(left)) if left else 0.0
        changes = [start for start, _, _ in waiting.values()]
        changes += [now + work / speed for work in left.values()]
        changes += [jobs[i][2] for i in left if jobs[i][2] is not None]
        then = max(min(changes), now)
        left = {i: work - (then - now) * speed for i, work in left.items()}
        now = then
        for i in [i for i in left if left[i] <= 1e-9]:
            ends[i] = now
            del left[i]
        for i in [i for i in left if jobs[i][2] is not None and jobs[i][2] <= now]:
            del left[i]
        for i in [i for i, (start, _, _) in waiting.items() if start <= now]:
            left[i] = waiting.pop(i)[1]
    return ends


class TestAnyJobs:
    @given(JOBS, st.sampled_from([0.5, 1, 2, 3.7]))
    def test_agrees_with_a_naive_simulation(self, jobs, cores):
        office = Office(cores)
        for i, (start_s, core_s, cut_s) in enumerate(jobs):
            office.start(i, core_s, start_s)
            if cut_s is not None:
                office.cancel(i, cut_s)
        ends, expected = office.ends(), stepwise(jobs, cores)
        cut_close = {i for i, (_, _, cut_s) in enumerate(jobs) if cut_s is not None}
        for i in (set(ends) | set(expected)) - cut_close:
            assert ends[i] == pytest.approx(expected[i], rel=1e-6, abs=1e-6)
        for i in cut_close & set(ends):  # one that ends while it is being cut may go either way
            assert ends[i] <= jobs[i][2] + 1e-6

    @given(JOBS)
    def test_twice_the_same_to_the_last_bit(self, jobs):
        def once():
            office = Office(2)
            for i, (start_s, core_s, _) in enumerate(jobs):
                office.start(i, core_s, start_s)
            return list(office.ends().items())

        assert once() == once()

    @given(st.lists(st.floats(0.001, 100), min_size=1, max_size=20), st.sampled_from([1, 2]))
    def test_no_work_is_lost_while_all_cores_are_busy(self, works, cores):
        office = Office(cores)
        for i, core_s in enumerate(works):
            office.start(i, core_s)
        last_s = max(office.ends().values())
        assert last_s >= max(sum(works) / cores, *works) * (1 - 1e-9)
        if cores == 1:
            assert last_s == pytest.approx(sum(works))


@pytest.mark.parametrize("jobs", [10, 5_000])
def test_a_start_and_an_end_are_two_events_each(jobs):
    office = Office(2)
    for i in range(jobs):
        office.start(i, 1.0 + i)
    assert len(office.ends()) == jobs
    assert office.clock.fired <= 4 * jobs
