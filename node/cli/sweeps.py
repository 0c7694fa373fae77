"""What ``starling run --sweep`` does: a process for each point, side by side; then one table and one report."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from node.cli.running import sigterm_as_ctrl_c
from node.errors import ConfigError
from node.experiment.folder import run_folder
from node.experiment.sweep import Point, at_once, finished, points, row, summary_in, write_table

if TYPE_CHECKING:
    from node.cli.cohort_study import Study as CohortStudy
    from node.cli.tradeoff import Study

SUCCESS, WRONG_INPUT, FAILED, INTERRUPTED = 0, 2, 3, 130
_WRITES_A_SUMMARY = (SUCCESS, FAILED, INTERRUPTED)


@dataclass
class Sweep:
    """A sweep under way.

    Args:
        swept: its points.
        folder: of the sweep; each point has one in it.
        command: what runs a point and writes its folder, given both.
        tell: gets one line for each point that has ended.
    """

    swept: Sequence[Point]
    folder: Path
    command: Callable[[Point, Path], Sequence[str]]
    tell: Callable[[str], None]
    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By point, of those that have ended."""
    refused: str = ""
    """The first point that turned out to be wrong, and why: no more are begun."""
    study: Study | None = None
    """What points that tell of privacy or fairness say together, once written."""
    cohorts: CohortStudy | None = None
    """What points with different numbers of cohorts say together, once written."""

    async def run(self) -> None:
        """Run all points that are not finished yet. Cancelled, it ends what runs, and keeps what is finished."""
        waiting = []
        for point in self.swept:
            summary = finished(point, self.folder / point.name)
            if summary is None:
                waiting.append(point)
            else:
                self._ended(point, summary, "kept, ")
        if waiting and not self.summaries:
            await self._run(waiting.pop(0))  # alone: it shows how much memory one takes
        peak_bytes = max((summary.get("peak_rss_bytes", 0) for summary in self.summaries.values()), default=0)
        slots = asyncio.Semaphore(at_once(self.swept, peak_bytes))

        async def in_turn(point: Point) -> None:
            async with slots:
                if not self.refused:
                    await self._run(point)

        async with asyncio.TaskGroup() as group:
            for point in waiting:
                group.create_task(in_turn(point))

    async def _run(self, point: Point) -> None:
        folder = self.folder / point.name
        process = await asyncio.create_subprocess_exec(
            *self.command(point, folder),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches it once, from here
        )
        try:
            _, said = await process.communicate()
        except asyncio.CancelledError:
            process.terminate()
            await process.communicate()
            if (kept := summary_in(folder)) is not None:
                self._ended(point, kept)
            raise
        summary = summary_in(folder) if process.returncode in _WRITES_A_SUMMARY else None
        complaint = said.decode(errors="replace").strip().rpartition("\n")[2] or f"ended with {process.returncode}"
        if process.returncode == WRONG_INPUT:
            self.refused = f"{point.name}: {complaint.removeprefix('starling: ')}"
            return
        self._ended(point, summary or {"status": "failed", "error": complaint.removeprefix("starling: ")})

    def _ended(self, point: Point, summary: dict[str, Any], how: str = "") -> None:
        self.summaries[point.name] = summary
        self.tell(f"[{len(self.summaries)}/{len(self.swept)}] {point.name}: {how}{_in_words(summary)}")

    def write(self) -> None:
        """Write the table and the report of what has ended."""
        ended = [point for point in self.swept if point.name in self.summaries]
        write_table(self.folder / "sweep.csv", [row(point, self.summaries[point.name]) for point in ended])
        # Only now: pictures and tables take as long to load as a small run takes.
        from node.cli.report import write_report
        from node.cli.runs import load_run

        folders = [self.folder / point.name for point in ended if "hash" in self.summaries[point.name]]
        runs = [load_run(folder) for folder in folders]
        if runs:
            write_report(runs, self.folder / "report.html")
        if any("attacks" in summary or "groups" in summary.get("fairness", {}) for summary in self.summaries.values()):
            from node.cli.tradeoff import CSV, study

            self.study = study(runs)
            if self.study is not None:
                self.study.write(self.folder / CSV)
        if any("cpfl" in summary for summary in self.summaries.values()):
            from node.cli import cohort_study

            self.cohorts = cohort_study.study(runs)
            if self.cohorts is not None:
                self.cohorts.write(self.folder / cohort_study.CSV)

    def lines(self) -> Iterator[str]:
        """What the points say together, for a terminal."""
        if self.study is not None:
            from node.cli.tradeoff_table import lines

            yield from ("", *lines(self.study), "")
        if self.cohorts is not None:
            from node.cli import cohort_table
            from node.cli.cohort_noise import scales

            yield from ("", *cohort_table.lines(self.cohorts, scales(self.cohorts)), "")


