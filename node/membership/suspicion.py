"""How long a suspect has to object.

Lifeguard's dynamic suspicion (Dadgar, Phillips and Currey, arXiv 1707.00788, 2017): one accuser alone may be the slow
one, so it waits long; each independent accuser shortens the wait, down to what SWIM would have waited.
"""

from __future__ import annotations

import math

from node.membership.statement import Statement


def suspicion_timeout_s(confirmations: int, expected: int, least_s: float, most_s: float) -> float:
    """Seconds from ``most_s`` without a confirmation to ``least_s`` with all that are expected, by the logarithm.

    ``max(min, max - (max - min) ln(C + 1) / ln(K + 1))``; where none is expected (K = 0), ``min``.
    """
    if expected == 0:
        return least_s
    share = math.log(confirmations + 1) / math.log(expected + 1)
    return max(least_s, most_s - (most_s - least_s) * share)


class Suspicion:
    """Of one word of one peer: who accuses it, and when time is up."""

    __slots__ = ("_least_s", "_most_s", "accusations", "began_s", "deadline_s", "expected")

    def __init__(self, now: float, bounds_s: tuple[float, float], expected: int) -> None:
        self.accusations: dict[int, Statement] = {}
        """By author; at most one more than are expected."""
        self.expected = expected
        self.began_s = now
        self._least_s, self._most_s = bounds_s
        self.deadline_s = math.inf

    def is_open_to(self, author: int) -> bool:
        """Whether an accusation by somebody is one more that counts."""
        return author not in self.accusations and len(self.accusations) <= self.expected

    def confirm(self, accusation: Statement) -> None:
        """Take in an accusation that counts."""
        self.accusations[accusation.author] = accusation
        self._set_deadline()

    def delay(self, by_s: float) -> None:
        """Do not count some time against the suspect."""
        self.began_s += by_s
        self._set_deadline()

    def _set_deadline(self) -> None:
        confirmations = max(0, len(self.accusations) - 1)
        wait_s = suspicion_timeout_s(confirmations, self.expected, self._least_s, self._most_s)
        self.deadline_s = self.began_s + wait_s
