"""How many cohorts: the whole grid, or the core of it; then whether it says what is known of cohorts.

    python scripts/bench/cohort.py [--core] [--out runs/cohort-grid] [--seeds 3] [--nodes 200] [--set KEY=VALUE ...]
    python scripts/bench/cohort.py --check [--out runs/cohort-grid]

The grid is scripts/bench/cohort.toml. The same command goes on where an earlier one was ended. Data are 45 samples a
node of scikit-learn's make_classification: ten classes of two clusters each in 64 dimensions, of which half tell
something, so far apart that one network comes to an accuracy of 92 to 93 %, as with handwritten digits. Public samples
of the same clusters are twice as many as nodes train on, as STL-10's unlabelled images are to those of CIFAR-10. Those
of another domain have other clusters (OUT/other).
--check runs nothing: it reads what has finished, prints the tables, those of the literature among them, and one line
for each claim, and exits with 1 where one is wrong.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tomli_w
from numpy.typing import NDArray

from node.cli.cohort_literature import Against, ours
from node.cli.cohort_study import Study, study
from node.cli.cohort_table import lines
from node.cli.cohort_targets import target
from node.cli.main import main as starling
from node.cli.runs import load_run

GRID = Path(__file__).with_suffix(".toml")
SAMPLES_PER_NODE = 45
PUBLIC_PER_NODE = 72
OTHERS = 1500
SHAPE = (1, 8, 8)
CORE = {"data.alpha": [0.1, 1.0], "protocol.cohorts": [1, 2, 4, 16]}


class Claim(NamedTuple):
    """Something that is known of cohorts, and whether it is so here."""

    text: str
    holds: bool


class Files(NamedTuple):
    """What a grid learns from."""

    data: Path
    public: Path
    """Of the same clusters."""
    others: Path
    """Public data of another domain."""


def make(folder: Path, nodes: int) -> Files:
    """Write what so many nodes learn from; the same for all seeds of an experiment, which split it differently."""
    files = Files(*(folder / f"{name}-{nodes}.npz" for name in ("classes", "public", "others")))
    folder.mkdir(parents=True, exist_ok=True)
    private = SAMPLES_PER_NODE * nodes
    features, labels = _classes(private + PUBLIC_PER_NODE * nodes, 0)
    np.savez(files.data, features=features[:private], label=labels[:private])
    np.savez(files.public, features=features[private:], label=labels[private:])
    features, labels = _classes(OTHERS, 1)
    np.savez(files.others, features=features, label=labels)
    return files


def _classes(samples: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features [samples, *SHAPE] of unit variance, and labels; the seed decides on the clusters."""
    from sklearn.datasets import make_classification

    options = {"n_classes": 10, "n_clusters_per_class": 2, "class_sep": 2.0, "flip_y": 0.0, "random_state": seed}
    features, labels = make_classification(samples, 64, n_informative=32, n_redundant=0, **options)
    return (features / features.std()).astype(np.float32).reshape(-1, *SHAPE), labels


def written(folder: Path, name: str, sweeps: Sequence[Mapping[str, Any]]) -> str:
    """The grid's experiment with other sweeps, as a file; gives its path."""
    tables = tomllib.loads(GRID.read_text(encoding="utf-8"))
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps({**tables, "sweep": list(sweeps)}), encoding="utf-8")
    return str(path)


def run(options: argparse.Namespace, more: list[str]) -> None:
    """The grid, or its core; then the same students on other public data."""
    out = Path(options.out)
    files = make((out / "data").resolve(), options.nodes)
    core = written(out / "data", "core", [CORE])
    elsewhere = written(out / "data", "other", [{"protocol.cohorts": [2, 4]}])
    seeds = ",".join(str(seed) for seed in range(1, options.seeds + 1))
    common = ["--clock", "virtual", "--sweep", f"seed={seeds}", "--set", f"data.name={files.data}"]
    common += ["--set", f"nodes={options.nodes}", *more]
    for grid, public, folder in (
        (core if options.core else str(GRID), files.public, out),
        (elsewhere, files.others, out / "other"),
    ):
        try:
            starling(["run", grid, *common, "--set", f"public.name={public}", "--out", str(folder)])
        except SystemExit as ended:
            if ended.code:
                raise


