"""A cache bounded in bytes: what is resident, in use, and waited for."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import NamedTuple

from node.caching.policies import DEFAULT_POLICY, POLICIES
from node.caching.policy import Key, Policy
from node.errors import ConfigError, Missing


class Outcome(Enum):
    """What became of a want."""

    HIT = auto()
    """It is resident."""
    ADMITTED = auto()
    """It was not, and has its place now: fetch it."""
    WAITING = auto()
    """Everything that could make room is pinned; a later decision admits it."""
    REFUSED = auto()
    """It will not be kept."""


class Decision(NamedTuple):
    """What a cache answers: the outcome for a key, and who had to go for it."""

    key: Key
    outcome: Outcome
    victims: tuple[Key, ...] = ()


class Resident(NamedTuple):
    """An entry, as an operator sees it."""

    key: Key
    size_bytes: int
    pins: int
    score: float


@dataclass
class Stats:
    """What happened since the start."""

    hits: int = 0
    misses: int = 0
    hit_bytes: int = 0
    missed_bytes: int = 0
    evicted: int = 0
    evicted_bytes: int = 0

    @property
    def hit_ratio(self) -> float:
        """Share of the accesses that were hits; 0 before the first."""
        return self.hits / max(1, self.hits + self.misses)

    @property
    def byte_hit_ratio(self) -> float:
        """Share of the bytes wanted that were resident; 0 before the first."""
        return self.hit_bytes / max(1, self.hit_bytes + self.missed_bytes)


@dataclass
class _Want:
    size_bytes: int
    pins: int


class Cache:
    """Keeps keys with sizes whose sum never exceeds a capacity, by a policy. It moves no bytes: the caller does.

    A key has its place from the moment it is admitted: who is told so fetches it, pins it meanwhile, and removes it if
    the fetch fails. A pinned entry is never evicted. A want for which nothing can make room waits in order of arrival,
    and nobody who comes later takes the room that it waits for.
    """

    def __init__(self, capacity_bytes: int, policy: Callable[[int], Policy] = POLICIES[DEFAULT_POLICY]) -> None:
        if capacity_bytes < 0:
            raise ConfigError(f"capacity_bytes of a cache is {capacity_bytes}; allowed: 0 and more")
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._policy = policy(capacity_bytes)
        self._sizes: dict[Key, int] = {}
        self._pins: dict[Key, int] = {}
        self._pinned_bytes = 0
        self._leaving: set[Key] = set()
        self._waiting: dict[Key, _Want] = {}
        self._stats = Stats()

    def access(self, key: Key, size_bytes: int) -> Decision:
        """Use a key, or let it in where there is room or room can be made. It never waits: REFUSED where all is pinned.

        Raises:
            ConfigError: the size is not positive.
        """
        return self._decide(key, size_bytes, waits=False)

    def acquire(self, key: Key, size_bytes: int) -> Decision:
        """Access a key and pin it, now or, where it has to wait, when it is admitted; :meth:`unpin` gives the pin back.

        REFUSED, and nothing to give back, where it is larger than the cache.
        """
        decision = self._decide(key, size_bytes, waits=True)
        if decision.outcome in (Outcome.HIT, Outcome.ADMITTED):
            self.pin(key)
        return decision

    def pin(self, key: Key) -> None:
        """Keep a resident key until as many :meth:`unpin`. Missing where it is not resident."""
        if key not in self._sizes:
            raise Missing(f"{key!r} is not in the cache: acquire it before it is pinned")
        if key not in self._pins:
            self._pinned_bytes += self._sizes[key]
        self._pins[key] = self._pins.get(key, 0) + 1

    def unpin(self, key: Key) -> tuple[Decision, ...]:
        """Give a pin back, or give up one want that waits; wants that could be admitted now are, pinned.

        Missing where nobody has pinned the key, nor waits for it.
        """
        if key in self._waiting:
            return self._give_up(key, pins=1)
        if key not in self._pins:
            raise Missing(f"{key!r} is not pinned: as many unpins as pins")
        self._pins[key] -= 1
        if not self._pins[key]:
            del self._pins[key]
            self._pinned_bytes -= self._sizes[key]
            if key in self._leaving:
                self._take_out(key)
        return self._admit_waiting()

    def remove(self, key: Key) -> tuple[Decision, ...]:
        """Take a key out: at once, or with its last pin unless it is wanted again before; or give up wants for it."""
        if key in self._waiting:
            return self._give_up(key, self._waiting[key].pins)
        if key in self._pins:
            self._leaving.add(key)
        elif key in self._sizes:
            self._take_out(key)
        return self._admit_waiting()

    def stats(self) -> Stats:
        """A copy of the counters."""
        return replace(self._stats)

    def residents(self) -> list[Resident]:
        """All entries, in order of admission."""
        score = self._policy.score
        return [Resident(key, size, self._pins.get(key, 0), score(key)) for key, size in self._sizes.items()]

    def waiting(self) -> list[Key]:
        """What is waited for, in order."""
        return list(self._waiting)

    def next_victim(self) -> Key | None:
        """Who would go if something unknown came now; None where all is pinned. A question, which changes nothing."""
        if len(self._pins) == len(self._sizes):
            return None
        return copy.deepcopy(self._policy).evict(self._pins.__contains__)

    def __contains__(self, key: Key) -> bool:
        return key in self._sizes

    def __iter__(self) -> Iterator[Key]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)

    def _decide(self, key: Key, size_bytes: int, waits: bool) -> Decision:
        if size_bytes < 1:
            raise ConfigError(f"size_bytes of {key!r} is {size_bytes}; allowed: at least 1")
        self._policy.on_access(key, size_bytes)
        if key in self._sizes:
            self._stats.hits += 1
            self._stats.hit_bytes += self._sizes[key]
            self._leaving.discard(key)
            self._policy.on_hit(key)
            return Decision(key, Outcome.HIT)
        self._stats.misses += 1
        self._stats.missed_bytes += size_bytes
        if size_bytes > self.capacity_bytes:
            return Decision(key, Outcome.REFUSED)
        if not self._waiting and self._can_hold(size_bytes):
            return self._admit(key, size_bytes)
        if not waits:
            return Decision(key, Outcome.REFUSED)
        self._waiting.setdefault(key, _Want(size_bytes, 0)).pins += 1
        return Decision(key, Outcome.WAITING)

    def _can_hold(self, size_bytes: int) -> bool:
        return self._pinned_bytes + size_bytes <= self.capacity_bytes

    def _admit(self, key: Key, size_bytes: int) -> Decision:
        self._policy.on_miss(key, size_bytes)
        victims = []
        while self.used_bytes + size_bytes > self.capacity_bytes:
            victim = self._policy.evict(self._pins.__contains__)
            victims.append(victim)
            self._stats.evicted += 1
            self._stats.evicted_bytes += self._forget(victim)
        self._policy.insert(key, size_bytes)
        self._sizes[key] = size_bytes
        self.used_bytes += size_bytes
        return Decision(key, Outcome.ADMITTED, tuple(victims))

    def _admit_waiting(self) -> tuple[Decision, ...]:
        decisions = []
        while self._waiting:
            key, want = next(iter(self._waiting.items()))
            if not self._can_hold(want.size_bytes):
                break
            del self._waiting[key]
            decisions.append(self._admit(key, want.size_bytes))
            self._pins[key] = want.pins
            self._pinned_bytes += want.size_bytes
        return tuple(decisions)

    def _give_up(self, key: Key, pins: int) -> tuple[Decision, ...]:
        self._waiting[key].pins -= pins
        if not self._waiting[key].pins:
            del self._waiting[key]
        return self._admit_waiting()

    def _take_out(self, key: Key) -> None:
        self._policy.remove(key)
        self._forget(key)

    def _forget(self, key: Key) -> int:
        self._leaving.discard(key)
        size_bytes = self._sizes.pop(key)
        self.used_bytes -= size_bytes
        return size_bytes
