"""What is passed on by the way: each rumour a limited number of times, the least told first.

Piggy-backed dissemination as in SWIM (Das, Gupta and Motivala, DSN 2002, section 4.1).
"""

from __future__ import annotations

from node.membership.statement import Statement


class _Rumour:
    __slots__ = ("is_dropped", "statement")

    def __init__(self, statement: Statement) -> None:
        self.statement = statement
        self.is_dropped = False


class Rumours:
    """Statements by how often they have been told. At most one word, or a suspicion's accusations, per peer."""

    def __init__(self) -> None:
        self._told: list[list[_Rumour]] = [[]]
        """The n-th list has been told n times."""
        self._about: dict[int, dict[int, _Rumour]] = {}
        """By peer and author."""

    def __len__(self) -> int:
        return sum([len(about) for about in self._about.values()])

    def __bool__(self) -> bool:
        return bool(self._about)

    def add(self, statement: Statement, *, replaces: bool) -> None:
        """Begin to tell a statement; ``replaces``: instead of all others about this peer."""
        if replaces:
            self.drop(statement.peer)
        rumour = _Rumour(statement)
        about = self._about.setdefault(statement.peer, {})
        if (old := about.get(statement.author)) is not None:
            old.is_dropped = True
        about[statement.author] = rumour
        untold = self._told[0]
        untold.append(rumour)
        if len(untold) > 2 * len(self) + 64:
            untold[:] = [rumour for rumour in untold if not rumour.is_dropped]

    def drop(self, peer: int) -> None:
        """Tell no more about a peer."""
        for rumour in self._about.pop(peer, {}).values():
            rumour.is_dropped = True

    def take(self, budget_bytes: int, limit: int) -> list[Statement]:
        """What to tell now, the least told first and the newest first among those; once told ``limit`` times, it ends.

        What does not fit is skipped, so that one long record does not hold up the rest.
        """
        taken: list[tuple[int, _Rumour]] = []
        for times, rumours in enumerate(self._told):
            if not rumours or budget_bytes <= 0:
                continue
            kept: list[_Rumour] = []
            while rumours and budget_bytes > 0:
                rumour = rumours.pop()
                if rumour.is_dropped:
                    continue
                if rumour.statement.size_bytes > budget_bytes:
                    kept.append(rumour)
                    continue
                budget_bytes -= rumour.statement.size_bytes
                taken.append((times + 1, rumour))
            rumours += reversed(kept)
        for times, rumour in taken:
            self._put_back(rumour, times, limit)
        return [rumour.statement for _, rumour in taken]

    def _put_back(self, rumour: _Rumour, times: int, limit: int) -> None:
        statement = rumour.statement
        if times >= limit:
            about = self._about[statement.peer]
            del about[statement.author]
            if not about:
                del self._about[statement.peer]
            return
        while len(self._told) <= times:
            self._told.append([])
        self._told[times].append(rumour)
