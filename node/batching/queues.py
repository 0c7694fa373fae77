"""What waits for which adapter, and which adapters are fetched next.

An adapter is remote, being fetched, resident, or could not be had and may be asked for again later. Whoever waits for a
slow one delays nobody else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from enum import Enum, auto

from node.batching.job import Adapter, Job


class State(Enum):
    """Where an adapter is, as this node knows."""

    REMOTE = auto()
    FETCHING = auto()
    RESIDENT = auto()
    ERRORED = auto()


class Queues:
    """Jobs that have not begun, in the order of their arrival, and the states of their adapters.

    Args:
        most_fetches: adapters that are fetched at once.
    """

    def __init__(self, most_fetches: int) -> None:
        self._most_fetches = most_fetches
        self._waiting: dict[int, Job] = {}
        self._resident: set[Adapter] = set()
        self._fetching: set[Adapter] = set()
        self._retry_at_s: dict[Adapter, float] = {}
        self._blocked: set[Adapter] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Job]:
        """The jobs that wait, oldest first."""
        return iter(self._waiting.values())

    def add(self, job: Job) -> None:
        """A job has come."""
        self._waiting[job.id] = job

    def take(self, id: int) -> Job | None:
        """A job waits no longer, because it begins or because its client has gone; None where it did not wait."""
        return self._waiting.pop(id, None)

    def state(self, adapter: Adapter) -> State:
        """Where an adapter is."""
        if adapter in self._resident:
            return State.RESIDENT
        if adapter in self._fetching:
            return State.FETCHING
        return State.ERRORED if adapter in self._retry_at_s else State.REMOTE

    def block(self, adapter: Adapter) -> None:
        """An adapter that is to be fetched finds no place: all are in use."""
        self._blocked.add(adapter)

    def unblock(self, adapter: Adapter) -> None:
        """It has a place now, and is on its way."""
        self._blocked.discard(adapter)

    def is_blocked(self, job: Job) -> bool:
        """Whether a job waits for a place for one of its adapters."""
        return not self._blocked.isdisjoint(job.adapters)

    def came(self, adapter: Adapter) -> None:
        """An adapter is resident, or so far that what needs it may begin."""
        self._fetching.discard(adapter)
        self._blocked.discard(adapter)
        self._retry_at_s.pop(adapter, None)
        self._resident.add(adapter)

    def went(self, adapter: Adapter) -> None:
        """An adapter has been evicted."""
        self._resident.discard(adapter)

    def failed(self, adapter: Adapter, retry_at_s: float) -> list[Job]:
        """A fetch has failed; gives the jobs that cannot be served now, oldest first, which wait no longer.

        A job that comes later is tried again, from ``retry_at_s`` on.
        """
        self._fetching.discard(adapter)
        self._blocked.discard(adapter)
        self._retry_at_s[adapter] = retry_at_s
        hopeless = [job for job in self if adapter in job.adapters]
        for job in hopeless:
            del self._waiting[job.id]
        return hopeless

    def ready(self) -> list[Job]:
        """The jobs whose adapters are all resident, oldest first."""
        return [job for job in self if self._resident.issuperset(job.adapters)]

    def to_fetch(self, now_s: float, first: Collection[Adapter] = ()) -> list[Adapter]:
        """Adapters to begin to fetch now: those of the oldest jobs first, each once, as many as may be on their way.

        Args:
            first: as long as one of these could be fetched and is not, nothing else is.
        """
        begun: list[Adapter] = []
        held = [adapter for adapter in first if self._is_due(adapter, now_s)]
        for adapter in held or (adapter for job in self for adapter in job.adapters):
            if len(self._fetching) >= self._most_fetches:
                break
            if self._is_due(adapter, now_s):
                self._fetching.add(adapter)
                begun.append(adapter)
        return begun

    def _is_due(self, adapter: Adapter, now_s: float) -> bool:
        """Whether it could be fetched: it is not there, nor on its way, and no failure is too fresh."""
        is_near = adapter in self._resident or adapter in self._fetching
        return not is_near and now_s >= self._retry_at_s.get(adapter, now_s)
