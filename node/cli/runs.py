"""Run folders, read back: the configuration, the summary, and metrics reduced to curves of bounded length."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from node.cli.summary import Summary
from node.config import ExperimentConfig
from node.errors import ConfigError
from node.experiment.folder import TIMELINE
from node.timeline import Timeline

POINTS = 240
"""Most points of one curve: what keeps a report small, however long the run was."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_FILES = ("experiment.toml", "summary.json", "metrics.parquet")
_COLUMNS = {"time_s": "double", "node": "int64", "round": "int64", "metric": "string", "value": "double"}


@dataclass(frozen=True)
class Curve:
    """A metric's mean, 10th and 90th percentile and extremes over nodes, at each of at most ``POINTS`` positions."""

    x: Floats
    mean: Floats
    p10: Floats
    p90: Floats
    min: Floats
    max: Floats


@dataclass(frozen=True)
class Samples:
    """Every recorded value of one metric: arrays of equal length, in the order of time."""

    time_s: Floats
    node: Integers
    round: Integers
    value: Floats

    def finite(self) -> Samples:
        """Without the values that are infinite or not a number."""
        keep = np.isfinite(self.value)
        return Samples(self.time_s[keep], self.node[keep], self.round[keep], self.value[keep])

    def by_round(self) -> Curve:
        """Over nodes at equal rounds; of more than ``POINTS`` rounds, an evenly spaced choice with first and last."""
        order = np.argsort(self.round, kind="stable")
        rounds, starts = np.unique(self.round[order], return_index=True)
        ends = np.append(starts[1:], order.size)
        chosen = np.unique(np.linspace(0, rounds.size - 1, min(rounds.size, POINTS)).astype(np.int64))
        groups = [self.value[order[starts[i] : ends[i]]] for i in chosen]
        return _curve(rounds[chosen].astype(np.float64), groups)

    def over_time(self) -> Curve:
        """Over nodes at equal times, each node holding its latest value from its first one on.

        Positions are the recorded times, or ``POINTS`` evenly spaced times where there are more; nothing is
        interpolated. The curve starts when half of the nodes have recorded.
        """
        nodes, index = np.unique(self.node, return_inverse=True)
        times = np.unique(self.time_s)
        if times.size > POINTS:
            times = np.linspace(times[0], times[-1], POINTS)
        latest = np.full(nodes.size, np.nan)
        kept, groups, start = [], [], 0
        for time_s, end in zip(times, np.searchsorted(self.time_s, times, side="right"), strict=True):
            latest[index[start:end]] = self.value[start:end]
            start = end
            seen = latest[~np.isnan(latest)]
            if 2 * seen.size >= nodes.size:
                kept.append(time_s)
                groups.append(seen)
        return _curve(np.array(kept), groups)

    def increases(self) -> Floats:
        """By how much each value exceeds the same node's last one before it; a node's first counts whole."""
        order = np.argsort(self.node, kind="stable")
        value, node = self.value[order], self.node[order]
        again = np.append(False, node[1:] == node[:-1])
        increases = np.empty_like(value)
        increases[order] = value - np.where(again, np.roll(value, 1), 0.0)
        return increases

    def final(self) -> tuple[Integers, Floats]:
        """The nodes, in order, and each one's value of its last round."""
        nodes, index = np.unique(self.node, return_inverse=True)
        order = np.argsort(self.round, kind="stable")
        values = np.empty(nodes.size)
        values[index[order]] = self.value[order]
        return nodes, values


class Course(NamedTuple):
    """How one metric went, over the nodes that recorded it."""

    by_round: Curve
    over_time: Curve
    nodes: Integers
    final: Floats
    """Each node's value of its last round."""
    left_out: int
    """Recorded values that are infinite or not a number, and so in none of the above."""


