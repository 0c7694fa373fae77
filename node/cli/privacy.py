"""``starling privacy``: what noise costs and buys. Each command prints one number, so that a script can use it."""

from __future__ import annotations

import math
from typing import Annotated, Any, cast

import typer

from node.errors import ConfigError

_DIGITS = 6
_METHODS = {"rdp": "rdp", "pld": "pld", "gaussian": "gdp"}

app = typer.Typer(help="What noise costs and buys: one number each.", no_args_is_help=True, rich_markup_mode=None)

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
