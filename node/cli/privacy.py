"""``starling privacy``: what noise costs and buys, one number a command, and what a run has given away."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from node.errors import ConfigError

if TYPE_CHECKING:
    from node.privacy.exposure import Exposure

_DIGITS = 6
_METHODS = {"rdp": "rdp", "pld": "pld", "gaussian": "gdp"}
_FLAGS = {
    **{key: key for key in ("sigma", "q", "delta", "epsilon", "adjacency")},
    "n": "steps",
    "method": "accountant",
    "view": "collude",
}
"""By the name that errors give to a value, the flag that it came by."""

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
    with _flags_named(accountant):
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
    from node.privacy import gaussian, rdp

    with _flags_named(accountant):
        gaussian.check_delta(delta)
        if accountant == "rdp" and steps and q and epsilon < (least := rdp.least_epsilon(delta)):
            raise ConfigError(
                f"epsilon: {epsilon:g} is less than rdp can show at that delta, by the orders that it looks at:"
                f" {least:.4g}; allowed: more, --accountant gaussian (with q = 1) or pld"
            )
        needed = gaussian.calibrate(lambda noise: _epsilon(noise, q, steps, delta, accountant, adjacency), epsilon)
        typer.echo(_rounded_up(needed))


@app.command()
def network(
    run: Annotated[Path, typer.Argument(help="The folder of a run with record.lineage.")],
    collude: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Nodes that put together all they know.")
    ] = None,
    eavesdropper: Annotated[
        bool, typer.Option("--eavesdropper", help="What somebody learns who reads all messages on all links (T3).")
    ] = False,
    delta: Delta = 1e-5,
    victim: Annotated[int | None, typer.Option(help="What is learned of this node alone.")] = None,
    adjacency: Adjacency = "replace_one",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what the nodes of a run have learned of each other, exactly, by distance."""
    missing: list[str] = []
    with _flags_named():
        if eavesdropper and collude is not None:
            raise ConfigError("--eavesdropper: takes part in nothing, and with nobody; leave --collude out")
        attackers = None if eavesdropper else _numbers(collude)
        exposure = _exposure(run, attackers, delta, victim, adjacency, missing.append)
    from node.cli.exposure import as_json as json_of
    from node.cli.exposure import as_text

    typer.echo(json_of(exposure, missing) if as_json else as_text(exposure, missing))
    if eavesdropper and not as_json and (mu := _decor_mu(run, exposure)) is not None:
        typer.echo(f"closed form, if no message was lost (Allouah et al., ICML 2024): mu {mu:.4f} of the worst node")


@contextmanager
def _flags_named(accountant: str = "") -> Iterator[None]:
    """Let errors name what the user has typed."""
    try:
        yield
    except ConfigError as error:
        key, _, says = str(error).partition(": ")
        if key not in _FLAGS:
            raise
        if key == "method":
            says = says.partition(" ")[2]  # after the accountant's own name
            raise ConfigError(f"--accountant {accountant}: {says}") from error
        raise ConfigError(f"--{_FLAGS[key]}: {says}") from error


def _exposure(
    run: Path,
    attackers: tuple[int, ...] | None,
    delta: float,
    victim: int | None,
    adjacency: str,
    note: Callable[[str], None],
) -> Exposure:
    """Of these attackers; of each node by itself where they are none, and of an eavesdropper where they are None."""
    from node import provenance
    from node.experiment.folder import LINEAGE
    from node.privacy import exposure
    from node.privacy.from_run import told

    if adjacency not in exposure.SENSITIVITY:
        raise ConfigError(f"--adjacency {adjacency}: allowed: {', '.join(exposure.SENSITIVITY)}")
    happened = told(provenance.read(run / LINEAGE, _nodes(run), note))
    if attackers is None:
        return exposure.of_eavesdropper(happened, delta, cast(Any, adjacency), victim)
    if attackers:
        return exposure.of_set(happened, attackers, delta, cast(Any, adjacency), victim)
    return exposure.of_each(happened, delta, cast(Any, adjacency), victim)


def _decor_mu(run: Path, exposure: Exposure) -> float | None:
    """What the closed form says of a run of DECOR on a graph that never changes; None of any other."""
    import numpy as np

    from node.experiment.loading import load
    from node.experiment.setup import find_protocol
    from node.privacy.eavesdropper import decor_mu
    from node.privacy.exposure import SENSITIVITY
    from node.topology import build

    if not (run / "experiment.toml").exists():
        return None
    config = load(str(run / "experiment.toml"))
    if config.protocol.use != "decor" or config.privacy.mechanism != "none" or not exposure.is_clipped:
        return None
    _, options = find_protocol(config)
    graph = build(config.topology, config.nodes, config.seed)
    if graph.fresh or graph.directed:
        return None
    edges = graph.matrix() > 0
    np.fill_diagonal(edges, False)
    mu = decor_mu(edges, options.noise, options.pairwise, options.clip, options.rounds)
    return mu * SENSITIVITY[exposure.adjacency] / SENSITIVITY["replace_one"]


def _nodes(run: Path) -> int:
    """How many there were; 0 where nothing tells. Refuses a run that protects single records: no log has its noise."""
    import tomllib

    experiment = run / "experiment.toml"
    tables = tomllib.loads(experiment.read_text(encoding="utf-8")) if experiment.exists() else {}
    if tables.get("privacy", {}).get("mechanism") == "record":
        raise ConfigError(f"{run}: protects single records; such runs are accounted by `starling privacy epsilon`")
    return int(tables.get("nodes", 0))


def _numbers(listed: str | None) -> tuple[int, ...]:
    try:
        return () if listed is None else tuple(sorted({int(number) for number in listed.split(",")}))
    except ValueError:
        shown = listed or "is empty"
        raise ConfigError(f"--collude {shown}: allowed: numbers of nodes with commas between them") from None


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
