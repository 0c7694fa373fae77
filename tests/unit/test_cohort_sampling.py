"""Whom a leader asks: how likely each member is, and what utilities do and do not decide."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from node.cohorts import (
    Oort,
    OortSection,
    Seen,
    Speeds,
    by_capacity,
    generator,
    number_to_ask,
    statistical_utility,
    uniform,
)
from node.cohorts.oort import slowness, staleness
from node.cohorts.sampling import capacity_shares
from node.errors import ConfigError, ProtocolError

MANY = 20_000


def rng_of(seed=0):
    return np.random.default_rng(seed)


# Random


@given(st.sets(st.integers(0, 99)), st.integers(0, 120), st.integers(0, 9))
def test_so_many_different_members_are_sampled_sorted(members, count, seed):
    chosen = uniform(sorted(members), count, rng_of(seed))
    assert len(chosen) == min(count, len(members))
    assert set(chosen) <= members
    assert list(chosen) == sorted(set(chosen))
    assert uniform(sorted(members, reverse=True), count, rng_of(seed)) == chosen


def test_every_member_is_equally_likely():
    rng = rng_of(1)
    counts = Counter(node for _ in range(MANY // 4) for node in uniform(range(10), 3, rng))
    assert all(count / (MANY // 4) == pytest.approx(0.3, abs=0.02) for count in counts.values())


def test_the_randomness_of_a_round_is_its_own_and_the_same_for_every_leader():
    draws = {
        (seed, cohort, round): generator(seed, cohort, round).integers(2**62)
        for seed in range(3)
        for cohort in range(3)
        for round in range(3)
    }
    assert len(set(draws.values())) == 27
    assert generator(1, 2, 0).integers(2**62) == draws[1, 2, 0]


# By capacity


def test_shares_are_in_proportion_to_speed_but_not_below_the_floor():
    shares = capacity_shares([1.0, 2.0, 4.0, 1000.0], floor=0.2)
    assert shares[3] == pytest.approx(0.05)
    assert shares[:3] == pytest.approx(0.95 * np.array([4, 2, 1]) / 7)
    assert capacity_shares([1.0, 3.0], floor=0.0) == pytest.approx([0.75, 0.25])
    assert capacity_shares([1.0, 3.0, 9.0], floor=1.0) == pytest.approx([1 / 3] * 3)


def test_raising_one_to_the_floor_may_bring_another_below_it():
    times = [1.0, 1.0, 19.5, 1e6]
    shares = capacity_shares(times, floor=0.2)
    before = np.array([1 / time for time in times])
    assert (before / before.sum())[2] < 0.05
    assert shares[2:] == pytest.approx([0.05, 0.05])


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=30), st.floats(0, 1))
def test_shares_are_probabilities_with_a_floor(times, floor):
    shares = capacity_shares(times, floor)
    assert shares.sum() == pytest.approx(1)
    assert shares.min() >= floor / len(times) * (1 - 1e-9)
    order = np.argsort(times, kind="stable")
    assert (np.diff(shares[order]) <= 1e-12).all()
    free = shares > floor / len(times) * (1 + 1e-9)
    products = shares[free] * np.array(times)[free]
    assert products == pytest.approx(products[:1].repeat(len(products)), rel=1e-6)


def test_the_fast_are_likelier_and_the_slow_appear():
    rng, times = rng_of(2), {7: 1.0, 8: 2.0, 9: 500.0}
    counts = Counter(by_capacity(times, 1, rng)[0] for _ in range(MANY // 4))
    shares = capacity_shares(list(times.values()))
    for node, share in zip(times, shares, strict=True):
        assert counts[node] / (MANY // 4) == pytest.approx(share, abs=0.02)
    assert counts[9] > 0


@given(st.dictionaries(st.integers(0, 99), st.floats(0.1, 1e3), min_size=1), st.integers(0, 50))
def test_capacity_samples_different_members_sorted(times, count):
    chosen = by_capacity(times, count, rng_of(1))
    assert len(chosen) == min(count, len(times))
    assert list(chosen) == sorted(set(chosen))
    assert set(chosen) <= set(times)
    assert by_capacity(dict(reversed(times.items())), count, rng_of(1)) == chosen


@pytest.mark.parametrize("time", [0.0, -1.0, math.nan, math.inf])
def test_a_time_without_meaning_is_refused(time):
    with pytest.raises(ConfigError, match="times_s"):
        by_capacity({0: 1.0, 1: time, 2: 1.0}, 1, rng_of())


@pytest.mark.parametrize("floor", [-0.1, 1.1, math.nan])
def test_a_floor_without_meaning_is_refused(floor):
    with pytest.raises(ConfigError, match="capacity_floor"):
        capacity_shares([1.0], floor)


# More than are needed


@pytest.mark.parametrize(
    ("wanted", "factor", "asked"),
    [(10, 1.3, 13), (7, 1.3, 10), (100, 1.1, 110), (1, 1.3, 2), (5, 1.0, 5), (0, 1.3, 0), (20, 1.15, 23)],
)
def test_more_are_asked_than_are_needed(wanted, factor, asked):
    assert number_to_ask(wanted, factor) == asked


def test_fewer_than_are_needed_are_never_asked():
    with pytest.raises(ConfigError, match=r"over_select: 0\.9; allowed: 1 or more"):
        number_to_ask(10, 0.9)


# Oort


def oort(times=None, **section):
    times = dict.fromkeys(range(10), 1.0) if times is None else times
    return Oort(OortSection(**section), times)


def tried(sampler, utilities, count=None):
    """A sampler after a round in which so many members were asked, and those named have answered."""
    sampler.select(list(utilities), len(utilities) if count is None else count, rng_of())
    sampler.observe({node: Seen(utility, sampler._members[node].time_s) for node, utility in utilities.items()})
    return sampler


def test_utilities_are_golden():
    utility = statistical_utility(4, [1, 2, 0.5, 1.5])
    assert utility == pytest.approx(5.477226, abs=1e-6)
    assert utility * slowness(20, 10, 2) == pytest.approx(1.369306, abs=1e-6)
    assert staleness(50, 10) == pytest.approx(0.197788, abs=1e-6)


def test_only_the_slow_are_penalised():
    assert slowness(10, 10) == slowness(0.1, 10) == 1
    assert slowness(40, 10, 0.5) == 0.5
    assert slowness(40, 10, 0) == 1


def test_a_utility_is_statistical_plus_stale_times_slow():
    sampler = oort({0: 1.0, 1: 240.0}, is_scaled=False, preferred_s=60)
    tried(sampler, {0: 3.0, 1: 8.0})
    for _ in range(9):
        sampler.select([0], 1, rng_of())
        sampler.observe({})
    stale = staleness(10, 1)
    assert sampler.utilities([0, 1]) == pytest.approx([3 + stale, (8 + stale) / 16])


def test_utilities_can_be_scaled_before_staleness_is_added():
    sampler = tried(oort(clip_quantile=1.0), {0: 5.0, 1: 10.0, 2: 20.0})
    assert sampler.utilities([0, 1, 2]) == pytest.approx([0, 1 / 3, 1])
    assert tried(oort(clip_quantile=0.5), {0: 5.0, 1: 10.0, 2: 20.0}).utilities([0, 1, 2]) == pytest.approx([0, 1, 1])
    assert tried(oort(), {0: 5.0, 1: 5.0}).utilities([0, 1]) == pytest.approx([1, 1])


def test_those_never_tried_are_explored_faster_ones_first():
    sampler = oort({0: 5.0, 1: 1.0, 2: 3.0, 3: 2.0, 4: 3.0})
    assert sampler.select(range(5), 2, rng_of()) == (1, 3)
    sampler.observe({1: Seen(1, 1), 3: Seen(1, 2)})
    assert sampler.select(range(5), 2, rng_of(0)) == (2, 4)


def test_the_share_of_exploration_falls_to_its_floor():
    sampler = oort(dict.fromkeys(range(600), 1.0), most_times=0)
    new = []
    for _ in range(120):
        before = {node for node, member in sampler._members.items() if member.is_tried}
        chosen = sampler.select(range(600), 10, rng_of(1))
        new.append(len(set(chosen) - before))
        sampler.observe({node: Seen(1.0, 1.0) for node in chosen})
    assert new[0] == 10  # nobody else is known yet
    assert new[1] == 9
    assert new[20] == round(9 * 0.98**20)
    assert set(new[90:]) == {2}


def test_where_all_were_tried_all_are_exploited():
    sampler = tried(oort(clip_quantile=1.0, cut_off=1.0), {node: float(node) for node in range(10)})
    assert sampler.select(range(10), 4, rng_of()) == (6, 7, 8, 9)


def test_exploitation_draws_in_proportion_to_utility():
    """Of those within the cut-off, where nothing is clipped."""
    counts = Counter()
    rng = rng_of(3)
    for _ in range(MANY // 10):
        sampler = oort(dict.fromkeys(range(3), 1.0), clip_quantile=1.0, cut_off=0.1, is_scaled=False)
        counts.update(tried(sampler, {0: 1.0, 1: 2.0, 2: 5.0}).select(range(3), 1, rng))
    shares = [counts[node] / (MANY // 10) for node in range(3)]
    stale = staleness(2, 1)
    assert shares == pytest.approx(np.array([1, 2, 5] + stale * np.ones(3)) / (8 + 3 * stale), abs=0.04)


def test_members_below_the_cut_off_are_not_drawn():
    utilities, drawn = {0: 1.0, 1: 9.6, 2: 10.0, 3: 9.0}, set()
    for seed in range(40):
        drawn.update(tried(oort(clip_quantile=1.0, is_scaled=False), utilities).select(range(4), 1, rng_of(seed)))
    assert drawn == {1, 2}


def test_a_member_asked_too_often_waits_while_there_are_others():
    sampler = oort({0: 1.0, 1: 1.0, 2: 1.0}, most_times=2, clip_quantile=1.0)
    tried(sampler, {0: 1.0, 1: 1.0, 2: 100.0})
    asked = []
    for _ in range(4):
        chosen = sampler.select(range(3), 1, rng_of())
        sampler.observe({chosen[0]: Seen(100.0 if chosen[0] == 2 else 1.0, 1.0)})
        asked += chosen
    assert asked[:2] == [2, 2]
    assert 2 not in asked[2:]
    assert sampler.select([2], 1, rng_of()) == (2,)


def test_it_may_be_asked_for_ever():
    sampler = tried(oort({0: 1.0, 1: 1.0}, most_times=0, clip_quantile=1.0), {0: 0.0, 1: 9.0})
    for _ in range(30):
        assert sampler.select([0, 1], 1, rng_of()) == (1,)
        sampler.observe({1: Seen(9.0, 1.0)})


def test_the_pacer_gives_more_time_where_utility_falls():
    sampler = oort(pacer_rounds=3, preferred_s=60, pacer_step_s=5, most_times=0)
    times = []
    for utility in [9, 9, 9, 8, 8, 8, 9, 9, 9, 1, 1, 1]:
        chosen = sampler.select(range(10), 2, rng_of())
        sampler.observe({node: Seen(float(utility), 1.0) for node in chosen})
        times.append(sampler.preferred_s)
    assert times == [60] * 5 + [65] * 6 + [70]


@pytest.mark.parametrize("utility", [math.nan, math.inf, -1.0])
def test_a_utility_that_cannot_be_is_none(utility):
    sampler = tried(oort(is_scaled=False), {0: utility, 1: 1.0})
    assert sampler.utilities([0, 1]) == pytest.approx([0, 1])
    assert len(sampler.select([0, 1], 2, rng_of())) == 2


def test_who_joins_later_is_explored():
    sampler = tried(oort({0: 1.0}), {0: 1.0})
    sampler.join(5, 2.0)
    sampler.join(0, 99.0)
    assert sampler.select([0, 5], 1, rng_of()) == (5,)
    assert sampler._members[0].time_s == 1.0


def test_utilities_above_the_quantile_count_as_much_as_it():
    counts = Counter()
    for seed in range(MANY // 20):
        sampler = tried(oort(is_scaled=False, clip_quantile=0.5), {**dict.fromkeys(range(9), 1.0), 9: 1000.0})
        counts.update(sampler.select(range(10), 1, rng_of(seed)))
    assert counts[9] / (MANY // 20) == pytest.approx(0.1, abs=0.04)


def test_one_that_claims_a_huge_loss_does_not_hide_the_others():
    honest = {node: float(node) for node in range(9)}
    plain, lied = tried(oort(), honest | {9: 9.0}), tried(oort(), honest | {9: 1e308})
    assert lied.utilities(range(10)) == pytest.approx(plain.utilities(range(10)))


@given(st.data())
def test_always_so_many_members_that_are_alive(data):
    seed = data.draw(st.integers(0, 99))
    nodes = data.draw(st.integers(1, 12))
    times = {node: 1.0 + node % 3 for node in range(nodes)}
    sampler = oort(times, most_times=data.draw(st.integers(0, 3)), explore=data.draw(st.floats(0, 1)))
    for _ in range(6):
        alive = data.draw(st.lists(st.sampled_from(range(nodes)), unique=True))
        count = data.draw(st.integers(0, 14))
        chosen = sampler.select(alive, count, rng_of(seed))
        assert len(chosen) == min(count, len(alive))
        assert list(chosen) == sorted(set(chosen) & set(alive))
        heard = [node for node in chosen if data.draw(st.booleans())]
        sampler.observe({node: Seen(data.draw(st.floats(0, 50)), 1.0) for node in heard})


@pytest.mark.parametrize("wrong", [{"cut_off": 0}, {"clip_quantile": 1.5}, {"explore": -1}, {"penalties": 1}])
def test_constants_without_meaning_are_refused(wrong):
    with pytest.raises(ValidationError):
        OortSection(**wrong)


def share_of_flipped(rounds, seed, **section):
    """How much more often than their number would have it 10 of 100 nodes with flipped labels are asked.

    The losses of the others fall as training goes on; theirs grow, because the model learns what they deny.
    """
    rng = rng_of(seed)
    flipped = set(rng.choice(100, 10, replace=False).tolist())
    sampler = Oort(OortSection(**section), {node: float(rng.lognormal()) for node in range(100)})
    samples = rng.integers(20, 60, 100)
    asked = 0
    for round in range(rounds):
        chosen = sampler.select(range(100), 20, rng)
        asked += len(flipped & set(chosen))
        honest, wrong = 2.3 / (1 + round / 10), 2.3 + round / 10
        losses = {node: rng.gamma(4, (wrong if node in flipped else honest) / 4, 20) for node in chosen}
        sampler.observe({node: Seen(statistical_utility(int(samples[node]), losses[node]), 1.0) for node in chosen})
    return asked / (20 * rounds) / 0.1


@pytest.mark.parametrize("rounds", [10, 40, 100])
def test_flipped_labels_are_not_asked_for_three_times_their_share(rounds):
    assert max(share_of_flipped(rounds, seed) for seed in range(3)) <= 3


def test_it_is_the_clipping_that_holds_them_back():
    """Without any rest for those who were asked often; the paper's quantile lets them fill the rounds."""
    assert max(share_of_flipped(100, seed, most_times=0) for seed in range(3)) <= 3
    assert share_of_flipped(100, 0, most_times=0, clip_quantile=0.95) > 3


