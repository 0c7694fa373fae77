"""Loss, jitter, delays, changed rates and partitions: from whom to whom, from when until when, and what they cost."""

import asyncio
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.clock import Priority, VirtualClock
from node.config import NetworkSection
from node.errors import ConfigError
from node.sim.network import build
from node.sim.network.rules import PACKET_BYTES, RETRANSMISSION_S, Rule, Rules

MODELS = ["latency", "fifo", "fair"]


def carry(model, sends, *, rules=(), nodes=4, seed=0, cuts=(), **keys):
    """Arrivals by (place in ``sends``, receiver), and losses; a send is (time, sender, receivers, bytes)."""
    keys = {"latency_s": 0.0, "small_bytes": 0, "up_bps": 80.0, "down_bps": 8000.0, **keys}
    section = NetworkSection(model=model, rules=rules, **keys)
    arrived, lost = {}, []

    async def run():
        clock = asyncio.get_running_loop()
        network = build(
            section, nodes, seed, clock, lost=lambda peer, sender, size: lost.append((clock.now, peer, sender, size))
        )

        def deliver(parcel):
            arrived[parcel[2], parcel[0]] = clock.now

        def send(name):
            network.carry(*sends[name][1:], deliver, name)

        for name, (at_s, *_) in enumerate(sends):
            if at_s:
                clock.post(at_s, send, name, Priority.TIMER)
            else:
                send(name)
        for at_s, node in cuts:
            clock.post(at_s, network.cut, node, Priority.FAULT)
        await asyncio.sleep(1e5)

    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        runner.run(run())
    return arrived, lost


def arrivals(model, sends, **more):
    arrived, lost = carry(model, sends, **more)
    assert not lost
    return arrived


# Whom a rule is about


@pytest.mark.parametrize(
    ("keys", "crossed"),
    [
        ({}, {"01", "02", "10", "12", "20", "21"}),
        ({"frm": {0}}, {"01", "02"}),
        ({"to": {0}}, {"10", "20"}),
        ({"frm": {0}, "to": {1}}, {"01"}),
        ({"frm": {0}, "to": {1}, "both_ways": True}, {"01", "10"}),
        ({"frm": {0}, "both_ways": True}, {"01", "02", "10", "20"}),
        ({"frm": {0, 1}, "both_ways": True}, {"02", "12", "20", "21"}),
        ({"frm": {0, 1}, "to": {0, 1}}, {"01", "10"}),
    ],
)
def test_a_rule_leads_from_some_to_others(keys, crossed):
    rule = Rule("delay", **{key: frozenset(v) if isinstance(v, set) else v for key, v in keys.items()})
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    assert {f"{a}{b}" for a, b in pairs if rule.crosses(a, b)} == crossed


@pytest.mark.parametrize(
    ("keys", "up", "down"),
    [
        ({}, [0, 1, 2], [0, 1, 2]),
        ({"frm": {0}}, [0], []),
        ({"to": {0}}, [], [0]),
        ({"frm": {0}, "to": {1}}, [0], [1]),
        ({"frm": {0}, "both_ways": True}, [0], [0]),
        ({"frm": {0}, "to": {1}, "both_ways": True}, [0, 1], [0, 1]),
    ],
)
def test_a_rate_is_about_uplinks_of_senders_and_downlinks_of_receivers(keys, up, down):
    rule = Rule("rate", **{key: frozenset(v) if isinstance(v, set) else v for key, v in keys.items()})
    assert [node for node in range(3) if rule.has_uplink(node)] == up
    assert [node for node in range(3) if rule.has_downlink(node)] == down


# When: from its start, which counts, to its end, which does not


@pytest.mark.parametrize("model", MODELS)
def test_a_delay_holds_for_what_is_sent_between_start_and_end(model):
    sends = [(at_s, sender, (5,), 10) for sender, at_s in enumerate((0, 99, 100, 199, 200))]
    found = arrivals(model, sends, rules=[{"kind": "delay", "value": 7.0, "start_s": 100, "end_s": 200}], nodes=6)
    assert [found[n, 5] for n in range(5)] == pytest.approx([1, 100, 108, 207, 201], abs=0.011)


