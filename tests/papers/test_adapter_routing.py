"""What routing and streaming do to serving many adapters: the effects of a rough simulation, on a shorter trace.

Four compute nodes of 16 slots, 500 adapters of 25 MB wanted by Zipf's law (0.9), caches of 24 each, links of 1 Gb/s;
the trace is drawn in the format, and with about the lengths, of the Azure conversation trace (Patel et al., ISCA 2024).
Orders are claimed, and not figures: those of times are invented.
"""

from datetime import datetime, timedelta
from functools import cache

import numpy as np
import pytest

from node.config import NetworkSection
from node.testing import run_protocol
from protocols.serving import Serving

LAYER_BYTES = 2 * 16 * 4096 * 8 * 2
NETWORK = NetworkSection(model="fifo", latency_s=0.001, up_bps=4e9, down_bps=1e9)


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    """The summary of a run, by routing, policy and so on: each is made once."""
    folder = tmp_path_factory.mktemp("traces")

    @cache
    def made(rate=5.5, output_tokens=60, requests=500, **options):
        trace = folder / f"{rate}-{output_tokens}.csv"
        trace.write_text(drawn(requests, rate, output_tokens))
        config = Serving.Config(
            **{
                "storage": 2,
                "adapters": 500,
                "model": {"hidden": 4096, "targets": 8, "chunk_bytes": LAYER_BYTES},
                "cache_bytes": 24 * 12 * LAYER_BYTES,
                "policy": "lru",
                "streams": False,
                "gossip_s": 0.1,
                "announce_s": 30.0,
                "workload": {"requests": requests, "trace": trace},
                **options,
            }
        )
        outcome = run_protocol(Serving(config), nodes=6, network=NETWORK)
        return Serving.summary(config, outcome.recorder.rows(), {})

    return made


def drawn(requests, rate, output_tokens):
    """A trace: Poisson arrivals, lengths of a lognormal distribution."""
    rng = np.random.default_rng(0)
    arrivals_s = np.cumsum(rng.exponential(1 / rate, requests))
    prompts = np.minimum(4142, 1 + rng.lognormal(np.log(1020), 0.7, requests).astype(int))
    outputs = np.minimum(601, 1 + rng.lognormal(np.log(output_tokens), 0.7, requests).astype(int))
    begin = datetime(2023, 11, 16, 18)
    lines = [
        f"{(begin + timedelta(seconds=float(time_s))).isoformat(' ', 'microseconds')},{prompt},{output}"
        for time_s, prompt, output in zip(arrivals_s, prompts, outputs, strict=True)
    ]
    return "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n"


def hit_ratio(found):
    return found["cache"]["hit_ratio"]


def ttft_s(found, q):
    return found["ttft_s"][q]["value"]


def test_the_more_affinity_the_more_hits(summary):
    ratios = [hit_ratio(summary(routing=name)) for name in ("rendezvous", "bounded", "two-choices", "random")]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > ratios[1] + 0.05
    assert ratios[2] > ratios[3] + 0.05


def test_affinity_costs_balance(summary):
    by_hash, balanced = summary(routing="rendezvous"), summary(routing="two-choices")
    assert by_hash["load_imbalance"] > balanced["load_imbalance"]
    assert summary(routing="bounded")["load_imbalance"] < by_hash["load_imbalance"]


def test_hits_shorten_the_median_wait_for_adapters(summary):
    assert ttft_s(summary(routing="rendezvous"), "p50") < ttft_s(summary(routing="random"), "p50")


@pytest.mark.parametrize(("q", "least_s"), [("p50", 0.05), ("p95", 0.0), ("p99", 0.05)])
def test_layer_streaming_moves_every_percentile_where_nodes_are_idle_enough(summary, q, least_s):
    idle = {"rate": 1.0, "output_tokens": 10, "routing": "cost", "policy": "s3-fifo"}
    blocking, streamed = summary(**idle, streams=False), summary(**idle, streams=True)
    assert ttft_s(streamed, q) < ttft_s(blocking, q) - least_s
    assert hit_ratio(streamed) == pytest.approx(hit_ratio(blocking), abs=0.02)


@pytest.mark.parametrize("name", ["rendezvous", "bounded", "two-choices", "random"])
def test_no_routing_has_more_hits_than_belady(summary, name):
    found = summary(routing=name)
    assert found["cache"]["is_exact"]
    assert 0 <= found["cache"]["regret"] <= found["cache"]["belady"]


def test_all_in_memory_is_the_bound(summary):
    everything = summary(routing="rendezvous", source="memory")
    assert everything["content_bytes"] == 0
    for q in ("p50", "p95"):
        assert ttft_s(everything, q) < ttft_s(summary(routing="rendezvous"), q)
