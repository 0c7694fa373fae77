"""How many helpers a member asks, and when silence says enough: a lossy network must not drown in suspicions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from membership_members import LAN, member, of, pass_time, sent, tell, tick_until
from node.membership import Ack, Changed, Nack, Ping, PingRequest, State
from node.membership.reach import MOST_FALSE, MOST_HELPERS, MOST_LOOKS, Reach

SHARES = st.floats(0, 1)
MEMBERS = st.integers(1, 100_000)


def reach(share):
    found = Reach()
    found.share = share
    return found


def settled(share, seed=0, answers=2_000):
    """What a member takes the share for that has asked one at a time for long."""
    rng, found = np.random.default_rng(seed), Reach()
    shares = []
    for _ in range(answers):
        found.note(1, int(rng.random() < share))
        shares.append(found.share)
    return float(np.mean(shares[200:]))


# The share


@pytest.mark.parametrize("share", [0.3, 0.64, 0.9])
def test_the_share_comes_to_what_is_answered(share):
    assert settled(share) == pytest.approx(share, abs=0.03)


def test_without_loss_the_share_stays_just_below_all():
    assert settled(1.0) == pytest.approx(0.95)


@given(st.lists(st.tuples(st.integers(0, 21), st.integers(0, 21)), max_size=100))
def test_the_share_is_one_whatever_is_noted(notes):
    found = Reach()
    for asked, answered in notes:
        found.note(asked, min(asked, answered))
        assert 0 <= found.share <= 1


def test_nothing_asked_is_nothing_learned():
    found = reach(0.5)
    found.note(0, 0)
    assert found.share == 0.5


def test_many_reports_at_once_weigh_more_than_one_answer():
    one, many = reach(0.9), reach(0.9)
    one.note(1, 0)
    many.note(14, 0)
    assert many.share < one.share < 0.9


# Helpers


@pytest.mark.parametrize("members", [2, 10, 125, 2_000])
def test_without_loss_the_setting_is_what_is_asked(members):
    assert Reach().helpers(members, LAN.indirect_probes) == LAN.indirect_probes


def test_with_loss_the_number_grows_with_the_logarithm_of_the_members():
    asked = {members: reach(0.64).helpers(members, 3) for members in (10, 100, 1_000, 10_000)}
    assert list(asked.values()) == [7, 12, 16, 20]
    for members, count in asked.items():
        assert count == math.ceil(math.log(members * 0.36 / MOST_FALSE) / -math.log(1 - 0.64**2))


@given(MEMBERS, SHARES, st.integers(1, 5))
def test_the_fewest_are_asked_that_suffice_unless_that_is_too_many(members, share, least):
    found = reach(share)
    count = found.helpers(members, least)
    assert least <= count <= max(least, MOST_HELPERS)
    assert found.suffices(members, count) or count == MOST_HELPERS
    assert count == least or not found.suffices(members, count - 1)


@given(MEMBERS, SHARES)
def test_who_is_to_ask_nobody_asks_nobody(members, share):
    assert reach(share).helpers(members, 0) == 0


@given(st.integers(2, 100_000), SHARES, st.integers(0, 20))
def test_more_helpers_and_fewer_members_say_more(members, share, helpers):
    found = reach(share)
    if found.suffices(members, helpers):
        assert found.suffices(members, helpers + 1)
        assert found.suffices(members - 1, helpers)


# A member that uses it


def silent(swim, reports):
    """A probe that gets nothing but so many of the reports: whose, how many were asked, and what follows."""
    if swim._probe is None:
        tick_until(swim, Ping, swim.deadline_s + 100)
    probe = swim._probe
    asked = sent(pass_time(swim, probe.deadline_s), PingRequest)
    for to, _ in asked[:reports]:
        tell(swim, to, Nack(probe.seq), probe.end_s - 0.01)
    return probe.target, len(asked), pass_time(swim, probe.end_s)


def suspects(actions):
    return [change.peer for change in of(actions, Changed) if change.state is State.SUSPECT]


def test_who_is_silent_to_helpers_that_all_report_is_suspected_at_once():
    swim, _ = member(0, range(1, 1_000))
    target, asked, actions = silent(swim, 3)
    assert asked == 3
    assert suspects(actions) == [target]


def test_where_reports_are_missing_too_one_looks_again_and_asks_more_before_one_says_so():
    swim, _ = member(0, range(1, 1_000))
    targets, asked, told = zip(*[silent(swim, 0) for _ in range(MOST_LOOKS)], strict=True)
    assert len(set(targets)) == 1
    assert list(asked) == sorted(set(asked)), "more each time"
    assert [suspects(actions) for actions in told] == [[]] * (MOST_LOOKS - 1) + [[targets[0]]]
    assert silent(swim, 0)[0] != targets[0], "and then it is the next one's turn"


def test_who_answers_the_second_look_is_not_suspected():
    swim, _ = member(0, range(1, 1_000))
    target, _, _ = silent(swim, 0)
    assert swim._probe.target == target
    tell(swim, target, Ack(swim._probe.seq, 0), swim._probe.began_s + 0.1)
    assert suspects(pass_time(swim, swim._probe.end_s)) == []
    assert swim._probe.target != target
    assert swim._probe.look == 1


def test_few_members_make_few_suspicions_so_silence_is_enough():
    swim, _ = member(0, range(1, 10))
    target, _, actions = silent(swim, 0)
    assert suspects(actions) == [target]


def test_a_member_learns_from_its_helpers_how_much_is_lost():
    swim, _ = member(0, range(1, 1_000))
    before = swim._reach.share
    silent(swim, 3)
    assert swim._reach.share == before, "all it asked have answered"
    silent(swim, 0)
    assert swim._reach.share < before


def test_however_many_helpers_are_silent_a_member_doubts_itself_no_more_than_by_those_of_the_setting():
    swim, _ = member(0, range(1, 1_000))
    swim._reach.share = 0.3
    _, asked, _ = silent(swim, 0)
    assert asked == MOST_HELPERS
    assert swim.health.score == LAN.indirect_probes


def test_a_probe_for_another_carries_what_its_target_has_to_hear_and_no_other_news():
    swim, _ = member(0, range(1, 10))
    silent(swim, 3)
    suspect, *_ = swim._view.suspicions
    other = next(peer for peer in range(1, 10) if peer != suspect)
    [(_, ping)] = sent(tell(swim, other, PingRequest(77, suspect, 500), swim._now), Ping)
    assert [update.peer for update in ping.updates] == [suspect]
    third = next(peer for peer in range(1, 10) if peer not in (suspect, other))
    [(_, ping)] = sent(tell(swim, other, PingRequest(78, third, 500), swim._now), Ping)
    assert ping.updates == ()
