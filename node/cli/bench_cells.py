"""Many cells of the benchmark at once: a few processes that stay, each of which takes whole settings."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import psutil
import structlog

from node.cli.running import sigterm_as_ctrl_c
from node.errors import ComputeError, ConfigError, StarlingError
from node.experiment.oneshot_cell import Record, failed, keep, kept, solve
from node.experiment.oneshot_grid import Cell, Setting

CELLS, CACHE = "cells", "cache"
"""Folders of a benchmark: what came of its cells, and what trainings they share."""


@dataclass
class Progress:
    """What has become of the cells so far."""

    cells: Sequence[Cell]
    folder: Path
    tell: Callable[[str], None]
    """Gets a line for each setting that is done."""
    records: dict[int, Record] = field(default_factory=dict)
    """By the cell's place."""
    interrupted: bool = False

    @property
    def in_order(self) -> list[Record]:
        """What there is, in the order of the cells, however they were solved."""
        return [self.records[place] for place in sorted(self.records)]

    def read_kept(self) -> None:
        """Take in what earlier runs have left."""
        for place, cell in enumerate(self.cells):
            if place not in self.records and (record := kept(cell, self.folder / CELLS)) is not None:
                self.records[place] = record

    def solve_missing(self, processes: int = 0) -> None:
        """Solve all other cells. Ctrl-C ends it: what is finished stays, and the next run goes on from there.

        Args:
            processes: 0: one for each core.

        Raises:
            ComputeError: a process has died.
        """
        (self.folder / CELLS).mkdir(parents=True, exist_ok=True)
        waiting: dict[Setting, list[int]] = {}
        for place, cell in enumerate(self.cells):
            if place not in self.records:
                waiting.setdefault(cell.setting, []).append(place)
        if not waiting:
            return
        workers = min(processes or psutil.cpu_count() or 1, len(waiting))
        # Spawned, not forked: torch has threads by now.
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
        try:
            with sigterm_as_ctrl_c():
                self._collect(pool, waiting)
        except KeyboardInterrupt:
            self.interrupted = True
            _end_children()
        except BrokenProcessPool as error:
            raise ComputeError(f"benchmark: a process died ({error}); too little memory?") from error
        finally:
            pool.shutdown(wait=not self.interrupted, cancel_futures=True)
            self.read_kept()

    def _collect(self, pool: ProcessPoolExecutor, waiting: dict[Setting, list[int]]) -> None:
        total = len(waiting)
        jobs: dict[Future[list[Record]], tuple[Setting, list[int]]] = {
            pool.submit(_solve_setting, [self.cells[place] for place in places], self.folder): (setting, places)
            for setting, places in waiting.items()
        }
        started = perf_counter()
        for done, job in enumerate(as_completed(jobs), 1):
            setting, places = jobs[job]
            self.records.update(zip(places, job.result(), strict=True))
            wrong = sum(self.records[place]["status"] != "finished" for place in places)
            counted = f"{len(places)} cells" + (f", {wrong} failed" if wrong else "")
            self.tell(
                f"[{done}/{total}] {perf_counter() - started:.0f} s  {setting.block} seed {setting.seed}: {counted}"
            )


def _begin() -> None:
    """A process of the pool: it ends when its parent says so, not by the Ctrl-C that reaches both."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Who is missing is part of the results; a thousand warnings of it are no progress.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _solve_setting(cells: Sequence[Cell], folder: Path) -> list[Record]:
    """All cells of one setting, each kept as soon as it is there."""
    records = []
    for cell in cells:
        try:
            record = solve(cell, folder / CACHE)
        except ConfigError as error:
            record = failed(cell, str(error))
        except StarlingError as error:
            record = failed(cell, f"{type(error).__name__}: {error}")
        keep(cell, record, folder / CELLS)
        records.append(record)
    return records


def _end_children() -> None:
    for child in multiprocessing.active_children():
        child.terminate()
