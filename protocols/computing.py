"""A compute node: requests join and leave a running batch, and none waits for another's adapter.

Whatever is fetched is part of the state, not of the control flow: a step reads the layers of prompts that have come so
far of their adapters, and makes the next token of all others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node import Context
from node.batching.admission import Budget
from node.batching.job import Job
from node.batching.scheduler import Rules, Scheduler
from node.inference import Decode, Prefill
from protocols.directory import Directory
from protocols.larder import Larder
from protocols.serving_messages import Ask, Progress, Status
from protocols.serving_settings import ServingConfig

_NEWEST = 0.1
"""What the newest request counts in the mean time of requests."""


@dataclass
class _Running:
    ask: Ask
    entry: int
    adapter: str
    began_s: float
    load_wait_s: float
    queue_s: float
    layers: int = 0
    """Of the prompt's pass, so far."""
    tokens: int = 0


class Computing:
    """The requests that one node serves.

    Args:
        tell: told of the first and the last token of each request, for the node that has taken it in.
    """

    def __init__(
        self, ctx: Context, config: ServingConfig, directory: Directory, tell: Callable[[int, Progress], None]
    ) -> None:
        self.served = 0
        self._ctx = ctx
        self._config = config
        self._tell = tell
        self._cards = ctx.inference.cards
        self._engine = ctx.inference.engine(ctx)
        rules = Rules(config.order, config.fetches, config.age_limit_s, config.ttft_limit_s)
        budget = Budget(config.kept_tokens, config.slots, config.batch_adapters)
        self._scheduler = Scheduler(budget, rules, prefill_s=lambda tokens: self._engine.expected_s(tokens, 1))
        self._asked: dict[int, tuple[int, Ask, float]] = {}
        self._running: dict[int, _Running] = {}
        self._mean_s = 0.0
        self._has_changed = False
        self._idle = ctx.future()
        self.larder = Larder(ctx, config, directory, self._scheduler.queues, self._changed, self._failed)

    @property
    def status(self) -> Status:
        """What others need to know to choose a node."""
        waiting = len(self._scheduler.queues)
        rounds = max(0, waiting + len(self._running) + 1 - self._config.slots) / self._config.slots
        return Status(
            load=waiting + len(self._running),
            slot_wait_s=rounds * self._mean_s,
            link_free_in_s=self.larder.link_free_in_s,
            resident=self.larder.resident,
        )

    def take(self, entry: int, ask: Ask) -> None:
        """A request has come, taken in by another node or this one."""
        adapters = (ask.adapter,) if ask.adapter else ()
        job = Job(ask.request, ask.client, adapters, ask.prompt_tokens, ask.output_tokens, self._ctx.now)
        self._asked[job.id] = (entry, ask, job.arrived_s)
        if (ask.adapter and ask.adapter not in self._cards) or min(ask.prompt_tokens, ask.output_tokens) < 1:
            self._refuse(job, "there is no such adapter, or nothing to do")
        elif self._scheduler.arrive(job):
            self._changed()
        else:
            self._refuse(job, "the request is beyond what this node has room for")

    async def run(self) -> None:
        """Serve, for as long as the run goes on."""
        while True:
            self._has_changed = False
            self._schedule()
            prefills, decodes = self._work()
            if prefills or decodes:
                await self._engine.step(prefills, decodes)
                self._account(prefills, decodes)
            elif not self._has_changed:
                self._idle = self._ctx.future()
                await self._idle

    def _schedule(self) -> None:
        step = self._scheduler.step(self._ctx.now)
        for job in step.begin:  # before fetches, which may evict what nobody has begun to use
            self._begin(job)
        for adapter in step.fetch:
            self.larder.fetch(adapter)
        for job in step.refuse:
            self._refuse(job, "the first token would come too late")
        self.larder.settle()

    def _begin(self, job: Job) -> None:
        entry, ask, arrived_s = self._asked.pop(job.id)
        now_s = self._ctx.now
        came_s = self.larder.came_s.get(ask.adapter, arrived_s)
        load_wait_s = min(max(0.0, came_s - arrived_s), now_s - arrived_s)
        self.larder.take(ask.adapter)
        queue_s = now_s - arrived_s - load_wait_s
        self._running[job.id] = _Running(ask, entry, ask.adapter, now_s, load_wait_s, queue_s)

    def _work(self) -> tuple[list[Prefill], list[Decode]]:
        """What can be computed now: layers that are there of prompts, and next tokens."""
        prefills, decodes = [], []
        for id, each in self._running.items():
            if each.tokens:
                decodes.append(Decode(id, each.adapter))
            elif (ready := self.larder.ready(each.adapter, self._engine.layers)) > each.layers:
                prefills.append(Prefill(id, each.adapter, each.ask.prompt_tokens, range(each.layers, ready)))
        return prefills, decodes

    def _account(self, prefills: list[Prefill], decodes: list[Decode]) -> None:
        """A step is over; those may have ended meanwhile whose adapter was lost."""
        for prefill in prefills:
            if prefill.request in self._running:
                self._running[prefill.request].layers = prefill.layers.stop
        read = [each.request for each in prefills if each.layers.stop == self._engine.layers]
        ids = [id for id in (*read, *(each.request for each in decodes)) if id in self._running]
        self._scheduler.generated(ids)
        for id in ids:
            running = self._running[id]
            running.tokens += 1
            is_over = running.tokens >= running.ask.output_tokens
            if is_over:
                self._end(id, running)
            if is_over or running.tokens == 1:
                self._report(running, is_over)

    def _end(self, id: int, running: _Running) -> None:
        took_s = self._ctx.now - running.began_s
        self._mean_s += (_NEWEST if self.served else 1.0) * (took_s - self._mean_s)
        self.served += 1
        self._scheduler.end(id)
        del self._running[id]
        self.larder.give(running.adapter)

    def _report(self, running: _Running, is_over: bool, error: str = "") -> None:
        progress = Progress(
            request=running.ask.request,
            tokens=running.tokens,
            is_over=is_over,
            error=error,
            load_wait_s=running.load_wait_s,
            queue_s=running.queue_s,
            prefill_s=self._ctx.now - running.began_s if running.tokens == 1 else 0.0,
        )
        self._tell(running.entry, progress)

    def _refuse(self, job: Job, error: str) -> None:
        entry, ask, _ = self._asked.pop(job.id)
        self._report(_Running(ask, entry, ask.adapter, self._ctx.now, 0.0, 0.0), True, error)

    def _failed(self, adapter: str) -> None:
        """An adapter could not be had: who waits for it, or has begun to use it, ends."""
        retry_at_s = self._ctx.now + self._config.retry_s
        for job in self._scheduler.failed(adapter, retry_at_s):
            self._refuse(job, f"{adapter} could not be fetched")
        for id, running in [each for each in self._running.items() if each[1].adapter == adapter]:
            self._end(id, running)
            self._report(running, True, f"{adapter} could not be fetched")
        self._ctx.spawn(self._wake_at(retry_at_s))

    async def _wake_at(self, time_s: float) -> None:
        await self._ctx.sleep(time_s - self._ctx.now)
        self._changed()

    def _changed(self) -> None:
        self._has_changed = True
        if not self._idle.done():
            self._idle.set_result(None)
