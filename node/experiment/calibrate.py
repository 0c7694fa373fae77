"""Measure how fast this machine trains an experiment's model, and write it as a trace for simulations of it.

What is measured is what a real node does: one training task of the experiment's steps after another, in as many
processes at once as are asked for. Executors that solve task by task elsewhere take as long for each as the inline one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import count
from multiprocessing import active_children, get_context
from pathlib import Path
from statistics import median
from threading import BrokenBarrierError
from typing import TypeAlias

import numpy as np

from node.errors import ComputeError, ConfigError
from node.experiment.setup import Setup
from node.learn import data
from node.learn.cost import training_flops
from node.learn.partition import Shards
from node.learn.workload import Workload
from node.op import Key, Task
from node.sim.draws import per_node
from node.sim.traces.device_table import SUFFIXES, write_table
from node.solver import BatchedExecutor, InlineExecutor

_WARM_UP_STEPS = 20
_BLOCKS = 5
_BLOCK_S = 0.5
_READY_S = 600.0
"""How long the slowest process may take to warm up."""
_LEAST_SHARE = 0.01
"""Least share of a step's time that its samples are taken to cost, where noise hides what they do."""


@dataclass(frozen=True)
class Calibration:
    """What training costs on this machine; ``overhead_s + batch * seconds_per_sample`` is what a step took."""

    seconds_per_sample: float
    overhead_s: float
    flops_per_sample: float
    spread: float
    """Largest deviation of a block from the median of its process's blocks, as a share of it."""


def measure_and_write(setup: Setup, out: Path, processes: int) -> str:
    """Calibrate, write the trace, and say in a line what was found.

    Raises:
        ConfigError: the file's name tells no format, or its folder does not exist; or see :func:`calibrate`.
    """
    if out.suffix not in SUFFIXES:
        raise ConfigError(f"--out {out}: the name tells the format; allowed: {', '.join(SUFFIXES)}")
    if not out.resolve().parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.resolve().parent}")
    found = calibrate(setup, processes)
    write_trace(found, setup, out)
    return (
        f"{setup.config.name}: {found.seconds_per_sample * 1e6:.3g} us a sample and {found.overhead_s * 1e6:.3g} us a "
        f"step (blocks within {found.spread:.0%}), {found.flops_per_sample:.4g} FLOPs a sample, {processes} at once; "
        f"simulate with --set devices.trace={out}"
    )


def calibrate(setup: Setup, processes: int, block_s: float = _BLOCK_S) -> Calibration:
    """Measure on this machine, with so many processes busy at once.

    Takes about ten times ``block_s``, the length of one of the blocks whose median counts.

    Raises:
        ConfigError: this machine does not start so many processes.
        ComputeError: a process was killed.
    """
    config = setup.config
    small, large = batch_sizes(config.training.batch_size)
    train, _ = data.load(config.data, config.seed)
    workloads = [_workload(setup, train, size) for size in (small, large)]
    measured = _in_processes(processes, lambda all_ready: _measure(setup, workloads, block_s, all_ready))
    small_s, large_s = (median(median(blocks[i]) for blocks in measured) for i in (0, 1))
    seconds_per_sample, overhead_s = fit(config.training.batch_size, {small: small_s, large: large_s})
    flops = training_flops(setup.model, tuple(train.features.shape[1:]))
    spread = max(_spread(times) for blocks in measured for times in blocks)
    return Calibration(seconds_per_sample, overhead_s, flops, spread)


