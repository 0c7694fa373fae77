"""A member of a full membership: probes, suspicions, refutations, lag, farewells."""

import dataclasses
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from membership_members import LAN, alive, dead, left, member, of, pass_time, sent, suspect, tell, tick_until
from node.errors import StarlingError
from node.membership import (
    Ack,
    Changed,
    Describe,
    Differences,
    Disconnect,
    Gossip,
    Lag,
    Leave,
    Lost,
    Nack,
    Persist,
    Ping,
    PingRequest,
    SetTimer,
    Start,
    State,
    Statement,
    Summary,
    Tick,
)

OTHERS = range(1, 10)


def answer(swim, now, lag_ms=0, updates=()):
    """Answer the probe that is on its way."""
    return tell(swim, swim._probe.target, Ack(swim._probe.seq, lag_ms, updates), now)


def probe(swim):
    """The next probe: when, whom, and the ping."""
    return tick_until(swim, Ping, swim.deadline_s + 100)


def fail_probe(swim):
    """Let a probe and its helpers say nothing; the end, and what it led to."""
    _, target, _ = probe(swim)
    actions = pass_time(swim, swim._probe.end_s)
    return target, actions


# Start


def test_a_start_keeps_a_new_incarnation_before_it_is_used():
    swim, actions = member(0, kept=41, seeds=(3, 0, 3))
    assert actions[0] == Persist(42)
    ((to, summary),) = sent(actions)
    assert (to, summary.updates) == (3, (alive(0, 42),))
    assert of(actions, SetTimer) == [SetTimer(swim.deadline_s)]


def test_a_restarted_member_knows_whom_it_remembers_and_tells_nobody_of_them():
    swim, actions = member(0, others=OTHERS)
    assert swim.peers() == tuple(OTHERS)
    assert swim.statements() == tuple(alive(peer) for peer in OTHERS)
    assert len(of(actions, Changed)) == 9
    assert [statement.peer for statement in swim._rumours.take(10_000, 9)] == [0]


def test_a_member_alone_asks_its_seeds_again_and_again():
    swim, _ = member(0, seeds=(5, 6))
    asked = [tick_until(swim, Summary)[:2] for _ in range(20)]
    assert {to for _, to in asked} == {5, 6}
    assert max(later - sooner for (sooner, _), (later, _) in itertools.pairwise(asked)) < 5


def test_a_founder_waits_for_whoever_comes():
    swim, actions = member(0)
    assert sent(actions) == []
    assert sent(pass_time(swim, 100.0)) == []


# Probes


def test_all_are_probed_in_turn_one_per_interval():
    swim, _ = member(0, OTHERS)
    times, targets = [], []
    for _ in range(9):
        now, target, _ = probe(swim)
        answer(swim, now + 0.01)
        times.append(now)
        targets.append(target)
    assert sorted(targets) == list(OTHERS)
    assert all(later - sooner == pytest.approx(1.0) for sooner, later in itertools.pairwise(times))
    assert swim.sighting(targets[-1]).rtt_s == pytest.approx(0.01)


def test_a_ping_is_answered_with_the_lag_of_who_answers():
    swim, _ = member(0, OTHERS)
    swim.step(Lag(0.3), 0.5)
    ((to, ack),) = sent(tell(swim, 4, Ping(17), 0.6), Ack)
    assert (to, ack.seq, ack.lag_ms) == (4, 17, 300)


def test_without_an_answer_helpers_are_asked_in_time_to_report():
    swim, _ = member(0, OTHERS)
    now, target, ping = probe(swim)
    actions = pass_time(swim, now + 0.5)
    requests = sent(actions, PingRequest)
    assert len({to for to, _ in requests} - {target}) == 3
    assert {(request.seq, request.target, request.within_ms) for _, request in requests} == {(ping.seq, target, 500)}