# What a successor goes on from


def test_speeds_are_those_of_the_last_answers():
    speeds = Speeds()
    speeds.observe({1: 1.0, 2: 1.0, 3: 1.0, 4: 40.0})
    drawn = [speeds.select(range(1, 5), 2, rng_of(seed)) for seed in range(300)]
    assert sum(4 in chosen for chosen in drawn) < 60
    speeds.observe({4: 1.0})
    drawn = [speeds.select(range(1, 5), 2, rng_of(seed)) for seed in range(300)]
    assert 110 < sum(4 in chosen for chosen in drawn) < 190


def test_who_has_never_answered_is_as_fast_as_most():
    speeds = Speeds()
    assert len(speeds.select(range(5), 3, rng_of(0))) == 3
    speeds.observe({0: 1.0, 1: 4.0, 2: 8.0})
    drawn = [speeds.select(range(4), 1, rng_of(seed))[0] for seed in range(600)]
    counts = np.bincount(drawn, minlength=4)
    assert counts[0] > counts[3] > counts[2]


def test_a_successor_draws_by_the_same_speeds():
    speeds, successor = Speeds(), Speeds()
    speeds.observe({5: 0.1, 2: 3.7, 9: 1.0})
    successor.restore(speeds.state())
    assert successor.state() == speeds.state()
    assert all(successor.select(range(12), 4, rng_of(i)) == speeds.select(range(12), 4, rng_of(i)) for i in range(20))


