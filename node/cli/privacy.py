"""``starling privacy``: what noise costs and buys, one number a command, and what a run has given away."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from node.errors import ConfigError

if TYPE_CHECKING:
    from node.privacy.exposure import Exposure

_DIGITS = 6
_METHODS = {"rdp": "rdp", "pld": "pld", "gaussian": "gdp"}

app = typer.Typer(
    help="What noise costs and buys, and what a run gave away.", no_args_is_help=True, rich_markup_mode=None
)

Sigma = Annotated[float, typer.Option(help="Noise multiplier: standard deviation over clipping norm.")]
Rate = Annotated[float, typer.Option(help="Poisson sampling rate of each step; 1: all records.")]
Steps = Annotated[int, typer.Option(help="How many steps.")]
Delta = Annotated[float, typer.Option(help="Chance that the guarantee fails.")]
Accountant = Annotated[str, typer.Option(help="rdp, pld (needs starling-node[privacy]) or gaussian (q = 1 only).")]
Adjacency = Annotated[str, typer.Option(help="add_remove, or replace_one.")]


@app.command()
def epsilon(
    sigma: Sigma,
    steps: Steps,
    delta: Delta,
    q: Rate = 1.0,
    accountant: Accountant = "rdp",
    adjacency: Adjacency = "add_remove",
) -> None:
    """Print the epsilon of so many steps with this noise."""
    typer.echo(_rounded_up(_epsilon(sigma, q, steps, delta, accountant, adjacency)))


@app.command()
def sigma(
    epsilon: Annotated[float, typer.Option(help="What the steps may cost together.")],
    steps: Steps,
    delta: Delta,
    q: Rate = 1.0,
    accountant: Accountant = "rdp",
    adjacency: Adjacency = "add_remove",
) -> None:
    """Print the least noise multiplier that keeps so many steps within this epsilon."""
    from node.privacy import gaussian

    needed = gaussian.calibrate(lambda noise: _epsilon(noise, q, steps, delta, accountant, adjacency), epsilon)
    typer.echo(_rounded_up(needed))


@app.command()
def network(
    run: Annotated[Path, typer.Argument(help="The folder of a run with record.lineage.")],
    collude: Annotated[str, typer.Option(metavar="A,B,...", help="Nodes that put together all they know.")] = "",
    delta: Delta = 1e-5,
    victim: Annotated[int | None, typer.Option(help="What is learned of this node alone.")] = None,
    adjacency: Adjacency = "replace_one",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what the nodes of a run have learned of each other, exactly, by distance."""
    exposure = _exposure(run, _numbers(collude), delta, victim, adjacency)
    from node.cli.exposure import as_json as json_of
    from node.cli.exposure import as_text

    typer.echo(json_of(exposure) if as_json else as_text(exposure))


def _exposure(run: Path, attackers: tuple[int, ...], delta: float, victim: int | None, adjacency: str) -> Exposure:
    from node import provenance
    from node.experiment.folder import LINEAGE
    from node.privacy import exposure
    from node.privacy.from_run import told

    if adjacency not in exposure.SENSITIVITY:
        raise ConfigError(f"--adjacency {adjacency}: allowed: {', '.join(exposure.SENSITIVITY)}")
    _check_mechanism(run)
    happened = told(provenance.read(run / LINEAGE))
    if attackers:
        return exposure.of_set(happened, attackers, delta, cast(Any, adjacency), victim)
    return exposure.of_each(happened, delta, cast(Any, adjacency), victim)


def _check_mechanism(run: Path) -> None:
    """Refuse a run of which single records are protected: its noise is not in what the log tells."""
    import tomllib

    experiment = run / "experiment.toml"
    tables = tomllib.loads(experiment.read_text(encoding="utf-8")) if experiment.exists() else {}
    if tables.get("privacy", {}).get("mechanism") == "record":
        raise ConfigError(f"{run}: protects single records; such runs are accounted by `starling privacy epsilon`")


def _numbers(listed: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(number) for number in listed.split(",")})) if listed else ()
    except ValueError:
        raise ConfigError(f"--collude {listed}: allowed: numbers of nodes with commas between them") from None


def _epsilon(sigma: float, q: float, steps: int, delta: float, accountant: str, adjacency: str) -> float:
    from node.privacy.budget import NodeAccountant

    if accountant not in _METHODS:
        raise ConfigError(f"--accountant {accountant}: allowed: {', '.join(_METHODS)}")
    spent = NodeAccountant(adjacency=cast(Any, adjacency))
    spent.step(sigma, q, steps)
    return spent.epsilon(delta, cast(Any, _METHODS[accountant]))


def _rounded_up(value: float) -> str:
    # Rounded down, a noise would be too little, and an epsilon would promise too much.
    return f"{math.ceil(value * 10**_DIGITS) / 10**_DIGITS:.{_DIGITS}f}" if math.isfinite(value) else str(value)