@dataclass(frozen=True)
class Run:
    """One run folder: its effective configuration, its summary, and access to its metrics."""

    folder: Path
    config: ExperimentConfig
    summary: Summary
    toml: str
    """The text of ``experiment.toml``."""

    def samples(self, metric: str) -> Samples:
        """Every recorded value of ``metric``; empty where none was recorded. Raises ConfigError for a broken file."""
        import pyarrow.parquet as pq

        path = self.folder / "metrics.parquet"
        columns = [name for name in _COLUMNS if name != "metric"]
        with _reading(path):
            table = pq.read_table(path, columns=columns, filters=[("metric", "=", metric)], partitioning=None)
            time_s, node, round, value = (column.to_numpy() for column in table.drop_null().columns)
        order = np.argsort(time_s, kind="stable")
        return Samples(time_s[order], node[order], round[order], value[order])

    def course(self, metric: str) -> Course | None:
        """``metric`` reduced to curves and final values; None where no finite value was recorded."""
        every = self.samples(metric)
        samples = every.finite()
        if not samples.value.size:
            return None
        left_out = every.value.size - samples.value.size
        return Course(samples.by_round(), samples.over_time(), *samples.final(), left_out)

    def sent_until(self, times_s: Floats) -> Floats | None:
        """Bytes that all nodes together had sent by each time, where metric ``bytes_sent`` was recorded.

        A node records either what it sent since its last record, or its running total.
        """
        samples = self.samples("bytes_sent").finite()
        amounts = samples.value
        if not amounts.size:
            return None
        if amounts.sum() > self.summary.bytes_sent:  # more than was sent: these are totals
            amounts = samples.increases()
        sums = np.concatenate([[0.0], np.cumsum(amounts)])
        return np.asarray(sums[np.searchsorted(samples.time_s, times_s, side="right")])

    def timeline(self) -> Timeline | None:
        """What nodes did when; None where nobody watched. Raises ConfigError for a broken file."""
        path = self.folder / TIMELINE
        if not path.is_file():
            return None
        with _reading(path):
            return Timeline.read(path)


def load_run(folder: Path) -> Run:
    """Read a run's folder; ConfigError names the file that is missing or broken."""
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder; give a folder that 'starling run' wrote")
    for name in _FILES:
        if not (folder / name).is_file():
            raise ConfigError(f"{folder}: not a run's folder: {name} is missing; give one that 'starling run' wrote")
    path = folder / "experiment.toml"
    with _reading(path):
        toml = path.read_text(encoding="utf-8")
        config = ExperimentConfig.model_validate(tomllib.loads(toml))
    path = folder / "summary.json"
    with _reading(path):
        summary = Summary.model_validate(json.loads(path.read_text(encoding="utf-8")))
    _check_columns(folder / "metrics.parquet")
    return Run(folder, config, summary, toml)


def same_experiment(one: Run, other: Run) -> bool:
    """Whether two runs differ at most in what must not change a synchronous protocol's result.

    That is the clock, the simulated devices and links, the executor, what is recorded, and the name.
    """
    aside = {"name", "clock", "devices", "network", "executor", "record"}
    return one.config.model_dump(exclude=aside) == other.config.model_dump(exclude=aside)


def disagreement(metric: str, one: Run, other: Run) -> str:
    """What of a final metric is not equal to the last bit in two runs, node by node; empty where all is equal."""
    (nodes, values), (others, theirs) = (run.samples(metric).final() for run in (one, other))
    if not nodes.size and not others.size:
        # Not a metric of single nodes: only the summaries know it.
        return "" if one.summary.metrics.get(metric) == other.summary.metrics.get(metric) else f"{metric} differs"
    if not np.array_equal(nodes, others):
        return f"{metric} was recorded by other nodes ({nodes.size:,} and {others.size:,} of them)"
    apart = values.view(np.int64) != theirs.view(np.int64)
    if not apart.any():
        return ""
    most = np.abs(values - theirs)[apart].max()
    return f"{metric} differs on {apart.sum():,} of {nodes.size:,} nodes, by at most {most:.3g}"


def _curve(x: Floats, groups: list[Floats]) -> Curve:
    rows = [(group.mean(), *np.percentile(group, (10, 90)), group.min(), group.max()) for group in groups]
    mean, p10, p90, low, high = np.array(rows, dtype=np.float64).reshape(-1, 5).T
    return Curve(x, mean, p10, p90, low, high)


def _check_columns(path: Path) -> None:
    import pyarrow.parquet as pq

    with _reading(path):
        schema = pq.read_schema(path)
        found: dict[str, Any] = {field.name: field.type for field in schema}
        for name, wanted in _COLUMNS.items():
            if name not in found:
                raise ValueError(f"column {name!r} is missing; there must be {', '.join(_COLUMNS)}")
            if wanted not in str(found[name]):
                raise ValueError(f"column {name!r} holds {found[name]}, not {wanted}")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise ConfigError(f"{path}: {key}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{path}: cannot be read: {reason}") from error
