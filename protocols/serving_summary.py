"""What a run of serving comes to, made of what its nodes have recorded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from node import Row
from node.caching.regret import Access, regret
from node.emulated import Emulated
from node.workloads.latencies import Objective, Served, imbalance
from node.workloads.statement import stated
from protocols.serving_settings import ServingConfig


def summarised(config: ServingConfig, rows: Iterable[Row], traffic: Mapping[str, int]) -> Mapping[str, Any]:
    """Latencies with intervals, goodput, hits beside the best possible, bytes and balance; nothing without requests."""
    requests: defaultdict[int, dict[str, float]] = defaultdict(dict)
    accesses: defaultdict[int, list[list[float]]] = defaultdict(list)
    totals: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        kind, _, what = row.metric.partition("/")
        if kind == "request":
            requests[row.round][what] = row.value
        elif row.metric == "access/adapter":
            accesses[row.node].append([row.value])
        elif row.metric == "access/is_hit":
            accesses[row.node][-1].append(row.value)
        else:
            totals[row.metric][row.node] = row.value
    if not requests:
        return {}
    served = [_served(each) for _, each in sorted(requests.items()) if not each["error"]]
    objective = Objective(config.ttft_objective_s, config.tpot_objective_s)
    return {
        "requests": len(requests),
        "routing": config.routing,
        "policy": config.policy,
        "source": config.source,
        "streams": config.streams,
        **stated(served, objective, len(requests)),
        "cache": _cache(config, accesses),
        "load_imbalance": imbalance(list(totals["compute/served"].values()) or [0.0]),
        "refetched_chunks": int(sum(totals["compute/refetched"].values())),
        "peak_cache_bytes": int(max(totals["compute/peak_bytes"].values(), default=0)),
        "stored_copies_made": int(sum(totals["store/copied"].values())),
        "content_bytes": int(sum(totals["store/sent_bytes"].values())),
        "sent_bytes": dict(traffic),
    }


def _served(fields: Mapping[str, float]) -> Served:
    """One request; the times between its first and its last token were not kept, and count as equal."""
    first_s, last_s, tokens = fields["first_s"], fields["last_s"], int(fields["tokens"])
    gaps = max(1, tokens - 1)
    token_s = tuple(first_s + (last_s - first_s) * i / gaps for i in range(tokens))
    return Served(fields["sent_s"], token_s, fields["load_wait_s"], fields["queue_s"], fields["prefill_s"])


def _cache(config: ServingConfig, accesses: Mapping[int, list[list[float]]]) -> Mapping[str, Any]:
    """Hits of all nodes together, beside what each could have had at best on its own accesses."""
    cards = list(
        Emulated(config.model, config.times, config.workload, config.adapters, config.ranks, ()).cards.values()
    )
    if config.source == "memory":
        return {"accesses": sum(map(len, accesses.values())), "hit_ratio": 1.0, "belady": 1.0, "regret": 0.0}
    found = [
        regret(
            [Access(int(adapter), cards[int(adapter)].size_bytes) for adapter, _ in trace],
            int(sum(is_hit for _, is_hit in trace)),
            config.cache_bytes,
        )
        for _, trace in sorted(accesses.items())
    ]
    total = max(1, sum(each.accesses for each in found))
    hits, best = sum(each.hits for each in found) / total, sum(each.best_hits for each in found) / total
    return {
        "accesses": sum(each.accesses for each in found),
        "hit_ratio": hits,
        "belady": best,
        "is_exact": all(each.is_exact for each in found),
        "regret": best - hits,
    }