@pytest.mark.parametrize("time_s", [0.0, -1.0, math.inf, math.nan])
def test_a_time_that_is_none_is_no_speed(time_s):
    speeds = Speeds()
    speeds.observe({1: time_s})
    assert speeds.state() == b""


def numbers(*values):
    return np.array(values, dtype="<f8").tobytes()


@pytest.mark.parametrize("state", [b"1", numbers(1.0), numbers(1.0, 0.0), numbers(2.0, math.nan)])
def test_speeds_that_cannot_be_are_refused(state):
    with pytest.raises(ProtocolError, match="not the state of a sampler"):
        Speeds().restore(state)


@pytest.mark.parametrize(
    "state",
    [
        b"1",
        b"",
        numbers(1.0, 0.9, 60.0),
        numbers(1.0, 0.9, 60.0, 2.0, 5.0),
        numbers(1.0, 0.9, math.nan, 0.0),
        numbers(1.0, 0.9, 60.0, math.inf),
        numbers(1.0, 0.9, 60.0, -3.0, 1.0),
        numbers(1.0, 0.9, 60.0, 0.0, 1.0, 2.0, 3.0, 4.0),
        numbers(1.0, 0.9, 60.0, 0.0, 1.0, 2.0, -3.0, 4.0, 1.0),
    ],
)
def test_a_state_of_oort_that_cannot_be_is_refused_and_changes_nothing(state):
    sampler = Oort(OortSection(), dict.fromkeys(range(4), 1.0))
    before = sampler.state()
    with pytest.raises(ProtocolError, match="not the state of a sampler"):
        sampler.restore(state)
    assert sampler.state() == before
