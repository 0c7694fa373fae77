"""One cell of the one-shot benchmark: run it in this process, judge it, and keep what came of it.

What is judged here is the evaluator's knowledge: label histograms of all clients, and the test set. No algorithm is
handed any of it.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache, lru_cache, partial
from hashlib import blake2b, file_digest
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from node.attack.observers.uploads import ATTACK, FIGURES, NAME, unattacked
from node.config import AttackerSection, ExperimentConfig
from node.experiment.oneshot_grid import CENTRAL, CLIENTS, FLOPS_PER_S, Cell
from node.experiment.oneshot_private import calibrated, spent
from node.experiment.result import Result
from node.experiment.setup import Setup, prepare
from node.experiment.simulation import simulation
from node.experiment.virtual import run_virtual
from node.learn.oneshot.algorithm import OwnTraining
from node.learn.oneshot.catalogue import configured, find
from node.learn.oneshot.costs import result_costs
from node.learn.oneshot.metering import Meter
from node.op import Key, Task
from node.tape import EventKind, events_of

AGGREGATOR = 0
_ROOT = Path(__file__).parent.parent.parent
_WITHOUT_RESULTS = ("node/cli", "node/live", "node/testing")
"""Folders whose code changes no figure."""
_JUDGE = {"algorithm": "average", "options": "{}"}
"""An algorithm whose result is a model: how models of other protocols are judged."""

_OTHERS = ("recall_", "missing/", "bytes_", f"{NAME}.")
"""Begin names of what an aggregator records that is no figure of its predictor."""

Floats: TypeAlias = NDArray[np.float64]
Figures: TypeAlias = dict[str, float]
Record: TypeAlias = dict[str, Any]
"""What became of a cell: entrant, assumptions, division, setting, status, error, figures, and why its uploads were not
attacked (``unattacked``; empty where they were)."""


# Kept cells


def kept(cell: Cell, folder: Path) -> Record | None:
    """What an earlier run has kept of this very cell, solved by the same code; None where there is nothing whole."""
    try:
        record = json.loads((folder / _file_name(cell)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("status") == "finished" else None


def keep(cell: Cell, record: Record, folder: Path) -> None:
    """Write it, whole or not at all."""
    path = folder / _file_name(cell)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _file_name(cell: Cell) -> str:
    """Named by all that the cell's figures follow from, and by its setting: two may be one experiment."""
    parts = (
        repr(cell.setting),
        cell.config().model_dump_json(),
        cell.entrant.measures,
        cell.entrant.name,
        _code(),
        _own_code(cell),
        _samples(cell.setting.data),
    )
    return blake2b("\n".join(parts).encode(), digest_size=12).hexdigest() + ".json"


@cache
def _code() -> str:
    """A hash of this program and of the libraries that it computes with."""
    digest = blake2b(digest_size=16)
    for library in ("torch", "numpy", "scipy", "scikit-learn"):
        digest.update(f"{library} {version(library)} ".encode())
    digest.update(platform.python_version().encode())
    for package in ("node", "protocols"):
        for path in sorted((_ROOT / package).rglob("*.py")):
            if not path.relative_to(_ROOT).as_posix().startswith(_WITHOUT_RESULTS):
                digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def _code_of(algorithm: str) -> str:
    """A hash of the file of an algorithm that is not Starling's own; empty for one that is."""
    path = Path(inspect.getfile(find(algorithm)))
    return "" if path.is_relative_to(_ROOT / "node") else blake2b(path.read_bytes(), digest_size=8).hexdigest()


def _samples(name: str) -> str:
    """A hash of the file that samples come from; empty for data that are in no file of the user's."""
    try:
        status = os.stat(name)
        return _content(name, status.st_mtime_ns, status.st_size) if Path(name).is_file() else ""
    except OSError:
        return ""


@lru_cache(maxsize=64)
def _content(path: str, modified_ns: int, size_bytes: int) -> str:
    with open(path, "rb") as file:
        return file_digest(file, partial(blake2b, digest_size=16)).hexdigest()


def _own_code(cell: Cell) -> str:
    return _code_of(cell.entrant.algorithm) if cell.entrant.algorithm else ""


# Solving


