"""Time, real or virtual.

:class:`VirtualClock` is an asyncio event loop whose time jumps from event to event: tasks, groups, timeouts and queues
all work on it, threads and sockets are refused. What happens at one instant happens in a fixed order: by
:class:`Priority`, then in the order in which it was scheduled, and tasks run once all events of the instant have.

:class:`WallClock` gives the same small face to a loop in real time.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import sys
import threading
from asyncio import events as asyncio_events
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final, NoReturn, TypeVarTuple, Unpack
from typing import Protocol as Interface

from node.errors import Deadlock, Livelock, ProtocolError, SimulationError

_Ts = TypeVarTuple("_Ts")

_SEQUENCE = (1 << 56) - 1
_FOREVER = float("inf")
_MOST_TURNS = 100_000
"""Rounds of tasks, or events caused within one instant, before it counts as a livelock."""


class Priority:
    """What comes first among the events of one instant; added to the sequence number that orders the rest."""

    FAULT: Final = 0
    LINK: Final = 1 << 56
    TRANSFER: Final = 2 << 56
    DELIVERY: Final = 3 << 56
    TIMER: Final = 4 << 56
    SOLVE: Final = 5 << 56


class Clock(Interface):
    """What the rest of Starling knows of time."""

    def time(self) -> float:
        """Seconds since the run began."""
        ...

    def post(self, delay_s: float, fn: Callable[[Any], object], arg: Any, priority: int = ...) -> None:
        """Call ``fn(arg)`` after a delay; cannot be cancelled, and is cheaper than a timer for that."""
        ...

    def create_future(self) -> asyncio.Future[Any]:
        """A future of the clock's loop; quicker than to ask which loop runs, which asks the system for the process."""
        ...


def check_wait(what: str, seconds: float | None) -> None:
    """Refuse what is no time to wait; None is no limit."""
    if seconds is not None and not 0 <= seconds < _FOREVER:
        raise ProtocolError(f"{what}: {seconds} is no time to wait; allowed: 0 or more seconds, None for no limit")


class WallClock:
    """Real time on an event loop, counted from when this clock was made or last started."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._started_s = loop.time()

    def start(self, elapsed_s: float = 0.0) -> None:
        """Count from now on, or as if so much had passed already."""
        self._started_s = self._loop.time() - elapsed_s

    def time(self) -> float:
        """Seconds since the clock was made, or started anew."""
        return self._loop.time() - self._started_s

    def post(self, delay_s: float, fn: Callable[[Any], object], arg: Any, priority: int = Priority.DELIVERY) -> None:
        """Call ``fn(arg)`` after a delay."""
        self._loop.call_later(delay_s, fn, arg)

    def create_future(self) -> asyncio.Future[Any]:
        """A future of the clock's loop."""
        return self._loop.create_future()


class _Soon(asyncio.Handle):
    """A handle without the bookkeeping of asyncio's debug mode, which costs more than most callbacks."""

    __slots__ = ()

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context | None
    ) -> None:
        self._callback = callback
        self._args = args
        self._context = contextvars.copy_context() if context is None else context
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True

    def __repr__(self) -> str:
        return f"<{self._callback!r}>"


