"""Who has not answered, and for how long it is not asked again."""

from __future__ import annotations

from node.placement.rendezvous import Node

FIRST_S = 1.0
MOST_S = 300.0


class Silence:
    """A negative cache of nodes: each failure in a row doubles the time for which a node is left out.

    The practice of hivemind and Petals (Borzunov et al., ACL 2023).
    """

    def __init__(self, first_s: float = FIRST_S, most_s: float = MOST_S) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._failures: dict[Node, int] = {}
        self._until_s: dict[Node, float] = {}

    def unanswered(self, node: Node, now_s: float) -> None:
        """A request was not answered; several that fail while a node is left out anyway count once."""
        if self.is_out(node, now_s):
            return
        self._failures[node] = self._failures.get(node, 0) + 1
        doublings = min(self._failures[node] - 1, 62)
        self._until_s[node] = now_s + min(self._first_s * 2**doublings, self._most_s)

    def answered(self, node: Node) -> None:
        """It is there: all is forgotten."""
        self._failures.pop(node, None)
        self._until_s.pop(node, None)

    def is_out(self, node: Node, now_s: float) -> bool:
        """Whether a node should not be asked now."""
        return now_s < self._until_s.get(node, now_s)
