"""Utility, privacy, fairness and cost of many runs: a row for each, and for each cell the mean over its seeds.

A cell is what runs have in common that differ in their seed alone. Nothing here asks which sweep the runs are of: what
differs in their configurations makes the cells.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from node.cli.runs import Run
from node.cli.summary import Network
from node.experiment.comparison import Estimate, estimate
from node.experiment.loading import flat
from node.experiment.sweep import write_table

CSV = "tradeoff.csv"
SIDES = ("majority", "minority")
"""The largest and the smallest group of nodes."""
_METRICS = {name: f"membership_{name}" for name in ("auc", "best_auc", "tpr_1pct", "tpr_01pct")}
_BESIDE = ("name", "seed", "clock", "record", "executor")
"""Keys that make no other cell."""

_NOISE = ("protocol.noise", "protocol.pairwise")
"""Options of protocols that are privacy's levels, and no methods of their own."""

Figures = dict[str, float | None]


@dataclass(frozen=True)
class Row:
    """What one run came to."""

    run: Run
    seed: int
    setting: str
    """What it differs in from others besides protocol and privacy; may be empty."""
    method: str
    """Protocol, and those of its options that differ between runs."""
    privacy: str
    """Mechanism and level."""
    figures: Figures
    """By the names of the columns; None where it is not known, or cannot be said."""
    meaning: str
    """What its epsilon means nothing without: unit, adjacency, threat model, delta; empty where it has none."""
    pair_meaning: str
    """The same of the epsilon over pairs of nodes, which its log gives; empty where that says nothing."""
    roc: tuple[list[float], list[float]] | None

    @property
    def cell(self) -> tuple[str, str, str]:
        """What it has in common with the runs of other seeds."""
        return self.setting, self.method, self.privacy


@dataclass(frozen=True)
class Cell:
    """Runs that differ in their seed alone."""

    rows: tuple[Row, ...]

    @property
    def first(self) -> Row:
        """One of them, for what they have in common."""
        return self.rows[0]

    @property
    def label(self) -> str:
        """What they have in common, in words."""
        return ", ".join(part for part in (self.first.method, self.first.privacy, self.first.setting) if part)

    def estimate(self, figure: str) -> Estimate | None:
        """Mean and interval over the seeds that know a figure."""
        return estimate(value for row in self.rows if (value := row.figures.get(figure)) is not None)

    def mean(self, figure: str) -> float | None:
        """The mean alone."""
        found = self.estimate(figure)
        return None if found is None else found.mean


@dataclass(frozen=True)
class Study:
    """All rows, in the order of the runs."""

    rows: tuple[Row, ...]
    fixed_bytes: int
    """What all runs that send anything have sent at least: where they are compared at equal cost."""

    @cached_property
    def cells(self) -> list[Cell]:
        """Rows by what they have in common, in the order in which each first appears."""
        found: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.cell, []).append(row)
        return [Cell(tuple(rows)) for rows in found.values()]

    def write(self, path: Path) -> None:
        """Write a row for each run as CSV."""
        words = ("setting", "method", "privacy", "seed", "meaning")
        write_table(path, [{name: getattr(row, name) for name in words} | row.figures for row in self.rows])


def study(runs: Sequence[Run]) -> Study | None:
    """Hold finished runs against each other; None where there are no two, or none tells of privacy or fairness."""
    finished = [run for run in runs if run.summary.status == "finished"]
    told = [run for run in finished if run.summary.attacks or (run.summary.fairness and run.summary.fairness.groups)]
    if len(told) < 2:
        return None
    keys = [dict(flat(run.config.model_dump(mode="json"))) for run in finished]
    differing = _differing(keys)
    fixed = min((run.summary.bytes_sent for run in finished if run.summary.bytes_sent), default=0)
    rows = [_row(run, own, differing, fixed) for run, own in zip(finished, keys, strict=True)]
    return Study(tuple(_with_gains(rows)), fixed)


# Rows


