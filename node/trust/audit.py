"""Who did what to a network, and what came of it: JSON lines for its owner to read."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

MOST_REFUSALS = 1_000
"""Refusals written in an hour: strangers must not be able to fill the disk."""

_LONGEST = 200


class Audit:
    """One such file. What it says follows from nothing, and nothing follows from it."""

    def __init__(self, path: Path) -> None:
        """``path`` is made, mode 0600, at the first line."""
        self._path = path
        self._hour = -1
        self._refusals = 0

    def record(self, now_s: float, actor: str, action: str, what: str, reason: str = "") -> None:
        """Add a line; ``reason``: why it was refused. OSError where it cannot be written."""
        if reason and not self._has_room(now_s):
            return
        line = {
            "time": datetime.fromtimestamp(now_s, UTC).isoformat(timespec="milliseconds"),
            "actor": actor[:_LONGEST],
            "action": action,
            "object": what[:_LONGEST],
            "result": "refused" if reason else "done",
            "reason": reason,
        }
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(json.dumps(line) + "\n")

    def _has_room(self, now_s: float) -> bool:
        hour = int(now_s // 3600)
        if hour != self._hour:
            self._hour, self._refusals = hour, 0
        self._refusals += 1
        return self._refusals <= MOST_REFUSALS
