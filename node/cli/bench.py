"""``starling bench``: benchmarks that compare what others would otherwise compare each in their own way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Benchmarks: many experiments, one leaderboard.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def bench() -> None:
    """Benchmarks: many experiments, one leaderboard."""


@app.command()
def oneshot(
    preset: Annotated[str, typer.Option(help="small, full, or orderings (what --check asks).")] = "small",
    algorithms: Annotated[str, typer.Option(metavar="A,B", help="Only these rows; a name, or module:Class.")] = "",
    datasets: Annotated[str, typer.Option(metavar="A,B", help="These data sets or files instead.")] = "",
    seeds: Annotated[int, typer.Option(min=0, help="Seeds of each setting; 0: the preset's.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of results; what it holds already is not solved again.")] = Path(
        "runs/oneshot-bench"
    ),
    processes: Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core.")] = 0,
    add: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Add somebody's results, and solve nothing.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Fail where a known ordering does not hold.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """One-shot federated learning: every algorithm in every setting, as table, leaderboard.html, .csv and .tex."""
    from node.cli.bench_oneshot import Request, run

    raise typer.Exit(
        run(Request(preset, _listed(algorithms), _listed(datasets), seeds, out, processes, add, check, quiet))
    )


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