def solve(cell: Cell, cached: Path) -> Record:
    """Run a cell and judge it; local training that an earlier cell of its setting has done comes from ``cached``.

    Raises:
        ConfigError: the cell's experiment is none.
    """
    config, why_not = calibrated(cell.config()), unattacked_because(cell)
    folder = cached / _folder_name(cell)
    setup = prepare(_equipped(config, str(folder), is_attacked=not why_not))
    attempt = f"{os.getpid()} {time.monotonic_ns()}"
    meter = Meter(setup.workload, config.nodes, config.seed, attempt) if _is_measured(cell) else None
    tape: list[bytes] = []
    trained_s = [0.0] * config.nodes

    def watch(node: int, kind: str, start_s: float, end_s: float) -> None:
        if kind == "train":
            trained_s[node] += end_s - start_s

    result = run_virtual(simulation(setup), lambda *_: None, tape.append, watch)
    try:
        figures = {}
        if result.status == "finished":
            figures = _quality(cell, setup, result) | _traffic(cell, b"".join(tape), config.nodes, result)
            figures |= _labour(trained_s) | _weight(cell, setup, figures)
            figures |= _leaked(result) | spent(setup, result.spent)
            figures |= {} if meter is None else meter.figures(trains=_trains(cell))
    finally:
        result.close()
    return {
        "entrant": cell.entrant.name,
        "assumptions": assumptions(cell, setup),
        "division": cell.entrant.division,
        "setting": asdict(cell.setting),
        "status": result.status,
        "error": result.error,
        "unattacked": why_not,
        "figures": {name: value if math.isfinite(value) else None for name, value in figures.items()},
    }


def failed(cell: Cell, error: str) -> Record:
    """What is told of a cell that could not even begin."""
    told = {"entrant": cell.entrant.name, "assumptions": "", "division": cell.entrant.division}
    return {
        **told,
        "setting": asdict(cell.setting),
        "status": "failed",
        "error": error,
        "unattacked": "",
        "figures": {},
    }


def unattacked_because(cell: Cell) -> str:
    """Why nobody attacks what clients upload in a cell; empty where somebody does: among ten clients, at seed 0."""
    entrant = cell.entrant
    if entrant.division == "reference":
        return "a line of reference"
    if entrant.algorithm and (why := unattacked(configured(entrant.algorithm, entrant.options_json))):
        return why
    return "" if _is_looked_into(cell) else f"attacked at seed 0 among {CLIENTS} clients, where all is well"


def _is_looked_into(cell: Cell) -> bool:
    """Whether a cell is of those in which more is found out than how good a result is: one seed is enough for that."""
    return not cell.setting.seed and not cell.setting.damage and cell.setting.clients == CLIENTS


def _is_measured(cell: Cell) -> bool:
    """Whether memory is measured, which makes the work slower: once for each data set."""
    is_one = _is_looked_into(cell) and cell.setting.is_plain and cell.setting.partition == "iid"
    return is_one and cell.entrant.division != "reference"


def _trains(cell: Cell) -> bool:
    """Whether clients train the experiment's own model."""
    if not cell.entrant.algorithm:
        return True
    own = configured(cell.entrant.algorithm, cell.entrant.options_json)
    return own.trains and not isinstance(own, OwnTraining)


def _equipped(config: ExperimentConfig, cache: str, *, is_attacked: bool) -> ExperimentConfig:
    """The experiment with a cache, and perhaps with an aggregator that attacks uploads, which changes no bit of it."""
    executor = config.executor.model_copy(update={"cache": cache})
    attackers = (*config.attackers, AttackerSection(**ATTACK)) if is_attacked else config.attackers
    return config.model_copy(update={"executor": executor, "attackers": attackers})


def assumptions(cell: Cell, setup: Setup) -> str:
    """Where an entrant stands in the lattice; empty for lines of reference."""
    if cell.entrant.division == "reference":
        return ""
    if cell.entrant.algorithm:
        return setup.workload.oneshot.declared(cell.entrant.algorithm, cell.entrant.options_json).cell
    declares = getattr(setup.protocol, "declares", None)
    return "" if declares is None else str(declares.cell)


def _folder_name(cell: Cell) -> str:
    """One cache for all of a setting; an algorithm of somebody else's, whose code the cache does not know, has another.

    Damage changes nobody's training but that of clients whose data lie, so that settings with it share the cache.
    """
    setting = replace(cell.setting, damage="")
    text = "\n".join((setting.block, str(setting.seed), _own_code(cell)))
    return blake2b(text.encode(), digest_size=8).hexdigest()


# Figures


def _quality(cell: Cell, setup: Setup, result: Result) -> Figures:
    """How good the result is: over the test set, and over each client's own share of its classes."""
    if cell.entrant.measures != "result":
        return _of_singles(cell, setup, result)
    judged = {row.metric: row.value for row in result.recorder.rows() if row.node == AGGREGATOR}
    if "recall_0" not in judged:
        judged = _judged(setup, result.models[AGGREGATOR], AGGREGATOR)
    own = _by_client(setup, judged)
    return _overall(judged) | {
        "client_accuracy": float(np.nanmean(own)),
        "client_accuracy_std": float(np.nanstd(own)),
        "worst_client": float(np.nanmin(own)),
        "lowest_tenth": float(np.nanquantile(own, 0.1)),
    }