def run_sweep(
    experiment: str,
    overrides: Sequence[str],
    sweeps: Sequence[str],
    out: Path | None,
    clock: str | None = None,
    *,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run a sweep and write its folder; gives the exit code.

    Raises:
        ConfigError: a point is wrong. Mistakes in keys and values are found before anything runs; one that shows only
            when a point is prepared ends the sweep there.
    """
    swept = points(experiment, overrides, sweeps, os.environ, clock)
    overrides = [*overrides, *([f"clock={clock}"] if clock else [])]
    _check_protocols(swept)
    folder = run_folder(out, f"{swept[0].config.name}-sweep")

    def tell(line: str) -> None:
        if not (quiet or as_json):
            typer.echo(line)

    sweep = Sweep(swept, folder, lambda point, to: _command(experiment, [*overrides, *point.sets], to), tell)
    interrupted = False
    try:
        with sigterm_as_ctrl_c():
            asyncio.run(sweep.run())
    except KeyboardInterrupt:
        interrupted = True
        typer.echo(f"starling: interrupted; the same command with --out {folder} goes on", err=True)
    sweep.write()
    if sweep.refused:
        raise ConfigError(sweep.refused)
    if as_json:
        by_point = [(point, sweep.summaries[point.name]) for point in swept if point.name in sweep.summaries]
        typer.echo(json.dumps([{"point": point.name, "sweep": point.values, **told} for point, told in by_point]))
    failed = [name for name, summary in sweep.summaries.items() if summary["status"] != "finished"]
    for name in failed:
        typer.echo(f"starling: {name}: {sweep.summaries[name]['error']}", err=True)
    if not (quiet or as_json):
        for line in sweep.lines():
            typer.echo(line)
    also = "".join(f", {name}" for name in ("tradeoff.csv", "cohorts.csv") if (folder / name).exists())
    tell(f"results: {folder}/  (report.html, sweep.csv{also}, one folder for each point)")
    return INTERRUPTED if interrupted else FAILED if failed else SUCCESS


def _check_protocols(swept: Sequence[Point]) -> None:
    """Find out now, not after all points before it have run, that one names a protocol or an option that is none."""
    if len({json.dumps(point.config.protocol.model_dump(), sort_keys=True) for point in swept}) < 2:
        return  # a wrong one ends the sweep with the first point
    from node.experiment.setup import find_protocol

    for point in swept:
        try:
            find_protocol(point.config)
        except ConfigError as error:
            raise ConfigError(f"{point.name}: {error}") from None


def _command(experiment: str, sets: Sequence[str], folder: Path) -> list[str]:
    options = [option for override in sets for option in ("--set", override)]
    run = [sys.executable, "-P", "-m", "node.cli.main", "run", experiment, "--no-sweep", *options]
    return [*run, "--out", str(folder), "--quiet"]


def _in_words(summary: dict[str, Any]) -> str:
    if summary["status"] != "finished":
        return f"{summary['status']}: {summary['error']}"
    accuracy = summary["metrics"].get("accuracy", {}).get("mean")
    reached = "" if accuracy is None else f"mean test accuracy {accuracy:.4f}, "
    return f"{reached}{summary['rounds']} rounds, {summary['time_s']:.2f} s, {summary['wall_s']:.1f} s in all"
