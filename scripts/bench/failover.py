"""How soon a cohort has a new leader when its own is killed: real processes, of which some are ended by SIGKILL.

``starling run cpfl --clock real`` as it is bundled: 24 processes in four cohorts. The leaders of two cohorts are killed
at a moment drawn from the second after they ask for a round, while members train, answer or commit. All processes note
on one clock when they first ask for a round: from there on a new leader works. Printed, in election timeouts T: when
new leaders are elected and ask, and when they have committed a round, from the kill on; committed rounds that were lost
or trained again; and the accuracy beside that of runs in which nobody is killed.

    python scripts/bench/failover.py [--runs 3] [--round 5] [--out DIR] [--check] [--set KEY=VALUE ...]

``--check`` exits with 1 where a committed round was lost, a leader took longer than 3 T, or the mean accuracy is more
than a point off.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import tomli_w

from node import Context, Message, Observer
from node.cohorts import at_random, generator
from protocols.cohort_round import Assignment
from protocols.cohort_settings import Settings

STARLING = Path(sys.executable).with_name("starling")
HERE = Path(__file__).parent
BUNDLED = HERE.parents[1] / "node" / "experiments" / "cpfl.toml"
COHORTS = 4
SOON = 3.0
"""Election timeouts within which there is to be a new leader."""


class Doom(Observer):
    """Notes when this node first asks for each round; the first to ask for a certain one is killed a little later."""

    class Config(Observer.Config):
        """Options of ``[[mods]]``."""

        path: str
        round: int
        delay_s: float

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._asked: set[tuple[int, int]] = set()

    def sent(self, ctx: Context, to: int, message: Message) -> None:
        """A leader asks a member for a round."""
        if isinstance(message, Assignment) and (message.term, message.round) not in self._asked:
            self._asked.add((message.term, message.round))
            self._note(ctx.me, "asks", message.round)
            if message.round == self.config.round and self._is_first():
                threading.Timer(self.config.delay_s, self._die, (ctx.me,)).start()

    def _is_first(self) -> bool:
        try:
            Path(self.config.path + ".once").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _die(self, node: int) -> None:
        self._note(node, "dies", 0)
        os.kill(os.getpid(), signal.SIGKILL)

    def _note(self, node: int, what: str, round: int) -> None:
        with open(self.config.path, "a", encoding="utf-8") as file:
            file.write(f"{time.monotonic()} {node} {what} {round}\n")


class Failover(NamedTuple):
    """What became of one cohort whose leader was killed; times in s after that."""

    asks_s: float
    """Until another node has asked for a round."""
    commits_s: float
    """Until it has asked for the one after, having committed the first."""
    lost: int
    """Rounds that the killed leader had committed, and that were trained again."""
    repeated: int
    """Rounds that were asked for again."""


def experiment(folder: Path, killed: int, round: int, run: int) -> Path:
    """Write the bundled experiment without its study; with what kills the leaders of the first ``killed`` cohorts."""
    tables = tomllib.loads(BUNDLED.read_text(encoding="utf-8"))
    tables.pop("sweep")
    tables["seed"] += run
    rng = generator(tables["seed"], 0, run)
    cohorts = at_random(range(tables["nodes"]), COHORTS, generator(tables["seed"], 2**32, 0))
    tables["mods"] = [
        {
            "use": "failover:Doom",
            "nodes": list(members),
            "path": str(folder / f"cohort-{number}"),
            "round": round,
            "delay_s": float(rng.random()),
        }
        for number, members in enumerate(cohorts[:killed])
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "experiment.toml"
    path.write_text(tomli_w.dumps(tables), encoding="utf-8")
    return path


def finished(path: Path, more: Sequence[str]) -> dict[str, Any]:
    """Run an experiment as real processes; gives its summary, with the result's accuracy."""
    out = path.parent / "run"
    command = [str(STARLING), "run", str(path), "--clock", "real", "--out", str(out), "--quiet", *more]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(HERE)})
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    rows = pq.read_table(out / "metrics.parquet", filters=[("metric", "=", "accuracy")]).to_pylist()
    last = max(row["round"] for row in rows)
    summary["accuracy"] = float(np.mean([row["value"] for row in rows if row["round"] == last]))
    return summary


def failovers(folder: Path) -> list[Failover]:
    """What the nodes of each cohort whose leader was killed have noted."""
    found = []
    for path in sorted(folder.glob("cohort-?")):
        notes = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        events = sorted((float(when), int(node), what, int(round)) for when, node, what, round in notes)
        killed_s, victim = next((when, node) for when, node, what, _ in events if what == "dies")
        asked = [round for when, _, what, round in events if what == "asks" and when <= killed_s]
        after = [(when, round) for when, node, what, round in events if what == "asks" and node != victim]
        later = [(when, round) for when, round in after if when > killed_s]
        rows = pq.read_table(folder / "run" / "metrics.parquet", filters=[("metric", "=", "validation_loss")])
        committed = max((row["round"] for row in rows.to_pylist() if row["node"] == victim), default=-1)
        (asks_s, first), (commits_s, _) = later[:2]
        found.append(
            Failover(
                asks_s - killed_s, commits_s - killed_s, max(0, committed + 1 - first), max(0, max(asked) + 1 - first)
            )
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="with other seeds; each once with and once without a kill")
    parser.add_argument("--round", type=int, default=5, help="the round in which leaders are killed")
    parser.add_argument("--out", type=Path, help="keep all runs there")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any key of the experiment")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")
    args = parser.parse_args()
    more = [word for pair in args.set for word in ("--set", pair)]
    pairs = dict(pair.split("=", 1) for pair in args.set)
    timeout_s = float(pairs.get("protocol.election_timeout_s", Settings().election_timeout_s))
    every: list[Failover] = []
    differences = []
    with TemporaryDirectory() as temporary:
        out = (args.out or Path(temporary)).resolve()
        for run in range(args.runs):
            arms = [(out / f"{run}-{killed}", killed) for killed in (2, 0)]
            disturbed, undisturbed = [
                finished(experiment(folder, killed, args.round, run), more) for folder, killed in arms
            ]
            block, found = disturbed["cpfl"], failovers(out / f"{run}-2")
            every += found
            differences.append(disturbed["accuracy"] - undisturbed["accuracy"])
            asks = ", ".join(f"{each.asks_s / timeout_s:.2f} T" for each in found)
            commits = ", ".join(f"{each.commits_s / timeout_s:.2f} T" for each in found)
            print(
                f"run {run}: {block['failovers']} failovers; a new leader asks after {asks}, has committed after "
                f"{commits}; {sum(each.lost for each in found)} committed rounds lost, "
                f"{sum(each.repeated for each in found)} asked for again; "
                f"accuracy {disturbed['accuracy']:.4f}, undisturbed {undisturbed['accuracy']:.4f}",
                flush=True,
            )
    latest = max(each.asks_s for each in every) / timeout_s
    lost, mean = sum(each.lost for each in every), float(np.mean(differences))
    print(
        f"{len(every)} leaders killed, T = {timeout_s:g} s: "
        f"new ones after {latest:.2f} T at most (target: {SOON:g} T); "
        f"{lost} committed rounds lost (target: 0); accuracy {100 * mean:+.2f} points (target: 1)"
    )
    return 1 if args.check and (latest > SOON or lost or abs(mean) > 0.01) else 0


if __name__ == "__main__":
    sys.exit(main())
