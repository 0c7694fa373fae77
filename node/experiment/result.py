"""What a run has led to, in either world, and the folder that keeps it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from node.errors import ConfigError, StoreError
from node.experiment.loading import digest
from node.experiment.setup import Setup
from node.learn.tensors import save_model
from node.op import Value
from node.record import Recorder, spread
from node.tape import events_of

SCHEMA = 1
_FILES = ("summary.json", "experiment.toml", "metrics.parquet", "events.jsonl", "report.html")


@dataclass
class Result:
    """What was measured; complete where ``status`` is ``finished``, what there was until then where not."""

    recorder: Recorder
    status: str = "running"
    """``finished``, ``failed`` or ``interrupted``."""
    error: str | None = None
    models: dict[int, Value] = field(default_factory=dict)
    """Final models by node, flat."""
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
    peak_rss_bytes: int = 0
    lost: dict[int, str] = field(default_factory=dict)
    """Nodes that died, and how."""

    def summary(self, setup: Setup) -> dict[str, Any]:
        """The contents of ``summary.json``."""
        config = setup.config
        with np.errstate(invalid="ignore", over="ignore"):  # that a run diverged is a result like any other
            spreads = self.recorder.summary()
            if self.models:
                spreads["consensus"] = consensus(self.models)
        metrics = {name: {key: _finite(value) for key, value in spread.items()} for name, spread in spreads.items()}
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
            "tasks": self.tasks,
            "batched_calls": self.batched_calls if config.executor.kind != "inline" else 0,
            "forced_solves": self.forced_solves,
            "messages": self.messages,
            "bytes_sent": self.bytes_sent,
            "peak_rss_bytes": self.peak_rss_bytes,
            "lost": {str(node): how for node, how in sorted(self.lost.items())},
            "metrics": metrics,
        }


def consensus(models: Mapping[int, Value]) -> dict[str, float]:
    """Each final model's distance from their mean, as mean, std, min and max over the nodes."""
    mean = np.zeros(len(next(iter(models.values()))))
    for node in sorted(models):
        mean += np.asarray(models[node], dtype=np.float64) / len(models)
    return spread([float(np.linalg.norm(np.asarray(models[node]) - mean)) for node in sorted(models)])


def run_folder(out: Path | None, name: str) -> Path:
    """Make the folder of a run (default ``runs/NAME-TIME``). ConfigError where it cannot be written to."""
    if out is None:
        time = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        out = Path("runs") / f"{name}-{time}"
        number = 1
        while out.exists():
            number += 1
            out = Path("runs") / f"{name}-{time}-{number}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable"
        probe.touch()
        probe.unlink()
        for stale in [*map(out.joinpath, _FILES), *(out / "models").glob("*.safetensors")]:
            stale.unlink(missing_ok=True)  # what an earlier run left must not pass for this one's
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written to: {error.strerror or error}") from None
    return out


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
    summary = result.summary(setup)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    text = tomli_w.dumps(config.model_dump(exclude_none=True, mode="json"))
    (folder / "experiment.toml").write_text(f"# hash = {digest(config)}\n{text}", encoding="utf-8")
    result.recorder.write(folder / "metrics.parquet")
    if config.record.models:
        (folder / "models").mkdir(exist_ok=True)
        for node, value in sorted(result.models.items()):
            save_model(folder / "models" / f"{node}.safetensors", setup.model, value)
    if config.record.events:
        with (folder / "events.jsonl").open("w", encoding="utf-8") as lines:
            lines.writelines(event.json() + "\n" for event in sorted(events_of(result.tape), key=lambda e: e.time_s))
    return summary


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
