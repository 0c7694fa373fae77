"""The serving loop: what each step computes, for whom, and what is fetched meanwhile.

All forward passes are in one thread, one step after another; everything else is the event loop's. A request joins and
leaves between steps. Nothing here waits for an adapter: those whose requests wait for it are not in the steps.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import TypeAlias

import structlog

from node.adapters.loading import Loading
from node.batching.admission import Budget
from node.batching.job import Job
from node.batching.scheduler import Rules, Scheduler
from node.caching.policies import DEFAULT_POLICY
from node.errors import ComputeError, ConfigError, DeadlineExceeded, StarlingError
from node.serving.engine import Engine, Row
from node.serving.reply import Finish, Piece, Reply
from node.serving.residency import Residency
from node.serving.sampling import GREEDY, Sampling
from node.serving.source import Source
from node.serving.writing import Writer
from node.transfer.manifest import ObjectId

_LAYER_POLL_S = 0.005
"""How soon a pass that waits for a layer notices that there is other work."""


@dataclass(frozen=True)
class Request:
    """What a client wants to have generated."""

    prompt: tuple[int, ...]
    most_tokens: int
    adapters: tuple[tuple[ObjectId, float], ...] = ()
    """Versions with their weights; none: the base alone."""
    sampling: Sampling = GREEDY
    stops: tuple[str, ...] = ()
    client: str = ""
    """Whom turns are counted for, where they are (:class:`node.batching.scheduler.Rules`)."""


@dataclass(frozen=True)
class Limits:
    """What the loop bears."""

    most_unread: int = 64
    """Pieces that a client has not read, before its request is paused."""
    patience_s: float = 30.0
    """How long a request stays paused, before it is ended."""
    retry_s: float = 1.0
    """How long nobody asks again for an adapter that could not be had."""


@dataclass
class _Run:
    """A request from its arrival to its end."""

    job: Job
    request: Request
    reply: Reply
    writer: Writer
    row: Row | None = None
    loadings: list[Loading] = field(default_factory=list)
    paused_s: float | None = None

    @property
    def is_streaming(self) -> bool:
        """Whether layers that it needs are still on their way."""
        return any(not loading.is_complete for loading in self.loadings)


_Batches: TypeAlias = tuple[tuple[_Run, ...], ...]
"""One step: a forward pass for each."""
_Outcome: TypeAlias = list[tuple[_Run, Piece]] | StarlingError
"""The new pieces of one batch, or what it failed with."""


class _Postponed(StarlingError):
    """A pass that waited for a layer makes room for other work; it begins again later."""


class Serving:
    """Serves requests with one engine. All methods are for the event loop that it was made in."""

    def __init__(
        self,
        engine: Engine,
        source: Source,
        slots: int,
        rules: Rules | None = None,
        limits: Limits | None = None,
        policy: str = DEFAULT_POLICY,
    ) -> None:
        """``slots``: those of the engine."""
        self.engine, self.limits = engine, limits or Limits()
        self.residency = Residency(source, engine.stacks, slots, engine.language.fingerprint, self, policy)
        tokens = engine.places * (engine.language.context_tokens + 1)
        self.scheduler = Scheduler(Budget(tokens, engine.places, slots - 1), rules or Rules())
        self.torn = self.steps = 0
        self.on_end: Callable[[Reply, StarlingError | None], None] = lambda reply, error: None
        self._runs: dict[int, _Run] = {}
        self._ids = count()
        self._changed = asyncio.Event()
        self._hurry = threading.Event()
        self.is_closing = False
        """Whether no more requests are taken in."""
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="starling-forward")
        self._now_s = asyncio.get_running_loop().time

    @property
    def most_adapters(self) -> int:
        """Different ones in memory at once, and so for one request."""
        return self.scheduler.budget.adapters

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self.scheduler.queues)

    @property
    def running(self) -> int:
        """Requests that have."""
        return len(self._runs) - self.waiting

    def submit(self, request: Request) -> Reply:
        """Take a request in; its answer is read from what this gives.

        Raises:
            ConfigError: it can never be served here; the message says why.
        """
        context = self.engine.language.context_tokens
        if not request.prompt or request.most_tokens < 1:
            raise ConfigError("prompt, max_tokens: empty; allowed: at least one token each")
        if len(request.prompt) + request.most_tokens > context:
            raise ConfigError(
                f"This model's maximum context length is {context} tokens; the prompt has {len(request.prompt)} and"
                f" {request.most_tokens} are asked for. Shorten the prompt, or ask for fewer"
            )
        if self.is_closing or not self.is_well:
            raise ComputeError("the server is ending; ask another one")
        now_s = self._now_s()
        adapters = tuple(version for version, _ in request.adapters)
        job = Job(next(self._ids), request.client, adapters, len(request.prompt), request.most_tokens, now_s)
        if not self.scheduler.arrive(job):
            raise ConfigError(f"adapters: {len(adapters)} at once; allowed: {self.scheduler.budget.adapters}")
        reply = Reply(now_s, self.limits.most_unread, len(request.prompt), self.wake)
        self._runs[job.id] = _Run(job, request, reply, Writer(self.engine.language.tokenizer, request.stops))
        self.wake()
        return reply

    @property
    def is_well(self) -> bool:
        """Whether it has been started and has neither ended nor failed."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin to serve."""
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._ended)

    async def stop(self, deadline_s: float) -> None:
        """Take in no more, serve what is there for so long, end what is left, and free the thread."""
        self.is_closing = True
        self.wake()
        if self._task:
            await asyncio.wait([self._task], timeout=deadline_s)
            self._task.cancel()
            await asyncio.wait([self._task])
        for run in list(self._runs.values()):
            self._end(run, ComputeError("the server is ending; ask another one"))
        self._hurry.set()
        await self.residency.close()
        await asyncio.to_thread(self._thread.shutdown)

    async def _run(self) -> None:
        while self._runs or not self.is_closing:
            self._changed.clear()
            batches = self._plan()
            if batches:
                await self._step(batches)
            else:
                await self._changed.wait()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (bug := task.exception()):
            structlog.get_logger().error("serving has failed", exc_info=bug)
            for run in list(self._runs.values()):
                self._end(run, ComputeError("the server has failed; its log says why"))

    # What residency tells

    def came(self, version: ObjectId) -> None:
        """An adapter is resident, or so far that computing may begin."""
        self.scheduler.queues.came(version)
        now_s = self._now_s()
        for run in self._runs.values():
            if run.row is None and version in run.job.adapters:
                run.reply.timing.resident_s = now_s
        self.wake()

    def went(self, version: ObjectId) -> None:
        """An adapter was evicted."""
        self.scheduler.queues.went(version)

    def blocked(self, version: ObjectId) -> None:
        """An adapter has to wait for a slot."""
        self.scheduler.queues.block(version)

    def unblocked(self, version: ObjectId) -> None:
        """An adapter is on its way."""
        self.scheduler.queues.unblock(version)

    def failed(self, version: ObjectId, error: StarlingError) -> None:
        """An adapter could not be had: those who wait for it end; who asks later has it tried again."""
        for job in self.scheduler.failed(version, self._now_s() + self.limits.retry_s):
            self._end(self._runs[job.id], error)
        asyncio.get_running_loop().call_later(self.limits.retry_s, self.wake)

    def wake(self) -> None:
        """Something has changed."""
        self._changed.set()
        self._hurry.set()

    # One step

    def _plan(self) -> _Batches:
        """What to compute now; everything else that is due is begun on the way."""
        for run in [run for run in self._runs.values() if run.reply.is_cancelled]:
            self._end(run, None)
        now_s = self._now_s()
        step = self.scheduler.step(now_s)
        for job in step.refuse:
            self._end(
                self._runs[job.id], DeadlineExceeded("the server has too much to do to answer in time; try later")
            )
        for job in step.begin:
            self._begin(self._runs[job.id], now_s)
        for version in step.fetch:
            self.residency.fetch(version)
        self.residency.settle()
        rows = [run for run in list(self._runs.values()) if run.row is not None and self._is_read(run, now_s)]
        prompts = tuple(run for run in rows if not run.reply.generated and not run.is_streaming)
        answers = tuple(run for run in rows if run.reply.generated)
        batches = tuple(batch for batch in (prompts, answers) if batch)
        self._hurry.clear()
        if batches or self._changed.is_set():
            return batches
        # One that waits for layers would hold up all others in the one thread: it is computed when nobody else is.
        return tuple((run,) for run in rows if run.is_streaming and not run.reply.generated)[:1]

    def _begin(self, run: _Run, now_s: float) -> None:
        held = tuple(self.residency.hold(version) for version, _ in run.request.adapters)
        run.reply.held = held
        run.reply.timing.begun_s = now_s
        run.loadings = [loading for each in held if (loading := self.residency.loading(each.version))]
        slots = {each.slot: weight for each, (_, weight) in zip(held, run.request.adapters, strict=True)}
        waits = [self._patiently(loading) for loading in run.loadings]
        run.row = self.engine.begin(run.request.prompt, run.request.sampling, slots, waits)

    def _patiently(self, loading: Loading) -> Callable[[str], None]:
        """Waits for a layer as long as there is nothing else to do."""

        def wait(layer: str) -> None:
            while True:
                try:
                    return loading.wait(layer, _LAYER_POLL_S)
                except DeadlineExceeded:
                    if self._hurry.is_set():
                        raise _Postponed from None

        return wait

    def _is_read(self, run: _Run, now_s: float) -> bool:
        """Whether a request's client keeps up; one that does not for too long is ended."""
        if not run.reply.is_full:
            run.paused_s = None
            return True
        if run.paused_s is None:
            run.paused_s = now_s
            asyncio.get_running_loop().call_later(self.limits.patience_s, self.wake)
        elif now_s - run.paused_s >= self.limits.patience_s:
            error = DeadlineExceeded(
                f"the answer was not read for {self.limits.patience_s:g} s; read it, or ask for less"
            )
            self._end(run, error)
        return False

    async def _step(self, batches: _Batches) -> None:
        number = self.residency.slots.begin_step()
        try:
            loop = asyncio.get_running_loop()
            outcomes = await loop.run_in_executor(self._thread, self._compute, batches)
        finally:
            self.residency.slots.end_step(number)
            self.residency.step_ended()
        self.steps += 1
        now_s = self._now_s()
        for batch, outcome in zip(batches, outcomes, strict=True):
            self.torn += sum(self.residency.is_torn(held) for run in batch for held in run.reply.held)
            if isinstance(outcome, StarlingError):
                for run in batch if not isinstance(outcome, _Postponed) else ():
                    self._end(run, outcome)
            else:
                self._deliver(outcome, now_s)

    def _compute(self, batches: _Batches) -> list[_Outcome]:
        """In the thread."""
        outcomes: list[_Outcome] = []
        for batch in batches:
            try:
                outcomes.append(self._advance(batch))
            except StarlingError as error:
                outcomes.append(error)
            except Exception as error:
                structlog.get_logger().error("forward pass failed", exc_info=True)
                outcomes.append(ComputeError(f"a forward pass has failed: {type(error).__name__}; the log says more"))
        return outcomes

    def _advance(self, batch: Sequence[_Run]) -> list[tuple[_Run, Piece]]:
        rows = {id(run.row): run for run in batch}
        moved = [rows[id(row)] for row in self.engine.advance([run.row for run in batch if run.row])]
        return [(run, self._piece(run)) for run in moved]

    def _piece(self, run: _Run) -> Piece:
        """The text of a row's new token."""
        assert run.row
        token = run.row.tokens[-1]
        is_last = len(run.row.tokens) - run.reply.prompt_tokens >= run.request.most_tokens
        if token in self.engine.language.end_tokens:
            return Piece(run.writer.finish(), "stop")
        text = run.writer.add(token)
        if is_last and not run.writer.is_stopped:
            text += run.writer.finish()
        finish: Finish | None = "stop" if run.writer.is_stopped else "length" if is_last else None
        return Piece(text, finish)

    def _deliver(self, pieces: Sequence[tuple[_Run, Piece]], now_s: float) -> None:
        self.scheduler.generated([run.job.id for run, _ in pieces])
        for run, piece in pieces:
            run.reply.generated += 1
            run.reply.timing.token_s.append(now_s)
            if piece.finish:
                self._end(run, None)
            if piece.text or piece.finish:
                run.reply.put(piece)

    def _end(self, run: _Run, error: StarlingError | None) -> None:
        """A request is over, whatever the reason: what it had is free at once."""
        del self._runs[run.job.id]
        self.scheduler.end(run.job.id)
        if run.row is not None:
            self.engine.end(run.row)
        for held in run.reply.held:
            self.residency.let_go(held)
        run.reply.is_over = True
        if error:
            run.reply.fail(error)
        self.on_end(run.reply, error)
