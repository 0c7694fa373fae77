"""How many cohorts: the whole grid, or the core of it; then whether it says what is known of cohorts.

    python scripts/bench/cohort.py [--core] [--out runs/cohort-grid] [--seeds 3] [--nodes 200] [--set KEY=VALUE ...]
    python scripts/bench/cohort.py --check [--out runs/cohort-grid]

The grid is scripts/bench/cohort.toml. The same command goes on where an earlier one was ended. Data are 45 samples a
node of scikit-learn's make_classification: ten classes of two clusters each in 64 dimensions, of which half tell
something, so far apart that an MLP learns them about as well as handwritten digits from as many samples. Public data of
another domain are made likewise, with other clusters (OUT/other).
--check runs nothing: it reads what has finished, prints one line for each claim, and exits with 1 where one is wrong.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tomli_w

from node.cli.cohort_literature import Against, ours
from node.cli.cohort_study import Study, study
from node.cli.cohort_targets import target
from node.cli.main import main as starling
from node.cli.runs import load_run

GRID = Path(__file__).with_suffix(".toml")
SAMPLES_PER_NODE = 45
SHAPE = (1, 8, 8)
CORE = {"data.alpha": [0.1, 1.0], "protocol.cohorts": [1, 2, 4, 16]}


class Claim(NamedTuple):
    """Something that is known of cohorts, and whether it is so here."""

    text: str
    holds: bool


def make(folder: Path, nodes: int) -> tuple[Path, Path]:
    """Write what nodes learn, and public data of another domain; gives both files."""
    from sklearn.datasets import make_classification

    files = folder / f"classes-{nodes}.npz", folder / f"others-{nodes}.npz"
    folder.mkdir(parents=True, exist_ok=True)
    for seed, file in enumerate(files):
        options = {"n_classes": 10, "n_clusters_per_class": 2, "class_sep": 2.1, "flip_y": 0.0, "random_state": seed}
        count = SAMPLES_PER_NODE * nodes if seed == 0 else 1500
        features, labels = make_classification(count, 64, n_informative=32, n_redundant=0, **options)
        features = (features / features.std()).astype(np.float32).reshape(-1, *SHAPE)
        np.savez(file, features=features, label=labels)
    return files


def written(folder: Path, name: str, sweeps: Sequence[Mapping[str, Any]]) -> str:
    """The grid's experiment with other sweeps, as a file; gives its path."""
    tables = tomllib.loads(GRID.read_text(encoding="utf-8"))
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps({**tables, "sweep": list(sweeps)}), encoding="utf-8")
    return str(path)


def run(options: argparse.Namespace, more: list[str]) -> None:
    """The grid, or its core; then the same students on other public data."""
    out = Path(options.out)
    data, other = (file.resolve() for file in make(out / "data", options.nodes))
    core = written(out / "data", "core", [CORE])
    elsewhere = written(out / "data", "other", [{"protocol.cohorts": [2, 4]}])
    seeds = ",".join(str(seed) for seed in range(1, options.seeds + 1))
    common = ["--clock", "virtual", "--sweep", f"seed={seeds}", "--set", f"data.name={data}"]
    common += ["--set", f"nodes={options.nodes}", *more]
    for arguments in (
        ["run", core if options.core else str(GRID), *common, "--out", str(out)],
        ["run", elsewhere, *common, "--set", f"public.name={other}", "--out", str(out / "other")],
    ):
        try:
            starling(arguments)
        except SystemExit as ended:
            if ended.code:
                raise


def claims(found: Study, elsewhere: Study | None) -> Iterator[Claim]:
    """Signs of means over seeds, one by one."""
    by_place = {(each.alpha, each.cohorts): each for each in ours(found)}
    for (alpha, cohorts), each in by_place.items():
        if cohorts == 4:
            yield from _of_four(alpha, each)
        if cohorts in (2, 4) and each.student is not None and each.ensemble is not None:
            gap = 100 * (each.ensemble - each.student)
            yield Claim(
                f"alpha {alpha}, K = {cohorts}: a student is {gap:.1f} points below the ensemble, at most 1.5",
                gap <= 1.5,
            )
        if cohorts in (2, 4) and each.average is not None and each.ensemble is not None:
            gap = 100 * (each.ensemble - each.average)
            yield Claim(
                f"alpha {alpha}, K = {cohorts}: the average is {gap:.1f} points below the ensemble, at most 3", gap <= 3
            )
    for cell in elsewhere.cells if elsewhere else []:
        ensemble, student = cell.mean("accuracy_ensemble"), cell.mean("accuracy_student")
        if ensemble is not None and student is not None:
            gap = 100 * (ensemble - student)
            yield Claim(f"{cell.first.method}: students of other data lose {gap:.1f} points, 5 to 11", 5 <= gap <= 11)
    yield from _to_target(found)


def _of_four(alpha: float | None, each: Against) -> Iterator[Claim]:
    for factor, name in ((each.time, "time"), (each.cpu, "CPU"), (each.bytes, "bytes")):
        if factor is not None:
            yield Claim(f"alpha {alpha}: {name} falls {factor:.2f} times from K = 1 to 4, at least 2", factor >= 2)
    if each.cohort is not None:
        yield Claim(
            f"alpha {alpha}: the mean cohort model changes by {100 * each.cohort:.1f}, below -3", each.cohort < -0.03
        )
    if each.ensemble is not None:
        yield Claim(
            f"alpha {alpha}: the ensemble changes by {100 * each.ensemble:.1f}, above -3.5", each.ensemble > -0.035
        )


def _to_target(found: Study) -> Iterator[Claim]:
    """At equal participants to equal accuracy, cohorts cost no less."""
    for setting in found.settings:
        ways = reached.ways if (reached := target(found, setting)) is not None else []
        one = next((way for way in ways if way.cohorts == 1 and way.participants < 0.5 * ways[0].participants), None)
        several = next(
            (way for way in ways if way.cohorts and way.cohorts > 1 and way.participants < 0.5 * ways[0].participants),
            None,
        )
        if one is not None and several is not None:
            factor = several.costs["train_hours"].mean / one.costs["train_hours"].mean
            yield Claim(
                f"to one accuracy, {several.method} take {factor:.2f} times the CPU of {one.method}, above 1",
                factor > 1,
            )


def check(out: Path) -> bool:
    """Print every claim; whether all hold, and there is any."""
    found, elsewhere = (_read(folder) for folder in (out, out / "other"))
    every = list(claims(found, elsewhere)) if found is not None else []
    for claim in every:
        print(f"{'ok   ' if claim.holds else 'WRONG'} {claim.text}")
    if not every:
        print(f"{out}: no finished runs of different numbers of cohorts; run the grid first")
    return bool(every) and all(claim.holds for claim in every)


def _read(folder: Path) -> Study | None:
    return study([load_run(summary.parent) for summary in sorted(folder.glob("*/summary.json"))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", action="store_true", help="K = 1, 2, 4, 16 and two skews alone")
    parser.add_argument("--check", action="store_true", help="read what has finished, and say whether it is as known")
    parser.add_argument("--out", default="runs/cohort-grid")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=200)
    options, more = parser.parse_known_args()
    if options.check:
        sys.exit(0 if check(Path(options.out)) else 1)
    run(options, more)


if __name__ == "__main__":
    main()