def _of_singles(cell: Cell, setup: Setup, result: Result) -> Figures:
    """The same of the models of clients that have stayed: their mean, or the best or worst on the whole test set."""
    judged = {node: _judged(setup, model, node) for node, model in result.models.items() if node != AGGREGATOR}
    singles = [
        _overall(each) | {"client_accuracy": float(_by_client(setup, each)[node - 1])} for node, each in judged.items()
    ]
    if cell.entrant.measures == "mean":
        return {name: float(np.mean([single[name] for single in singles])) for name in singles[0]}
    choose = max if cell.entrant.measures == "best" else min
    return choose(singles, key=lambda single: single["accuracy"])


def _overall(judged: Mapping[str, float]) -> Figures:
    return {name: value for name, value in judged.items() if not name.startswith(_OTHERS)}


def _judged(setup: Setup, model: Any, node: int) -> Figures:
    judged = setup.workload.oneshot.judge.solve(Task((model, model), _JUDGE, Key(setup.config.seed, node, 0)))
    assert isinstance(judged, Mapping)
    return dict(judged)


def _by_client(setup: Setup, judged: Mapping[str, float]) -> Floats:
    """Accuracy where test samples of a class count as much as a client has of it, [clients].

    A class that no test sample is of does not count; a client that has no other has accuracy NaN.
    """
    recall = np.array([judged[f"recall_{label}"] for label in range(setup.workload.classes)])
    known = np.isfinite(recall)
    held = np.array([setup.workload.label_histogram(node) for node in range(1, setup.config.nodes)])[:, known]
    with np.errstate(invalid="ignore"):
        return np.asarray((held @ recall[known]) / held.sum(1))


def _leaked(result: Result) -> Figures:
    """How well members of clients' data are told from others by their uploads; nothing where those are not attacked."""
    found = {row.metric: row.value for row in result.recorder.rows() if row.node == AGGREGATOR}
    return {f"{NAME}_{name}": found[f"{NAME}.{name}"] for name in FIGURES if f"{NAME}.{name}" in found}


def _traffic(cell: Cell, tape: bytes, nodes: int, result: Result) -> Figures:
    """Bytes that clients send and receive, as they would be on the wire; moving data to one place counts as none."""
    up, down = np.zeros(nodes), np.zeros(nodes)
    for event in events_of(tape):
        if event.kind in (EventKind.DELIVERED, EventKind.LOST):
            up[event.peer] += event.size_bytes
            down[event.node] += event.size_bytes
    is_moved = cell.entrant.name != CENTRAL and cell.entrant.measures == "result"
    figures = {
        "up_bytes": float(up[1:].mean()),
        "up_bytes_max": float(up[1:].max()),
        "down_bytes": float(down[1:].mean()),
        "in_bytes": float(down[AGGREGATOR]),
        "out_bytes": float(up[AGGREGATOR]),
        "messages": float(result.messages),
    }
    return figures if is_moved else dict.fromkeys(figures, 0.0)


def _labour(trained_s: list[float]) -> Figures:
    """Virtual seconds of clients and aggregator, and the FLOPs that they stand for."""
    client_s, aggregator_s = float(np.mean(trained_s[1:])), trained_s[AGGREGATOR]
    return {
        "client_s": client_s,
        "client_s_max": max(trained_s[1:]),
        "aggregator_s": aggregator_s,
        "client_flops": client_s * FLOPS_PER_S,
        "aggregator_flops": aggregator_s * FLOPS_PER_S,
    }


def _weight(cell: Cell, setup: Setup, figures: Mapping[str, float]) -> Figures:
    """The size of the result, the cost of an answer, and what the aggregator holds until it has it."""
    if not cell.entrant.algorithm:
        return {}
    shape, classes = setup.workload.sample_shape, setup.workload.classes
    uploads = int(figures.get("uploads", 1)) if cell.entrant.measures == "result" else 1
    costs = result_costs(cell.entrant.algorithm, cell.entrant.options_json, setup.model, shape, classes, uploads)
    held = figures["up_bytes_max"] if costs.streams else figures["in_bytes"]
    return {"result_bytes": costs.result_bytes, "inference_flops": costs.inference_flops, "state_bytes": held}
