"""What comes to a node before its protocol has begun: it is kept, and happens in its order when it has."""

from __future__ import annotations

from collections.abc import Callable

from node.context import Context

MOST_KEPT = 4_096
"""Events that are kept for a protocol that has not begun yet."""


class Beginning:
    """Lets things happen to a context: now, or in their turn once there is one."""

    def __init__(self) -> None:
        self.context: Context | None = None
        """The protocol's, from when it has begun."""
        self.refused = 0
        """Events that there was no more room for."""
        self._kept: list[Callable[[Context], None]] = []

    def when_begun(self, event: Callable[[Context], None]) -> None:
        """Let something happen."""
        if self.context is not None:
            event(self.context)
        elif len(self._kept) < MOST_KEPT:
            self._kept.append(event)
        else:
            self.refused += 1

    def begin(self, context: Context) -> None:
        """The protocol has begun: what was kept happens."""
        self.context = context
        kept, self._kept = self._kept, []
        for event in kept:
            event(context)
