"""One measured number, as it stands in a run's table of metrics."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """Who measured what, and when."""

    time_s: float
    node: int
    round: int
    metric: str
    value: float
