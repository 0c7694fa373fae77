"""Runs of cohort-parallel learning that nobody has run: what a study reads of them, made up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from node.cli.cohort_study import Study, study
from node.cli.runs import Run
from node.cli.summary import Summary
from node.config import ExperimentConfig

NODES = 24


def run(
    seed: int = 1,
    cohorts: int = 1,
    protocol: Mapping[str, Any] | None = None,
    alpha: float = 0.1,
    accuracy: float = 0.9,
    status: str = "finished",
    rounds: int = 100,
    scale: float = 1.0,
    **block: Any,
) -> Run:
    """A run whose costs are ``scale`` times those of one network: 100 s, 0.5 device hours, 30 MB."""
    options = {"use": "cpfl", "cohorts": cohorts, **(protocol or {})}
    asked = cohorts * options["sample"] if options.get("sample") else NODES
    is_cpfl = options["use"] == "cpfl"
    if not is_cpfl:
        del options["cohorts"]
    config = ExperimentConfig.model_validate(
        {"seed": seed, "nodes": NODES, "protocol": options, "data": {"partition": "dirichlet", "alpha": alpha}}
    )
    said = {
        "cohorts": [
            {"cohort": i, "rounds": rounds + i, "stopped_s": scale * (100 - i), "participants": asked / cohorts}
            for i in range(cohorts)
        ],
        "converged_s": scale * 100,
        "unify_s": 2.0 if cohorts > 1 else 0.0,
        "device_cpu_s": scale * 1800,
        "bytes": {"up": scale * 10e6, "down": scale * 20e6, "unifying": 1000, "control": 500},
        "mean_cohort_accuracy": accuracy if cohorts == 1 else accuracy - 0.1,
        "unifier": "average" if cohorts > 1 else "alone",
        "unified": unified(accuracy) if cohorts > 1 else {"alone": {"accuracy": accuracy}},
        **block,
    }
    summary = Summary.model_validate({
        "name": "made-up", "hash": "0", "clock": "virtual", "seed": seed, "nodes": NODES, "rounds": rounds,
        "protocol": options["use"], "time_s": 500.0, "wall_s": 1.0, "events": 1, "tasks": 1, "messages": 1,
        "bytes_sent": 40_000_000, "peak_rss_bytes": 1, "status": status, "error": None, "event_hash": None,
        "metrics": {"accuracy": {"mean": accuracy, "std": 0.0, "min": accuracy, "max": accuracy}},
        "usage": {
            "device_hours": {"total": 0.7, "lost": 0, "discarded": 0}, "online_hours": 1,
            "utilisation": {"mean": 1, "min": 1, "max": 1}, "shares": {},
        },
        "cpfl": said if is_cpfl else None,
    })  # fmt: skip
    return Run(Path("nowhere"), config, summary, "")


def unified(accuracy: float) -> dict[str, dict[str, float]]:
    """An average, an ensemble that is as good as ``accuracy`` says, and a student that takes six minutes."""
    return {
        "average": {"accuracy": accuracy - 0.05, "time_s": 0.0, "bytes": 3000},
        "ensemble-label": {"accuracy": accuracy, "time_s": 0.0, "bytes": 2000},
        "kd-hard": {"accuracy": accuracy - 0.02, "time_s": 360.0, "bytes": 4000},
    }


def made(*runs: Run) -> Study:
    """A study of some runs."""
    found = study(runs)
    assert found is not None
    return found


def rung(cohorts: int, rounds: int, accuracy: float, sample: int = 0, seed: int = 1) -> Run:
    """A run of so many rounds, whatever its losses; every round costs a second."""
    protocol = {"stopping": {"rule": "budget", "most_rounds": rounds}, "sample": sample, "checkpoint": "last"}
    return run(seed, cohorts, protocol, accuracy=accuracy, scale=rounds / 100, rounds=rounds)