def test_an_answer_through_a_helper_is_an_answer():
    swim, _ = member(0, OTHERS)
    now, target, ping = probe(swim)
    pass_time(swim, now + 0.5)
    tell(swim, 5, Ack(ping.seq, 0), now + 0.8)
    actions = pass_time(swim, now + 2.0)
    assert Changed(target, State.SUSPECT) not in actions
    assert swim.sighting(target).rtt_s is None


def test_no_answer_at_all_makes_a_suspect_whom_its_own_ping_tells():
    swim, _ = member(0, (1, 2, 3))
    target, actions = fail_probe(swim)
    assert of(actions, Changed) == [Changed(target, State.SUSPECT)]
    pings = {}
    for _ in range(6):
        answer(swim, swim._probe.began_s)
        _, to, ping = probe(swim)
        pings[to] = ping
    assert pings[target].updates[0] == suspect(target, 0)


def test_who_hears_that_it_is_suspected_objects_and_keeps_that_first():
    swim, _ = member(0, OTHERS)
    actions = tell(swim, 3, Ping(1, (suspect(0, 3, 1),)), 1.0)
    assert actions[0] == Persist(2)
    assert sent(actions, Ack)[0][1].updates == (alive(0, 2),)
    assert sent(actions, Gossip) == [(3, Gossip((alive(0, 2),)))]
    assert swim.health.score == 1


def test_an_old_accusation_is_answered_and_changes_nothing():
    swim, _ = member(0, OTHERS, kept=6)
    actions = tell(swim, 3, Gossip((dead(0, 3, 5),)), 1.0)
    assert of(actions, Persist) == []
    assert sent(actions, Gossip) == [(3, Gossip((alive(0, 7),)))]


def test_an_accusation_of_an_incarnation_that_is_still_to_come_is_nonsense():
    swim, _ = member(0, OTHERS)
    assert sent(tell(swim, 3, Gossip((suspect(0, 3, 9), dead(0, 3, 9))), 1.0)) == []
    assert swim.incarnation == 1


def test_who_is_called_dead_hears_of_it_with_the_answer_to_its_ping():
    swim, _ = member(0, OTHERS)
    tell(swim, 3, Gossip((dead(5, 3),)), 1.0)
    ((_, ack),) = sent(tell(swim, 5, Ping(1), 2.0), Ack)
    assert ack.updates[0] == dead(5, 3)
    tell(swim, 5, Gossip((alive(5, 2),)), 3.0)
    assert 5 in swim.peers()


def test_a_suspect_that_does_not_object_is_dead_when_its_time_is_up():
    swim, _ = member(0, OTHERS)
    least_s, most_s = LAN.suspicion_s(10)
    for author, wait_s in ((3, most_s), (4, None), (6, least_s)):
        tell(swim, author, Gossip((suspect(5, author),)), 0.0)
        assert wait_s in (None, swim._view.suspicions[5].deadline_s)
    while swim.deadline_s < least_s:
        now = swim.deadline_s
        swim.step(Tick(), now)
        if swim._probe is not None and not swim._probe.is_answered:
            answer(swim, now)
    assert swim.sighting(5).state is State.SUSPECT
    assert Changed(5, State.DEAD) in swim.step(Tick(), least_s)
    assert 5 not in swim.peers()
    assert swim.sighting(5).state is State.DEAD


def test_no_confirmation_is_passed_on_that_is_not_needed():
    swim, _ = member(0, range(1, 20))
    for author in range(2, 15):
        tell(swim, author, Gossip((suspect(1, author),)), 1.0)
    assert len([rumour for rumour in swim._rumours.take(10_000, 9) if rumour.peer == 1]) == 3


# Local health (Lifeguard)


def test_failed_probes_slow_a_member_down_and_answers_bring_it_back():
    swim, _ = member(0, OTHERS)
    fail_probe(swim)
    assert swim.health.score == 3, "three helpers were silent too"
    assert swim._probe.end_s - swim._probe.began_s == pytest.approx(4.0)
    answer(swim, swim._probe.began_s + 0.1)
    assert swim.health.score == 2


