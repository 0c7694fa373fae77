"""An alarm for an event loop that runs late: its node answers late too, and peers may take it for gone."""

from __future__ import annotations

import structlog

ALARM_S = 1.0
"""Lag that is told: about where the probes of other members give up."""
QUIET_S = 60.0
"""Between two alarms."""


class LagAlarm:
    """Logs a lag of ALARM_S or more, and then no other for a while."""

    def __init__(self) -> None:
        self._told_s: float | None = None
        self._untold = 0

    def note(self, lag_s: float, now_s: float) -> None:
        """The loop has run something so much later than it was due; ``now_s`` on any clock that never goes back."""
        if lag_s < ALARM_S:
            return
        if self._told_s is not None and now_s - self._told_s < QUIET_S:
            self._untold += 1
            return
        structlog.get_logger().warning(
            "event loop lags",
            lag_s=round(lag_s, 3),
            untold=self._untold,
            detail="this node answers late; give it a core of its own, or fewer neighbours on its machine",
        )
        self._told_s, self._untold = now_s, 0
