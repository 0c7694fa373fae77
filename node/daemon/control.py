"""What a node does when its operator tells it to, and the lines that this leaves in the audit of its state folder."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from node.daemon.journal import Journal
from node.daemon.standing import Phase, Standing
from node.daemon.trail import Trail
from node.errors import StarlingError
from node.live.control import Control


class Orders:
    """Carries orders out. All of it belongs to the event loop.

    Args:
        stop: ends the node in order, and says how it came to that; may be called again.
    """

    def __init__(self, standing: Standing, journal: Journal, stop: Callable[[str], None]) -> None:
        self._standing = standing
        self._steps = standing.steps
        self._journal = journal
        self._stop = stop
        self._trail = Trail(standing.settings.state, standing.settings.node)

    def control(self) -> Control:
        """What is offered over HTTP."""
        return Control(
            pause=self.pause,
            resume=self.resume,
            drain=self.drain,
            stop=lambda: self._stop("http"),
            set_level=lambda level: setattr(self._journal, "level", level),
            note=self.note,
        )

    def pause(self) -> None:
        """Begin no new training step; peers are answered. StarlingError for a node that is leaving."""
        self._check_staying()
        self._steps.hold()

    def resume(self) -> None:
        """Train on. StarlingError for a node that is leaving."""
        self._check_staying()
        self._steps.release()

    def drain(self) -> None:
        """Leave at the next checkpoint, or after ``drain_s``; at once, where there is nothing to finish."""
        if self._standing.phase is not Phase.RUNNING:
            self._stop("drained")
        elif not self._steps.is_draining:
            asyncio.get_running_loop().call_later(
                self._standing.settings.drain_s, self._stop, "not drained in time: the round before it counts"
            )
            self._steps.drain(lambda: self._stop("drained"))

    def note(self, caller: str, action: str, reason: str) -> None:
        """Write down who wanted what, and why it was refused."""
        self._trail.note(caller, action, reason=reason)

    def _check_staying(self) -> None:
        if self._steps.is_draining or self._standing.phase is Phase.STOPPING:
            raise StarlingError("the node is leaving, and that is not taken back; start it again")
