"""Serving adapters from storage nodes, under the virtual clock: what each part of it is worth, and what routing does.

    python scripts/bench/serving.py [--small] [--seeds N] [--workers N] [--requests N] [--rate REQUESTS_PER_S]

The first table adds one part after another, from an adapter that is fetched for every use to all of them, between the
bounds of all adapters in memory and of a local disk. The second has all parts and each routing. Figures are means over
seeds with the half-width of a 95 % interval (Student's t); "Belady" is what the caches could have hit at best on the
same accesses, an upper bound where sizes differ. Times of steps come from a linear table: read effects, not seconds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import scipy.stats

from node.config import NetworkSection
from node.testing import run_protocol
from protocols.serving import Serving

LAYERS, HIDDEN, TARGETS, RANKS = 12, 2048, 7, (8, 16, 32)
NETWORK = NetworkSection(model="fifo", latency_s=0.001, up_bps=1e9, down_bps=1e9)

REMOTE = {"routing": "random", "streams": False}
PARTS: Mapping[str, Mapping[str, Any]] = {
    "all in memory": {**REMOTE, "source": "memory"},
    "local disk": {**REMOTE, "source": "disk", "policy": "lru"},
    "remote, cold": {**REMOTE, "keeps": False},
    "remote + LRU": {**REMOTE, "policy": "lru"},
    "remote + SIEVE": {**REMOTE, "policy": "sieve"},
    "remote + S3-FIFO": {**REMOTE, "policy": "s3-fifo"},
    "remote + GDSF": {**REMOTE, "policy": "gdsf"},
    "remote + W-TinyLFU": {**REMOTE, "policy": "w-tinylfu"},
    "  + layer streaming": {**REMOTE, "streams": True},
    "  + routing by cost": {"streams": True, "routing": "cost"},
}
ROUTINGS: Mapping[str, Mapping[str, Any]] = {
    name: {"routing": name} for name in ("random", "least-loaded", "rendezvous", "bounded", "two-choices", "cost")
}
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "TTFT p50 s": ("ttft_s", "p50", "value"),
    "p95": ("ttft_s", "p95", "value"),
    "p99": ("ttft_s", "p99", "value"),
    "TPOT p50 s": ("tpot_s", "p50", "value"),
    "e2e p95 s": ("e2e_s", "p95", "value"),
    "good/s": ("goodput_per_s",),
    "hits": ("cache", "hit_ratio"),
    "Belady": ("cache", "belady"),
    "max/mean": ("load_imbalance",),
    "peak MB": ("peak_cache_bytes",),
    "moved GB": ("content_bytes",),
}
UNITS = {"peak MB": 1e6, "moved GB": 1e9}


class Scale(NamedTuple):
    """How large the simulated service is."""

    storage: int
    compute: int
    adapters: int
    cache_bytes: int
    requests: int
    rate_per_s: float


LARGE = Scale(8, 16, 2000, 300_000_000, 2000, 30.0)
SMALL = Scale(2, 3, 60, 150_000_000, 120, 6.0)


def simulate(scale: Scale, options: Mapping[str, Any], seed: int) -> Mapping[str, Any]:
    """The summary of one run."""
    config = Serving.Config.model_validate(
        {
            "storage": scale.storage,
            "adapters": scale.adapters,
            "ranks": RANKS,
            "model": {"layers": LAYERS, "hidden": HIDDEN, "targets": TARGETS},
            "cache_bytes": scale.cache_bytes,
            "workload": {
                "requests": scale.requests,
                "arrivals": {"rate_per_s": scale.rate_per_s},
                "prompt_tokens": (64, 1024),
                "output_tokens": (8, 128),
            },
            **options,
        }
    )
    outcome = run_protocol(Serving(config), nodes=scale.storage + scale.compute, network=NETWORK, seed=seed)
    return Serving.summary(config, outcome.recorder.rows(), {})


def figure(summaries: Sequence[Mapping[str, Any]], column: str) -> str:
    """The mean of a column over seeds, and the half-width of its interval."""
    values = []
    for summary in summaries:
        value: Any = summary
        for key in COLUMNS[column]:
            value = value[key]
        values.append(float(value) / UNITS.get(column, 1.0))
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:.3g}"
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:.3g} ±{half:.1g}"


def table(pool: ProcessPoolExecutor, scale: Scale, rows: Mapping[str, Mapping[str, Any]], seeds: int) -> None:
    """Print one table: all runs at once, rows as they are done."""
    runs = {
        name: [pool.submit(simulate, scale, options, seed) for seed in range(seeds)] for name, options in rows.items()
    }
    print(f"{'':20}" + "".join(f"{name:>16}" for name in COLUMNS))
    for name, futures in runs.items():
        summaries = [future.result() for future in futures]
        print(f"{name:20}" + "".join(f"{figure(summaries, column):>16}" for column in COLUMNS), flush=True)


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a few nodes and requests, in seconds")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--requests", type=int)
    parser.add_argument("--rate", type=float, help="requests per second, of all nodes together")
    asked = parser.parse_args()
    scale = SMALL if asked.small else LARGE
    scale = scale._replace(requests=asked.requests or scale.requests, rate_per_s=asked.rate or scale.rate_per_s)
    sizes = [LAYERS * 2 * rank * HIDDEN * TARGETS * 2 / 1e6 for rank in RANKS]
    print(
        f"{scale.adapters} adapters of ranks {RANKS} ({', '.join(f'{size:.1f}' for size in sizes)} MB) for {LAYERS} "
        f"layers of width {HIDDEN}, {scale.storage} storage and {scale.compute} compute nodes, caches of "
        f"{scale.cache_bytes / 1e6:.0f} MB, {scale.requests} requests at {scale.rate_per_s:g}/s, Zipf 0.9, "
        f"{asked.seeds} seeds"
    )
    with ProcessPoolExecutor(asked.workers) as pool:
        print("\nWhat each part is worth")
        table(pool, scale, PARTS, asked.seeds)
        print("\nWhat routing does, with W-TinyLFU and layer streaming")
        table(pool, scale, ROUTINGS, asked.seeds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