def test_helpers_that_report_keep_the_blame_from_this_member():
    swim, _ = member(0, OTHERS)
    now, target, ping = probe(swim)
    for to, _ in sent(pass_time(swim, now + 0.5), PingRequest):
        tell(swim, to, Nack(ping.seq), now + 0.9)
    assert Changed(target, State.SUSPECT) in pass_time(swim, now + 1.0)
    assert swim.health.score == 0


def test_with_nobody_to_help_a_failure_counts_once():
    swim, _ = member(0, (1,))
    fail_probe(swim)
    assert swim.health.score == 1


def test_a_helper_asks_forwards_the_answer_and_says_so_where_there_is_none():
    swim, _ = member(0, OTHERS)
    ((to, ping),) = sent(tell(swim, 3, PingRequest(77, 8, 500), 0.0), Ping)
    assert to == 8
    assert sent(tell(swim, 8, Ack(ping.seq, 40), 0.1), Ack) == [(3, Ack(77, 40))]
    tell(swim, 3, PingRequest(78, 8, 500), 0.1)
    now, to, nack = tick_until(swim, Nack, 1.0)
    assert (to, nack.seq) == (3, 78)
    assert now == pytest.approx(0.1 + 0.8 * 0.5)


def test_nobody_is_probed_for_others_that_is_unknown_or_this_node():
    swim, _ = member(0, OTHERS)
    assert sent(tell(swim, 3, PingRequest(1, 0, 500), 0.0)) == []
    assert sent(tell(swim, 3, PingRequest(1, 4711, 500), 0.0)) == []


# Lag


def test_a_member_that_ran_late_draws_no_conclusion():
    swim, _ = member(0, OTHERS)
    now, target, _ = probe(swim)
    pass_time(swim, now + 0.5)
    actions = swim.step(Tick(), now + 1.0 + 0.3)
    assert Changed(target, State.SUSPECT) not in actions
    assert swim.health.score == 1


def test_lag_that_the_caller_reports_counts_as_well():
    swim, _ = member(0, OTHERS)
    now, target, _ = probe(swim)
    swim.step(Lag(0.26), now + 0.3)
    assert Changed(target, State.SUSPECT) not in pass_time(swim, now + 1.0)


def test_lag_lengthens_the_next_probes_timeout():
    swim, _ = member(0, OTHERS)
    swim.step(Lag(0.2), 0.0)
    probe(swim)
    assert swim._probe.timeout_s == pytest.approx(0.5 + 2 * 0.2)


def test_the_lag_of_a_peer_lengthens_its_timeout_up_to_a_cap():
    swim, _ = member(0, (1,))
    now, _, _ = probe(swim)
    answer(swim, now, lag_ms=700)
    now, _, _ = probe(swim)
    assert swim._probe.timeout_s == pytest.approx(0.5 + 0.7)
    answer(swim, now, lag_ms=2**31 - 1)
    probe(swim)
    assert swim._probe.timeout_s == pytest.approx(0.5 + 5.0), "who claims more must not become unkillable"


def test_a_stall_is_not_held_against_suspects_and_counted_once():
    swim, _ = member(0, OTHERS)
    tell(swim, 3, Gossip((suspect(5, 3),)), 0.0)
    deadline_s = swim._view.suspicions[5].deadline_s
    now = swim.deadline_s + 2.0
    swim.step(Lag(2.0), now)
    swim.step(Tick(), now)
    swim.step(Lag(2.0), now)
    assert swim._view.suspicions[5].deadline_s == pytest.approx(deadline_s + 2.0)


def test_lateness_below_two_ticks_is_no_stall():
    swim, _ = member(0, OTHERS)
    tell(swim, 3, Gossip((suspect(5, 3),)), 0.0)
    deadline_s = swim._view.suspicions[5].deadline_s
    swim.step(Tick(), swim.deadline_s + 0.09)
    assert swim._view.suspicions[5].deadline_s == deadline_s