def _row(run: Run, keys: Mapping[str, Any], differing: Sequence[str], fixed: int) -> Row:
    summary = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))
    privacy, final = summary.get("privacy") or {}, (summary.get("attacks") or {}).get("final") or {}
    sides = _sides(run)
    own = _own_accuracy(run)
    figures: Figures = {
        "own_accuracy": own,
        "own_accuracy_at_fixed_bytes": _at_bytes(run, fixed, own),
        **_fairness_figures(run, sides),
        **_epsilons(privacy),
        **_of_pairs(run),
        **_of_messages(summary.get("attacks") or {}, sides, run.config.data.groups),
        **_of_final_models(final, sides),
        "epsilon_at_least": final.get("epsilon_at_least"),
        "bytes_sent": summary["bytes_sent"],
        "rounds": summary["rounds"],
        "time_s": summary["time_s"],
    }
    roc = final.get("roc")
    curve = (roc["fpr"], roc["tpr"]) if roc and roc["fpr"] else None
    labels = _setting(keys, differing), _method(keys, differing), _privacy(keys, differing)
    return Row(run, run.summary.seed, *labels, figures, _meaning(privacy), _pair_meaning(run), curve)


def _own_accuracy(run: Run) -> float | None:
    """Mean over nodes of final models' accuracy on test samples of the node's own kind."""
    fairness, accuracy = run.summary.fairness, run.summary.metrics.get("accuracy")
    if fairness and fairness.groups:
        groups = fairness.groups.values()
        return sum(group.nodes * group.accuracy for group in groups) / sum(group.nodes for group in groups)
    return accuracy.mean if accuracy else None


def _at_bytes(run: Run, fixed: int, own: float | None) -> float | None:
    """That accuracy when all nodes together had sent so much; where the run recorded none by then, None."""
    if run.summary.bytes_sent <= fixed:
        return own
    has_groups = run.summary.fairness and run.summary.fairness.groups
    course = run.course("own_accuracy" if has_groups else "accuracy")
    sent = None if course is None else run.sent_until(course.over_time.x)
    if course is None or sent is None or not (sent <= fixed).any():
        return None
    return float(course.over_time.mean[np.flatnonzero(sent <= fixed)[-1]])


def _sides(run: Run) -> dict[str, str]:
    """The largest and the smallest group of nodes, by their names in a summary; nothing where groups are equal."""
    groups = run.summary.fairness.groups if run.summary.fairness else {}
    sizes = {name: group.nodes for name, group in groups.items()}
    if len(set(sizes.values())) < 2:
        return {}
    return dict(zip(SIDES, (max(sizes, key=sizes.__getitem__), min(sizes, key=sizes.__getitem__)), strict=True))


def _fairness_figures(run: Run, sides: Mapping[str, str]) -> Figures:
    fairness = run.summary.fairness
    if fairness is None or not fairness.groups:
        return {}
    return {
        "worst_group_accuracy": min(group.accuracy for group in fairness.groups.values()),
        **{f"{side}_accuracy": fairness.groups[group].accuracy for side, group in sides.items()},
        "accuracy_gap": fairness.accuracy_gap,
        "fair_accuracy": fairness.fair_accuracy,
        "demographic_parity": fairness.demographic_parity.sum,
        "equalized_odds": fairness.equalized_odds.sum,
    }


def _epsilons(privacy: Mapping[str, Any]) -> Figures:
    """Infinite where training is not protected at all, or by no noise."""
    epsilon = privacy.get("epsilon") or {}
    return {f"epsilon_{over}": math.inf if epsilon.get(over) is None else epsilon[over] for over in ("max", "mean")}


def _of_pairs(run: Run) -> Figures:
    """Epsilon and mu over pairs of nodes, one of which observes the other; nothing where no log tells."""
    network = _network(run)
    if network is None or network.epsilon is None or network.mu is None:
        return {}
    over = {"epsilon_pair": network.epsilon, "mu_pair": network.mu}
    return {
        f"{name}_{how}": math.inf if value is None else value
        for name, spent in over.items()
        for how, value in (("mean", spent.mean), ("max", spent.max))
    }


def _of_messages(attacks: Mapping[str, Any], sides: Mapping[str, str], sizes: Sequence[int]) -> Figures:
    """Means over all attacked messages, and over those from each group."""
    holders = sorted(int(node) for node in (attacks.get("final") or {}).get("nodes", {}))  # groups count these alone
    names = [str(group) for group, size in enumerate(sizes) for _ in range(size)]
    group_of = dict(zip(holders or range(len(names)), names, strict=False))
    found: Figures = {}
    for name, metric in _METRICS.items():
        messages = [told for told in attacks.get("messages") or [] if told.get(metric) is not None]
        known = [(group_of.get(told["victim"]), told[metric]) for told in messages]
        found[f"message_{name}"] = _mean([value for _, value in known])
        for side, group in sides.items():
            found[f"message_{name}_{side}"] = _mean([value for of, value in known if of == group])
    return found