def claims(found: Study, elsewhere: Study | None) -> Iterator[Claim]:
    """Signs of means over seeds, one by one."""
    every = list(ours(found))
    for each in every:
        if each.cohorts == 4:
            yield from _of_four(each.alpha, each)
        yield from _of_unifying(each)
    for alpha in dict.fromkeys(each.alpha for each in every):
        yield from _of_more_cohorts(alpha, sorted((each for each in every if each.alpha == alpha), key=_cohorts))
    for cell in elsewhere.cells if elsewhere else []:
        ensemble, student = cell.mean("accuracy_ensemble"), cell.mean("accuracy_student")
        if ensemble is not None and student is not None:
            gap = 100 * (ensemble - student)
            yield Claim(f"{cell.first.method}: students of other data lose {gap:.1f} points, 5 to 11", 5 <= gap <= 11)
    yield from _to_target(found)


def _of_unifying(each: Against) -> Iterator[Claim]:
    """What is left of the ensemble's accuracy."""
    place = f"alpha {each.alpha}, K = {each.cohorts}"
    if each.ensemble is None:
        return
    if each.average is not None:
        gap = 100 * (each.ensemble.mean - each.average.mean)
        if each.cohorts <= 4:
            yield Claim(f"{place}: the average is {gap:.1f} points below the ensemble, at most 3", gap <= 3)
        elif each.cohorts == 16 and each.alpha == 0.1:
            yield Claim(f"{place}: the average is {gap:.1f} points below the ensemble, at least 5", gap >= 5)
    if each.student is None:
        return
    gap = 100 * (each.ensemble.mean - each.student.mean)
    if each.cohorts <= 4:
        yield Claim(f"{place}: a student is {gap:.1f} points below the ensemble, at most 1.5", gap <= 1.5)
    if each.cohort is not None and each.ensemble.mean > each.cohort.mean:
        share = 1 - gap / 100 / (each.ensemble.mean - each.cohort.mean)
        yield Claim(
            f"{place}: a student has {share:.0%} of what the ensemble has over a cohort's model, more than half",
            share > 0.5,
        )


def _of_more_cohorts(alpha: float | None, rising: Sequence[Against]) -> Iterator[Claim]:
    """The more cohorts, the less of everything, from one network on."""
    for name in ("time", "cpu"):
        known = [factor.mean for each in rising if (factor := getattr(each, name)) is not None]
        if known:
            falls = [1.0, *known]
            told = ", ".join(f"{factor:.2f}" for factor in falls)
            yield Claim(
                f"alpha {alpha}: {name} falls with the number of cohorts, by factors of {told}",
                all(one < more for one, more in pairwise(falls)),
            )


def _cohorts(each: Against) -> int:
    return each.cohorts


def _of_four(alpha: float | None, each: Against) -> Iterator[Claim]:
    for factor, name in ((each.time, "time"), (each.cpu, "CPU"), (each.bytes, "bytes")):
        if factor is not None:
            fall = factor.mean
            yield Claim(f"alpha {alpha}: {name} falls {fall:.2f} times from K = 1 to 4, at least 2", fall >= 2)
    if each.cohort is not None:
        change = 100 * each.cohort.mean
        yield Claim(f"alpha {alpha}: the mean cohort model changes by {change:.1f}, below -3", change < -3)
    if each.ensemble is not None:
        change = 100 * each.ensemble.mean
        yield Claim(f"alpha {alpha}: the ensemble changes by {change:.1f}, above -3.5", change > -3.5)


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
    """Print the tables and every claim; whether all hold, and there is any."""
    found, elsewhere = (_read(folder) for folder in (out, out / "other"))
    for line in lines(found, {}) if found is not None else ():
        print(line)
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
