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
    "election_timeout_s": 3.0,
    "stopping": {"rule": "budget", "most_rounds": ROUNDS},
    "checkpoint": "last",
    "unify": "average",
}
DATA = {"name": "digits", "partition": "iid", "local_test_fraction": 0.2}


def begin(start, folder, clock, mods=(), cohorts=COHORTS, **options):
    file = experiment(
        folder,
        nodes=sum(map(len, cohorts)),
        protocol={**CPFL, "cohorts": len(cohorts), **options},
        data=DATA,
        training={"lr": 0.3, "local_steps": 6},
        record={"models": True},
        mods=list(mods),
    )
    for name in ("leading.py", "gate.py"):
        shutil.copy(Path(__file__).with_name(name), folder)
    lines = [f"{node} {cohort}\n" for cohort, members in enumerate(cohorts) for node in members]
    (folder / "cohorts.txt").write_text("".join(lines))
    return start(folder, "run", file, "--clock", clock, "--out", "run", "--quiet")


def doomed(folder, members, round, who="StopLeader"):
    """The gate that stops the first leader of a cohort as it asks for a round, and the mod of its members."""
    folder.mkdir()
    gate = Gate(folder, 0, 0)
    return gate, {"use": f"leading:{who}", "nodes": list(members), "path": gate.path, "round": round}


def measured(command, metric):
    """Node, round and value, as they came."""
    rows = pq.read_table(command.folder / "run" / "metrics.parquet", filters=[("metric", "=", metric)]).to_pylist()
    return [(row["node"], row["round"], row["value"]) for row in sorted(rows, key=lambda row: row["time_s"])]


def elections(command):
    """After which round each leader has begun, in the order of time."""
    return [value for *_, value in measured(command, "cpfl/election.after_round")]


def committed(command, members):
    """The rounds that each leader of a cohort has committed, by node."""
    rows = sorted((node, round) for node, round, _ in measured(command, "validation_loss"))
    leaders = sorted({node for node, _ in rows if node in members})
    return {leader: [round for node, round in rows if node == leader] for leader in leaders}


def accuracy(command):
    """Of the result, as everybody who is there at the end knows it."""
    (final,) = {value for _, round, value in measured(command, "accuracy") if round == ROUNDS}
    return final


def test_leaders_may_be_killed(start, tmp_path):
    """Two of four are killed while they ask for a round: new ones begin with it, and the result is nearly the same."""
    with ExitStack() as gates:
        held, mods = zip(
            *[doomed(tmp_path / str(n), members, HELD) for n, members in enumerate(COHORTS[:2])], strict=True
        )
        for gate in held:
            gates.enter_context(gate)
        command = begin(start, tmp_path / "it", "real", mods)
        for gate in held:
            psutil.Process(gate.reached()).kill()
        assert command.wait() == 0, command.err
    summary = command.summary
    assert summary["status"] == "finished"
    assert list(summary["lost"].values()) == ["was killed by SIGKILL"] * 2
    assert sorted(elections(command)) == [-1, -1, -1, -1, HELD - 1, HELD - 1]
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


def test_sums_under_masks_survive_the_leader_and_then_a_member(start, tmp_path):
    """Secret keys: the new leader's members open sums for it that no longer count on either of the dead."""
    cohorts = (tuple(range(7)),)
    leader, first = doomed(tmp_path / "leader", cohorts[0], HELD)
    member, second = doomed(tmp_path / "member", cohorts[0], HELD + 3, "StopMember")
    with leader, member:
        command = begin(start, tmp_path / "it", "real", [first, second], cohorts, secure=True)
        psutil.Process(leader.reached()).kill()
        psutil.Process(member.reached()).kill()
        assert command.wait() == 0, command.err
    summary = command.summary
    assert summary["status"] == "finished"
    assert list(summary["lost"].values()) == ["was killed by SIGKILL"] * 2
    assert summary["privacy"]["insecure_keys"] is False
    assert summary["cpfl"]["failovers"] == 1
    assert elections(command)[-1] == HELD - 1, "no committed round is lost"
    rows = measured(command, "members")
    sums = {round: value for _, round, value in rows}
    assert sums.keys() >= {*range(HELD - 1), *range(HELD, ROUNDS)}, "the killed leader may not have told of its last"
    assert [sums[0], sums[HELD], sums[ROUNDS - 1]] == [7, 6, 5]
    assert len(set(command.models().values())) == 1
    assert accuracy(command) > 0.5
