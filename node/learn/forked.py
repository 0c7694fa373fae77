"""A process forked from this one, which solves the tasks that it is told of; it shares memory with its parent.

It has the parent's data, models and ops as they were at the fork. What it keeps is only ever a copy of those: a task's
value follows from the task. It ends when its parent does, however that ends, and leaves Ctrl-C to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import msgspec
from torch import Tensor

from node.errors import ConfigError
from node.learn import workers
from node.learn.arenas import Layout, Place, Slot, View
from node.learn.workload import prepare_torch
from node.op import Key, Op, Task, Value

_ENDING = {signal.SIGINT, signal.SIGTERM}


class Shared(msgspec.Struct, array_like=True, tag="t"):
    """A tensor that lies in the shared memory."""

    place: Place


class Plain(msgspec.Struct, array_like=True, tag="p"):
    """A number, or a mapping of names to numbers."""

    value: Any


class Job(msgspec.Struct, array_like=True):
    """One task, and where its value is to go."""

    inputs: list[Shared | Plain]
    static: Mapping[str, Any]
    key: tuple[int, int, int]
    slot: Slot | None


class Piece(msgspec.Struct, array_like=True):
    """What a worker is told: some tasks of one op."""

    op: str
    jobs: list[Job]


class Filled(msgspec.Struct, array_like=True, tag="t"):
    """A value that is a tensor, in the slot that was meant for it."""

    layout: Layout


Outcome = Filled | Plain | None
"""What came of a task; None: it failed, or its value cannot be told, so the parent has to solve it."""

_pieces = msgspec.msgpack.Decoder(Piece)
_outcomes = msgspec.msgpack.Decoder(list[Outcome])


def can_tell(value: Value) -> bool:
    """Whether a value that is no tensor comes out of a message as it went in."""
    if type(value) is dict:
        return all(type(name) is str and _is_number(part) for name, part in value.items())
    return _is_number(value)


def can_tell_static(argument: Any) -> bool:
    """Whether a static argument comes out of a message as it went in."""
    if type(argument) is tuple:
        return all(can_tell_static(part) for part in argument)
    return type(argument) in (str, bytes, type(None)) or _is_number(argument)


def _is_number(value: Any) -> bool:
    return type(value) in (float, bool) or (type(value) is int and -(1 << 63) <= value < 1 << 64)


class Forked:
    """The parent's hold on one worker.

    Raises ConfigError where this machine starts no more processes.
    """

    def __init__(self, ops: Mapping[str, Op[...]], file: int, siblings: Iterable[Forked]) -> None:
        self.connection, theirs = Pipe()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # until both know who they are
        try:
            parent = os.getpid()
            self.pid = os.fork()
            if not self.pid:
                for end in [self.connection, *[sibling.connection for sibling in siblings]]:
                    end.close()  # or a worker's pipe would outlive the parent
                _become_worker(parent, theirs, ops, file)
        except OSError as error:
            self.connection.close()
            raise ConfigError(
                f"executor.workers: this machine starts no more processes ({error.strerror}); take fewer workers"
            ) from error
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def tell(self, piece: Piece) -> None:
        """Give the worker something to do; :meth:`hear` says whether it lived to do it."""
        with contextlib.suppress(OSError):
            self.connection.send_bytes(msgspec.msgpack.encode(piece))

    def hear(self) -> list[Outcome] | None:
        """What came of each task of the last piece; None: the worker has died."""
        try:
            return _outcomes.decode(self.connection.recv_bytes())
        except (EOFError, OSError):
            return None

    def end(self) -> str:
        """End the worker at once, if it has not ended by itself: it holds nothing. Says how it ended."""
        self.connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def _become_worker(parent: int, connection: Connection[Any, Any], ops: Mapping[str, Op[...]], file: int) -> NoReturn:
    """In the child: leave the parent's signals behind, serve, and never return."""
    status = 1
    try:
        gc.freeze()  # what was inherited is not looked at again, or its pages would be copied
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() == parent:
            prepare_torch()
            _serve(connection, ops, View(file))
        status = 0
    finally:
        os._exit(status)


def _serve(connection: Connection[Any, Any], ops: Mapping[str, Op[...]], view: View) -> None:
    """Solve pieces until the parent has gone."""
    while True:
        try:
            piece = _pieces.decode(connection.recv_bytes())
            op = ops.get(piece.op) or workers.find(piece.op)
            outcomes = [None if op is None else _outcome(op, job, view) for job in piece.jobs]
            connection.send_bytes(msgspec.msgpack.encode(outcomes))
        except (EOFError, ConnectionError):
            return


def _outcome(op: Op[...], job: Job, view: View) -> Outcome:
    inputs = tuple([view.tensor(i.place) if isinstance(i, Shared) else i.value for i in job.inputs])
    static = {name: _with_tuples(argument) for name, argument in job.static.items()}
    try:
        value = op.solve(Task(inputs, static, Key(*job.key)))
    except Exception:
        return None  # the parent solves it too, and so raises the very same error
    if isinstance(value, Tensor):
        layout = None if job.slot is None else view.fill(job.slot, value)
        return None if layout is None else Filled(layout)
    return Plain(value) if can_tell(value) else None


def _with_tuples(argument: Any) -> Any:
    """A static argument as it was: messages know no tuples, and static arguments no lists."""
    return tuple([_with_tuples(part) for part in argument]) if isinstance(argument, list) else argument
