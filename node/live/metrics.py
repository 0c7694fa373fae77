"""A node's Prometheus metrics, read from where they are kept at the moment that somebody asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.live.lag import LagAlarm
from node.live.tally import Passed, Way

_PROBE_S = 0.5
_LAG_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_TRAIN_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_DURATIONS = {
    "train": ("How long a training step takes, with what it waits for.", _TRAIN_BUCKETS_S),
    "round": ("How long a round takes, from one that is recorded to the next.", _TRAIN_BUCKETS_S),
    "mix": ("How long it takes to mix models.", _LAG_BUCKETS_S),
    "wait": ("How long a round waits for what peers have to send.", _TRAIN_BUCKETS_S),
    "checkpoint": ("How long it takes to keep a checkpoint.", _LAG_BUCKETS_S),
    "probe_rtt": ("How long a member that was probed takes to answer.", _LAG_BUCKETS_S),
    "loop_lag": ("How late the event loop is with what was due.", _LAG_BUCKETS_S),
}
"""Histograms, in s."""

_MEANINGS = {
    "round": "The last round that this node has recorded.",
    "accuracy": "The last accuracy that this node has recorded.",
    "loss": "The last loss that this node has recorded.",
    "paused": "Whether this node begins no new training step.",
    "privacy_epsilon": "What this node has spent of its privacy, at the delta that the labels name.",
    "privacy_delta": "The delta that the epsilon is stated at.",
    "checkpoint_age_seconds": "How long ago the newest checkpoint was kept.",
    "health_score": "How far this node doubts itself (Lifeguard); 0: not at all.",
    "incarnation": "How often this node has begun, or has had to object to being called gone.",
    "rounds_finished": "Rounds that this node has recorded since it was started.",
    "chunks_resent": "Chunks of large models that left once more, in transfers that had been broken off before.",
    "bulk_sent_bytes": "Bytes of large models that have left beside the messages.",
    "bulk_received_bytes": "Bytes of large models that have come beside the messages.",
    "rounds_partial": "Rounds that went on without what some peers had to send.",
    "refutations": "How often this node has objected to being held for gone.",
    "disconnects": "How often a link to a peer has broken.",
    "reconnects": "How often a link to a peer that had broken was made again.",
    "clock_ahead_seconds": "By how much the clocks of the other members are ahead of this machine's, by their median.",
    "relayed_frames": "Sealed frames that this node has passed on between peers that nobody can dial.",
    "relayed_bytes": "Their bytes.",
    "suspicions": "How often this node has held a peer for gone, without being sure.",
}


class Reading(NamedTuple):
    """What a node has done so far; names of figures are those of their metrics, without what all have in common."""

    gauges: Mapping[str, float] = {}
    counters: Mapping[str, int] = {}
    passed: Mapping[Way, Passed] = {}
    refused: Mapping[str, int] = {}
    """Frames, handshakes and messages that were refused, by reason."""
    peers: Mapping[tuple[str, str], int] = {}
    """How many peers are in each state, and are reached by each path."""
    queued_bytes: Mapping[str, int] = {}
    """What waits, by queue."""
    dropped: Mapping[tuple[str, str], int] = {}
    """Messages that were given up, by queue and reason."""
    labels: Mapping[str, Mapping[str, str]] = {}
    """Labels of a gauge that means nothing without them, by its name."""


class Metrics(Collector):
    """A registry of one node's own.

    Args:
        read: gives what there is to show.
    """

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._durations = {
            what: Histogram(f"starling_{what}_seconds", meaning, buckets=buckets_s, registry=self._registry)
            for what, (meaning, buckets_s) in _DURATIONS.items()
        }

    def text(self) -> bytes:
        """Everything, in the Prometheus text format."""
        return generate_latest(self._registry)

    def took(self, what: str, seconds: float) -> None:
        """A ``train``, ``round``, ``mix``, ``wait``, ``checkpoint``, ``probe_rtt`` or ``loop_lag`` took so long."""
        self._durations[what].observe(seconds)

    async def probe_lag(self) -> None:
        """Measure the loop's lag twice a second, until cancelled; a large one is told."""
        alarm = LagAlarm()
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + _PROBE_S
            await asyncio.sleep(_PROBE_S)
            lag_s = max(0.0, loop.time() - due_s)
            self.took("loop_lag", lag_s)
            alarm.note(lag_s, loop.time())

    def describe(self) -> list[Metric]:
        """Nothing: registering must not read."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        reading = self._read()
        for name, value in reading.gauges.items():
            yield _gauge(name, _MEANINGS.get(name, name), reading.labels.get(name, {}), value)
        for name, count in reading.counters.items():
            yield CounterMetricFamily(f"starling_{name}", _MEANINGS.get(name, name), value=count)
        yield from _passed(reading.passed)
        yield _by_label(CounterMetricFamily, "refused", "What was refused.", "reason", reading.refused)
        peers = GaugeMetricFamily("starling_peers", "Other nodes, by state and path.", labels=["state", "path"])
        for state_and_path, count in reading.peers.items():
            peers.add_metric(state_and_path, count)
        yield peers
        yield _by_label(GaugeMetricFamily, "queue_bytes", "What waits.", "queue", reading.queued_bytes)
        dropped = CounterMetricFamily("starling_dropped", "Messages that were given up.", labels=["queue", "reason"])
        for where_and_why, count in reading.dropped.items():
            dropped.add_metric(where_and_why, count)
        yield dropped


def _gauge(name: str, meaning: str, labels: Mapping[str, str], value: float) -> Metric:
    family = GaugeMetricFamily(f"starling_{name}", meaning, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _by_label(
    kind: type[CounterMetricFamily | GaugeMetricFamily],
    name: str,
    meaning: str,
    label: str,
    values: Mapping[str, float],
) -> Metric:
    family = kind(f"starling_{name}", meaning, labels=[label])
    for what, value in values.items():
        family.add_metric([what], value)
    return family


def _passed(passed: Mapping[Way, Passed]) -> Iterator[Metric]:
    for position, (name, meaning) in enumerate((("messages", "Messages."), ("bytes", "Headers and payloads."))):
        family = CounterMetricFamily(f"starling_{name}", meaning, labels=list(Way._fields))
        for way, counted in passed.items():
            family.add_metric(list(way), counted[position])
        yield family
