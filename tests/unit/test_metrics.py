"""A node's Prometheus metrics: their names, types and labels, and what is counted by kind and by peer."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from node.live.metrics import Metrics, Reading
from node.live.tally import MOST_PEERS, OTHERS, Passed, Tally, Way

READING = Reading(
    gauges={"round": 7, "accuracy": 0.5, "health_score": 2},
    counters={"rounds_finished": 8, "suspicions": 1},
    passed={Way("sent", "a/1", "3"): Passed(10, 1000), Way("received", "b/1", "other"): Passed(9, 900)},
    refused={"stranger": 2},
    peers={("alive", "direct"): 3, ("alive", "relay"): 1, ("dead", "none"): 1},
    queued_bytes={"send": 50, "receive": 0},
    dropped={("send", "gone"): 4, ("mailbox", "late"): 1},
)
DURATIONS = ("train", "round", "mix", "wait", "checkpoint", "probe_rtt", "loop_lag")


def families(metrics):
    return list(text_string_to_metric_families(metrics.text().decode()))


def samples(metrics):
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families(metrics)
        for sample in family.samples
    }


def test_names_and_labels():
    found = samples(Metrics(lambda: READING))
    histograms = tuple(f"starling_{what}_seconds" for what in DURATIONS)
    assert {key: value for key, value in found.items() if not key[0].startswith(histograms)} == {
        ("starling_round",): 7,
        ("starling_accuracy",): 0.5,
        ("starling_health_score",): 2,
        ("starling_rounds_finished_total",): 8,
        ("starling_suspicions_total",): 1,
        ("starling_messages_total", "sent", "a/1", "3"): 10,
        ("starling_messages_total", "received", "b/1", "other"): 9,
        ("starling_bytes_total", "sent", "a/1", "3"): 1000,
        ("starling_bytes_total", "received", "b/1", "other"): 900,
        ("starling_refused_total", "stranger"): 2,
        ("starling_peers", "direct", "alive"): 3,
        ("starling_peers", "relay", "alive"): 1,
        ("starling_peers", "none", "dead"): 1,
        ("starling_queue_bytes", "send"): 50,
        ("starling_queue_bytes", "receive"): 0,
        ("starling_dropped_total", "send", "gone"): 4,
        ("starling_dropped_total", "mailbox", "late"): 1,
    }


def test_types_and_names_of_labels():
    found = families(Metrics(lambda: READING))
    types = {family.name: family.type for family in found if not family.name.endswith("_created")}
    assert types == {
        "starling_round": "gauge",
        "starling_accuracy": "gauge",
        "starling_health_score": "gauge",
        "starling_rounds_finished": "counter",
        "starling_suspicions": "counter",
        "starling_messages": "counter",
        "starling_bytes": "counter",
        "starling_refused": "counter",
        "starling_peers": "gauge",
        "starling_queue_bytes": "gauge",
        "starling_dropped": "counter",
        **{f"starling_{what}_seconds": "histogram" for what in DURATIONS},
    }
    labels = {sample.name: set(sample.labels) for each in found for sample in each.samples}
    assert labels["starling_bytes_total"] == labels["starling_messages_total"] == {"direction", "kind", "peer"}
    assert labels["starling_refused_total"] == {"reason"}
    assert labels["starling_queue_bytes"] == {"queue"}
    assert labels["starling_dropped_total"] == {"queue", "reason"}


def test_a_gauge_with_labels():
    reading = Reading({"privacy_epsilon": 1.5}, labels={"privacy_epsilon": {"mechanism": "record", "unit": "record"}})
    assert samples(Metrics(lambda: reading))[("starling_privacy_epsilon", "record", "record")] == 1.5


def test_a_label_is_written_as_text_whatever_is_in_it():
    reading = Reading(passed={Way("sent", 'x"\n\\y', "1"): Passed(1, 2)})
    assert samples(Metrics(lambda: reading))[("starling_bytes_total", "sent", 'x"\n\\y', "1")] == 2


def test_they_are_read_anew_each_time():
    rounds = iter([1, 2])
    metrics = Metrics(lambda: READING._replace(gauges={"round": next(rounds)}))
    assert [samples(metrics)[("starling_round",)] for _ in range(2)] == [1, 2]


def test_two_nodes_of_one_process_do_not_mix():
    one, other = (Metrics(lambda n=n: READING._replace(gauges={"round": n})) for n in (1, 2))
    one.took("train", 1.0)
    assert (samples(one)[("starling_round",)], samples(other)[("starling_round",)]) == (1, 2)
    assert samples(one)[("starling_train_seconds_count",)] == 1
    assert samples(other)[("starling_train_seconds_count",)] == 0


def test_each_duration_is_a_histogram_of_its_own():
    metrics = Metrics(lambda: READING)
    for what in DURATIONS:
        metrics.took(what, 0.2)
        assert samples(metrics)[(f"starling_{what}_seconds_count",)] == 1
        assert samples(metrics)[(f"starling_{what}_seconds_sum",)] == 0.2


def test_training_is_a_histogram():
    metrics = Metrics(lambda: READING)
    for seconds in (0.02, 0.3, 4000.0):
        metrics.took("train", seconds)
    found = samples(metrics)
    assert found[("starling_train_seconds_count",)] == 3
    assert found[("starling_train_seconds_bucket", "0.025")] == 1
    assert found[("starling_train_seconds_bucket", "0.5")] == 2
    assert found[("starling_train_seconds_bucket", "1800.0")] == 2


async def test_the_loops_lag_is_seen(monkeypatch):
    monkeypatch.setattr("node.live.metrics._PROBE_S", 0.001)
    metrics = Metrics(lambda: READING)
    probing = asyncio.create_task(metrics.probe_lag())
    while not samples(metrics)[("starling_loop_lag_seconds_count",)]:
        await asyncio.sleep(0)
    probing.cancel()
    found = samples(metrics)
    assert found[("starling_loop_lag_seconds_bucket", "+Inf")] == found[("starling_loop_lag_seconds_count",)] > 0


# What has passed


def test_a_tally_is_by_direction_kind_and_peer():
    tally = Tally()
    for _ in range(2):
        tally.note("sent", "a/1", 5, 100)
    tally.note("received", "a/1", 5, 7)
    tally.note("sent", "b/1", 5, 1)
    assert tally.read() == {
        Way("received", "a/1", "5"): Passed(1, 7),
        Way("sent", "a/1", "5"): Passed(2, 200),
        Way("sent", "b/1", "5"): Passed(1, 1),
    }


def test_no_more_peers_than_that_have_a_place_of_their_own():
    tally = Tally()
    for peer in range(10 * MOST_PEERS):
        tally.note("sent", "a/1", peer, 1)
    found = tally.read()
    assert len(found) == MOST_PEERS + 1
    assert found[Way("sent", "a/1", OTHERS)] == Passed(9 * MOST_PEERS, 9 * MOST_PEERS)
    tally.note("received", "a/1", 0, 1)
    assert Way("received", "a/1", "0") in tally.read()


@given(
    st.lists(
        st.tuples(st.sampled_from(["sent", "received"]), st.integers(0, 3), st.integers(0, 200), st.integers(0, 9))
    )
)
def test_nothing_is_lost_or_counted_twice(events):
    tally = Tally()
    for direction, kind, peer, size_bytes in events:
        tally.note(direction, f"{kind}", peer, size_bytes)
    found = tally.read()
    assert list(found) == sorted(found)
    assert sum(passed.messages for passed in found.values()) == len(events)
    assert sum(passed.size_bytes for passed in found.values()) == sum(size for *_, size in events)
    assert tally.size_bytes("sent") == sum(size for direction, *_, size in events if direction == "sent")
