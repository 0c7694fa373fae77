"""The parts of a member: rings, rumours, suspicions, health, probes for others, presets."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from membership_members import LAN, alive, dead, suspect
from node.errors import ConfigError
from node.membership import PRESETS, Timing
from node.membership.health import LAG_MEMORY_S, Health
from node.membership.probe import MOST_RELAYED, Probe, Relays
from node.membership.ring import Ring
from node.membership.rumours import Rumours
from node.membership.suspicion import Suspicion, suspicion_timeout_s


def ring(peers, seed=0):
    made = Ring(np.random.default_rng(seed))
    made.fill(peers)
    return made


# Rings


def test_every_peer_has_its_turn_in_each_round():
    of_ten = ring(range(10))
    rounds = [[of_ten.turn() for _ in range(10)] for _ in range(3)]
    assert all(sorted(each) == list(range(10)) for each in rounds)
    assert rounds[0] != rounds[1]


def test_an_empty_ring_has_no_turn_and_no_sample():
    assert ring([]).turn() is None
    assert ring([]).sample(3) == ()


@given(st.integers(0, 2**32), st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=40))
def test_a_peer_that_stays_is_probed_again_before_two_rounds_are_over(seed, changes):
    """SWIM's bound on detection: round robin, whoever comes and goes meanwhile."""
    order = ring([*range(10), 99], seed)
    there, since = set(range(10)), 0
    for joins, peer in changes:
        if joins and peer not in there:
            order.add(peer)
            there.add(peer)
        elif not joins and peer in there:
            order.remove(peer)
            there.discard(peer)
        since = 0 if order.turn() == 99 else since + 1
        assert since < 2 * 11
    assert set(order) == there | {99}


def test_newcomers_come_at_random_places_and_shift_nobody_out_of_turn():
    order = ring(range(20))
    had = [order.turn() for _ in range(10)]
    for peer in range(100, 120):
        order.add(peer)
    rest = [order.turn() for _ in range(10)]
    assert not set(had) & set(rest)
    assert any(peer >= 100 for peer in rest)


def test_who_is_removed_has_no_turn_and_costs_nobody_else_one():
    order = ring(range(10))
    had = [order.turn() for _ in range(5)]
    order.remove(had[0])
    assert sorted(had + [order.turn() for _ in range(5)]) == list(range(10))


@given(st.integers(0, 30), st.integers(0, 8), st.sets(st.integers(0, 40), max_size=6), st.integers(0, 2**32))
def test_a_sample_is_of_different_peers_and_as_many_as_there_are(size, count, without, seed):
    chosen = ring(range(size), seed).sample(count, without)
    possible = set(range(size)) - without
    assert len(set(chosen)) == len(chosen) == min(count, len(possible))
    assert set(chosen) <= possible


def test_samples_are_uniform():
    order, counts = ring(range(12)), np.zeros(12)
    for _ in range(3000):
        for peer in order.sample(3):
            counts[peer] += 1
    assert counts.min() > 0.8 * counts.mean()
    assert counts.max() < 1.2 * counts.mean()


# Rumours


def test_the_least_told_come_first_and_end_at_the_limit():
    rumours = Rumours()
    size = alive(1).size_bytes
    rumours.add(alive(1), replaces=True)
    assert rumours.take(size, 3) == [alive(1)]
    rumours.add(alive(2), replaces=True)
    assert rumours.take(size, 3) == [alive(2)]
    told = [rumours.take(size, 3)[0].peer for _ in range(4)]
    assert sorted(told) == [1, 1, 2, 2]
    assert not rumours
    assert rumours.take(size, 3) == []


@given(st.lists(st.integers(0, 400), max_size=20), st.integers(0, 2000))
def test_what_is_told_fits_the_budget_and_a_long_record_holds_up_none(lengths, budget_bytes):
    rumours = Rumours()
    words = [alive(peer, record=bytes(length)) for peer, length in enumerate(lengths)]
    for word in words:
        rumours.add(word, replaces=True)
    told = rumours.take(budget_bytes, 2)
    room_bytes = budget_bytes - sum(word.size_bytes for word in told)
    assert room_bytes >= 0
    assert all(word.size_bytes > room_bytes for word in words if word not in told)
    assert len(rumours) == len(words)


def test_a_new_word_ends_what_was_said_of_the_old_one():
    rumours = Rumours()
    rumours.add(suspect(1, 5), replaces=False)
    rumours.add(suspect(1, 6), replaces=False)
    assert len(rumours) == 2
    rumours.add(alive(1, 2), replaces=True)
    assert rumours.take(10_000, 9) == [alive(1, 2)]


def test_what_is_dropped_is_told_no_more_wherever_it_stood():
    rumours = Rumours()
    rumours.add(alive(1), replaces=True)
    rumours.take(10_000, 9)
    rumours.add(alive(2), replaces=True)
    rumours.drop(1)
    rumours.drop(2)
    rumours.drop(3)
    assert rumours.take(10_000, 9) == []
    assert not rumours


def test_replaced_rumours_that_are_never_told_take_no_memory():
    rumours = Rumours()
    for incarnation in range(10_000):
        rumours.add(alive(1, incarnation), replaces=True)
    assert sum(map(len, rumours._told)) < 100


# Suspicions


def test_the_timeout_falls_from_most_to_least_with_the_logarithm_of_confirmations():
    waits = [suspicion_timeout_s(confirmations, 3, 5.0, 30.0) for confirmations in range(5)]
    assert waits[0] == 30.0
    assert waits[1] == pytest.approx(30 - 25 * math.log(2) / math.log(4))
    assert waits[3] == waits[4] == 5.0
    assert waits == sorted(waits, reverse=True)


