"""What a run has led to, in either world, and the folder that keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from node.errors import StoreError
from node.experiment import aggregation, exposure, identities, oneshot, unifying
from node.experiment.attacking import measured, pictures
from node.experiment.combinations import side_channels
from node.experiment.fairness import fairness, over_nodes
from node.experiment.folder import LINEAGE, PICTURES, TIMELINE
from node.experiment.loading import digest
from node.experiment.privacy import statement
from node.experiment.setup import Setup
from node.experiment.targets import Course, summarised
from node.learn.tensors import save_model
from node.op import Key, Ref, Task, Value
from node.record import Recorder, spread
from node.solver import Solver
from node.tape import events_of
from node.timeline import Timeline

SCHEMA = 1


@dataclass
class Result:
    """What was measured; complete where ``status`` is ``finished``, what there was until then where not."""

    recorder: Recorder
    status: str = "running"
    """``finished``, ``failed`` or ``interrupted``."""
    error: str | None = None
    models: Mapping[int, Value] = field(default_factory=dict)
    """Final models by node, flat."""
    on_close: Callable[[], None] = lambda: None
    time_s: float = 0.0
    """Virtual seconds, or real ones since all nodes were ready."""
    wall_s: float = 0.0
    events: int = 0
    event_hash: str | None = None
    tape: bytes = b""
    """The events themselves, where they were asked for."""
    tasks: int = 0
    batched_calls: int = 0
    forced_solves: int = 0
    messages: int = 0
    bytes_sent: int = 0
    traffic: Mapping[str, int] = field(default_factory=dict)
    """The same by the wire name of messages."""
    refused_messages: int = 0
    """Messages that their receivers did not take in, because no model looks like what they carry."""
    peak_rss_bytes: int = 0
    lost: dict[int, str] = field(default_factory=dict)
    """Nodes that died, and how."""
    spent: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Privacy accountants' states, by node, of those that keep account."""
    run_hash: str | None = None
    """A hash of events and results: equal where two runs were."""
    usage: dict[str, Any] = field(default_factory=dict)
    """What nodes spent their time on (:meth:`node.usage.Usage.summary`); empty where nobody watched."""
    graph: dict[str, Any] = field(default_factory=dict)
    """Counters of the compute graph: recorded, solved, skipped, discarded_trainings (never trained, because nobody read
    the update), batched_calls, mean_batch, peak_resident_bytes, spilled_bytes, unspilled_bytes, forced_solves,
    forced_s, kernel."""
    timeline: Timeline | None = None
    """What nodes did when."""

    def close(self) -> None:
        """Give back what the models are kept in."""
        self.on_close()

    def summary(self, setup: Setup, network: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The contents of ``summary.json``; ``network``: what the run's log says of its privacy."""
        config = setup.config
        with np.errstate(invalid="ignore", over="ignore"):  # that a run diverged is a result like any other
            spreads = identities.of_nodes(self.recorder, setup.participants)
            if len({len(model) for model in self.models.values()}) == 1:
                spreads["consensus"] = consensus(self.models)
        accuracy, sent = Course(*self.recorder.samples("accuracy")), Course(*self.recorder.sent())
        parts = {
            "identities": identities.statement(setup.participants),
            "usage": self.usage,
            "graph": self.graph,
            "fairness": fairness_of(self, setup),
            "aggregation": aggregation.statement(setup),
            "public": unifying.statement(setup.workload.unify.public),
            "refused_messages": self.refused_messages,
            "attacks": measured(setup.attacks, self.recorder, self.models),
            "privacy": statement(
                config,
                self.spent,
                side_channels(setup.protocol, setup.options),
                setup.warnings,
                setup.protocol.hides(setup.options),
                network,
                setup.protocol.releases(setup.options),
            ),
        }
        return {
            "schema": SCHEMA,
            "name": config.name,
            "hash": digest(config),
            "clock": config.clock,
            "seed": config.seed,
            "nodes": config.nodes,
            "rounds": self.recorder.rounds(),
            "protocol": config.protocol.use,
            "executor": config.executor.kind,
            "status": self.status,
            "error": self.error,
            "time_s": self.time_s,
            "wall_s": round(self.wall_s, 3),
            "events": self.events,
            "event_hash": self.event_hash,
            "run_hash": self.run_hash,
            "tasks": self.tasks,
            "batched_calls": self.batched_calls if config.executor.kind != "inline" else 0,
            "forced_solves": self.forced_solves,
            "messages": self.messages,
            "bytes_sent": self.bytes_sent,
            "peak_rss_bytes": self.peak_rss_bytes,
            "lost": {str(node): how for node, how in sorted(self.lost.items())},
            "metrics": _listed(spreads),
            **summarised(accuracy, sent, config.record.targets),
            **self._own(setup),
            **{name: part for name, part in parts.items() if part},
        }

    def _own(self, setup: Setup) -> dict[str, Any]:
        """What the protocol adds under its own name."""
        said = {
            **setup.protocol.summary(setup.options, self.recorder.rows(), self.traffic),
            **oneshot.statement(setup.protocol, setup.options),
        }
        return {setup.config.protocol.use.rpartition(":")[2]: said} if said else {}


def finals(refs: Mapping[int, Ref], solver: Solver) -> Mapping[int, Value]:
    """The values of final models by node."""
    if solver.graph.values.budget_bytes:
        return Finals(refs, solver)
    nodes = sorted(refs)
    values = solver.executor.fetch([solver.graph.values[refs[node].id] for node in nodes])
    return dict(zip(nodes, values, strict=True))


class Finals(Mapping[int, Value]):
    """Final models by node, which come into memory one by one: together they may be too many for it."""

    def __init__(self, refs: Mapping[int, Ref], solver: Solver) -> None:
        self._refs = dict(sorted(refs.items()))
        self._solver = solver

    def __getitem__(self, node: int) -> Value:
        return self._solver.value(self._refs[node])

    def __iter__(self) -> Iterator[int]:
        return iter(self._refs)

    def __len__(self) -> int:
        return len(self._refs)


def run_hash(result: Result) -> str:
    """A hash of all that a run has led to: its events, its metrics and its final models, to the last bit."""
    digest = blake2b((result.event_hash or "").encode(), digest_size=16)
    digest.update(result.recorder.content())
    for node in sorted(result.models):
        digest.update(node.to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(result.models[node]).data)
    return digest.hexdigest()


def consensus(models: Mapping[int, Value]) -> dict[str, float]:
    """Each final model's distance from their mean, as mean, std, min and max over the nodes."""
    mean = np.zeros(len(next(iter(models.values()))))
    for node in sorted(models):
        mean += np.asarray(models[node], dtype=np.float64) / len(models)
    return spread([float(np.linalg.norm(np.asarray(models[node]) - mean)) for node in sorted(models)])


def fairness_of(result: Result, setup: Setup) -> dict[str, Any]:
    """How evenly the run has served nodes whose data differ; empty where they do not, or where nothing is known.

    With groups, each final model is judged on test samples of its node's own distribution; without, what the nodes have
    recorded last has to do.
    """
    data, workload = setup.config.data, setup.workload
    if data.groups:
        tasks = ((node, Task((result.models[node],), {}, Key(setup.config.seed, node, 0))) for node in result.models)
        square = (workload.classes, workload.classes)
        judged = {node: np.asarray(workload.confusion.solve(task)).reshape(square) for node, task in tasks}
        return fairness(judged, {node: workload.group_of(node) for node in judged})
    accuracy = {node: value for node, value in result.recorder.latest("accuracy").items() if math.isfinite(value)}
    return over_nodes(accuracy) if data.partition != "iid" and len(accuracy) > 1 else {}


def write_run(
    folder: Path, setup: Setup, result: Result, report: Callable[[Path], None] | None = None
) -> dict[str, Any]:
    """Write everything that a run leaves behind, what matters most first; gives the summary.

    Raises:
        StoreError: the folder takes no more.
    """
    try:
        summary = _write(folder, setup, result)
        if report is not None:
            report(folder)
    except OSError as error:
        raise StoreError(f"{folder}: the results cannot all be written: {error.strerror or error}") from error
    return summary


def _write(folder: Path, setup: Setup, result: Result) -> dict[str, Any]:
    config = setup.config
    network = exposure.stated(folder / LINEAGE, result.status, config, setup.protocol, setup.options)
    summary = result.summary(setup, network)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    text = tomli_w.dumps(config.model_dump(exclude_none=True))
    (folder / "experiment.toml").write_text(f"# hash = {digest(config)}\n{text}", encoding="utf-8")
    result.recorder.write(folder / "metrics.parquet")
    if result.timeline is not None:
        result.timeline.write(folder / TIMELINE)
    if setup.attacks and (found := pictures(result.recorder.rows(), setup.workload.sample_shape)) is not None:
        import pyarrow.parquet as pq

        pq.write_table(found, folder / PICTURES)
    if config.record.models:
        (folder / "models").mkdir(exist_ok=True)
        for node in sorted(result.models):  # one by one: together they may be too many for memory
            save_model(folder / "models" / f"{node}.safetensors", setup.model, result.models[node])
    if config.record.events:
        with (folder / "events.jsonl").open("w", encoding="utf-8") as lines:
            lines.writelines(event.json() + "\n" for event in sorted(events_of(result.tape), key=lambda e: e.time_s))
    return summary


def _listed(spreads: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """All metrics but those of one attacked message, or for the protocol's own block."""
    return {
        name: {key: _finite(value) for key, value in spread.items()}
        for name, spread in spreads.items()
        if "/" not in name
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
