"""Serving under the virtual clock: what queueing theory, streaming's recurrence and a patient client say about it."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from node import ConfigError
from node.config import ChurnSection, FaultSection, NetworkSection
from node.streaming.recurrence import blocking_s, streamed_s
from node.tape import EventKind, events_of
from node.testing import run_protocol
from protocols.computing import Computing
from protocols.dispatching import Dispatching
from protocols.serving import Serving

LINK_BPS, LATENCY_S = 1e8, 0.001
NETWORK = NetworkSection(model="fifo", latency_s=LATENCY_S, up_bps=LINK_BPS, down_bps=LINK_BPS)
SMALL = {"layers": 4, "hidden": 64, "targets": 2, "chunk_bytes": 4096}
ADAPTER_BYTES = 4 * 2 * 16 * 64 * 2 * 2


def config(**changed):
    workload = {"requests": 60, "arrivals": {"rate_per_s": 20}, "prompt_tokens": (10, 100), "output_tokens": (1, 20)}
    values = {
        "storage": 2,
        "adapters": 20,
        "model": SMALL,
        "cache_bytes": 6 * ADAPTER_BYTES,
        "expected_bps": LINK_BPS,
        "announce_s": 1.0,
        "workload": {**workload, **changed.pop("workload", {})},
    }
    return Serving.Config(**{**values, **changed})


def served(made, nodes=4, **world):
    """The outcome of a run, and the metrics of its requests by number."""
    outcome = run_protocol(Serving(made), nodes=nodes, network=world.pop("network", NETWORK), **world)
    requests = defaultdict(dict)
    for row in outcome.recorder.rows():
        kind, _, what = row.metric.partition("/")
        if kind == "request":
            requests[row.round][what] = row.value
    return outcome, dict(sorted(requests.items()))


def total(outcome, metric):
    return sum(row.value for row in outcome.recorder.rows() if row.metric == metric)


def alone(**changed):
    """One compute node with everything in its memory, one request at a time, one token each, 0.1 s each."""
    workload = {"prompt_tokens": (100, 101), "output_tokens": (1, 2), **changed.pop("workload", {})}
    times = {"prefill_token_s": 0.001}
    return config(storage=0, source="memory", slots=1, times=times, workload=workload, **changed)


# The same again


def test_two_runs_have_equal_logs_and_another_seed_has_another():
    one, other = served(config())[0], served(config())[0]
    assert one.event_hash == other.event_hash
    assert one.events == other.events
    assert served(config(), seed=1)[0].event_hash != one.event_hash


@pytest.mark.parametrize("routing", ["random", "least-loaded", "rendezvous", "bounded", "two-choices", "cost"])
def test_every_routing_serves_every_request_and_nothing_is_computed(routing):
    outcome, requests = served(config(routing=routing))
    assert sorted(requests) == list(range(60))
    assert not any(each["error"] for each in requests.values())
    assert outcome.solved == 0


@pytest.mark.parametrize("source", ["memory", "disk", "storage"])
@pytest.mark.parametrize("keeps", [True, False])
def test_wherever_adapters_come_from_all_requests_are_served(source, keeps):
    _, requests = served(config(source=source, keeps=keeps))
    assert len(requests) == 60
    assert all(not each["error"] and each["tokens"] >= 1 for each in requests.values())


def test_times_of_a_request_are_in_order():
    _, requests = served(config())
    for each in requests.values():
        assert each["sent_s"] <= each["first_s"] <= each["last_s"]
        parts_s = each["load_wait_s"] + each["queue_s"] + each["prefill_s"]
        assert parts_s <= each["first_s"] - each["sent_s"] + 1e-9


def test_the_summary_keeps_its_definitions():
    made = config()
    outcome, requests = served(made)
    found = Serving.summary(made, outcome.recorder.rows(), {"serving/get/1": 3})
    assert found["requests"] == found["served"] == len(requests)
    assert found["goodput_per_s"] <= found["throughput_per_s"]
    assert found["ttft_s"]["p50"]["value"] <= found["ttft_s"]["p99"]["value"] <= found["e2e_s"]["p99"]["value"]
    for q in ("p50", "p95", "p99"):
        assert found["ttft_s"][q]["low"] <= found["ttft_s"][q]["value"] <= found["ttft_s"][q]["high"]
    cache = found["cache"]
    assert cache["accesses"] == 60
    assert cache["regret"] == pytest.approx(cache["belady"] - cache["hit_ratio"])
    assert 0 <= cache["regret"] <= 1
    assert found["peak_cache_bytes"] <= made.cache_bytes
    assert found["sent_bytes"] == {"serving/get/1": 3}
    assert found["load_imbalance"] >= 1


def test_a_run_without_requests_has_no_summary():
    assert Serving.summary(config(), [], {}) == {}


# Queueing theory


def waits(made, seed=0):
    _, requests = served(made, nodes=1, seed=seed)
    sent_s = np.array([each["sent_s"] for each in requests.values()])
    return sent_s, np.array([each["last_s"] for each in requests.values()]) - sent_s - 0.1


def test_one_server_with_equal_services_follows_lindley_exactly():
    sent_s, wait_s = waits(alone(workload={"requests": 2000, "arrivals": {"rate_per_s": 8}}))
    expected, free_s = [], 0.0
    for time_s in sent_s:
        begin_s = max(time_s, free_s)
        expected.append(begin_s - time_s)
        free_s = begin_s + 0.1
    assert wait_s == pytest.approx(np.array(expected), abs=1e-9)


def test_the_mean_wait_is_that_of_an_md1_queue():
    rate, service_s = 4.0, 0.1
    rho = rate * service_s
    workload = {"requests": 12_000, "arrivals": {"rate_per_s": rate}}
    mean_s = np.mean([waits(alone(workload=workload), seed)[1].mean() for seed in range(3)])
    assert mean_s == pytest.approx(rho * service_s / (2 * (1 - rho)), rel=0.02)


def test_nodes_tell_as_many_requests_as_littles_law_says(monkeypatch):
    loads = []
    hear = Dispatching.hear

    def listen(self, node, status):
        if node != self._ctx.me and self._ctx.now < 150:
            loads.append(status.load)
        hear(self, node, status)

    monkeypatch.setattr(Dispatching, "hear", listen)
    workload = {"requests": 8000, "arrivals": {"rate_per_s": 50}, "output_tokens": (5, 40)}
    made = config(storage=0, source="memory", slots=64, routing="random", gossip_s=0.37, workload=workload)
    _, requests = served(made, nodes=2)
    last_s = max(each["sent_s"] for each in requests.values())
    assert last_s > 150
    took_s = np.mean([each["last_s"] - each["sent_s"] for each in requests.values()])
    assert 2 * np.mean(loads) == pytest.approx(len(requests) / last_s * took_s, rel=0.05)


# Streaming


def first_token(streams, prefill_token_s, rank=64):
    """The first token of one request over a constant link, the layers' arrivals, and the time of each layer's work."""
    model = {"layers": 8, "hidden": 512, "targets": 4, "chunk_bytes": 1 << 22}
    made = config(
        storage=1,
        adapters=1,
        ranks=(rank,),
        replicas=1,
        model=model,
        cache_bytes=10**9,
        streams=streams,
        times={"prefill_token_s": prefill_token_s},
        workload={"requests": 1, "prompt_tokens": (100, 101), "output_tokens": (1, 2)},
        expected_rtt_s=2 * LATENCY_S,
    )
    outcome, requests = served(made, nodes=2)
    arrived_s = [
        event.time_s - requests[0]["sent_s"]
        for event in events_of(outcome.events)
        if event.kind == EventKind.DELIVERED and event.node == 1 and event.size_bytes > 1e5
    ]
    return requests[0]["first_s"] - requests[0]["sent_s"], arrived_s, [100 * prefill_token_s / 8] * 8


@pytest.mark.parametrize("prefill_token_s", [1e-5, 1.6e-3, 4e-3])
def test_streaming_takes_exactly_what_the_recurrence_says(prefill_token_s):
    took_s, arrived_s, compute_s = first_token(True, prefill_token_s)
    transfer_s = np.diff([0.0, *arrived_s]).tolist()
    assert len(arrived_s) == 8
    assert took_s == pytest.approx(streamed_s(transfer_s, compute_s), abs=1e-9)


@pytest.mark.parametrize("prefill_token_s", [1e-5, 1.6e-3, 4e-3])
def test_without_streaming_all_layers_come_before_the_first_is_used(prefill_token_s):
    took_s, arrived_s, compute_s = first_token(False, prefill_token_s)
    assert took_s == pytest.approx(blocking_s(np.diff([0.0, *arrived_s]).tolist(), compute_s), abs=1e-9)


def test_the_link_is_never_idle_between_layers():
    _, arrived_s, _ = first_token(True, 1e-3)
    layer_bytes = 2 * 64 * 512 * 4 * 2
    gaps_s = np.diff(arrived_s)
    assert gaps_s == pytest.approx(np.full(7, gaps_s[0]), abs=1e-9)
    assert gaps_s[0] * LINK_BPS / 8 == pytest.approx(layer_bytes, rel=1e-3)


def test_streaming_gains_most_where_transfer_and_work_are_equal():
    def gain(prefill_token_s):
        return first_token(False, prefill_token_s)[0] / first_token(True, prefill_token_s)[0]

    equal = 2 * 64 * 512 * 4 * 2 * 8 / LINK_BPS * 8 / 100
    middle = gain(equal)
    assert 1.5 < middle < 2 * 8 / 9
    assert max(gain(equal / 5), gain(equal * 5)) < middle


# Nobody waits for ever


@pytest.mark.parametrize("order", ["oldest", "fair"])
def test_with_one_slot_every_request_is_served(order):
    workload = {"requests": 150, "popularity": {"kind": "zipf", "alpha": 1.2}, "clients": 3}
    made = config(slots=1, batch_adapters=1, cache_bytes=ADAPTER_BYTES, age_limit_s=2.0, order=order, workload=workload)
    outcome, requests = served(made, nodes=3)
    assert sorted(requests) == list(range(150))
    assert not any(each["error"] for each in requests.values())
    assert total(outcome, "compute/served") == 150


def test_who_would_wait_too_long_is_refused_and_the_others_are_served():
    made = alone(ttft_limit_s=0.5, workload={"requests": 100, "arrivals": {"rate_per_s": 15}})
    _, requests = served(made, nodes=1)
    refused = [each for each in requests.values() if each["error"]]
    assert 0 < len(refused) < 100
    late = [each["first_s"] - each["sent_s"] for each in requests.values() if not each["error"]]
    assert max(late) <= 0.5 + 0.1 + 1e-9


def test_a_request_beyond_all_room_is_refused_at_once():
    _, requests = served(config(kept_tokens=60))
    refused = [each for each in requests.values() if each["error"]]
    assert 0 < len(refused) < 60
    assert all("first_s" not in each for each in refused)


@pytest.mark.parametrize("changed", [{"adapter": "no such"}, {"prompt_tokens": 0}, {"output_tokens": -1}])
def test_a_request_that_makes_no_sense_is_refused_and_the_node_goes_on(monkeypatch, changed):
    take = Computing.take

    def spoilt(self, entry, ask):
        take(self, entry, replace(ask, **changed) if ask.request == 7 else ask)

    monkeypatch.setattr(Computing, "take", spoilt)
    _, requests = served(config())
    assert [number for number, each in requests.items() if each["error"]] == [7]
    assert len(requests) == 60


def test_requests_at_a_compute_node_that_dies_are_asked_of_others():
    crash = ChurnSection(schedule=(FaultSection(time_s=1.5, node=2, what="crash"),), detect_s=0.3)
    made = config(routing="random", workload={"requests": 200, "arrivals": {"rate_per_s": 50}})
    outcome, requests = served(made, nodes=5, churn=crash)
    before = [number for number in range(200) if number % 3]  # what nodes 3 and 4 have taken in
    assert set(before) <= set(requests)
    assert not any(each["error"] for each in requests.values())
    assert list(outcome.lost) == [2]


# What does not fit together


@pytest.mark.parametrize(
    ("changed", "nodes", "said"),
    [
        ({"storage": 4}, 4, "protocol.storage: 4 of 4 nodes leave none to compute"),
        ({"storage": 0}, 4, "allowed: at least 1"),
        ({"policy": "best"}, 4, "cache policy 'best' is unknown"),
        ({"routing": "north"}, 4, "protocol.routing: 'north' is not known; allowed: random"),
        ({"replicas": 9}, 4, "are more than most_replicas"),
        ({"cache_bytes": ADAPTER_BYTES - 1}, 4, f"allowed: at least {ADAPTER_BYTES}"),
    ],
)
def test_what_does_not_fit_together_is_refused(changed, nodes, said):
    with pytest.raises(ConfigError, match=said):
        Serving.check(config(**changed), nodes)


def test_the_first_nodes_store():
    assert Serving.roles(config(storage=1), 3) == {0: "storage", 1: "compute", 2: "compute"}
    cards = Serving.inference(config(), 4).cards
    assert sum(card.size_bytes for card in cards.values()) == 20 * ADAPTER_BYTES
