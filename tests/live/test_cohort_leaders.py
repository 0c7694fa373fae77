"""Leaders of cohorts that are killed in a real run: others go on where they were."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import psutil
import pyarrow.parquet as pq

from gate import Gate
from launch import experiment

ROUNDS, HELD = 12, 4
COHORTS = tuple(range(first, first + 6) for first in range(0, 24, 6))
CPFL = {
    "use": "cpfl",
    "cohorts": 4,
    "forming": "file",
    "path": "cohorts.txt",
    "election_timeout_s": 1.0,
    "stopping": {"rule": "budget", "most_rounds": ROUNDS},
    "checkpoint": "last",
    "unify": "average",
}
DATA = {"name": "digits", "partition": "iid", "local_test_fraction": 0.2}


def begin(start, folder, clock, mods=()):
    file = experiment(
        folder,
        nodes=24,
        protocol=CPFL,
        data=DATA,
        training={"lr": 0.3, "local_steps": 6},
        record={"models": True},
        mods=list(mods),
    )
    shutil.copy(Path(__file__).with_name("leading.py"), folder)
    lines = [f"{node} {cohort}\n" for cohort, members in enumerate(COHORTS) for node in members]
    (folder / "cohorts.txt").write_text("".join(lines))
    return start(folder, "run", file, "--clock", clock, "--out", "run", "--quiet")


def committed(command, members):
    """The rounds that each leader of a cohort has committed, by node."""
    table = pq.read_table(command.folder / "run" / "metrics.parquet", filters=[("metric", "=", "validation_loss")])
    rows = sorted(zip(table["node"].to_pylist(), table["round"].to_pylist(), strict=True))
    leaders = sorted({node for node, _ in rows if node in members})
    return {leader: [round for node, round in rows if node == leader] for leader in leaders}


def accuracy(command):
    """Of the result, as everybody who is there at the end knows it."""
    table = pq.read_table(command.folder / "run" / "metrics.parquet", filters=[("metric", "=", "accuracy")])
    rows = zip(table["value"].to_pylist(), table["round"].to_pylist(), strict=True)
    (final,) = {value for value, round in rows if round == ROUNDS}
    return final


def test_leaders_may_be_killed(start, tmp_path):
    """Two of four are killed while they ask for a round: new ones begin with it, and the result is nearly the same."""
    with ExitStack() as gates:
        held, mods = [], []
        for number, members in enumerate(COHORTS[:2]):
            (tmp_path / str(number)).mkdir()
            held.append(gates.enter_context(Gate(tmp_path / str(number), 0, 0)))
            path = held[-1].path
            mods.append({"use": "leading:StopLeader", "nodes": list(members), "path": path, "round": HELD})
        command = begin(start, tmp_path / "it", "real", mods)
        for gate in held:
            psutil.Process(gate.reached()).kill()
        assert command.wait() == 0, command.err
    summary = command.summary
    assert summary["status"] == "finished"
    assert list(summary["lost"].values()) == ["was killed by SIGKILL"] * 2
    killed = {int(node) for node in summary["lost"]}
    assert (summary["cpfl"]["elections"], summary["cpfl"]["failovers"]) == (6, 2)
    assert summary["cpfl"]["repeated_rounds"] == 0, "nobody had been asked yet"
    for members in COHORTS[:2]:
        rounds = committed(command, members)
        lost = killed & set(members)
        assert len(lost) == 1
        after = sorted(round for leader in rounds.keys() - lost for round in rounds[leader])
        assert after == list(range(HELD, ROUNDS)), "no committed round is lost, and none is trained again"
    assert len(set(command.models().values())) == 1
    undisturbed = begin(start, tmp_path / "virtual", "virtual")
    assert undisturbed.wait() == 0, undisturbed.err
    assert abs(accuracy(command) - accuracy(undisturbed)) < 0.01
    assert accuracy(undisturbed) > 0.7