def _of_final_models(final: Mapping[str, Any], sides: Mapping[str, str]) -> Figures:
    found: Figures = {}
    for name, metric in _METRICS.items():
        found[f"final_{name}"] = final.get("mean", {}).get(metric)
        found[f"final_{name}_worst"] = final.get("worst", {}).get(metric)
        known = {side: final.get("groups", {}).get(group, {}).get(metric) for side, group in sides.items()}
        found |= {f"final_{name}_{side}": value for side, value in known.items()}
        if known and None not in known.values():
            found[f"final_{name}_gap"] = known["minority"] - known["majority"]
    return found


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _meaning(privacy: Mapping[str, Any]) -> str:
    if not privacy.get("epsilon"):
        return ""
    adjacency = privacy["adjacency"].replace("_", "-")
    return f"per {privacy['unit']}, {adjacency}, {privacy['view']}, delta {privacy['delta']:g}, {privacy['conversion']}"


def _pair_meaning(run: Run) -> str:
    network = _network(run)
    return network.meaning if network is not None and network.epsilon is not None else ""


def _network(run: Run) -> Network | None:
    return None if run.summary.privacy is None else run.summary.privacy.network


# Personalization gains


def _with_gains(rows: Sequence[Row]) -> Iterator[Row]:
    """Each row with its accuracy less that of D-PSGD, and of learning alone, with all else equal and the same seed."""
    baselines = {
        (row.run.config.protocol.use, _all_but_protocol(row)): row.figures["own_accuracy"]
        for row in rows
        if row.run.config.protocol.use in ("dpsgd", "local")
    }
    for row in rows:
        own = row.figures["own_accuracy"]
        for base in ("dpsgd", "local"):
            other = baselines.get((base, _all_but_protocol(row)))
            row.figures[f"gain_over_{base}"] = None if own is None or other is None else own - other
        yield row


def _all_but_protocol(row: Row) -> tuple[str, str, int]:
    return row.setting, row.run.config.privacy.model_dump_json(), row.seed


# Words


def _differing(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys whose values are not the same in all runs; a protocol's options, in all runs of that protocol."""
    keys = dict.fromkeys(key for values in configs for key in values if key.partition(".")[0] not in _BESIDE)
    protocols = list(dict.fromkeys(values["protocol.use"] for values in configs))
    alike = [[values for values in configs if values["protocol.use"] == protocol] for protocol in protocols]

    def differs(key: str) -> bool:
        apart = alike if key.startswith("protocol.") and key != "protocol.use" else [configs]
        return any(len({repr(values.get(key)) for values in runs}) > 1 for runs in apart)

    return [key for key in keys if differs(key)]


def _method(keys: Mapping[str, Any], differing: Sequence[str]) -> str:
    beside = ("protocol.use", *_NOISE)
    own = [key for key in differing if key.startswith("protocol.") and key not in beside and key in keys]
    return " ".join([str(keys["protocol.use"]), *(_said(key.partition(".")[2], keys[key]) for key in own)])


def _privacy(keys: Mapping[str, Any], differing: Sequence[str]) -> str:
    mechanism = keys["privacy.mechanism"]
    own = [key for key in differing if key.startswith("privacy.") and key != "privacy.mechanism"]
    noise = " ".join(_said(key.partition(".")[2], keys[key]) for key in _NOISE if keys.get(key))
    if mechanism == "none":
        return noise or ("no DP" if any(key.startswith(("privacy.", *_NOISE)) for key in differing) else "")
    said = (_said(key.partition(".")[2], keys[key]).replace("noise_multiplier", "σ") for key in own)
    return " ".join([mechanism, *said, *([noise] if noise else [])])


def _setting(keys: Mapping[str, Any], differing: Sequence[str]) -> str:
    rest = [key for key in differing if key.partition(".")[0] not in ("protocol", "privacy") and key in keys]
    return " ".join(":".join(map(str, keys[key])) if key == "data.groups" else _said(key, keys[key]) for key in rest)


def _said(key: str, value: Any) -> str:
    return f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
