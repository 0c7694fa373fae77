"""Members under random faults agree once these have ended; a mistake in their rules is found, and shrunk."""

import pytest
from membership_schedules import FAULTS, FAULTS_S, SETTLE_S, Planted, Schedule, Violation, shrink

from node.membership import State, Swim
from node.membership.view import View

SCHEDULES = 100
MOST = 1000


@pytest.mark.parametrize("first", range(0, SCHEDULES, 10))
def test_views_converge_once_faults_stop(first):
    outcomes = [Schedule(seed).run() for seed in range(first, first + 10)]
    assert all(outcome.settled_s <= SETTLE_S for outcome in outcomes)
    assert sum(outcome.faults for outcome in outcomes) > 10


class Trace(Schedule):
    """Remembers which faults there were."""

    def __init__(self, seed):
        super().__init__(seed)
        self.kinds = set()
        self.states = set()

    def see(self, node, action):
        self.states.add(getattr(action, "state", None))
        super().see(node, action)


def test_the_scheduler_does_what_it_says():
    traces = [Trace(seed) for seed in range(100, 112)]
    outcomes = [trace.run() for trace in traces]
    kinds = {kind for kind in FAULTS for trace in traces for fault in trace.faults if f" {kind} " in fault}
    assert kinds == set(FAULTS)
    assert {State.ALIVE, State.SUSPECT, State.DEAD, State.LEFT} <= set.union(*[trace.states for trace in traces])
    assert sum(outcome.false_deaths for outcome in outcomes) > 0, "no wrong verdict had to be undone"
    assert any(trace.down for trace in traces)
    assert any(max(trace.issued) > 2 for trace in traces)


def test_a_schedule_is_the_same_every_time():
    runs = [Schedule(3) for _ in range(2)]
    assert runs[0].run() == runs[1].run()
    assert runs[0].faults == runs[1].faults
    assert runs[0].swarm.messages == runs[1].swarm.messages


# Planted bugs


def first_found(planted, most=MOST):
    """The first violation in a row of schedules."""
    for seed in range(most):
        try:
            Schedule(seed, planted).run()
        except Violation as violation:
            return violation
    return None


class Resigned(Swim):
    """Does not object to its own death."""

    def _hear_of_me(self, statement):
        if statement.state is not State.DEAD:
            super()._hear_of_me(statement)


class Final(View):
    """Whoever is dead stays dead, whatever it says."""

    def is_news(self, statement):
        return statement.peer not in self.verdicts and super().is_news(statement)


class Unforgiving(Swim):
    """Believes no word of the dead."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._view = Final(10_000)


class Aloof(Swim):
    """Looks for nobody who seems dead, nor for its seeds: halves of a partition stay apart."""

    def _partners(self):
        return list(self._ring.sample(1))


@pytest.mark.parametrize("machine", [Resigned, Unforgiving, Aloof])
def test_a_bug_in_coming_back_is_found(machine):
    violation = first_found(Planted(machine))
    assert violation is not None
    assert violation.rule == "views converge"
    assert f"seed {violation.seed}" in str(violation)


def test_an_incarnation_that_was_not_kept_is_found():
    violation = first_found(Planted(kept=0))
    assert violation.rule in ("incarnation", "one identity")


def test_a_failing_schedule_shrinks_to_the_faults_that_it_takes():
    found = first_found(Planted(kept=0))
    needed, violation = shrink(found.seed, Planted(kept=0))
    assert len(needed) == 1
    assert f"{needed[0]}: " in str(violation)
    assert any(word in violation.faults[needed[0]] for word in ("crash", "leave"))


def test_a_schedule_that_holds_does_not_shrink():
    assert shrink(0, Planted()) is None


def test_faults_end_before_views_are_compared():
    schedule = Schedule(1)
    schedule.run()
    times = [float(fault.split()[1]) for fault in schedule.faults]
    assert times == sorted(times)
    assert max(times) < FAULTS_S
