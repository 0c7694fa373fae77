"""Solving on a Dask cluster: one Dask task for each piece of a batch, whose values stay on the worker that made them.

A Dask cluster runs whatever functions it is sent: it must be the operator's own, and over TLS where strangers might
reach it, as the cluster that is started here is. Results are those of solving here, bit for bit, where the machines'
processors are alike.
"""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from node.errors import ComputeError, ConfigError, StarlingError
from node.learn import workers
from node.learn.pieces import Piece, Rebuild, Row, Work, keep, pick, solve
from node.learn.rows import Rows
from node.learn.slabs import chunks
from node.op import Op, Task, Value

if TYPE_CHECKING:
    from distributed import Future

_CONNECT_S = 10
_LOOK_S = 5
_DESERTED_S = 60
_MOST_ROWS = 64
"""Values of one Dask task: enough that the scheduler keeps up, few enough that moving them all is no burden."""


class _Block:
    """The values of one Dask task. When this dies, the cluster lets them go."""

    __slots__ = ("future", "home", "op", "rows")

    def __init__(self, future: Future[Rows], op: str, rows: int, home: str) -> None:
        self.future = future
        self.op = op
        self.rows = rows
        self.home = home
        """The worker that was asked to make them; empty: any."""


class Handle:
    """One value of a block, on the cluster."""

    __slots__ = ("block", "row")

    def __init__(self, block: _Block, row: int) -> None:
        self.block = block
        self.row = row


class DaskExecutor:
    """Solves batches on a Dask cluster: one that is started on this machine, or a running one.

    ``solve`` gives handles, and may return before there are values; what goes wrong then shows in ``fetch``. The values
    of a worker that is lost are made again by others, from the initial models on where need be.

    Args:
        config_json: the experiment.
        workers: processes of the cluster that is started; 0: one for each core.
        address: scheduler of a running cluster; empty: one is started.
        rebuild: called once in each worker, with ``config_json``; must be importable there.
        ops: those that ``rebuild`` gives. Others are imported by the workers, or sent to them.

    Raises:
        ConfigError: Dask is not installed, or no cluster with workers answers at that address.
    """

    def __init__(
        self, config_json: str, workers: int, address: str, rebuild: Rebuild, ops: Iterable[Op[...]] = ()
    ) -> None:
        self._config_json = config_json
        self._rebuild = rebuild
        self._ops = {op.name: op for op in ops}
        self._sent: dict[Op[...], str | Op[...]] = {}
        self._constants = WeakTensorKeyDictionary()
        self._client: Any = _connect(address) if address else _start(workers)

    def solve(self, op: Op[...], tasks: Sequence[Task]) -> list[Value]:
        """Submit the tasks, each near to where most of its inputs are; gives handles on their values."""
        if op not in self._sent:
            named = self._ops.get(op.name) is op or workers.is_importable(op)
            self._sent[op] = op.name if named else op
        inputs = [tuple([self._input(value) for value in task.inputs]) for task in tasks]
        handles: list[Value] = [None] * len(tasks)
        living = sorted(self._client.nthreads()) or [""]
        for home, members in assign([_home(values) for values in inputs], living).items():
            for piece in chunks(members, _MOST_ROWS):
                block = self._submit(op, [tasks[i] for i in piece], [inputs[i] for i in piece], home)
                for row, i in enumerate(piece):
                    handles[i] = Handle(block, row)
        return handles

    def fetch(self, values: Sequence[Value]) -> list[Value]:
        """The values of the handles among these, brought here. Raises ComputeError, naming op and node."""
        wanted: dict[_Block, dict[int, Value]] = {}
        for value in values:
            if isinstance(value, Handle):
                wanted.setdefault(value.block, {})[value.row] = None
        try:
            futures = [self._part(block, list(rows)) for block, rows in wanted.items()]
            self._await(futures)
            parts = self._client.gather(futures)
        except StarlingError:
            raise
        except (Exception, CancelledError, asyncio.CancelledError) as error:
            ops = ", ".join(sorted({block.op for block in wanted}))
            raise ComputeError(f"the cluster has failed to solve {ops}: {type(error).__name__}: {error}") from error
        for rows, part in zip(wanted.values(), parts, strict=True):
            rows.update(zip(rows, part.values, strict=True))
        return [wanted[value.block][value.row] if isinstance(value, Handle) else value for value in values]

    def _await(self, futures: Sequence[Future[Rows]]) -> None:
        """Wait until there is an outcome for all. Raises ComputeError where the last worker is gone, and stays so."""
        from distributed import wait

        deserted = 0
        while True:
            try:
                with self._client.as_current():
                    wait(futures, timeout=_LOOK_S)  # type: ignore[no-untyped-call]
                return
            except TimeoutError:
                deserted = 0 if self._client.nthreads() else deserted + 1
            if deserted * _LOOK_S >= _DESERTED_S:
                raise ComputeError(f"the cluster has had no workers for {_DESERTED_S} s; start some, or see its logs")

    def close(self) -> None:
        """End the cluster that was started here; leave a running one as it was."""
        self._constants.clear()
        cluster = self._client.cluster
        self._client.close()
        if cluster is not None:
            cluster.close()

    def _input(self, value: Value) -> Value | Handle:
        """An input as a handle, where it is a tensor; tensors from here are sent once, and kept while they live."""
        if not isinstance(value, Tensor):
            return value
        if value not in self._constants:
            # By a task, not by Client.scatter: what was scattered is gone with the worker that holds it.
            future = self._client.submit(keep, Rows([value]), pure=False)
            self._constants[value] = Handle(_Block(future, "constant", 1, ""), 0)
        return self._constants[value]

    def _submit(
        self, op: Op[...], tasks: Sequence[Task], inputs: Sequence[Sequence[Value | Handle]], home: str
    ) -> _Block:
        blocks: dict[_Block, int] = {}

        def sent(value: Value | Handle) -> Value | Row:
            if not isinstance(value, Handle):
                return value
            return Row(blocks.setdefault(value.block, len(blocks)), value.row)

        work = [
            Work(tuple([sent(value) for value in values]), dict(task.static), task.key)
            for task, values in zip(tasks, inputs, strict=True)
        ]
        piece = Piece(self._rebuild, self._config_json, self._sent[op], work)
        futures = [block.future for block in blocks]
        where = {"workers": [home], "allow_other_workers": True} if home else {}
        future = self._client.submit(solve, piece, *futures, pure=False, **where)
        return _Block(future, op.name, len(tasks), home)

    def _part(self, block: _Block, rows: list[int]) -> Future[Rows]:
        """Some rows of a block, so that no others are moved."""
        if rows == list(range(block.rows)):
            return block.future
        part: Future[Rows] = self._client.submit(pick, block.future, rows, pure=False)
        return part


