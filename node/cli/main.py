"""The ``starling`` command: parses, calls, prints, and turns every StarlingError into one line and an exit code."""

from __future__ import annotations

import json
import os
import signal
import sys
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from node.cli.bench import app as bench
from node.cli.network import app as network
from node.cli.privacy import app as privacy
from node.cli.serve import serve
from node.cli.store import app as store
from node.errors import ConfigError, StarlingError

SUCCESS, WRONG_INPUT, FAILED, INTERRUPTED = 0, 2, 3, 130

ADMIN_URL = "http://127.0.0.1:7601"
NodeUrl = Annotated[str, typer.Option("--node", metavar="URL", help="The node's admin address.")]
TokenFile = Annotated[
    Path, typer.Option("--token-file", metavar="FILE", help="The file admin.token in the node's state folder.")
]
TOKEN_FILE = Path("state/admin.token")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(
    name="starling",
    help="Decentralized learning: real networked nodes, and the same code under a virtual clock.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


app.add_typer(privacy, name="privacy")
app.add_typer(bench, name="bench")
app.add_typer(network, name="network")
app.add_typer(store, name="store")
app.command()(serve)


class Clock(StrEnum):
    """The two worlds."""

    real = "real"
    virtual = "virtual"


def _version(asked: bool) -> None:
    if asked:
        typer.echo(version("starling-node"))
        raise typer.Exit


@app.callback()
def starling(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Log what happens, as JSON lines on stderr.")
    ] = False,
) -> None:
    """Options common to all commands."""
    from node.logs import configure

    configure(verbose)


@app.command()
def run(
    experiment: Annotated[str, typer.Argument(help="A TOML file, or the name of a bundled experiment.")],
    clock: Annotated[Clock | None, typer.Option(help="Real processes on this machine, or a simulation.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override any key.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write; default: runs/NAME-TIME.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json on stdout, and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    sweeps: Annotated[
        list[str] | None, typer.Option("--sweep", metavar="KEY=V1,V2", help="Run with each value; may be repeated.")
    ] = None,
    no_sweep: Annotated[
        bool, typer.Option("--no-sweep", help="Run the experiment itself, not what [sweep] in its file makes of it.")
    ] = False,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what nodes do when, for trace viewers.")
    ] = None,
    check_determinism: Annotated[
        bool, typer.Option("--check-determinism", help="Simulate twice and compare every event.")
    ] = False,
) -> None:
    """Run one experiment with all its nodes; with --sweep, or [sweep] in its file, all combinations of some values."""
    from node.cli import running

    overrides = [*(sets or []), *([f"clock={clock.value}"] if clock else [])]
    if check_determinism:
        if as_json or out or sweeps or trace:
            raise ConfigError(
                "--check-determinism writes nothing and prints one line; leave out --json, --out, --sweep and --trace"
            )
        typer.echo(running.check_determinism(experiment, overrides))
        return
    from node.experiment.axes import grids

    only = clock.value if clock else None
    if sweeps or (not no_sweep and grids(experiment, only)):
        if trace:
            raise ConfigError("--trace is one run's file; with --sweep write --set record.trace=true, for one each")
        from node.cli.sweeps import run_sweep

        raise typer.Exit(run_sweep(experiment, sets or [], sweeps or [], out, only, as_json=as_json, quiet=quiet))
    summary, folder = running.run(experiment, overrides, out, quiet or as_json, trace)
    if as_json:
        typer.echo(json.dumps(summary))
    elif not quiet:
        running.tell_outcome(summary, folder)
    raise typer.Exit({"finished": SUCCESS, "interrupted": INTERRUPTED}.get(summary["status"], FAILED))