@pytest.mark.parametrize("model", MODELS)
def test_what_is_sent_after_a_delay_does_not_overtake_what_was_sent_during_it(model):
    found = arrivals(model, [(0, 0, (1,), 10), (3, 0, (1,), 10)], rules=[{"kind": "delay", "value": 7.0, "end_s": 2}])
    assert found == pytest.approx({(0, 1): 8, (1, 1): 8}, abs=0.011)
    assert found[0, 1] < found[1, 1]


@pytest.mark.parametrize("model", MODELS)
def test_a_rule_without_times_holds_from_the_first_instant_for_ever(model):
    found = arrivals(model, [(0, 0, (1,), 10), (9e4, 0, (1,), 10)], rules=[{"kind": "delay", "value": 7.0}])
    assert found == {(0, 1): 8, (1, 1): 90_008}


@pytest.mark.parametrize("model", MODELS)
def test_a_delay_goes_one_way_and_several_add_up(model):
    rules = [
        {"kind": "delay", "value": 7.0, "frm": [0], "to": [1]},
        {"kind": "delay", "value": 2.0, "to": [1, 2]},
    ]
    sends = [(100 * n, a, (b,), 10) for n, (a, b) in enumerate([(0, 1), (1, 0), (3, 1), (0, 2)])]
    found = arrivals(model, sends, rules=rules)
    assert [found[n, b] - at_s for n, (at_s, _, (b,), _) in enumerate(sends)] == pytest.approx([10, 1, 3, 3])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size_bytes", [0, 10])
def test_to_oneself_there_are_no_rules(model, size_bytes):
    rules = [{"kind": "delay", "value": 7.0}, {"kind": "partition"}, {"kind": "rate"}]
    assert arrivals(model, [(3, 1, (1,), size_bytes)], rules=rules) == {(0, 1): 3}


# Rates


@pytest.mark.parametrize("model", MODELS)
def test_a_rate_is_a_factor_and_several_multiply(model):
    rules = [
        {"kind": "rate", "value": 0.5, "frm": [0], "end_s": 1000},
        {"kind": "rate", "value": 0.2, "frm": [0, 2], "start_s": 500, "end_s": 1500},
    ]
    sends = [(at_s, 0, (1,), 10) for at_s in (0, 500, 1000, 1500)]
    assert list(arrivals(model, sends, rules=rules).values()) == pytest.approx([2, 510, 1005, 1501])


@pytest.mark.parametrize("model", MODELS)
def test_the_receivers_downlink_is_its_own(model):
    rules = [{"kind": "rate", "value": 0.001, "to": [1]}]
    found = arrivals(model, [(0, 0, (1,), 10), (500, 0, (2,), 10)], rules=rules)
    assert found == pytest.approx({(0, 1): 10, (1, 2): 501})


def test_fair_transfers_change_their_rate_when_capacity_does():
    """10 bytes a second, and half of it from 5 s on: 100 bytes take 15 s."""
    rules = [{"kind": "rate", "value": 0.5, "frm": [0], "start_s": 5.0}]
    assert arrivals("fair", [(0, 0, (1,), 100)], rules=rules) == {(0, 1): 15}


@pytest.mark.parametrize(("model", "expected"), [("latency", 10), ("fifo", 10), ("fair", 15)])
def test_a_link_that_goes_off_and_on_holds_up_fair_transfers_only(model, expected):
    rules = [{"kind": "rate", "frm": [0], "start_s": 2.0, "end_s": 7.0}]
    assert arrivals(model, [(0, 0, (1,), 100)], rules=rules) == {(0, 1): expected}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("small_bytes", [0, 100])
def test_what_is_sent_over_a_link_that_is_off_goes_when_it_is_on(model, small_bytes):
    """In the order of sending; small messages meet nobody even then."""
    rules = [{"kind": "rate", "frm": [0], "end_s": 50.0}]
    sends = [(10, 0, (1,), 100), (20, 0, (2,), 100), (30, 3, (2,), 100)]
    found = arrivals(model, sends, rules=rules, small_bytes=small_bytes)
    alone = model == "latency" or small_bytes
    expected = (60, 60) if alone else (60, 70) if model == "fifo" else (70, 70)
    assert (found[0, 1], found[1, 2], found[2, 2]) == pytest.approx((*expected, 40))


