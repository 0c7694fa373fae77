"""How requests were served, in figures for a summary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from node.workloads.latencies import PERCENTILES, Objective, Served, attainment, goodput, percentile, throughput

_TIMES: dict[str, Callable[[Served], float]] = {
    "ttft_s": lambda served: served.ttft_s,
    "tpot_s": lambda served: served.tpot_s,
    "e2e_s": lambda served: served.e2e_s,
    "load_wait_s": lambda served: served.load_wait_s,
    "queue_s": lambda served: served.queue_s,
    "prefill_s": lambda served: served.prefill_s,
}


def stated(served: Sequence[Served], objective: Objective, asked: int) -> dict[str, Any]:
    """Percentiles of all times with 95 % bootstrap intervals, rates, and the share of ``asked`` that met an objective.

    Resamples are drawn from a seed of their own, so that equal runs say the same.
    """
    rng = np.random.default_rng(0)
    times = {
        name: {f"p{q}": asdict(percentile([time(each) for each in served], q, rng)) for q in PERCENTILES}
        for name, time in _TIMES.items()
        if served
    }
    return {
        "served": len(served),
        **times,
        "throughput_per_s": throughput(served),
        "goodput_per_s": goodput(served, objective),
        "attainment": attainment(served, objective, asked),
    }