@app.command()
def node(
    config: Annotated[
        Path | None, typer.Option(help="The node's TOML file; default: node.toml, unless the node joins.")
    ] = None,
    join: Annotated[
        str, typer.Option(metavar="INVITE", help="An invitation, a file that holds one, or - for standard input.")
    ] = "",
    state: Annotated[str, typer.Option(metavar="DIR", help="The node's own folder: keys, checkpoints, results.")] = "",
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where peers' links come in.")] = "",
    advertise: Annotated[str, typer.Option(metavar="HOST:PORT", help="What peers are told, if that differs.")] = "",
    admin: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where health, metrics and control are.")] = "",
    outbound: Annotated[
        bool, typer.Option("--outbound", help="Nobody can dial this node (NAT): it opens all links itself.")
    ] = False,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="For machines with little of it; see deploy/edge.md.")
    ] = False,
) -> None:
    """Run one real node in the foreground, until SIGTERM. One that has joined a network once needs no invitation."""
    from node.cli.joining import run_one

    # Until the node listens to it itself there is nothing to lose; a container's first process would ignore it.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(SUCCESS))
    flags = {"state": state, "listen": listen, "advertise": advertise, "admin": admin}
    flags["outbound"] = "true" if outbound else ""
    flags["low_memory"] = "true" if low_memory else ""
    raise typer.Exit(run_one(config, join, {key: value for key, value in flags.items() if value}))


@app.command()
def attack(
    kind: Annotated[str, typer.Argument(help="A kind of attack ('starling list attacks'), or module:Class.")],
    experiment: Annotated[str, typer.Option(help="A TOML file, or the name of a bundled experiment.")] = "",
    nodes: Annotated[list[int] | None, typer.Option("--node", help="Who attacks; may be repeated.")] = None,
    clock: Annotated[Clock | None, typer.Option(help="Real processes on this machine, or a simulation.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override any key; attack.KEY: the attack's.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write; default: runs/NAME-TIME.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json on stdout, and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    join: Annotated[
        str,
        typer.Option(metavar="INVITE", help="Join a running network instead, until SIGTERM; an invitation or file."),
    ] = "",
    state: Annotated[str, typer.Option(metavar="DIR", help="With --join: the node's own folder.")] = "",
) -> None:
    """Run an experiment with an attacker among its nodes, and say what it has measured."""
    from node.cli import attack as attacking

    if join:
        from node.cli.joining import attack_one

        raise typer.Exit(attack_one(kind, join, sets or [], {"state": state} if state else {}))
    if not experiment:
        raise ConfigError("--experiment: is missing; name a TOML file or a bundled experiment")
    overrides = [*(sets or []), *([f"clock={clock.value}"] if clock else [])]
    summary, folder = attacking.run(kind, experiment, nodes, overrides, out, quiet or as_json)
    if as_json:
        typer.echo(json.dumps(summary))
    else:
        attacking.tell(summary, folder)
    raise typer.Exit({"finished": SUCCESS, "interrupted": INTERRUPTED}.get(summary["status"], FAILED))


@app.command()
def status(node: NodeUrl = ADMIN_URL, as_json: AsJson = False) -> None:
    """How a running node stands."""
    from node.cli.remote import as_lines, ask

    found = ask(node, "status")
    typer.echo(json.dumps(found) if as_json else as_lines(found))


@app.command()
def peers(node: NodeUrl = ADMIN_URL, as_json: AsJson = False) -> None:
    """The other nodes, as a running node sees them."""
    from node.cli.remote import as_table, ask

    found = ask(node, "peers")
    typer.echo(json.dumps(found) if as_json else as_table(found))


@app.command()
def pause(node: NodeUrl = ADMIN_URL, token_file: TokenFile = TOKEN_FILE) -> None:
    """Have a running node begin no new training step; it goes on answering its peers."""
    _order(node, "pause", token_file, "pauses")


@app.command()
def resume(node: NodeUrl = ADMIN_URL, token_file: TokenFile = TOKEN_FILE) -> None:
    """Have a node that pauses train on."""
    _order(node, "resume", token_file, "trains on")


@app.command()
def drain(node: NodeUrl = ADMIN_URL, token_file: TokenFile = TOKEN_FILE) -> None:
    """Have a running node finish its round, keep it, and leave."""
    _order(node, "drain", token_file, "finishes its round and leaves")


@app.command()
def stop(node: NodeUrl = ADMIN_URL, token_file: TokenFile = TOKEN_FILE) -> None:
    """Stop a running node, in order."""
    _order(node, "stop", token_file, "stops")


def _order(node: str, what: str, token_file: Path, then: str) -> None:
    from node.cli.remote import order

    order(node, what, token_file)
    typer.echo(f"{node} {then}")


@app.command()
def calibrate(
    experiment: Annotated[str, typer.Argument(help="A TOML file, or the name of a bundled experiment.")],
    out: Annotated[Path, typer.Option(help="The trace to write: .csv, .parquet or .json.")] = Path("devices.csv"),
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override any key.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that train at once.")] = 1,
) -> None:
    """Measure how fast this machine trains, and write it as a trace of devices for simulations."""
    from node.experiment.loading import load

    config = load(experiment, sets or (), os.environ)
    from node.experiment.calibrate import measure_and_write
    from node.experiment.setup import prepare

    typer.echo(measure_and_write(prepare(config), out, processes))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    budget: Annotated[
        str, typer.Option(metavar="KEY=NUMBER", help="How many cohorts for time_s, device_hours or bytes.")
    ] = "",
) -> None:
    """Compare runs: a table here, plots in one HTML file."""
    from rich.console import Console

    from node.cli.figures import comparison_table
    from node.cli.report import write_report
    from node.cli.runs import load_run

    folders = [folder for folder in runs if (folder / "summary.json").exists()] or runs
    for folder in runs:
        if folder not in folders:
            typer.echo(f"starling: {folder}: left out, not a run's folder", err=True)
    if not out.resolve().parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.resolve().parent}")
    loaded = [load_run(folder) for folder in folders]
    advice: list[str] = []
    if budget:
        from node.cli.cohort_budget import advised

        advice = advised(loaded, budget)
    write_report(loaded, out)
    Console().print(comparison_table(loaded))
    for line in advice:
        typer.echo(line)
    typer.echo(f"report: {out}")


