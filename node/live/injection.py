"""What an experiment's faults do to nodes' processes: kill, stop, let go on and start again; and to their disks."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from node import durable
from node.live.children import Child


class Act(NamedTuple):
    """Something is done to a node's process, so many seconds after the run has begun."""

    at_s: float
    node: int
    what: Literal["kill", "stop", "go_on", "revive"]


class Disk:
    """Writes files, but for the times at which there is no room for them.

    Args:
        full: from when until when that is, in seconds of the run.
    """

    def __init__(self, full: Sequence[tuple[float, float]]) -> None:
        self.began_s = math.inf
        """When the run began, on the clock of ``time.monotonic``."""
        self._full = full

    def write(self, path: Path, data: bytes) -> None:
        """As :func:`node.durable.write`. Raises OSError where there is no room."""
        now_s = time.monotonic() - self.began_s
        if any(start_s <= now_s < end_s for start_s, end_s in self._full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        durable.write(path, data)


@dataclass(frozen=True)
class Injection:
    """Does what is to be done, in its order; a node whose protocol has ended is left alone."""

    acts: Iterable[Act]
    lives: Mapping[int, Sequence[Child]]
    """The processes of each node: one that has begun last, and behind it those that wait."""
    revive: Callable[[Child], Awaitable[None]]
    """Lets a process begin that has waited for it."""

    async def run(self, began_s: float) -> None:
        """Do everything at its time; ``began_s`` is on the clock of ``time.monotonic``."""
        for act in self.acts:
            await asyncio.sleep(max(0.0, began_s + act.at_s - time.monotonic()))
            await self._do(act)

    async def _do(self, act: Act) -> None:
        lives = self.lives[act.node]
        newest = [life for life in lives if not life.waits][-1]
        if act.what == "revive":
            waiting = [life for life in lives if life.waits]
            if waiting and not newest.has_finished:
                await self.revive(waiting[0])
        elif not newest.has_ended:
            _signal(newest, act)


def _signal(life: Child, act: Act) -> None:
    number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "go_on": signal.SIGCONT}[act.what]
    if act.what == "kill":
        life.verdict = f"was killed by a fault at {act.at_s:g} s"
    life.stopped = act.what == "stop"
    life.heard_s = time.monotonic()  # what was stopped could not say that it lives
    with contextlib.suppress(ProcessLookupError):
        os.kill(life.pid, number)