# Partitions


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("small_bytes", [0, 100])
def test_a_partition_loses_what_crosses_it_and_nothing_else(model, small_bytes):
    rules = [{"kind": "partition", "frm": [0, 1], "both_ways": True, "start_s": 10, "end_s": 20}]
    pairs = [(a, b) for a in range(4) for b in range(4)]
    sends = [(at_s, a, (b,), 1) for at_s in (0, 10, 20) for a, b in pairs]
    found, lost = carry(model, sends, rules=rules, small_bytes=small_bytes, up_bps=1e5)
    crossing = {(a, b) for a, b in pairs if (a < 2) != (b < 2)}
    assert {(b, a) for a, b in crossing} == {(peer, sender) for _, peer, sender, _ in lost}
    assert {at_s for at_s, *_ in lost} == {10}
    assert len(found) == len(sends) - len(crossing) == 40


def test_a_partition_one_way():
    found, lost = carry("latency", [(0, 0, (1,), 10), (0, 1, (0,), 10)], rules=[{"kind": "partition", "to": [1]}])
    assert (found, lost) == ({(1, 0): 1}, [(0, 1, 0, 10)])


@pytest.mark.parametrize(("model", "arrives"), [("latency", True), ("fifo", True), ("fair", False)])
def test_a_partition_ends_fair_transfers_that_cross_when_it_begins(model, arrives):
    rules = [{"kind": "partition", "frm": [0], "to": [1], "start_s": 4.0, "end_s": 5.0}]
    found, lost = carry(model, [(0, 0, (1,), 100), (0, 0, (2,), 100)], rules=rules)
    assert ((0, 1) in found) is arrives
    assert lost == ([] if arrives else [(4.0, 1, 0, 100)])
    assert found[1, 2] == {"latency": 10, "fifo": 20, "fair": 12}[model]


@pytest.mark.parametrize("model", MODELS)
def test_what_waits_for_a_link_is_lost_if_a_partition_lies_there_when_it_goes(model):
    rules = [{"kind": "rate", "frm": [0], "end_s": 50.0}, {"kind": "partition", "start_s": 40.0, "end_s": 60.0}]
    found, lost = carry(model, [(10, 0, (1,), 100)], rules=rules)
    assert found == {}
    assert [entry[1:] for entry in lost] == [(1, 0, 100)]


# Loss


@pytest.mark.parametrize("model", MODELS)
def test_lost_packets_cost_rate_and_one_timeout(model):
    """A large message surely loses some: 1 / (1 - p) times the bytes, and a round trip and 0.2 s."""
    size = 1000 * PACKET_BYTES
    found = arrivals(model, [(0, 0, (1,), size)], loss=0.2, latency_s=0.25, up_bps=8e6, down_bps=8e9)
    assert found[0, 1] == pytest.approx(size / 0.8 / 1e6 + 3 * 0.25 + RETRANSMISSION_S)


def test_losses_on_one_way_combine():
    rules = [{"kind": "loss", "value": 0.5, "frm": [0]}]
    size = 1000 * PACKET_BYTES
    sends = [(0, 0, (1,), size), (0, 1, (0,), size)]
    found = arrivals("latency", sends, loss=0.2, rules=rules, up_bps=8e6, down_bps=8e9)
    assert found == pytest.approx(
        {(0, 1): size / 0.4 / 1e6 + RETRANSMISSION_S, (1, 0): size / 0.8 / 1e6 + RETRANSMISSION_S}
    )


@pytest.mark.parametrize("packets", [0.1, 1, 3])
def test_a_message_waits_for_a_timeout_as_often_as_it_loses_a_packet(packets):
    sends = [(10 * n, 0, (1,), int(packets * PACKET_BYTES)) for n in range(1, 4000)]
    found = arrivals("latency", sends, loss=0.1, up_bps=8e12, down_bps=8e12, small_bytes=10**6)
    late = np.mean([at_s % 10 > RETRANSMISSION_S / 2 for at_s in found.values()])
    assert late == pytest.approx(1 - 0.9 ** math.ceil(packets), abs=0.025)


# Jitter


def delays(model="latency", seed=0, sender=0, **keys):
    sends = [(100 * n, sender, (1,), 10) for n in range(1, 900)]
    return np.array([at_s % 100 for at_s in arrivals(model, sends, seed=seed, **keys).values()])


def test_jitter_is_exponential_with_its_mean():
    drawn = np.sort(delays(jitter_s=0.5) - 1)
    n = len(drawn)
    assert np.abs(1 - np.exp(-drawn / 0.5) - np.arange(n) / n).max() < 1.95 / n**0.5  # Kolmogorov-Smirnov, 0.1%
    assert drawn.min() > 0


