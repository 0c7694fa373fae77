"""What a running node logs: how much of it, which its operator may change, and the last warnings, for its page."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from typing import Any

import structlog

from node.logs import configure

MOST_WARNINGS = 64

_SEVERITY = {name: severity for severity, name in enumerate(("debug", "info", "warning", "error", "critical"))}
_CODE = re.compile(r"[a-z][a-z0-9_]{0,31}")


class Journal:
    """Stands in the way of every event that is logged in this process, once it is told to."""

    def __init__(self) -> None:
        self.level = "info"
        """The least severe events that are logged."""
        self._warnings: deque[dict[str, Any]] = deque(maxlen=MOST_WARNINGS)

    def begin(self) -> None:
        """Set up logging for this process."""
        configure(through=self.pass_on)

    def warnings(self) -> list[Mapping[str, Any]]:
        """The last warnings and errors, oldest first: what happened and with whom, nothing that names places or files.

        Each has ``time``, ``level``, ``event``, and where they are known ``peer`` and ``reason``.
        """
        return list(self._warnings)

    def pass_on(self, logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """As structlog asks its processors; from any thread."""
        severity = _SEVERITY.get(event["level"], 0)
        if severity >= _SEVERITY["warning"]:
            self._warnings.append(_public(event))
        if severity < _SEVERITY[self.level]:
            raise structlog.DropEvent
        return event


def _public(event: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {key: str(event[key]) for key in ("time", "level", "event")}
    peer, reason = event.get("peer"), event.get("reason")
    if isinstance(peer, int):
        found["peer"] = peer
    if isinstance(reason, str) and _CODE.fullmatch(reason):
        found["reason"] = reason
    return found
