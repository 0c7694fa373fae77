"""The three models of the simulated network: when messages arrive, in closed form, and what a cut leaves."""

import asyncio
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from node.clock import Priority, VirtualClock
from node.config import Distribution, NetworkSection
from node.errors import Deadlock
from node.sim.draws import per_node, per_pair
from node.sim.network import build
from node.sim.network.links import FairLinks

MODELS = ["latency", "fifo", "fair"]
LOGNORMAL = Distribution(distribution="lognormal", median=2.0, sigma=0.8)
LINKS = Distribution(distribution="lognormal", median=1e4, sigma=0.9)


class Carried:
    """What became of some messages (time, sender, receivers, bytes); each is named by its place in the list."""

    def __init__(self, section, nodes, sends, *, cuts=(), seed=0, until_s=1e6, **rates):
        self.arrived, self.busy, self.lost = {}, [], []
        with asyncio.Runner(loop_factory=VirtualClock) as runner:
            runner.run(self._run(section, nodes, sends, cuts, seed, until_s, rates))

    async def _run(self, section, nodes, sends, cuts, seed, until_s, rates):
        clock = asyncio.get_running_loop()
        network = build(
            section, nodes, seed, clock, sent=lambda *interval: self.busy.append(interval), lost=self._lose, **rates
        )

        def deliver(parcel):
            peer, sender, name, size_bytes = parcel
            assert (sends[name][1], sends[name][3]) == (sender, size_bytes)
            assert (name, peer) not in self.arrived
            self.arrived[name, peer] = clock.now

        def send(name):
            _, sender, to, size_bytes = sends[name]
            network.carry(sender, to, size_bytes, deliver, name)

        for name, (at_s, *_) in enumerate(sends):
            clock.post(at_s, send, name, Priority.TIMER)
        for at_s, node in cuts:
            clock.post(at_s, network.cut, node, Priority.FAULT)
        await asyncio.sleep(until_s)

    def _lose(self, peer, sender, size_bytes):
        self.lost.append((peer, sender, size_bytes))


def rates(*bytes_per_s):
    return [8.0 * rate for rate in bytes_per_s]


def section(model, **keys):
    return NetworkSection(**{"model": model, "latency_s": 0.0, "small_bytes": 0, **keys})


def arrivals(model, nodes, sends, *, keys=None, **more):
    return Carried(section(model, **keys or {}), nodes, sends, **more).arrived


# All models


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("up", "down"), [(1000, 2000), (2000, 1000), (1000, 1000)])
def test_a_message_alone_takes_its_latency_and_its_bytes_at_the_slower_end(model, up, down):
    found = arrivals(
        model, 2, [(3.0, 0, (1,), 500)], keys={"latency_s": 0.25}, up_bps=rates(up, 1), down_bps=rates(1, down)
    )
    assert found == {(0, 1): 3 + 0.25 + 500 / min(up, down)}


@pytest.mark.parametrize("model", MODELS)
def test_a_message_to_oneself_arrives_at_once_and_one_of_nothing_after_the_latency(model):
    found = arrivals(model, 3, [(1.0, 1, (0, 1, 2), 0), (2.0, 1, (1,), 10**9)], keys={"latency_s": 0.25})
    assert found == {(0, 0): 1.25, (0, 1): 1.0, (0, 2): 1.25, (1, 1): 2.0}