class VirtualClock(asyncio.BaseEventLoop):
    """An event loop in virtual time. Use it as ``asyncio.Runner(loop_factory=VirtualClock)``.

    Raises:
        Deadlock: every task waits and nothing is scheduled.
        Livelock: tasks or events keep causing one another within one instant.
        SimulationError: something asked for a thread, a socket or a process.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ready: deque[Any] = deque()
        self._stopping = False
        self._thread_id: int | None = None
        self.now = 0.0
        """Virtual seconds since the loop was made; the same as :meth:`time`, without a call."""
        self._sequence = 0
        self._heap: list[tuple[float, int, Callable[[Any], object], Any]] = []
        self._dead_timers = 0
        self._stories: Callable[[], Iterable[str]] | None = None
        self.fired = 0
        """Events so far: what was posted, and timers."""

    def tell(self, stories: Callable[[], Iterable[str]]) -> None:
        """Ask ``stories`` for a line per waiting node when a deadlock has to be explained."""
        self._stories = stories

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self.now

    def post(self, delay_s: float, fn: Callable[[Any], object], arg: Any, priority: int = Priority.DELIVERY) -> None:
        """Call ``fn(arg)`` after ``delay_s``; an exception it raises ends the run."""
        if not 0 <= delay_s < _FOREVER:
            raise _no_delay(delay_s)
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + delay_s, priority + self._sequence, fn, arg))

    def post_each(
        self, timed: Iterable[tuple[float, Any]], fn: Callable[[Any], object], priority: int = Priority.DELIVERY
    ) -> None:
        """Call ``fn(arg)`` after a delay, for each of some (delay_s, arg): as :meth:`post`, in one go."""
        heap, now, order, push = self._heap, self.now, priority + self._sequence, heapq.heappush
        for delay_s, arg in timed:
            if not 0 <= delay_s < _FOREVER:
                raise _no_delay(delay_s)
            order += 1
            push(heap, (now + delay_s, order, fn, arg))
        self._sequence = order - priority

    def call_soon(
        self, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """Run a callback in the next turn of this instant."""
        handle = _Soon(callback, args, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """As ``call_soon``, from the loop's own thread only (a signal handler, say)."""
        if self._thread_id is not None and threading.get_ident() != self._thread_id:
            _refuse("a callback from another thread")
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run a callback after a delay in virtual seconds."""
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run a callback at a point in virtual time."""
        if not when < _FOREVER:
            raise SimulationError(f"cannot set a timer for {when} s; let what has no deadline wait without one")
        timer = asyncio.TimerHandle(max(when, self.now), callback, args, self, context)
        timer._scheduled = True  # type: ignore[attr-defined]
        self._sequence += 1
        heapq.heappush(self._heap, (timer.when(), Priority.TIMER + self._sequence, self._ring, timer))
        return timer

    def _ring(self, timer: asyncio.TimerHandle) -> None:
        timer._scheduled = False  # type: ignore[attr-defined]
        if timer.cancelled():
            self._dead_timers -= 1
        else:
            self._ready.append(timer)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if not handle._scheduled:  # type: ignore[attr-defined]
            return  # it has rung: asyncio.sleep cancels its timer either way
        self._dead_timers += 1
        if self._dead_timers > 100 and 2 * self._dead_timers > len(self._heap):
            self._heap[:] = [entry for entry in self._heap if not self._is_dead(entry)]
            heapq.heapify(self._heap)
            self._dead_timers = 0

    def _is_dead(self, entry: tuple[float, int, Callable[[Any], object], Any]) -> bool:
        return isinstance(entry[3], asyncio.TimerHandle) and entry[3].cancelled()

    def run_forever(self) -> None:
        """Run until stopped; see the class for what ends it otherwise."""
        if self.is_closed() or self.is_running():
            raise RuntimeError("the virtual clock is closed, or runs already")
        self._thread_id = threading.get_ident()
        asyncio_events._set_running_loop(self)
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(self._asyncgen_firstiter_hook, self._asyncgen_finalizer_hook)  # type: ignore[attr-defined]
        try:
            self._run_ready()
            turns = 0
            heap, ready = self._heap, self._ready
            while not self._stopping:
                if not heap:
                    self.deadlock("every task waits and nothing is scheduled")
                turns = turns + 1 if heap[0][0] == self.now else 0
                if turns > _MOST_TURNS:
                    self._explain_livelock()
                self._run_instant()
                if ready:
                    self._run_ready()
        finally:
            self._stopping = False
            self._thread_id = None
            asyncio_events._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)

    def _run_ready(self) -> None:
        """Run tasks until none can go on at this instant."""
        ready = self._ready
        take = ready.popleft
        for _ in range(_MOST_TURNS):
            for _ in range(len(ready)):
                handle = take()
                if not handle._cancelled:
                    handle._context.run(handle._callback, *handle._args)
            if not ready or self._stopping:
                return
        self._explain_livelock()

    def _run_instant(self) -> None:
        """Jump to the next event and run all events of its instant."""
        heap, take = self._heap, heapq.heappop
        newest = self._sequence
        now, _, fn, arg = take(heap)
        self.now = now
        fn(arg)
        caused, fired = 0, 1
        while heap and heap[0][0] == now:
            _, order, fn, arg = take(heap)
            fired += 1
            if order & _SEQUENCE > newest:
                caused += 1
                if caused > _MOST_TURNS:
                    raise Livelock(f"at {now:g} s events keep causing events without delay; the last is {fn!r}")
            fn(arg)
        self.fired += fired

    def close(self) -> None:
        """Forget what has not happened, and what it held."""
        super().close()
        self._heap.clear()

    def _explain_livelock(self) -> NoReturn:
        running = ", ".join(sorted(task.get_name() for task in asyncio.all_tasks(self) if not task.done())[:5])
        raise Livelock(
            f"at {self.now:g} s tasks have woken one another {_MOST_TURNS} times without time passing "
            f"(among them: {running}); let them wait for a message, or sleep longer than 0"
        )

    def deadlock(self, why: str) -> NoReturn:
        """Raise Deadlock, with what every waiting node waits for."""
        stories = list(self._stories()) if self._stories else []
        told = "".join(f"\n  {story}" for story in stories[:20])
        more = f"\n  … and {len(stories) - 20} more" if len(stories) > 20 else ""
        raise Deadlock(f"at {self.now:g} s {why}{':' if told else ''}{told}{more}")


def _no_delay(delay_s: float) -> SimulationError:
    return SimulationError(f"cannot schedule an event {delay_s} s from now; a delay is at least 0, and finite")


def _refuse(what: str) -> NoReturn:
    raise SimulationError(
        f"virtual time cannot wait for {what}: nothing outside the simulation has a time in it; "
        "do computation with ctx.apply, waiting with ctx.sleep and talking with ctx.send, or run with --clock real"
    )


def _refusal(what: str) -> Callable[..., NoReturn]:
    def refused(self: VirtualClock, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse(what)

    return refused


_REFUSED = {
    "a thread (run_in_executor or to_thread)": "run_in_executor set_default_executor",
    "a child process": "subprocess_exec subprocess_shell",
    "a signal": "add_signal_handler",
    "a socket or pipe": """add_reader add_writer getaddrinfo getnameinfo create_connection create_server
        create_unix_connection create_unix_server create_datagram_endpoint connect_read_pipe connect_write_pipe
        sock_recv sock_recv_into sock_recvfrom sock_recvfrom_into sock_sendall sock_sendto sock_sendfile sock_connect
        sock_accept sendfile start_tls""",
}
for _what, _names in _REFUSED.items():
    for _name in _names.split():
        setattr(VirtualClock, _name, _refusal(_what))
