"""How a node's figures have gone, as anybody may see them: coarse, for exact ones would give training data away."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from node.record import Recorder

MOST_POINTS = 200
METRICS = ("accuracy", "loss")


def coarse(value: float | None) -> float | None:
    """A figure to three digits; None where there is none, or it is no number."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.3g}")


def curves(recorder: Recorder, node: int) -> dict[str, dict[str, list[Any]]]:
    """Accuracy and loss of a node over its time in s, as far as they are known: at most 200 points, with the last."""
    return {metric: _curve(recorder, node, metric) for metric in METRICS}


def _curve(recorder: Recorder, node: int, metric: str) -> dict[str, list[Any]]:
    times_s, nodes, values = recorder.samples(metric)
    own = np.flatnonzero(nodes == node)
    if len(own) > MOST_POINTS:
        own = own[np.linspace(0, len(own) - 1, MOST_POINTS).astype(np.intp)]
    return {
        "time_s": [round(time_s, 1) for time_s in times_s[own].tolist()],
        "value": [coarse(value) for value in values[own].tolist()],
    }