@pytest.mark.parametrize("model", MODELS)
def test_bits_per_second_are_bits(model):
    """346,000 bytes over 12,000 kilobits per second."""
    found = arrivals(model, 2, [(0.0, 0, (1,), 346_000)], keys={"up_bps": 12_000e3, "down_bps": 1e12})
    assert found[0, 1] == pytest.approx(0.230667, abs=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_every_node_has_its_own_links_and_every_pair_its_latency(model):
    keys = {"latency_s": LOGNORMAL, "up_bps": LOGNORMAL, "down_bps": LOGNORMAL}
    up, down = (per_node(LOGNORMAL, 9, 7, stream) for stream in ("up_bps", "down_bps"))
    pairs = [(a, b) for a in range(9) for b in range(9) if a != b]
    sends = [(1e4 * n, a, (b,), 1) for n, (a, b) in enumerate(pairs)]
    found = arrivals(model, 9, sends, keys=keys, seed=7)
    expected = {
        (n, b): 1e4 * n + per_pair(LOGNORMAL, a, b, 7) + 8 / min(up[a], down[b]) for n, (a, b) in enumerate(pairs)
    }
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("model", MODELS)
def test_small_messages_meet_nobody(model):
    sends = [(0.0, 0, (1,), 10_000), (0.0, 0, (1,), 100), (0.0, 0, (1,), 100)]
    found = arrivals(
        model, 2, sends, keys={"small_bytes": 100, "latency_s": 0.5}, up_bps=rates(100, 1), down_bps=rates(1, 200)
    )
    assert found == {(0, 1): 100.5, (1, 1): 1.5, (2, 1): 1.5}


@pytest.mark.parametrize("model", MODELS)
def test_nobody_to_send_to(model):
    assert arrivals(model, 2, [(0.0, 0, (), 10**9)]) == {}


@pytest.mark.parametrize("model", MODELS)
def test_the_uplink_was_busy_while_it_sent(model):
    carried = Carried(section(model), 3, [(2.0, 0, (1,), 100)], up_bps=rates(10, 1, 1), down_bps=rates(1, 100, 1))
    assert carried.busy == [(0, 2.0, 12.0)]
    assert Carried(section(model, small_bytes=100), 3, [(2.0, 0, (1,), 100)]).busy == []
    assert Carried(section(model), 3, [(2.0, 0, (0,), 100)]).busy == []


@settings(max_examples=25)
@given(st.sampled_from(MODELS), st.integers(0, 2**32))
def test_every_message_arrives_once_not_before_its_own_time_and_the_same_again(model, seed):
    rng = np.random.default_rng(seed)
    keys = {"latency_s": 0.01, "small_bytes": 500, "up_bps": LINKS, "down_bps": LINKS}
    sends = [
        (float(at), int(sender), tuple(rng.choice(6, 3, replace=False).tolist()), int(size))
        for at, sender, size in zip(
            rng.uniform(0, 9, 40), rng.integers(0, 6, 40), rng.integers(0, 4000, 40), strict=True
        )
    ]
    found = arrivals(model, 6, sends, keys=keys, seed=seed)
    alone = arrivals("latency", 6, sends, keys=keys, seed=seed)
    assert found.keys() == {(name, peer) for name, send in enumerate(sends) for peer in send[2]}
    assert all(found[key] >= alone[key] * (1 - 1e-12) for key in found)
    assert list(found.items()) == list(arrivals(model, 6, sends, keys=keys, seed=seed).items())


# Transfers that do not meet


def test_transfers_do_not_meet():
    found = arrivals(
        "latency", 3, [(0.0, 0, (1, 2), 100), (0.0, 0, (1,), 50)], up_bps=rates(10, 1, 1), down_bps=rates(1, 20, 5)
    )
    assert found == {(0, 1): 10, (0, 2): 20, (1, 1): 5}


# One after another


def test_an_uplink_sends_one_message_after_another():
    found = arrivals("fifo", 3, [(0.0, 0, (1, 2), 100), (5.0, 0, (1,), 50)], up_bps=rates(10, 1, 1))
    assert found == {(0, 1): 10, (0, 2): 20, (1, 1): 25}


def test_a_downlink_receives_one_message_after_another_in_the_order_of_first_bytes():
    sends = [(0.0, 0, (2,), 100), (1.0, 1, (2,), 100)]
    found = arrivals("fifo", 3, sends, up_bps=rates(100, 100, 1), down_bps=rates(1, 1, 10))
    assert found == {(0, 2): 10, (1, 2): 20}


def test_a_message_that_waits_at_its_uplink_does_not_hold_the_downlink():
    """Node 0 is busy with node 1 until 10; what node 2 sends to node 3 in the meantime does not wait for that."""
    sends = [(0.0, 0, (1, 3), 100), (1.0, 2, (3,), 100)]
    found = arrivals("fifo", 4, sends, up_bps=rates(10, 1, 100, 1), down_bps=rates(1, 100, 1, 100))
    assert found == {(0, 1): 10, (1, 3): 2, (0, 3): 20}


def test_a_slow_sender_keeps_the_downlink_until_its_last_byte():
    sends = [(0.0, 0, (2,), 100), (1.0, 1, (2,), 100)]
    found = arrivals("fifo", 3, sends, up_bps=rates(10, 100, 1), down_bps=rates(1, 1, 50))
    assert found == {(0, 2): 10, (1, 2): 12}


def test_an_uplink_that_has_been_idle_is_free_at_once():
    found = arrivals("fifo", 2, [(0.0, 0, (1,), 10), (9.0, 0, (1,), 10)], up_bps=rates(10, 1))
    assert found == {(0, 1): 1, (1, 1): 10}


# Sharing


@pytest.mark.parametrize(
    ("sends", "up", "down", "expected"),
    [
        ([(0, 0, (1, 2), 100)], (10, 1, 1), (1, 100, 100), {(0, 1): 20, (0, 2): 20}),
        ([(0, 0, (1,), 50), (0, 0, (2,), 100)], (10, 1, 1), (1, 100, 100), {(0, 1): 10, (1, 2): 15}),
        ([(0, 0, (1,), 100), (4, 0, (2,), 100)], (10, 1, 1), (1, 100, 100), {(0, 1): 16, (1, 2): 20}),
        ([(0, 0, (1, 2), 100)], (10, 1, 1), (1, 2, 100), {(0, 1): 50, (0, 2): 12.5}),
        ([(0, n, (3,), 60) for n in range(3)], (2, 10, 10, 1), (1, 1, 1, 12), {(0, 3): 30, (1, 3): 12, (2, 3): 12}),
        (
            [(0, 0, (1, 2), 60), (0, 3, (2, 4), 60)],
            (6, 1, 1, 20, 1),
            (1, 100, 10, 1, 12),
            {(0, 1): 20, (0, 2): 20, (1, 2): 60 / 7, (1, 4): 5},
        ),
        ([(0, 0, (1,), 100), (0, 1, (0,), 100)], (10, 20), (50, 50), {(0, 1): 10, (1, 0): 5}),
    ],
    ids=["equal", "unequal sizes", "late start", "asymmetric receiver", "incast", "chain", "duplex"],
)
def test_transfers_share_links_max_min_fairly(sends, up, down, expected):
    found = arrivals("fair", len(up), sends, up_bps=rates(*up), down_bps=rates(*down))
    assert found == pytest.approx(expected, rel=1e-12)


def test_latency_comes_after_the_transfer_and_holds_no_link():
    sends = [(0.0, 0, (1,), 100), (10.0, 0, (1,), 100)]
    assert arrivals("fair", 2, sends, keys={"latency_s": 3.0}, up_bps=rates(10, 1)) == {(0, 1): 13, (1, 1): 23}


def test_many_transfers_of_one_instant_are_solved_for_together(monkeypatch):
    settled, settle = [], FairLinks.settle
    monkeypatch.setattr(FairLinks, "settle", lambda self, now_s: (settled.append(now_s), settle(self, now_s)))
    sends = [(1.0, sender, tuple(range(20)), 100) for sender in range(20)]
    found = arrivals("fair", 20, sends, up_bps=rates(*[190] * 20), down_bps=rates(*[190] * 20))
    assert {at for (name, peer), at in found.items() if name != peer} == {11.0}
    assert settled == [1.0, 11.0]


# Nodes that go


@pytest.mark.parametrize("model", ["fifo", "fair"])
@pytest.mark.parametrize("gone", [0, 1])
def test_a_cut_ends_what_is_under_way_at_both_ends(model, gone):
    sends = [(0.0, 0, (1,), 100), (20.0, 0, (1,), 100)]
    carried = Carried(section(model), 2, sends, cuts=[(4.0, gone)], up_bps=rates(10, 1))
    assert carried.arrived == {(1, 1): 30}
    assert carried.lost == [(1, 0, 100)]


@pytest.mark.parametrize("model", ["fifo", "fair"])
@pytest.mark.parametrize("gone", [0, 1])
def test_a_cut_frees_the_links_of_who_goes(model, gone):
    sends = [(0.0, 0, (1,), 100), (4.0, 2, (1,), 60), (4.0, 0, (3,), 60)]
    keys = {"up_bps": 80, "down_bps": 1e6 if gone == 0 else 80}
    found = arrivals(model, 4, sends, keys=keys, cuts=[(4.0, gone)])
    waits_for_the_sender_that_remains = model == "fifo" and gone == 1
    expected = {(1, 1): 10, (2, 3): 16 if waits_for_the_sender_that_remains else 10}
    assert found == pytest.approx(expected, abs=1e-3)


def test_the_others_get_the_share_of_who_goes():
    carried = Carried(section("fair"), 3, [(0.0, 0, (1, 2), 100)], cuts=[(4.0, 1)], up_bps=rates(10, 1, 1))
    assert carried.arrived == {(0, 2): 12}
    assert carried.busy == [(0, 0.0, 4.0), (0, 0.0, 12.0)]


@pytest.mark.parametrize("model", MODELS)
def test_what_has_left_its_sender_arrives_though_that_goes(model):
    sends = [(0.0, 0, (1,), 100)]
    found = arrivals(model, 2, sends, keys={"latency_s": 5.0}, cuts=[(12.0, 0)], up_bps=rates(10, 1))
    assert found == {(0, 1): 15}


def test_a_second_cut_after_the_last_byte_does_not_bring_back_what_the_first_ended():
    sends = [(0.0, 0, (1,), 100)]
    carried = Carried(section("fifo", latency_s=5.0), 2, sends, cuts=[(4.0, 0), (12.0, 0)], up_bps=rates(10, 1))
    assert (carried.arrived, carried.lost) == ({}, [(1, 0, 100)])


def test_a_queue_that_is_cut_does_not_send():
    """Of three messages one is through, one under way and one waits; then a fourth finds the uplink free."""
    sends = [(0.0, 0, (1,), 100), (0.0, 0, (2,), 100), (0.0, 0, (3,), 100), (15.0, 0, (1,), 100)]
    carried = Carried(section("fifo"), 4, sends, cuts=[(15.0, 0)], up_bps=rates(10, 1, 1, 1))
    assert carried.arrived == {(0, 1): 10, (3, 1): 25}
    assert sorted(carried.lost) == [(2, 0, 100), (3, 0, 100)]


def test_a_node_that_goes_a_hundred_thousand_times_takes_no_memory_for_it():
    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        runner.run(_cut_often(100_000, most_bytes=4096))


async def _cut_often(times, most_bytes):
    network = build(section("fifo"), 2, 0, asyncio.get_running_loop(), up_bps=rates(10, 1), lost=lambda *_: None)
    network.carry(0, (1,), 10, lambda parcel: None, 0)
    network.cut(0)
    tracemalloc.start()
    try:
        for _ in range(times):
            network.cut(0)
        assert tracemalloc.get_traced_memory()[0] < most_bytes
    finally:
        tracemalloc.stop()


def test_of_several_cuts_the_first_after_the_sending_decides():
    # Sent after the first cut, gone from the uplink at 15 s, before the next ones.
    sends = [(5.0, 0, (1,), 100)]
    carried = Carried(section("fifo"), 2, sends, cuts=[(4.0, 0), (16.0, 0), (17.0, 0)], up_bps=rates(10, 1))
    assert (carried.arrived, carried.lost) == ({(0, 1): 15.0}, [])
    cut = Carried(section("fifo"), 2, sends, cuts=[(4.0, 0), (14.0, 0), (17.0, 0)], up_bps=rates(10, 1))
    assert (cut.arrived, cut.lost) == ({}, [(1, 0, 100)])


@settings(max_examples=25)
@given(st.sampled_from(["fifo", "fair"]), st.integers(0, 2**32))
def test_cut_at_any_time_every_message_arrives_or_is_told_lost(model, seed):
    rng = np.random.default_rng(seed)
    sends = [
        (float(at), int(a), (int(b),), int(size))
        for at, a, b, size in zip(
            rng.uniform(0, 9, 40), rng.integers(0, 5, 40), rng.integers(0, 5, 40), rng.integers(1, 99, 40), strict=True
        )
    ]
    cuts = [(float(rng.uniform(0, 20)), int(rng.integers(5))) for _ in range(6)]
    carried = Carried(section(model, up_bps=400, down_bps=400), 5, sends, cuts=cuts)
    ended = [(b, a, size) for n, (_, a, (b,), size) in enumerate(sends) if (n, b) not in carried.arrived]
    assert sorted(carried.lost) == sorted(ended)


# Links that are off for ever


@pytest.mark.parametrize(
    ("model", "size_bytes", "story"),
    [
        ("latency", 10, "a message from node 0 to node 1 (10 bytes) waits: the downlink of node 1 carries nothing"),
        ("fifo", 10, "a message from node 0 to node 1 (10 bytes) waits: the downlink of node 1 carries nothing"),
        ("fair", 5, "a message from node 0 to node 1 (5 bytes) waits: the downlink of node 1 carries nothing"),
        ("fair", 10, "a transfer from node 0 to node 1 (10 bytes) stalls: the downlink of node 1 carries nothing"),
    ],
)
def test_a_deadlock_names_the_transfer_that_stalls(model, size_bytes, story):
    async def wait_for_ever():
        clock = asyncio.get_running_loop()
        network = build(section(model, small_bytes=5, rules=[{"kind": "rate", "to": [1]}]), 2, 0, clock)
        clock.tell(network.stories)
        network.carry(0, (1,), size_bytes, lambda parcel: None, "")
        await clock.create_future()

    with asyncio.Runner(loop_factory=VirtualClock) as runner, pytest.raises(Deadlock) as raised:
        runner.run(wait_for_ever())
    assert str(raised.value).splitlines()[1:] == [f"  {story}"]


@pytest.mark.parametrize("model", MODELS)
def test_what_waits_for_a_link_is_cut_too(model):
    keys = {"rules": [{"kind": "rate", "frm": [0], "end_s": 9.0}], "up_bps": 80}
    sends = [(1.0, 0, (1, 2), 10)]
    carried = Carried(section(model, **keys), 3, sends, cuts=[(5.0, 1)])
    assert carried.arrived == {(0, 2): pytest.approx(10)}
    assert carried.lost == [(1, 0, 10)]


# Bad input


@pytest.mark.parametrize(
    "keys",
    [
        {"latency_s": -1},
        {"latency_s": math.inf},
        {"up_bps": 0},
        {"down_bps": math.nan},
        {"model": "magic"},
        {"loss": 1},
        {"jitter_s": -1},
        {"small_bytes": -1},
    ],
)
def test_impossible_links(keys):
    with pytest.raises(ValidationError):
        NetworkSection(**keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"distribution": "uniform"}, "needs 'high'"),
        ({"distribution": "uniform", "low": 3, "high": 2}, "'high' must be at least 'low'"),
        ({"distribution": "exponential"}, "needs 'mean'"),
        ({"distribution": "exponential", "mean": 0}, "greater than 0"),
        ({"distribution": "lognormal", "sigma": 1}, "needs 'median'"),
        ({"distribution": "lognormal", "median": 1, "sigma": -1}, "greater than or equal to 0"),
        ({"distribution": "weibull", "shape": 1}, "needs 'mean'"),
        ({"distribution": "gamma", "mean": 1}, "uniform"),
        ({"distribution": "exponential", "mean": 1, "mode": 2}, "mode"),
    ],
)
def test_a_distribution_that_is_none(keys, message):
    with pytest.raises(ValidationError, match=message):
        NetworkSection(up_bps=keys)


def test_messages_of_one_pair_follow_one_another_and_share_with_others_as_one():
    """On a live link the first message of a pair is through before the second one begins."""
    up = rates(10, 100, 100)
    sends = [(0, 0, (1,), 5000), (0, 0, (1,), 5000), (0, 0, (2,), 5000)]
    found = arrivals(
        "fair", 3, sends, keys={"small_bytes": 0, "latency_s": 0}, up_bps=up, down_bps=rates(100, 100, 100)
    )
    assert found == {(0, 1): pytest.approx(1000), (2, 2): pytest.approx(1000), (1, 1): pytest.approx(1500)}


def test_a_cut_ends_what_waits_behind_a_transfer_too():
    section = NetworkSection(model="fair", small_bytes=0)
    sends = [(0, 0, (1,), 5000), (0, 0, (1,), 5000), (1, 0, (1,), 5000)]
    carried = Carried(section, 2, sends, cuts=[(2, 0)], up_bps=rates(10, 10), down_bps=rates(10, 10))
    assert carried.arrived == {}
    assert carried.lost == [(1, 0, 5000)] * 3