@app.command("list")
def list_(
    what: Annotated[str | None, typer.Argument(help="One kind of thing; default: all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What an experiment can name."""
    from node.cli.listing import choices

    known = choices()
    if what is not None and what not in known:
        raise ConfigError(f"list: nothing is called {what!r}; allowed: {', '.join(known)}")
    chosen = {kind: names() for kind, names in known.items() if what in (None, kind)}
    if as_json:
        typer.echo(json.dumps(chosen))
        return
    for kind, names in chosen.items():
        if not what:
            typer.echo(f"{kind}:")
        for name, meaning in names.items():
            typer.echo(f"  {name:<{max(16, *map(len, names))}} {meaning}".rstrip())


@app.command("testbed")
def bed(
    out: Annotated[Path | None, typer.Option(help="Where to keep it; default: this user's cache.")] = None,
    seed: Annotated[int, typer.Option(help="Of the training.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Train a tiny model and eight adapters that differ in skill, once: two minutes, for trying out selection."""
    from node.cli.testbed import prepare_and_tell

    prepare_and_tell(out, seed, as_json)


@app.command()
def doctor() -> None:
    """What is installed, what is missing, and what to do about it."""
    from node.cli.doctor import examine

    healthy = True
    for finding in examine():
        healthy = healthy and finding.ok
        typer.echo(
            f"{'ok     ' if finding.ok else 'MISSING'} {finding.what}{': ' if finding.detail else ''}{finding.detail}"
        )
    raise typer.Exit(SUCCESS if healthy else FAILED)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exit codes: 0 success, 2 wrong input, 3 the run failed, 130 interrupted."""
    try:
        sys.exit(app(arguments, standalone_mode=False))  # typer.Exit comes back as its code
    except ConfigError as error:
        _complain(error)
        sys.exit(WRONG_INPUT)
    except StarlingError as error:
        _complain(error)
        sys.exit(FAILED)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            _complain(StarlingError(f"{error.filename or 'output'}: {error.strerror or error}"))
            sys.exit(FAILED)
        # The reader of our output has gone (`starling list | head`): not our failure, and not worth a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except Exception as error:
        if not _is_usage(error):
            raise
        _complain(error)
        sys.exit(WRONG_INPUT)


def _is_usage(error: Exception) -> bool:
    return hasattr(error, "format_message")


def _complain(error: Any) -> None:
    text = error.format_message() if _is_usage(error) else str(error)
    typer.echo(f"starling: {text}", err=True)


if __name__ == "__main__":
    main()
