"""What the next step of a serving loop does: whom it lets in, what it fetches, whom it refuses.

Loading is part of the state, not of the control flow: the scheduler never waits for an adapter, it goes on with the
requests that can run. Once the oldest request has waited too long, it is the next to get what it lacks: no other
adapter is fetched before its own, no place is used again before it has one, and nobody begins before it once it can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from node.batching.admission import Budget, Footprint
from node.batching.fairness import TokenCounter
from node.batching.job import Adapter, Job
from node.batching.queues import Queues


@dataclass(frozen=True)
class Rules:
    """How a scheduler chooses."""

    order: Literal["oldest", "fair"] = "oldest"
    """``oldest``: in order of arrival; ``fair``: clients that have been served least first."""
    most_fetches: int = 4
    """Adapters on their way at once."""
    age_limit_s: float = 10.0
    """A request that has waited longer goes before all others."""
    ttft_limit_s: float | None = None
    """Refuse a request whose first token is expected to take longer than this; None: serve it too late."""


@dataclass(frozen=True)
class Step:
    """What to do now."""

    begin: tuple[Job, ...] = ()
    """Prefill these, in this order."""
    fetch: tuple[Adapter, ...] = ()
    """Begin to fetch these."""
    refuse: tuple[Job, ...] = ()
    """These would be served too late."""


@dataclass
class _Running:
    job: Job
    generated: int = 0

    @property
    def footprint(self) -> Footprint:
        return Footprint(self.job.input_tokens + self.generated, self.job.most_output_tokens - self.generated)


@dataclass
class Scheduler:
    """The requests of one compute node, from arrival to end.

    Args:
        budget: what the node has room for.
        adapter_tokens: the room that an adapter takes, in tokens.
        prefill_s: how long the prefill of so many tokens takes; what ``ttft_limit_s`` reckons with.
    """

    budget: Budget
    rules: Rules = field(default_factory=Rules)
    adapter_tokens: Callable[[Adapter], int] = lambda adapter: 0
    prefill_s: Callable[[int], float] = lambda tokens: 0.0
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        self.queues = Queues(self.rules.most_fetches)
        self._counter = TokenCounter(self.weights)
        self._running: dict[int, _Running] = {}

    def arrive(self, job: Job) -> bool:
        """A job has come; False: it can never run, its tokens or adapters are beyond what this node has room for."""
        alone = [Footprint(job.input_tokens, job.most_output_tokens)]
        if len(job.adapters) > self.budget.adapters or not self.budget.has_room(alone, self._room_of(job.adapters)):
            return False
        self._counter.arrived(job.client)
        self.queues.add(job)
        return True

    def failed(self, adapter: Adapter, retry_at_s: float) -> list[Job]:
        """An adapter could not be had; gives the jobs that end for it."""
        return self._forget(self.queues.failed(adapter, retry_at_s))

    def generated(self, ids: Iterable[int]) -> None:
        """Running jobs have generated a token each."""
        for id in ids:
            running = self._running[id]
            running.generated += 1
            self._counter.charge(running.job.client, output_tokens=1)

    def end(self, id: int) -> None:
        """A job is over, served or given up; nothing happens where there is none."""
        running = self._running.pop(id, None)
        job = self.queues.take(id) if running is None else running.job
        if job is not None:
            self._counter.left(job.client)

    def step(self, now_s: float) -> Step:
        """Decide what to do now."""
        refused = self._too_late(now_s)
        oldest = next(iter(self.queues), None)
        is_due = oldest is not None and now_s - oldest.arrived_s > self.rules.age_limit_s
        ready = self.queues.ready() if len(self._running) < self.budget.running else []
        if oldest is not None and is_due:
            ready = self._deferring_to(oldest, ready)
        begun = self._begin_fairly(ready) if self.rules.order == "fair" else self._begin_clustered(ready)
        reserved = oldest.adapters if oldest is not None and is_due else ()
        return Step(tuple(begun), tuple(self.queues.to_fetch(now_s, reserved)), tuple(refused))

    @property
    def running(self) -> list[Job]:
        """The jobs that have begun, in the order in which they did."""
        return [each.job for each in self._running.values()]

    def _admit(self, job: Job) -> bool:
        adapters = {adapter for other in (*self.running, job) for adapter in other.adapters}
        footprints = [each.footprint for each in self._running.values()]
        footprints.append(Footprint(job.input_tokens, job.most_output_tokens))
        if len(adapters) > self.budget.adapters or not self.budget.has_room(footprints, self._room_of(adapters)):
            return False
        self.queues.take(job.id)
        self._running[job.id] = _Running(job)
        self._counter.charge(job.client, input_tokens=job.input_tokens)
        return True

    def _deferring_to(self, oldest: Job, ready: list[Job]) -> list[Job]:
        """Who may begin while a job has waited too long."""
        if oldest in ready:
            return [oldest]
        return [job for job in ready if not job.adapters] if self.queues.is_blocked(oldest) else ready

    def _begin_clustered(self, ready: list[Job]) -> list[Job]:
        """Oldest first, but right after each whatever else wants the same adapters, and first what the batch has."""
        places: dict[tuple[Adapter, ...], int] = {job.adapters: -1 for job in self.running}
        for job in ready:
            places.setdefault(job.adapters, len(places))
        return [job for job in sorted(ready, key=lambda job: places[job.adapters]) if self._admit(job)]

    def _begin_fairly(self, ready: list[Job]) -> list[Job]:
        """Again and again the oldest of the client that has been served least, until it does not fit."""
        begun: list[Job] = []
        while ready:
            job = min(ready, key=lambda job: self._counter.served(job.client))
            if not self._admit(job):
                break
            ready.remove(job)
            begun.append(job)
        return begun

    def _too_late(self, now_s: float) -> list[Job]:
        if self.rules.ttft_limit_s is None:
            return []
        limit_s = self.rules.ttft_limit_s
        late = [job for job in self.queues if now_s - job.arrived_s + self.prefill_s(job.input_tokens) > limit_s]
        for job in late:
            self.queues.take(job.id)
        return self._forget(late)

    def _forget(self, jobs: list[Job]) -> list[Job]:
        for job in jobs:
            self._counter.left(job.client)
        return jobs

    def _room_of(self, adapters: Iterable[Adapter]) -> int:
        return sum(self.adapter_tokens(adapter) for adapter in adapters)
