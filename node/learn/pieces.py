"""What runs on a cluster's workers: functions of nothing but their arguments, that Dask may call again elsewhere."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from node.errors import ComputeError, StarlingError
from node.learn import workers
from node.learn.rows import Rows
from node.learn.workload import prepare_torch
from node.op import Key, Op, Static, Task, Value

Rebuild: TypeAlias = Callable[[str], Mapping[str, Op[...]]]
"""From an experiment's JSON to those of its ops that cannot be imported, by name."""


class Row(NamedTuple):
    """An input that is a value on the cluster: which of the blocks that come with a piece, and which row of it."""

    block: int
    row: int


class Work(NamedTuple):
    """One task as it is sent; inputs that are no rows are sent themselves."""

    inputs: tuple[Value | Row, ...]
    static: Static
    key: Key


@dataclass(frozen=True, slots=True)
class Piece:
    """Tasks of one op."""

    rebuild: Rebuild
    config_json: str
    op: str | Op[...]
    """Its name, where the worker finds it by that."""
    work: Sequence[Work]


def dask_setup(worker: object) -> None:
    """Called by Dask in each worker of a cluster that is started here: Ctrl-C is the business of who started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def solve(piece: Piece, *blocks: Rows) -> Rows:
    """Solve the tasks of a piece one by one. Raises ComputeError, naming op and node."""
    op = _op(piece)
    return Rows([_solve(op, work, blocks) for work in piece.work])


def keep(rows: Rows) -> Rows:
    """What was sent: as a task, which the scheduler can have run again."""
    return rows


def pick(rows: Rows, wanted: Sequence[int]) -> Rows:
    """Some of the rows."""
    return Rows([rows.values[row] for row in wanted])


def _solve(op: Op[...], work: Work, blocks: Sequence[Rows]) -> Value:
    inputs = tuple([blocks[i.block].values[i.row] if isinstance(i, Row) else i for i in work.inputs])
    try:
        return op.solve(Task(inputs, work.static, work.key))
    except StarlingError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ComputeError(f"{op.name} failed for node {work.key.node}: {what}") from error


def _op(piece: Piece) -> Op[...]:
    rebuilt = _rebuilt(piece.rebuild, piece.config_json)
    if isinstance(piece.op, Op):
        return piece.op
    op = rebuilt.get(piece.op) or workers.find(piece.op)
    if op is None:
        raise ComputeError(f"{piece.op} is not known on a worker of the cluster; its module must be importable there")
    return op


@functools.lru_cache(maxsize=1)
def _rebuilt(rebuild: Rebuild, config_json: str) -> Mapping[str, Op[...]]:
    """The experiment's ops, made once in each worker: nothing but what the experiment says goes into them."""
    prepare_torch()
    return rebuild(config_json)
