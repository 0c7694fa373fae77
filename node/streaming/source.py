"""One of the nodes that an object is fetched from, as its receiver sees it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from node.placement.rendezvous import Node

MOST_CREDIT = 64
"""Chunks asked of one source at a time, however fast it says it is."""
_LEAST_RATE_BYTES_PER_S = 1.0
_NEWEST = 0.25
"""What the newest measurement of a rate counts."""
_SPAN_S = 0.01
"""Of a measurement: chunks that were read together say nothing about the time between them."""


@dataclass(frozen=True)
class Link:
    """A source, and what is known of the way to it before anything has come."""

    node: Node
    bandwidth_bytes_per_s: float
    rtt_s: float


class Source:
    """What was asked of a source, how fast it is, and whether it still counts."""

    def __init__(self, link: Link) -> None:
        self.node = link.node
        self.asked_s: dict[int, float] = {}
        """When each chunk was asked for that is expected."""
        self.is_banned = False
        self.is_here = True
        self._ever_asked: set[int] = set()
        self._asked_again: set[int] = set()
        self._last_s = -math.inf
        self._span_s = 0.0
        self._span_bytes = 0
        self.return_by(link)

    def return_by(self, link: Link) -> None:
        """It is there again, perhaps by another way."""
        self.is_here = True
        self.rtt_s = link.rtt_s
        self.rate_bytes_per_s = max(_LEAST_RATE_BYTES_PER_S, link.bandwidth_bytes_per_s)

    @property
    def is_usable(self) -> bool:
        """Whether chunks may be asked of it."""
        return self.is_here and not self.is_banned

    def credit(self, chunk_bytes: int) -> int:
        """Chunks that fill the way to it and back, and one more that is being served: so it is never idle."""
        in_flight = self.rate_bytes_per_s * self.rtt_s / chunk_bytes
        return math.ceil(min(in_flight, MOST_CREDIT - 1)) + 1

    def has_credit(self, chunk_bytes: int) -> bool:
        """Whether one more may be asked of it now."""
        return self.is_usable and len(self.asked_s) < self.credit(chunk_bytes)

    @property
    def wait(self) -> tuple[float, Node]:
        """How long until one more would be served, in chunks per byte per second; of equals, the first by number."""
        return (len(self.asked_s) + 1) / self.rate_bytes_per_s, self.node

    def expected_s(self, chunk_bytes: int) -> float:
        """Seconds until all that is asked of it should be there."""
        return self.rtt_s + len(self.asked_s) * chunk_bytes / self.rate_bytes_per_s

    def ask(self, chunk: int, now_s: float) -> None:
        """A chunk is asked of it, perhaps again."""
        if chunk in self.asked_s:
            self._asked_again.add(chunk)
        self.asked_s[chunk] = now_s
        self._ever_asked.add(chunk)

    def drop(self, chunk: int) -> None:
        """A chunk is not expected of it any more."""
        del self.asked_s[chunk]
        self._asked_again.discard(chunk)

    def drop_all(self) -> list[int]:
        """Nothing is expected of it any more; what was."""
        owed = sorted(self.asked_s)
        self.asked_s.clear()
        self._asked_again.clear()
        return owed

    def was_asked(self, chunk: int) -> bool:
        """Whether a chunk was ever asked of it."""
        return chunk in self._ever_asked

    def settle(self, chunk: int, size_bytes: int, now_s: float) -> float | None:
        """A chunk has come from it: seconds since it was asked for.

        None where it was not expected any more, or was asked for twice, and nobody knows which question this answers
        (Karn and Partridge, SIGCOMM 1987).
        """
        asked_s = self.asked_s.pop(chunk, None)
        if asked_s is None or chunk in self._asked_again:
            self._asked_again.discard(chunk)
            return None
        self.rtt_s = min(self.rtt_s, now_s - asked_s)
        self._measure(asked_s, size_bytes, now_s)
        return now_s - asked_s

    def _measure(self, asked_s: float, size_bytes: int, now_s: float) -> None:
        # A chunk cannot begin to come before the question has been there, nor before the chunk ahead of it is here.
        self._span_s += max(0.0, now_s - max(asked_s + self.rtt_s, self._last_s))
        self._span_bytes += size_bytes
        self._last_s = max(self._last_s, now_s)
        if self._span_s >= _SPAN_S:
            rate = self._span_bytes / self._span_s
            self.rate_bytes_per_s += _NEWEST * (rate - self.rate_bytes_per_s)
            self.rate_bytes_per_s = max(_LEAST_RATE_BYTES_PER_S, self.rate_bytes_per_s)
            self._span_s, self._span_bytes = 0.0, 0