def test_after_a_long_stop_a_member_asks_first_and_accuses_nobody():
    """SIGSTOP for 30 s, then SIGCONT."""
    swim, _ = member(0, OTHERS)
    tell(swim, 3, Gossip((suspect(5, 3),)), 0.0)
    now = probe(swim)[0] + 30.0
    actions = swim.step(Tick(), now)
    assert sent(actions, Summary)
    assert of(actions, Changed) == []
    answered = tell(swim, 3, Differences((0,), (dead(0, 3),), False, False), now + 0.01)
    assert answered[0] == Persist(2)
    assert of(pass_time(swim, now + 0.9), Changed) == []
    _, most_s = LAN.suspicion_s(10)
    assert swim._view.suspicions[5].deadline_s == now + most_s


# Gossip


def test_rumours_go_to_a_few_at_a_time_and_then_end():
    swim, _ = member(0, range(1, 30))
    tell(swim, 3, Gossip((alive(50),)), 0.0)
    told = [to for to, gossip in sent(pass_time(swim, 60.0), Gossip) if alive(50) in gossip.updates]
    assert 0 < len(told) <= LAN.retransmits(31)
    assert swim._gossip_s == math.inf


def test_the_recently_dead_hear_gossip_too():
    swim, _ = member(0, OTHERS)
    tell(swim, 3, Gossip((dead(5, 3),)), 0.0)
    soon = {to for to, _ in sent(pass_time(swim, 2.0), Gossip)}
    assert 5 in soon
    pass_time(swim, 40.0)
    tell(swim, 3, Gossip((alive(70),)), 40.0)
    assert 5 not in {to for to, _ in sent(pass_time(swim, 45.0), Gossip)}


# Comings and goings


def test_who_leaves_says_so_and_nothing_after_that():
    swim, _ = member(0, range(1, 30))
    actions = swim.step(Leave(), 1.0)
    assert actions[0] == Persist(2)
    farewells = sent(actions)
    assert len(farewells) == 16
    assert all(message.updates[0][:3] == (State.LEFT, 0, 2) for _, message in farewells)
    assert swim.deadline_s == math.inf
    assert tell(swim, 3, Ping(1), 2.0) == []
    assert swim.step(Tick(), 3.0) == []


def test_who_has_left_is_not_suspected_and_may_come_again():
    swim, _ = member(0, (1, 2))
    assert of(tell(swim, 1, Gossip((left(1),)), 1.0), Changed) == [Changed(1, State.LEFT)]
    assert swim.peers() == (2,)
    assert {to for to, _ in sent(pass_time(swim, 3.0), Ping)} == {2}
    tell(swim, 1, Gossip((alive(1, 3),)), 3.0)
    assert swim.peers() == (1, 2)


def test_a_new_record_is_a_new_word():
    swim, _ = member(0, OTHERS)
    actions = swim.step(Describe(b"moved"), 1.0)
    assert actions[0] == Persist(2)
    assert alive(0, 2, b"moved") in swim._rumours.take(10_000, 9)


def test_the_dead_are_looked_for_and_forgotten_in_the_end():
    swim, _ = member(0, (1, 2), timing=dataclasses.replace(LAN, forget_s=300.0))
    tell(swim, 1, Gossip((dead(2, 1),)), 1.0)
    looked_for, actions = set(), []
    while swim.deadline_s < 400.0:
        now = swim.deadline_s
        done = swim.step(Tick(), now)
        looked_for |= {to for to, _ in sent(done, Summary)}
        actions += of(done, Changed)
        if swim._probe is not None and not swim._probe.is_answered:
            answer(swim, now)
    assert 2 in looked_for
    assert actions == [Changed(2, None)]
    assert [sighting.peer for sighting in swim.known()] == [1]


def test_a_stranger_that_asks_is_asked_who_it_is():
    swim, _ = member(0)
    actions = tell(swim, 8, Ping(5), 1.0)
    assert [type(message) for _, message in sent(actions)] == [Ack, Summary]
    assert swim.known() == ()


