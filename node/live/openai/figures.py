"""A serving node's Prometheus metrics: times of requests as they end, everything else as it is when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from node.errors import StarlingError
from node.serving.loop import Serving
from node.serving.reply import Reply

_TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_REQUEST_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_DURATIONS = {
    "ttft": ("Time to the first token.", _REQUEST_BUCKETS_S),
    "tpot": ("Time per token after the first, of requests with several.", _TOKEN_BUCKETS_S),
    "itl": ("The gaps between tokens.", _TOKEN_BUCKETS_S),
    "e2el": ("Time to the last token.", _REQUEST_BUCKETS_S),
    "load_wait": ("How long a request waited for its adapters alone.", _REQUEST_BUCKETS_S),
}


class Figures(Collector):
    """The metrics of one serving loop."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._took = {
            what: Histogram(f"starling_{what}_seconds", meaning, buckets=buckets_s, registry=self._registry)
            for what, (meaning, buckets_s) in _DURATIONS.items()
        }
        self._requests = Counter("starling_requests", "Requests that have ended.", ["outcome"], registry=self._registry)
        self._tokens = Counter("starling_tokens", "Tokens of them.", ["kind"], registry=self._registry)
        serving.on_end = self._ended

    def text(self) -> bytes:
        """Everything, in the Prometheus text format."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Nothing: registering must not read."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Called by the registry."""
        residency, stats = self._serving.residency, self._serving.residency.cache.stats()
        counters = {
            "cache_hits": (stats.hits, "Requests whose adapter was resident."),
            "cache_misses": (stats.misses, "Requests whose adapter had to be loaded."),
            "cache_evictions": (stats.evicted, "Adapters that made room for others."),
            "loaded_bytes": (residency.loaded_bytes, "Of adapters' layers that were loaded."),
            "swaps": (residency.swaps, "Adapters that were loaded into a slot."),
            "torn": (self._serving.torn, "Requests whose adapter was changed under them; always 0."),
            "steps": (self._serving.steps, "Steps of the serving loop."),
        }
        for name, (value, meaning) in counters.items():
            yield CounterMetricFamily(f"starling_{name}", meaning, value=value)
        gauges = {
            "resident_bytes": (residency.cache.used_bytes, "Of the slots of resident adapters."),
            "cache_bytes": (residency.cache.capacity_bytes, "Of all slots."),
            "kept_bytes": (self._serving.engine.kept.size_bytes, "Of the room for keys and values."),
        }
        for name, (value, meaning) in gauges.items():
            yield GaugeMetricFamily(f"starling_{name}", meaning, value=value)
        info = GaugeMetricFamily("starling_lora_requests_info", "Requests that are served.", labels=["state"])
        info.add_metric(["running"], self._serving.running)
        info.add_metric(["waiting"], self._serving.waiting)
        yield info

    def _ended(self, reply: Reply, error: StarlingError | None) -> None:
        outcome = "failed" if error else "cancelled" if reply.is_cancelled else "served"
        self._requests.labels(outcome).inc()
        self._tokens.labels("prompt").inc(reply.prompt_tokens)
        self._tokens.labels("generated").inc(reply.generated)
        if outcome != "served":
            return
        served = reply.timing.served()
        self._took["ttft"].observe(served.ttft_s)
        self._took["e2el"].observe(served.e2e_s)
        self._took["load_wait"].observe(served.load_wait_s)
        for gap_s in served.itl_s:
            self._took["itl"].observe(gap_s)
        if served.itl_s:
            self._took["tpot"].observe(served.tpot_s)
