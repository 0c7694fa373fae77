"""A node's Prometheus metrics, read from where they are kept at the moment that somebody asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_PROBE_S = 0.5
_LAG_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Reading(NamedTuple):
    """What a node has done so far."""

    gauges: Mapping[str, float]
    """``round``, ``accuracy``, ``loss`` and ``epsilon``, where they are known."""
    sent: tuple[int, int]
    """Messages and their bytes."""
    received: tuple[int, int]
    refused: Mapping[str, int]
    """Frames, handshakes and messages that were refused, by reason."""
    peers: Mapping[str, int]
    """How many peers are in each state."""
    meanings: Mapping[str, Mapping[str, str]] = {}
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
        self._lag = Histogram(
            "starling_loop_lag_seconds",
            "How late the event loop is with what was due.",
            buckets=_LAG_BUCKETS_S,
            registry=self._registry,
        )

    def text(self) -> bytes:
        """Everything, in the Prometheus text format."""
        return generate_latest(self._registry)

    async def probe_lag(self) -> None:
        """Measure the loop's lag twice a second, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + _PROBE_S
            await asyncio.sleep(_PROBE_S)
            self._lag.observe(max(0.0, loop.time() - due_s))

    def describe(self) -> list[Metric]:
        """Nothing: registering must not read."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        reading = self._read()
        for name, value in reading.gauges.items():
            meaning = reading.meanings.get(name, {})
            gauge = GaugeMetricFamily(f"starling_{name}", f"The last {name} of this node.", labels=list(meaning))
            gauge.add_metric(list(meaning.values()), value)
            yield gauge
        for position, what in enumerate(("messages", "bytes")):
            family = CounterMetricFamily(f"starling_{what}", f"What has passed in {what}.", labels=["direction"])
            family.add_metric(["sent"], reading.sent[position])
            family.add_metric(["received"], reading.received[position])
            yield family
        refused = CounterMetricFamily("starling_refused", "What was refused.", labels=["reason"])
        for reason, count in reading.refused.items():
            refused.add_metric([reason], count)
        yield refused
        peers = GaugeMetricFamily("starling_peers", "Other nodes, by state.", labels=["state"])
        for state, count in reading.peers.items():
            peers.add_metric([state], count)
        yield peers