def test_broken_links_and_messages_of_partial_views_mean_nothing_here():
    swim, _ = member(0, OTHERS)
    assert sent(swim.step(Lost(3), 0.001)) == []
    assert sent(tell(swim, 3, Disconnect(), 0.002)) == []
    assert 3 in swim.peers()


def test_two_members_of_one_seed_do_the_same():
    runs = []
    for _ in range(2):
        swim, actions = member(0, OTHERS)
        runs.append([*actions, *pass_time(swim, 30.0)])
    assert runs[0] == runs[1]


# Any event in any state


PEERS = st.integers(0, 12)
STATEMENTS = st.builds(
    Statement,
    st.sampled_from(State),
    PEERS,
    st.integers(0, 6) | st.integers(0, 2**62 - 1),
    PEERS,
    st.binary(max_size=40),
    st.binary(max_size=8),
)
SEQS = st.integers(0, 40)
UPDATES = st.lists(STATEMENTS, max_size=6).map(tuple)
BUCKETS = st.lists(st.integers(0, 63), max_size=8).map(tuple)
MESSAGES = st.one_of(
    st.builds(Ping, SEQS, UPDATES),
    st.builds(Ack, SEQS, st.integers(0, 2**31 - 1), UPDATES),
    st.builds(PingRequest, SEQS, PEERS, st.integers(0, 2**31 - 1)),
    st.builds(Nack, SEQS),
    st.builds(Gossip, UPDATES),
    st.builds(Summary, st.lists(st.integers(0, 2**64), min_size=64, max_size=64).map(tuple), UPDATES),
    st.builds(Differences, BUCKETS, UPDATES, st.booleans(), st.booleans()),
)
EVENTS = st.one_of(
    st.tuples(st.just("message"), PEERS, MESSAGES),
    st.tuples(st.just("due")),
    st.tuples(st.just("late"), st.floats(0, 40)),
    st.tuples(st.just("other"), st.sampled_from([Tick(), Lag(0.0), Lag(3.0), Lost(2), Describe(b"x")])),
)


class Credulous:
    """Believes everybody: the worst that signatures could let through."""

    def sign(self, content):
        return b""

    def verify(self, statement):
        return True


@settings(max_examples=60, deadline=None)
@given(st.lists(EVENTS, max_size=60), st.booleans())
def test_whatever_happens_gives_actions_and_takes_bounded_memory(events, leaves):
    swim, _ = member(0, (1, 2, 3), most_peers=8)
    swim._signatures = Credulous()
    now, incarnation = 0.0, swim.incarnation
    for kind, *event in events:
        try:
            if kind == "message":
                actions = tell(swim, event[0], event[1], now)
            elif kind == "other":
                actions = swim.step(event[0], now)
            else:
                now = max(now, swim.deadline_s + (event[0] if event else 0.0))
                actions = swim.step(Tick(), now)
        except StarlingError:
            actions = []
        assert now <= swim.deadline_s < math.inf
        assert len(actions) < 200
        assert swim.incarnation >= incarnation
        incarnation = swim.incarnation
        check_bounds(swim)
    if leaves:
        swim.step(Leave(), now)
        assert swim.step(Start(), now) == []


def check_bounds(swim):
    view = swim._view
    assert len(view.words) <= 8
    assert len(swim._rumours) <= 8 * 4
    assert sorted(swim._ring) == [peer for peer in sorted(view.words) if peer != swim.me and view.is_live(peer)]
    assert view.live == sum(view.is_live(peer) for peer in view.words)
    assert set(view.suspicions).isdisjoint(view.verdicts)
    assert set(swim._rtts_s) | set(swim._lags_s) | set(view.changed_s) <= set(view.words) | {0}
    assert all(suspicion.expected + 1 >= len(suspicion.accusations) > 0 for suspicion in view.suspicions.values())
