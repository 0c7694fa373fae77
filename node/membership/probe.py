"""One probe on its way, and probes on behalf of others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

MOST_RELAYED = 64
"""Probes for others at a time; who asks for more gets no report."""


@dataclass(slots=True)
class Probe:
    """What this node has asked a peer, directly and then through helpers."""

    seq: int
    target: int
    began_s: float
    timeout_s: float
    """After which helpers are asked."""
    end_s: float
    tolerated_lag_s: float
    """This node's own lateness beyond which a missing answer says nothing."""
    look: int = 1
    """How many in a row this is of one target, since those before said too little."""
    helpers: int = 0
    """Who have been asked, and have promised to report."""
    reports: int = 0
    """That have come from them: it has answered, or it has not."""
    is_indirect: bool = False
    is_answered: bool = False
    is_direct: bool = False
    """Whether it has answered itself."""
    worst_lag_s: float = 0.0
    """Of this node, while it waited."""

    @property
    def deadline_s(self) -> float:
        """When something is to be done about it."""
        if self.is_answered or self.is_indirect:
            return self.end_s
        return self.began_s + self.timeout_s

    @property
    def is_inconclusive(self) -> bool:
        """Whether this node was so late itself that a missing answer says nothing."""
        return self.worst_lag_s > self.tolerated_lag_s

    @property
    def penalty(self) -> int:
        """How much a failure says about this node's own health: silent helpers, or 1 where none was asked.

        Lifeguard (arXiv 1707.00788, 2017): where helpers that promised to report are silent too, they are not all dead.
        """
        return max(0, self.helpers - self.reports) if self.helpers else 1


@dataclass(slots=True)
class _Relayed:
    asker: int
    seq: int
    """Of the asker."""
    nack_s: float
    end_s: float
    has_reported: bool = False


class Relays:
    """Probes on behalf of others: who asked, and when it must hear that nothing has come yet."""

    def __init__(self) -> None:
        self._relayed: dict[int, _Relayed] = {}

    def add(self, seq: int, asker: int, askers_seq: int, now: float, within_s: float) -> bool:
        """Remember a probe with this node's ``seq``; False: there are too many.

        The NACK is due at 80% of the time that the asker waits, so that enough is left for the way back. (That share is
        unverified against the paper.)
        """
        if len(self._relayed) >= MOST_RELAYED:
            return False
        self._relayed[seq] = _Relayed(asker, askers_seq, now + 0.8 * within_s, now + within_s)
        return True

    def answered(self, seq: int) -> tuple[int, int] | None:
        """Whom the answer to a probe is for, and under which number it waits for that."""
        relayed = self._relayed.pop(seq, None)
        return (relayed.asker, relayed.seq) if relayed else None

    def overdue(self, now: float) -> Iterator[tuple[int, int]]:
        """Who must be told now that nothing has come, each once; what is over is forgotten."""
        for seq, relayed in list(self._relayed.items()):
            if relayed.end_s <= now:
                del self._relayed[seq]
            if relayed.nack_s <= now and not relayed.has_reported:
                relayed.has_reported = True
                yield relayed.asker, relayed.seq

    @property
    def deadline_s(self) -> float:
        """When the next one is overdue, or over."""
        waits = [relayed.end_s if relayed.has_reported else relayed.nack_s for relayed in self._relayed.values()]
        return min(waits, default=math.inf)