def batch_sizes(batch_size: int) -> tuple[int, int]:
    """Two batch sizes to measure, the smaller one first: the experiment's, and one far enough from it."""
    return (max(1, batch_size // 4), batch_size) if batch_size > 1 else (1, 4)


def fit(batch_size: int, step_s: dict[int, float]) -> tuple[float, float]:
    """Seconds per sample and overhead per step, from the seconds of a step with two batch sizes.

    A line through both points; where noise makes it impossible (a negative overhead, or samples that cost nothing), the
    nearest possible one that keeps what was measured with ``batch_size``, one of the two.
    """
    (small, small_s), (large, large_s) = sorted(step_s.items())
    whole = step_s[batch_size] / batch_size
    slope = min(max((large_s - small_s) / (large - small), _LEAST_SHARE * whole), whole)
    return slope, step_s[batch_size] - slope * batch_size


def write_trace(calibration: Calibration, setup: Setup, out: Path) -> None:
    """Write a trace with one row for each node of the experiment: this machine, behind the experiment's links."""
    config = setup.config
    nodes = config.nodes
    write_table(
        out,
        {
            "node": range(nodes),
            "seconds_per_sample": [calibration.seconds_per_sample] * nodes,
            "overhead_s": [calibration.overhead_s] * nodes,
            "flops_per_sample": [calibration.flops_per_sample] * nodes,
            "up_bps": per_node(config.network.up_bps, nodes, config.seed, "up_bps"),
            "down_bps": per_node(config.network.down_bps, nodes, config.seed, "down_bps"),
        },
    )


def _workload(setup: Setup, train: data.Dataset, batch_size: int) -> Workload:
    """The experiment's training with another batch size, on one shard that is large enough for full batches."""
    rows = np.resize(np.arange(len(train.labels)), max(len(train.labels), 4 * batch_size))
    shard, none = Shards(np.array([0, len(rows)]), rows), Shards(np.array([0, 0]), rows[:0])
    section = setup.config.training.model_copy(update={"batch_size": batch_size})
    federation, executor = data.Federation(train, train, shard, none), setup.config.executor
    return Workload(federation, setup.model, section, setup.config.seed, executor.kernel, executor.device)


def _measure(
    setup: Setup, workloads: Sequence[Workload], block_s: float, all_ready: Callable[[], object]
) -> list[list[float]]:
    """Seconds of one step in every block, for each workload; their blocks take turns, so that both see the same."""
    steps = max(setup.workload.steps(node) for node in range(setup.config.nodes))
    executor = BatchedExecutor() if setup.config.executor.kind == "batched" else InlineExecutor()
    keys = (Key(setup.config.seed, 0, counter) for counter in count())
    model = setup.workload.init.solve(Task((), {}, next(keys)))
    static = {"steps": steps, "lr": setup.config.training.lr, "proximal": 0.0}

    def train(workload: Workload) -> None:
        executor.solve(workload.train, [Task((model,), static, next(keys))])

    for workload in workloads:
        for _ in range(-(-_WARM_UP_STEPS // steps)):
            train(workload)
    all_ready()
    rounds = [[_mean_s(partial(train, workload), block_s) for workload in workloads] for _ in range(_BLOCKS)]
    return [[seconds / steps for seconds in times] for times in zip(*rounds, strict=True)]


def _mean_s(work: Callable[[], None], block_s: float) -> float:
    """Mean seconds of some work that is done over and over for so long, at least once."""
    started, calls = time.perf_counter(), 0
    while True:
        work()
        calls += 1
        passed = time.perf_counter() - started
        if passed >= block_s:
            return passed / calls


def _spread(times: Sequence[float]) -> float:
    middle = median(times)
    return max(abs(seconds - middle) for seconds in times) / middle


_Work: TypeAlias = Callable[[Callable[[], object]], list[list[float]]]
_work: Callable[[], list[list[float]]] | None = None
"""In a forked process: what it was made for. It comes with the fork, because not all of it could be sent."""


def _in_processes(processes: int, work: _Work) -> list[list[list[float]]]:
    """Do work in several forked processes at once; it is given what to call when ready, to wait for all the others."""
    context = get_context("fork")
    barrier = context.Barrier(processes)
    before = set(active_children())
    with ProcessPoolExecutor(processes, context, _take, (lambda: work(partial(barrier.wait, _READY_S)),)) as pool:
        try:
            jobs = [pool.submit(_do) for _ in range(processes)]
        except OSError as error:
            for child in set(active_children()) - before:
                child.kill()
            raise ConfigError(f"--processes {processes}: this machine starts fewer: {error.strerror}") from error
        try:
            return [job.result() for job in jobs]
        except (BrokenProcessPool, BrokenBarrierError) as error:
            raise ComputeError(
                "calibrate: a process was killed or stuck; is there memory enough for --processes at once?"
            ) from error


def _take(work: Callable[[], list[list[float]]]) -> None:
    global _work
    _work = work


def _do() -> list[list[float]]:
    assert _work is not None
    return _work()