def test_where_no_confirmation_is_expected_the_timeout_is_the_least():
    assert suspicion_timeout_s(0, 0, 5.0, 30.0) == 5.0


def test_only_different_accusers_confirm_and_no_more_than_are_expected():
    suspicion = Suspicion(100.0, (5.0, 30.0), expected=2)
    suspicion.confirm(suspect(1, 7))
    assert suspicion.deadline_s == 130.0
    assert not suspicion.is_open_to(7)
    for author in (8, 9):
        assert suspicion.is_open_to(author)
        suspicion.confirm(suspect(1, author))
    assert suspicion.deadline_s == 105.0
    assert not suspicion.is_open_to(10)


def test_time_that_does_not_count_moves_the_deadline():
    suspicion = Suspicion(0.0, (5.0, 30.0), expected=0)
    suspicion.confirm(suspect(1, 7))
    suspicion.delay(2.5)
    assert suspicion.deadline_s == 7.5


# Health


def test_health_stays_within_its_ceiling():
    health = Health(8)
    health.change(-3)
    assert (health.score, health.scale) == (0, 1)
    health.change(+30)
    assert (health.score, health.scale) == (7, 8)


def test_a_ceiling_of_one_turns_it_off():
    health = Health(1)
    health.change(+5)
    assert health.scale == 1


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 9)), max_size=30))
def test_the_lag_is_the_largest_of_the_last_seconds(lags):
    health, now, noted = Health(8), 0.0, []
    for passed_s, lag_s in lags:
        now += passed_s
        health.note_lag(lag_s, now)
        noted.append((now, lag_s))
        assert health.lag_s(now) == max(lag for at, lag in noted if at >= now - LAG_MEMORY_S)
    assert health.lag_s(now + LAG_MEMORY_S + 1) == 0.0


# Probes


def test_silent_helpers_say_more_of_this_node_than_none():
    probe = Probe(1, 2, 0.0, 0.5, 1.0, 0.25)
    assert probe.penalty == 1
    probe.helpers, probe.reports = 3, 1
    assert probe.penalty == 2
    probe.reports = 3
    assert probe.penalty == 0


def test_a_helper_reports_once_before_the_asker_concludes_and_then_forgets():
    relays = Relays()
    assert relays.add(10, asker=5, askers_seq=77, now=0.0, within_s=0.5)
    assert relays.deadline_s == pytest.approx(0.4)
    assert list(relays.overdue(0.39)) == []
    assert list(relays.overdue(0.4)) == [(5, 77)]
    assert list(relays.overdue(0.45)) == []
    assert relays.deadline_s == 0.5
    assert relays.answered(10) == (5, 77), "an answer after the NACK still helps"
    assert relays.deadline_s == math.inf


def test_probes_for_others_are_bounded():
    relays = Relays()
    added = [relays.add(seq, 1, seq, 0.0, 1.0) for seq in range(MOST_RELAYED + 5)]
    assert sum(added) == MOST_RELAYED
    assert len(list(relays.overdue(1.0))) == MOST_RELAYED
    assert relays.add(1000, 1, 1, 1.0, 1.0)


# Presets


def test_the_presets_are_those_of_the_table():
    row = [(t.probe_interval_s, t.probe_timeout_s, t.indirect_probes) for t in PRESETS.values()]
    assert list(PRESETS) == ["lan", "wan", "host"]
    assert row == [(1.0, 0.5, 3), (5.0, 3.0, 3), (1.0, 0.2, 1)]
    assert [(t.suspicion_mult, t.suspicion_max_mult) for t in PRESETS.values()] == [(4, 6), (6, 6), (3, 6)]
    assert all(t.health_ceiling == 8 for t in PRESETS.values())


def test_suspects_of_larger_networks_have_longer():
    assert LAN.suspicion_s(1) == LAN.suspicion_s(10) == (4.0, 24.0)
    assert LAN.suspicion_s(1000) == (12.0, 72.0)
    assert LAN.suspicion_s(0) == (4.0, 24.0)


def test_small_networks_expect_no_confirmation():
    assert [LAN.confirmations(members) for members in (1, 2, 3, 4, 100)] == [0, 0, 0, 2, 2]
    assert PRESETS["wan"].confirmations(5) == 0
    assert PRESETS["wan"].confirmations(6) == 4


def test_rumours_are_told_by_the_logarithm_of_the_network():
    assert [LAN.retransmits(members) for members in (0, 1, 9, 10, 99, 100)] == [4, 4, 4, 8, 8, 12]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("probe_interval_s", 0.0),
        ("probe_interval_s", math.nan),
        ("gossip_interval_s", -1.0),
        ("health_ceiling", 0),
        ("indirect_probes", -1),
        ("suspicion_max_mult", 0),
        ("push_pull_interval_s", math.inf),
        ("probe_timeout_s", 1.0),
    ],
)
def test_what_is_out_of_range_is_named(key, value):
    fields = {name: getattr(LAN, name) for name in Timing.__dataclass_fields__}
    with pytest.raises(ConfigError, match=f"^{key}: {value}"):
        Timing(**{**fields, key: value})


def test_statements_say_who_may_say_what():
    assert alive(1).is_well_formed
    assert dead(1, 2).is_well_formed
    assert not dead(1, 1).is_well_formed, "nobody calls itself dead"
    assert not alive(1)._replace(author=2).is_well_formed
    assert not suspect(1, 2)._replace(record=b"x").is_well_formed