def test_means_of_several_jitters_add_up():
    rules = [{"kind": "jitter", "value": 0.25, "frm": [0]}, {"kind": "jitter", "value": 9.0, "frm": [1]}]
    assert (delays(jitter_s=0.25, rules=rules) - 1) == pytest.approx(delays(jitter_s=0.5) - 1)


@pytest.mark.parametrize("model", MODELS)
def test_jitter_follows_the_seed_alone(model):
    assert delays(model, jitter_s=0.5).tolist() == delays(model, jitter_s=0.5).tolist()
    assert abs(np.corrcoef(delays(model, jitter_s=0.5), delays(model, seed=1, jitter_s=0.5))[0, 1]) < 0.15
    assert abs(np.corrcoef(delays(model, jitter_s=0.5), delays(model, sender=2, jitter_s=0.5))[0, 1]) < 0.15


def test_what_others_do_does_not_change_the_jitter():
    mine = [(10 * n, 0, (1,), 10) for n in range(1, 50)]
    others = [(10 * n + 5, 2, (1, 3), 10) for n in range(1, 50)]
    alone = arrivals("latency", mine, jitter_s=0.5)
    among = arrivals("latency", [*others, *mine], jitter_s=0.5)
    assert [among[49 + n, 1] for n in range(49)] == [alone[n, 1] for n in range(49)]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("small_bytes", [0, 100])
def test_jitter_does_not_reorder_what_one_node_sends_another(model, small_bytes):
    sends = [(0.1 * n, 0, (1,), 10) for n in range(200)]
    found = arrivals(model, sends, jitter_s=5.0, up_bps=1e9, down_bps=1e9, small_bytes=small_bytes)
    in_order = [found[n, 1] for n in range(200)]
    assert in_order == sorted(in_order)


def test_small_messages_still_overtake_large_ones_under_jitter():
    sends = [(0, 0, (1,), 10_000), (1, 0, (1,), 10)]
    found = arrivals("latency", sends, jitter_s=0.01, small_bytes=100)
    assert found[1, 1] < 10 < found[0, 1]


# Rules that do nothing, yet


@pytest.mark.parametrize("model", MODELS)
@given(seed=st.integers(0, 2**32))
def test_rules_of_another_time_or_place_change_nothing(model, seed):
    rng = np.random.default_rng(seed)
    sends = [
        (int(at), int(a), (int(b),), int(size)) for at, a, b, size in rng.integers((1, 0, 0, 0), (9, 3, 3, 99), (20, 4))
    ]
    rules = [
        {"kind": "partition", "start_s": 9e4},
        {"kind": "rate", "value": 3.0, "start_s": 9e4},
        {"kind": "loss", "value": 0.5, "frm": [3]},
        {"kind": "jitter", "value": 5.0, "to": [3]},
    ]
    found = arrivals(model, sends, rules=rules, latency_s=0.5)
    assert found == pytest.approx(arrivals(model, sends, latency_s=0.5), rel=1e-12)


def test_without_rules_there_are_none():
    assert not Rules(NetworkSection(), 4, 0)
    assert Rules(NetworkSection(loss=0.1), 4, 0)
    assert Rules(NetworkSection(jitter_s=0.1), 4, 0)


# Bad input


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"kind": "loss", "value": 1.0}, "value: 1 is no share of packets lost; give one from 0 to below 1"),
        ({"kind": "partition", "value": 1.0}, "value: a partition has none; leave it out"),
        ({"kind": "delay", "frm": [4]}, "frm: there is no node 4; 4 nodes have the numbers 0 to 3"),
        ({"kind": "delay", "to": [0, 17]}, "to: there is no node 17; 4 nodes have the numbers 0 to 3"),
        ({"kind": "delay", "frm": []}, "frm: names no node; leave it out to mean all"),
        ({"kind": "delay", "start_s": 5, "end_s": 5}, "end_s: 5 s is not after start_s, 5 s"),
    ],
)
def test_an_impossible_rule_is_named_by_its_place_and_key(rule, message):
    section = NetworkSection(rules=[{"kind": "delay", "value": 1.0}, rule])
    with pytest.raises(ConfigError) as raised:
        Rules(section, 4, 0)
    assert str(raised.value) == f"network.rules[1].{message}"
