"""A sweep: one experiment at every combination of some keys' values, each a run with a folder of its own.

What is swept is in the experiment's file (:mod:`node.experiment.axes`), on the command line, or in both.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from node.config import ExperimentConfig
from node.errors import ConfigError
from node.experiment.axes import CLOCK, Axis, grids, replaced
from node.experiment.loading import digest, load

_LONGEST_NAME = 80
_FREE_SHARE = 0.8
"""Of the memory that is free now: what runs side by side may take."""


@dataclass(frozen=True)
class Point:
    """One combination."""

    name: str
    """Names its folder."""
    values: Mapping[str, str]
    """The swept keys, and their values as they were written."""
    config: ExperimentConfig

    @property
    def sets(self) -> list[str]:
        """As ``--set`` takes them."""
        return [f"{key}={value}" for key, value in self.values.items()]


def points(
    experiment: str,
    sets: Sequence[str],
    sweeps: Iterable[str],
    environ: Mapping[str, str] | None = None,
    clock: str | None = None,
) -> list[Point]:
    """All combinations, the last key's values changing fastest; each configuration has been checked.

    Args:
        experiment: a TOML file, or the name of a bundled experiment.
        sets: ``table.key=value`` for all points.
        sweeps: ``table.key=value,value,…``, in TOML syntax; a bare word is a string, a list stands in brackets. Each
            replaces what the file sweeps of the same key.
        environ: ``STARLING_TABLE__KEY`` overrides.
        clock: the only one to run under, if any.

    Raises:
        ConfigError: one line that names the sweep, or the key, and what is allowed.
    """
    flags = list(_axes(sweeps))
    sets = [*sets, *([f"{CLOCK}={clock}"] if clock else [])]
    found: dict[str, Point] = {}
    known = set()
    for grid in grids(experiment, clock) or [()]:
        axes = replaced(grid, flags)
        _check_sets(sets, axes, flags)
        for name, point in _of_grid(axes, experiment, sets, environ).items():
            if digest(point.config) not in known:  # grids may overlap
                known.add(digest(point.config))
                found[name] = point
    return list(found.values())


def _of_grid(
    axes: Sequence[Axis], experiment: str, sets: Sequence[str], environ: Mapping[str, str] | None
) -> dict[str, Point]:
    """All combinations of some axes, by name."""
    found: dict[str, Point] = {}
    unsaid = {CLOCK for axis in axes if axis.key == CLOCK and len(axis.settings) == 1}
    for combination in itertools.product(*(axis.settings for axis in axes)):
        values = dict(pair for setting in combination for pair in setting.items())
        if len(values) < sum(map(len, combination)):
            twice = Counter(key for setting in combination for key in setting).most_common(1)[0][0]
            raise ConfigError(f"sweep: {twice} is in two axes; write all its values in one of them")
        try:
            config = load(experiment, [*sets, *(f"{key}={value}" for key, value in values.items())], environ)
        except ConfigError as error:
            raise ConfigError(f"{error} (with {', '.join(f'{k}={v}' for k, v in values.items())})") from None
        said = {key: value for key, value in values.items() if key not in unsaid}
        point = Point(_name(said, config), values, config)
        if point.name in found:
            raise ConfigError(f"--sweep: {point.name} is there twice; give each value once")
        found[point.name] = point
    return found


def _check_sets(sets: Sequence[str], axes: Sequence[Axis], flags: Sequence[Axis]) -> None:
    """What a file sweeps cannot be set for all points."""
    swept = {key for axis in axes if axis not in flags for setting in axis.settings for key in setting}
    for override in sets:
        key = override.partition("=")[0].strip()
        if key in swept:
            raise ConfigError(f"--set {override}: the experiment sweeps {key}; write --sweep {override}")


def _axes(sweeps: Iterable[str]) -> Iterator[Axis]:
    seen = set()
    for sweep in sweeps:
        key, _, text = sweep.partition("=")
        key, values = key.strip(), [value.strip() for value in _split(text)]
        if not key or not all(values):
            raise ConfigError(f"--sweep {sweep}: write it as key=value,value,…, for example --sweep seed=1,2,3")
        if key in seen:
            raise ConfigError(f"--sweep {key}: is there twice; write all its values after one --sweep")
        seen.add(key)
        yield Axis(key, tuple({key: value} for value in values))


def _split(text: str) -> list[str]:
    """At the commas that are in no string, list or table."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char == "," and not depth:
            parts.append("")
            continue
        depth += 0 if quote else (char in "[{") - (char in "]}")
        parts[-1] += char
    return parts


def _name(values: Mapping[str, str], config: ExperimentConfig) -> str:
    """The values, for people; and the configuration's hash where a folder's name cannot hold them."""
    text = ",".join(f"{key}={value}" for key, value in values.items()) or "base"
    safe = re.sub(r"[^A-Za-z0-9._=,+-]+", "_", text)[:_LONGEST_NAME]
    return text if safe == text else f"{safe}-{digest(config)}"


def finished(point: Point, folder: Path) -> dict[str, Any] | None:
    """The summary of a run of this very configuration that came to its end; None where there is none in the folder."""
    summary = summary_in(folder)
    if summary is None or summary.get("status") != "finished" or summary.get("hash") != digest(point.config):
        return None
    return summary


def summary_in(folder: Path) -> dict[str, Any] | None:
    """What a run has left in its folder; None where that is nothing, or not whole."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None


def at_once(swept: Sequence[Point], peak_bytes: int) -> int:
    """How many points may run side by side, each on the cores that it uses and in so much memory (0: unknown)."""
    cores = psutil.cpu_count() or 1
    if any(point.config.clock == "real" for point in swept):
        return 1  # its nodes are as many processes, and times that they measure must not depend on other runs
    spread = [point.config.executor for point in swept if point.config.executor.kind in ("processes", "dask")]
    by_cores = cores // max((executor.workers or cores for executor in spread), default=1)
    by_memory = int(_FREE_SHARE * psutil.virtual_memory().available / peak_bytes) if peak_bytes else by_cores
    return max(1, min(by_cores, by_memory))


def row(point: Point, summary: Mapping[str, Any]) -> dict[str, Any]:
    """A point's line of the table: its swept keys, how it ended, and its figures, metrics as means over nodes."""
    names = ("status", "rounds", "time_s", "wall_s", "events", "messages", "bytes_sent", "peak_rss_bytes")
    usage = summary.get("usage") or {}
    return {
        "point": point.name,
        **point.values,
        **{name: summary.get(name) for name in names},
        **{name: spread["mean"] for name, spread in summary.get("metrics", {}).items()},
        **{
            f"{name}.{target}": value
            for name in ("time_to_accuracy_s", "bytes_to_accuracy")
            for target, value in summary.get(name, {}).items()
        },
        **_epsilons(summary.get("privacy") or {}),
        **({"device_hours": usage["device_hours"]["total"]} if usage else {}),
        **({"utilisation": usage["utilisation"]["mean"]} if usage else {}),
    }


def _epsilons(privacy: Mapping[str, Any]) -> dict[str, float]:
    """Over nodes, and over pairs of which one observes the other, where they are accounted for."""
    told = {"epsilon": privacy.get("epsilon"), "epsilon_pair": (privacy.get("network") or {}).get("epsilon")}
    return {
        f"{name}_{over}": math.inf if epsilon[over] is None else epsilon[over]
        for name, epsilon in told.items()
        if epsilon
        for over in ("mean", "max")
    }


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, with every column that any of them has."""
    columns = dict.fromkeys(column for row in rows for column in row)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(columns), restval="")
        writer.writeheader()
        writer.writerows(rows)