def assign(homes: Sequence[str | None], workers: Sequence[str]) -> dict[str, list[int]]:
    """Divide tasks evenly among workers, by number: at home where there is room, else wherever there is.

    ``homes`` names the worker that each task would best be solved on, None for any.
    """
    most = -(-len(homes) // len(workers))
    assigned: dict[str, list[int]] = {worker: [] for worker in workers}
    left = []
    for i, home in enumerate(homes):
        if home in assigned and len(assigned[home]) < most:
            assigned[home].append(i)
        else:
            left.append(i)
    for worker in workers:
        room = most - len(assigned[worker])
        assigned[worker] += left[:room]
        left = left[room:]
    return {worker: sorted(members) for worker, members in assigned.items() if members}


def _home(inputs: Iterable[Value | Handle]) -> str | None:
    """Where most of a task's inputs are."""
    homes = Counter([value.block.home for value in inputs if isinstance(value, Handle) and value.block.home])
    return homes.most_common(1)[0][0] if homes else None


def _start(count: int) -> Any:
    """A client of a new cluster, on this machine's loopback."""
    distributed = _distributed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster = distributed.LocalCluster(
            n_workers=workers.count(count),
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            protocol="tls://",
            security=True,  # with a certificate of its own: what listens on loopback, every user of the machine reaches
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # metrics are served all the same
            silence_logs=logging.CRITICAL,
            preload="node.learn.pieces",
        )
        return distributed.Client(cluster, set_as_default=False)


def _connect(address: str) -> Any:
    """A client of a running cluster."""
    distributed = _distributed()

    async def count_workers() -> int:
        certificates = distributed.Security().get_connection_args("client")  # as the user's Dask configuration says
        async with (
            asyncio.timeout(_CONNECT_S),
            distributed.rpc(address, connection_args=certificates) as scheduler,
        ):
            return len((await scheduler.identity(n_workers=1))["workers"])

    try:  # by hand, because a Client waits for ever where something else listens
        with ThreadPoolExecutor(1) as thread:
            count = thread.submit(asyncio.run, count_workers()).result()
    except Exception as error:
        reason = " ".join(str(error).split()) or f"no answer within {_CONNECT_S} s"
        raise ConfigError(
            f"executor.address: no Dask scheduler at {address!r} ({reason}); write it as tcp://host:port"
        ) from error
    if not count:
        raise ConfigError(f"executor.address: the Dask cluster at {address} has no workers; start some first")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return distributed.Client(address, timeout=_CONNECT_S, set_as_default=False)


def _distributed() -> Any:
    """The package, with its log silenced: what matters of it becomes an error of ours."""
    try:
        import dask
        import distributed
    except ImportError:
        raise ConfigError(
            "executor.kind: 'dask' needs a package that is not installed: pip install 'starling-node[cluster]'"
        ) from None
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] == "distributed":
            logging.getLogger(name).setLevel(logging.CRITICAL)
    dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 TiB"})
    return distributed
