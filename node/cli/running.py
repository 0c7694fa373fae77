"""What ``starling run`` does: load, run in one world or the other, write, tell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import typer

from node.cli import cohorts
from node.cli.cohort_summary import Cohorts
from node.cli.figures import duration, network_figures, size
from node.cli.progress import Progress
from node.cli.summary import Network
from node.config import ExperimentConfig
from node.errors import ConfigError, Nondeterminism, StarlingError
from node.experiment.loading import load
from node.tape import first_difference


def run(
    experiment: str, overrides: Sequence[str], out: Path | None, quiet: bool, trace: Path | None = None
) -> tuple[dict[str, Any], Path]:
    """Run an experiment and write its folder; gives the summary and the folder.

    Args:
        trace: a file for what every node did when, in the Chrome trace format.
    """
    return run_config(load(experiment, overrides, os.environ), out, quiet, trace)


def run_config(
    config: ExperimentConfig, out: Path | None, quiet: bool, trace: Path | None = None
) -> tuple[dict[str, Any], Path]:
    """The same of an experiment that has been loaded."""
    _check_trace(config, trace)
    # Only now: importing torch takes seconds, and most mistakes are found without it.
    from node.experiment.folder import LINEAGE, TRACE, run_folder
    from node.experiment.result import write_run
    from node.experiment.setup import prepare

    setup = prepare(config)
    if config.clock == "virtual":
        from node.experiment.simulation import simulation

        simulated = simulation(setup)
    folder = run_folder(out, config.name)
    trace = trace or (folder / TRACE if config.record.trace else None)
    with sigterm_as_ctrl_c(), Progress(config, quiet) as progress:
        if config.clock == "virtual":
            from node.experiment.virtual import run_virtual
            from node.provenance import Log
            from node.sim.chrome_trace import ChromeTrace

            with ChromeTrace(trace, config.nodes) if trace else nullcontext() as watcher:
                log = Log.of_all(folder / LINEAGE) if setup.is_logged else None
                result = run_virtual(simulated, progress.update, watcher=watcher, lineage=log)
        else:
            from node.experiment.real import run_real

            result = run_real(setup, folder, progress.update, progress.note)
    try:
        summary = write_run(folder, setup, result, _report)
    finally:
        result.close()
    if result.status != "finished":
        typer.echo(f"starling: {result.status}: {result.error}", err=True)
    return summary, folder


def _check_trace(config: ExperimentConfig, trace: Path | None) -> None:
    if config.clock == "real" and (trace or config.record.trace):
        key = f"--trace {trace}" if trace else "record.trace"
        raise ConfigError(f"{key}: only the virtual clock is traced; allowed: --clock virtual")
    if trace and trace.is_dir():
        raise ConfigError(f"--trace {trace}: is a folder; name a file")
    if trace and not trace.resolve().parent.is_dir():
        raise ConfigError(f"--trace {trace}: there is no folder {trace.resolve().parent}")


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """What was measured is kept, whoever ends a run."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script
        signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _report(folder: Path) -> None:
    from node.cli.report import write_report
    from node.cli.runs import load_run

    write_report([load_run(folder)], folder / "report.html")


def tell_outcome(summary: dict[str, Any], folder: Path) -> None:
    """The run in a few lines."""
    accuracy = summary["metrics"].get("accuracy")
    reached = (
        f"mean test accuracy {accuracy['mean']:.4f} (lowest {accuracy['min']:.4f}, highest {accuracy['max']:.4f})"
        if accuracy and accuracy["mean"] is not None
        else "no accuracy recorded"
    )
    kind = "real processes" if summary["clock"] == "real" else "simulated nodes"
    typer.echo(
        f"{summary['name']}: {summary['nodes']} {kind}, {summary['protocol']}, {summary['rounds']} rounds: {reached}"
    )
    typer.echo(
        f"  {summary['time_s']:.2f} s {'real' if summary['clock'] == 'real' else 'virtual'} time, "
        f"{summary['wall_s']:.2f} s in all; {summary['messages']} messages, {summary['bytes_sent'] / 1e6:.1f} MB"
    )
    told = _privacy(summary), _aggregation(summary), _cohorts(summary), _groups(summary), _costs(summary)
    for line in chain(*told):
        typer.echo(f"  {line}")
    for node, how in summary["lost"].items():
        typer.echo(f"  node {node} {how}")
    typer.echo(f"  results: {folder}/  (report.html, summary.json, metrics.parquet)")


