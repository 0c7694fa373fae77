"""Who goes and comes when: schedules, and sessions that begin in the stationary state."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config import ChurnSection, Distribution, FaultSection
from node.errors import ConfigError
from node.sim.churn import Sessions, churn, mean, residual, sample

EXPONENTIAL = Distribution(distribution="exponential", mean=50.0)
WEIBULL = Distribution(distribution="weibull", mean=50.0, shape=0.6)
LOGNORMAL = Distribution(distribution="lognormal", median=40.0, sigma=0.8)
UNIFORM = Distribution(distribution="uniform", low=10.0, high=90.0)
ALL = [EXPONENTIAL, WEIBULL, LOGNORMAL, UNIFORM]


def fault(time_s, node, what):
    return FaultSection(time_s=time_s, node=node, what=what)


def scheduled(*faults, nodes=4):
    return churn(ChurnSection(schedule=faults), nodes, 0, range(nodes))


def test_without_anything_configured_all_stay():
    assert churn(ChurnSection(), 4, 0, range(4)) is None


def test_a_schedule_is_by_time_whatever_its_order():
    found = scheduled(fault(9, 2, "return"), fault(4, 2, "crash"), fault(1, 0, "leave"))
    assert list(found.changes[2]) == [(4, "crash"), (9, "return")]
    assert list(found.changes[0]) == [(1, "leave")]
    assert found.absent == {}


def test_whose_first_event_is_a_return_joins_then():
    found = scheduled(fault(3, 1, "return"))
    assert found.absent == {1: "leave"}


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ([fault(1, 9, "crash")], "churn.schedule[0].node: there is no node 9; allowed: 0 to 3"),
        ([fault(1, 0, "crash"), fault(2, 0, "pause")], "node 0 is away already at 2 s, so it cannot pause"),
        ([fault(1, 0, "return"), fault(2, 0, "return")], "node 0 is there already at 2 s, so it cannot return"),
    ],
)
def test_a_schedule_that_contradicts_itself_is_one_line(faults, told):
    with pytest.raises(ConfigError) as caught:
        scheduled(*faults)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"online_s": EXPONENTIAL}, "churn.offline_s: sessions need both"),
        ({"offline_s": EXPONENTIAL}, "churn.online_s: sessions need both"),
        ({"online_s": EXPONENTIAL, "offline_s": UNIFORM, "trace": "x.csv"}, "churn.trace: a trace and sessions"),
        ({"nodes": (0, 7)}, "churn.nodes: there is no node 7"),
        ({"diurnal": 0.5}, "churn.diurnal: only sessions follow the day"),
    ],
)
def test_keys_that_do_not_fit_together_are_one_line(keys, told):
    with pytest.raises(ConfigError) as caught:
        churn(ChurnSection(**keys), 4, 0, range(4))
    assert told in str(caught.value)


def test_sessions_are_for_learners_only_and_never_for_scheduled_nodes():
    section = ChurnSection(online_s=EXPONENTIAL, offline_s=EXPONENTIAL, schedule=(fault(1, 2, "crash"),))
    found = churn(section, 4, 0, [1, 2, 3])
    assert sorted(found.changes) == [1, 2, 3]
    assert list(found.changes[2]) == [(1, "crash")]


def test_sessions_of_named_nodes_only():
    found = churn(ChurnSection(online_s=EXPONENTIAL, offline_s=EXPONENTIAL, nodes=(0, 3)), 4, 0, [1, 2, 3])
    assert sorted(found.changes) == [0, 3]


def test_what_going_offline_means_is_said_once():
    section = ChurnSection(online_s=EXPONENTIAL, offline_s=EXPONENTIAL, going="pause")
    found = churn(section, 1, 0, [0])
    kinds = {change.what for change in itertools.islice(found.changes[0], 10)}
    assert kinds == {"pause", "return"}


def test_a_node_goes_and_comes_in_turn_and_its_times_rise():
    session = Sessions(WEIBULL, LOGNORMAL, 0.0, 7, 3)
    changes = list(itertools.islice(session.changes(), 100))
    times = [time_s for time_s, _ in changes]
    assert times == sorted(times)
    assert [online for _, online in changes] == [session.starts_online is (i % 2 == 1) for i in range(100)]


def test_sessions_follow_from_seed_and_node_alone():
    def first(seed, node):
        return list(itertools.islice(Sessions(WEIBULL, UNIFORM, 0.3, seed, node).changes(), 5))

    assert first(1, 2) == first(1, 2)
    assert first(1, 2) != first(1, 3) != first(2, 3)


@pytest.mark.parametrize("quantity", ALL, ids=lambda quantity: quantity.distribution)
def test_draws_have_the_mean_that_is_told(quantity):
    rng = np.random.Generator(np.random.Philox(1))
    drawn = [sample(quantity, rng) for _ in range(20_000)]
    assert np.mean(drawn) == pytest.approx(mean(quantity), rel=0.06)


@pytest.mark.parametrize("quantity", ALL, ids=lambda quantity: quantity.distribution)
def test_a_residual_has_the_equilibrium_mean(quantity):
    """Renewal theory: the mean residual life is E[X^2] / (2 E[X])."""
    rng = np.random.Generator(np.random.Philox(2))
    periods = np.array([sample(quantity, rng) for _ in range(200_000)])
    drawn = [residual(quantity, rng) for _ in range(40_000)]
    assert np.mean(drawn) == pytest.approx((periods**2).mean() / (2 * periods.mean()), rel=0.08)


@pytest.mark.parametrize("online", ALL, ids=lambda quantity: quantity.distribution)
def test_the_share_of_nodes_that_are_there_is_the_same_at_all_times(online):
    """The stationary start: without it the share would begin at 1, or swing."""
    offline = Distribution(distribution="uniform", low=5.0, high=15.0)
    expected = mean(online) / (mean(online) + mean(offline))
    sessions = [Sessions(online, offline, 0.0, 5, node) for node in range(3_000)]
    marks = [0.0, 7.0, 40.0, 200.0]
    there = np.array([states(session, marks) for session in sessions])
    assert there.mean(axis=0) == pytest.approx([expected] * len(marks), abs=4 * math.sqrt(0.25 / 3_000))


def states(session, marks):
    """Whether the node is there at some rising times."""
    state, found = session.starts_online, []
    changes = session.changes()
    time_s, after = next(changes)
    for mark in marks:
        while time_s <= mark:
            state = after
            time_s, after = next(changes)
        found.append(state)
    return found


@given(start_s=st.floats(0, 1e6), length_s=st.floats(0.1, 1e6), diurnal=st.floats(0.01, 1.0))
def test_by_day_time_offline_passes_as_its_rate_says(start_s, length_s, diurnal):
    session = Sessions(EXPONENTIAL, EXPONENTIAL, diurnal, 0, 0)
    found_s = session._by_day(start_s, length_s)
    steps = np.linspace(start_s, start_s + found_s, 20_001)
    rate = 1 + diurnal * np.sin(2 * np.pi * (steps / 86_400 + session._phase))
    assert np.trapezoid(rate, steps) == pytest.approx(length_s, rel=1e-3, abs=1e-2)


def test_by_night_fewer_come_back():
    """With the phases taken out, time offline that begins at dawn is shorter than time that begins at dusk."""
    session = Sessions(EXPONENTIAL, EXPONENTIAL, 1.0, 0, 0)
    dawn_s = (1 - session._phase) * 86_400
    assert session._by_day(dawn_s, 20_000) < 20_000 < session._by_day(dawn_s + 43_200, 20_000)


def test_an_empty_list_of_nodes_means_nobody():
    sessions = {"online_s": EXPONENTIAL, "offline_s": EXPONENTIAL}
    assert churn(ChurnSection(nodes=(), **sessions), 4, 0, range(4)) is None
    assert set(churn(ChurnSection(nodes=(2,), **sessions), 4, 0, range(4)).changes) == {2}
    assert set(churn(ChurnSection(**sessions), 4, 0, range(1, 4)).changes) == {1, 2, 3}
    lone = churn(ChurnSection(nodes=(), schedule=(fault(1, 3, "crash"),), **sessions), 4, 0, range(4))
    assert set(lone.changes) == {3}
