"""The processes of nodes: forked from one warmed-up parent, each with a channel to it, and none that outlives it.

The parent that forks has no event loop, no ZeroMQ context and no thread; each child makes its own. A child ends when
its channel to the supervisor does.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from node.errors import ConfigError
from node.live.channel import Channel, Finished, Work

_ENDING = {signal.SIGINT, signal.SIGTERM}
_PR_SET_PDEATHSIG = 1
_prctl = getattr(ctypes.CDLL(None), "prctl", None)
"""Linux has it."""
BEGIN = b"!"
"""What a child that waits is told by, before there is a channel."""

_OTHER_FILES = 256
"""Open files of the parent, and of a child until it has closed what it inherits, beside a channel for each child."""

ChildMain: TypeAlias = Callable[[int, socket.socket], int]
"""What a forked node runs: its number and its end of the channel, to an exit status."""


@dataclass
class Child:
    """One forked node."""

    node: int
    pid: int
    end: socket.socket
    log: Path
    channel: Channel | None = None
    card: bytes | None = None
    finished: Finished | None = None
    work: Work = field(default_factory=Work)
    """What it had done when it last said so."""
    spent: dict[str, Any] | None = None
    """What it has spent of its privacy, where it keeps account of that."""
    heard_s: float = field(default_factory=time.monotonic)
    verdict: str | None = None
    """Why it was ended by us."""
    status: int | None = None
    """How it ended, as ``os.waitstatus_to_exitcode`` says it."""
    waits: bool = False
    """Whether it has yet to be told to begin, in place of one that was killed."""
    stopped: bool = False
    """Whether a fault has stopped it."""

    @property
    def has_finished(self) -> bool:
        """Whether its protocol has ended."""
        return self.finished is not None

    @property
    def has_ended(self) -> bool:
        """Whether its protocol has ended, or the process has."""
        return self.has_finished or self.status is not None

    def how(self) -> str:
        """The end of a child that should not have ended, in words."""
        if self.verdict is not None:
            return self.verdict
        if self.status is not None and self.status < 0:
            return f"was killed by {signal.Signals(-self.status).name}"
        last = _last_line(self.log)
        return f"exited with status {self.status}{': ' + last if last else ''}"


def fork_all(nodes: int, main: ChildMain, logs: Path, spares: Sequence[int] = ()) -> list[Child]:
    """Fork one child per node, each with its output going to a file of its own in ``logs``.

    The ``spares`` are nodes to be started again, each as often as it will be: forked now, while the parent has neither
    loop nor threads, they wait for their time.

    Raises:
        ConfigError: this machine does not take so many processes.
    """
    _allow_files(nodes + len(spares))
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for node in range(nodes):  # all before any child: the last one to end takes the folder with it
            (logs / f"node-{node}.log").touch()
    except OSError as error:
        raise ConfigError(f"--out: {logs} cannot be made: {error.strerror}") from error
    order = [(node, logs / f"node-{node}.log") for node in (*range(nodes), *spares)]
    forked: list[tuple[int, socket.socket]] = []
    ours = array("i")
    sys.stdout.flush()
    sys.stderr.flush()
    gc.collect()
    gc.freeze()
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, _ENDING
    )  # an interrupt waits until parent and child know who they are
    try:
        for node, log in order:  # whatever this loop writes to, every child has a copy of: it does nothing else
            pid, end = _fork(ours)
            if pid == 0:
                _become(node, main, end, log, waits=len(forked) >= nodes)
            forked.append((pid, end))
    except BaseException:
        end_all(_children(order, forked, nodes))
        for _, log in order[len(forked) :]:
            _tidy_up(log)
        raise
    finally:
        gc.unfreeze()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return _children(order, forked, nodes)


def _children(
    order: Sequence[tuple[int, Path]], forked: Sequence[tuple[int, socket.socket]], nodes: int
) -> list[Child]:
    each = enumerate(zip(order, forked, strict=False))
    return [Child(node, pid, end, log, waits=number >= nodes) for number, ((node, log), (pid, end)) in each]


def _allow_files(children: int) -> None:
    """Raise this process's own limit of open files as far as the children need it: a channel for each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = children + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise ConfigError(
                f"nodes: {children} processes need {needed} open files, and this machine allows {hard}; "
                "take fewer nodes, raise its limit (ulimit -Hn), or simulate with --clock virtual"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _fork(ours: array[int]) -> tuple[int, socket.socket]:
    """The child's pid and our end of its channel; in the child: 0 and its own end, and none of ``ours``."""
    ends: tuple[socket.socket, ...] = ()
    try:
        ends = our_end, child_end = socket.socketpair()
        pid = os.fork()
    except OSError as error:
        for end in ends:
            end.close()
        raise ConfigError(
            f"nodes: this machine starts no more than {len(ours)} processes ({error.strerror}); "
            "take fewer nodes, raise its limits (ulimit -n, ulimit -u), or simulate with --clock virtual"
        ) from error
    if pid:
        child_end.close()
        ours.append(our_end.fileno())
        return pid, our_end
    our_end.close()
    for descriptor in ours:  # not by their sockets: a look at each would cost hundreds of children a copy of it
        os.close(descriptor)
    return 0, child_end


def _become(node: int, main: ChildMain, end: socket.socket, log: Path, waits: bool) -> NoReturn:
    """In the child: leave the parent's signals and output behind, run, and never return."""
    status = 1
    try:
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # whatever has taken their place draws on the terminal
        parent = os.getppid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the supervisor decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        if _prctl is not None:
            _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        if waits and end.recv(len(BEGIN)) != BEGIN:
            status = 0  # nobody needs it any more
        elif os.getppid() == parent:
            status = main(node, end)
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        _tidy_up(log)
        os._exit(status)


def _tidy_up(log: Path) -> None:
    """Leave no log that nobody wrote to, and no folder without a log."""
    with contextlib.suppress(OSError):
        if not log.stat().st_size:
            log.unlink()
        log.parent.rmdir()


def end_all(children: Iterable[Child]) -> None:
    """Kill and reap whatever still runs, and remove the logs that nobody wrote to."""
    children = list(children)
    for child in children:
        child.end.close()
        if child.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
    for child in children:
        reap(child, wait=True)
        _tidy_up(child.log)


def reap(child: Child, wait: bool) -> bool:
    """Take note of a child's end, where it has ended or is waited for; whether it has."""
    if child.status is None:
        try:
            pid, status = os.waitpid(child.pid, 0 if wait else os.WNOHANG)
        except ChildProcessError:
            child.status = 0
            return True
        if pid == child.pid:
            child.status = os.waitstatus_to_exitcode(status)
    return child.status is not None


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""
