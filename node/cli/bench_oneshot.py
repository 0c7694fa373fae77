"""What ``starling bench oneshot`` does: solve what is missing, then write and tell what all of it says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import typer

from node.cli import bench_orderings, leaderboard_open, leaderboard_reliability, leaderboard_table
from node.cli.bench_cells import Progress
from node.cli.leaderboard import Board
from node.cli.leaderboard_html import write_page
from node.errors import ConfigError
from node.experiment.oneshot_cell import Figures, Record
from node.experiment.oneshot_presets import entrants, preset
from node.experiment.sweep import write_table

SUCCESS, FAILED, INTERRUPTED = 0, 3, 130


class Request(NamedTuple):
    """What was asked for."""

    preset: str
    algorithms: Sequence[str]
    datasets: Sequence[str]
    seeds: int
    out: Path
    processes: int = 0
    add: Path | None = None
    check: bool = False
    quiet: bool = False


def run(request: Request) -> int:
    """Run the benchmark and write its folder; gives the exit code.

    Raises:
        ConfigError: the request, or a file of results, is wrong: found before anything runs.
    """
    chosen = preset(request.preset, request.datasets, request.seeds)
    rows = entrants(request.algorithms, chosen.variants)
    cells = list(chosen.cells(rows))
    for cell in cells:
        cell.config()
    _check_folder(request.out)

    def tell(line: str) -> None:
        if not request.quiet:
            typer.echo(line)

    progress = Progress(cells, request.out, tell)
    progress.read_kept()
    if request.add is not None:
        entry = leaderboard_open.add(request.add, request.out)
        tell(f"added: {entry.name}, {len(entry.results)} results, {entry.assumptions}")
    else:
        kept = len(progress.records)
        tell(f"{len(cells)} cells: {kept} kept from before, {len(cells) - kept} to solve")
        progress.solve_missing(request.processes)
        if progress.interrupted:
            typer.echo(f"starling: interrupted; the same command with --out {request.out} goes on", err=True)
    board = Board([*progress.in_order, *leaderboard_open.added(request.out)])
    verdicts = bench_orderings.verdicts(board)
    write(board, verdicts, progress.in_order, request.out)
    for line in told(board, verdicts, request):
        typer.echo(line)
    is_wrong = request.check and any(verdict.status != "holds" for verdict in verdicts)
    return INTERRUPTED if progress.interrupted else FAILED if is_wrong else SUCCESS


def write(board: Board, verdicts: Sequence[bench_orderings.Verdict], records: Sequence[Record], folder: Path) -> None:
    """Write the leaderboard in all its forms, and a row for each cell."""
    write_page(board, verdicts, folder / "leaderboard.html")
    leaderboard_table.write_csv(board, folder / "leaderboard.csv")
    (folder / "leaderboard.tex").write_text(leaderboard_table.latex(board), encoding="utf-8")
    leaderboard_reliability.write_csv(board, folder / "reliability.csv")
    names = ("entrant", "assumptions", "division", "status", "error", "unattacked")
    rows = [{**{name: each[name] for name in names}, **each["setting"], **_single(each["figures"])} for each in records]
    write_table(folder / "cells.csv", rows)


def _single(figures: Figures) -> Figures:
    """Those that are no part of a table of their own."""
    return {name: value for name, value in figures.items() if "/" not in name}


def told(board: Board, verdicts: list[bench_orderings.Verdict], request: Request) -> Iterator[str]:
    """What the terminal gets to see."""
    yield ""
    yield from leaderboard_table.lines(board)
    if request.check or any(verdict.status != "not measured" for verdict in verdicts):
        counts = Counter(verdict.status for verdict in verdicts)
        yield ""
        yield from bench_orderings.lines(verdicts)
        yield ", ".join(f"{count} {status}" for status, count in counts.items())
    causes: dict[str, list[str]] = {}
    for record in board.failed:
        causes.setdefault(record["entrant"], []).append(record["error"])
    for name, errors in causes.items():
        more = f" (and {len(errors) - 1} more cells)" if len(errors) > 1 else ""
        yield f"not run: {name}: {errors[0]}{more}"
    yield f"results: {request.out}/  (leaderboard.html, leaderboard.csv, leaderboard.tex, reliability.csv, cells.csv)"


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written to: {error.strerror or error}") from None
