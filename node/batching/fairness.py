"""Whose turn it is: the virtual token counter (Sheng et al., OSDI 2024).

Each client is charged for the tokens it is served, and who has been served least goes first. A client that comes back
from idling is lifted to the least among those who are active: nobody can save up turns.
"""

from __future__ import annotations

from collections.abc import Mapping

INPUT_COST, OUTPUT_COST = 1.0, 2.0
"""What a token costs that is read, and one that is generated."""


class TokenCounter:
    """What every client has been served.

    Args:
        weights: shares of clients; one that is not named has 1.
    """

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._weights = weights or {}
        self._served: dict[str, float] = {}
        self._active: dict[str, int] = {}

    def arrived(self, client: str) -> None:
        """A request of a client is there."""
        if client not in self._active:
            least = min((self._served[other] for other in self._active), default=0.0)
            self._served[client] = max(self._served.get(client, 0.0), least)
        self._active[client] = self._active.get(client, 0) + 1

    def left(self, client: str) -> None:
        """A request of a client has ended, served or not."""
        self._active[client] -= 1
        if not self._active[client]:
            del self._active[client]

    def charge(self, client: str, input_tokens: int = 0, output_tokens: int = 0) -> None:
        """A client has been served tokens."""
        cost = INPUT_COST * input_tokens + OUTPUT_COST * output_tokens
        self._served[client] = self.served(client) + cost / self._weights.get(client, 1.0)

    def served(self, client: str) -> float:
        """The cost of what a client has been served, over its weight; the least goes first."""
        return self._served.get(client, 0.0)