def _privacy(summary: Mapping[str, Any]) -> Iterator[str]:
    """What the run guarantees, and what to beware of."""
    privacy = summary.get("privacy", {})
    if "guarantee" in privacy:
        least = "" if privacy["epsilon"]["max"] is None else "at most "
        yield f"privacy: {least}{privacy['guarantee']}; noise is {privacy['noise'] if privacy['sigma'] else 'none'}"
    if "network" in privacy:
        told = network_figures(Network.model_validate(privacy["network"]))
        yield from (f"what nodes learn of each other, {name}: {text}" for name, text in told.items() if text)
    yield from (f"beware: {warning}" for warning in privacy.get("warnings", ()))


def _aggregation(summary: Mapping[str, Any]) -> Iterator[str]:
    """The robust rule, and how many liars the neighbourhoods of honest nodes have, where there is either."""
    said = summary.get("aggregation", {})
    if "neighbourhoods" in said:
        sizes = ", ".join(f"{size} models at {count} nodes" for size, count in said["neighbourhoods"].items())
        rule = " + ".join((*said["pre"], said["rule"]))
        yield f"aggregation: {rule}, set to tolerate {said['tolerance']} liars ({sizes})"
    if "byzantine_neighbours" in said:
        heard = ", ".join(f"{count} have {liars}" for liars, count in said["byzantine_neighbours"].items())
        yield f"liars in neighbourhoods of honest nodes: {heard}; {said['over_tolerance']} have more than are tolerated"
    if refused := summary.get("refused_messages"):
        yield f"{refused:,} messages refused: what they carried is no model"


def _cohorts(summary: Mapping[str, Any]) -> Iterator[str]:
    """What cohorts have come to, and what their models have become."""
    if said := summary.get("cpfl"):
        yield from cohorts.lines(Cohorts.model_validate(said))


def _groups(summary: Mapping[str, Any]) -> Iterator[str]:
    """How the groups of nodes fared, each on test samples of its own kind, where there are groups."""
    fairness = summary.get("fairness", {})
    if "groups" in fairness:
        told = (f"{name} ({group['nodes']}) {group['accuracy']:.4f}" for name, group in fairness["groups"].items())
        gap, fair = fairness["accuracy_gap"], fairness["fair_accuracy"]
        yield f"own accuracy by group (nodes): {', '.join(told)}; gap {gap:.4f}, fair accuracy {fair:.4f}"


def _costs(summary: Mapping[str, Any]) -> Iterator[str]:
    """What it took to get there, as far as that is known."""
    times, sent = summary["time_to_accuracy_s"], summary["bytes_to_accuracy"]
    if any(time_s is not None for time_s in times.values()):
        yield "accuracy " + ", ".join(_reached(target, times[target], sent[target]) for target in times)
    if "usage" in summary:
        hours, busy = summary["usage"]["device_hours"], summary["usage"]["utilisation"]["mean"]
        wasted = f"{hours['lost']:.4g} lost, {hours['discarded']:.4g} discarded"
        yield f"{hours['total']:.4g} device hours ({wasted}); devices train {busy:.1%} of their time online"
    if discarded := summary.get("graph", {}).get("discarded_trainings"):
        yield f"{discarded:,} updates discarded, never trained"


def _reached(target: str, time_s: float | None, sent: float | None) -> str:
    if time_s is None:
        return f"{target} not reached"
    return f"{target} after {duration(time_s)}" + (f" and {size(sent)}" if sent is not None else "")


def check_determinism(experiment: str, overrides: Sequence[str]) -> str:
    """Simulate twice, in two processes with different hash seeds, and compare every event."""
    if "clock=real" in overrides:
        raise ConfigError("--check-determinism: only the virtual clock is deterministic; allowed: --clock virtual")
    overrides = [*overrides, "clock=virtual"]
    load(experiment, overrides, os.environ)
    with tempfile.TemporaryDirectory() as folder:
        tapes = [Path(folder) / f"{i}.tape" for i in range(2)]
        _record(experiment, overrides, tapes)
        one, other = (tape.read_bytes() for tape in tapes)
    difference = first_difference(one, other)
    if difference is not None:
        number, first, second = difference
        raise Nondeterminism(
            f"two runs of {experiment} differ first at event {number}: "
            f"{first.json() if first else 'the run has ended'} in one, "
            f"{second.json() if second else 'the run has ended'} in the other; "
            "the protocol reads something that is not in its context (clock, random, a set's order, the environment)"
        )
    return f"deterministic: {len(one) // 40} events, twice the same"


def _record(experiment: str, overrides: Sequence[str], tapes: Sequence[Path]) -> None:
    """Simulate once for each tape, all at the same time."""
    runs = []
    for hash_seed, tape in enumerate(tapes):
        command = [sys.executable, "-P", "-m", "node.cli.tape", experiment, str(tape), *overrides]
        environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
        runs.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    complaints = [run.communicate()[1].strip() for run in runs]
    for run, complaint in zip(runs, complaints, strict=True):
        if run.returncode:
            raise StarlingError(complaint.splitlines()[-1] if complaint else "the simulation failed")
