"""The same faults on real processes: killed and started again, stopped, cut apart, and with a network that loses."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pyarrow.parquet as pq
import pytest

from launch import experiment, launcher

ROUNDS = 14
RUN = {
    "nodes": 5,
    "protocol": {"use": "dpsgd", "rounds": ROUNDS, "deadline_s": 0.3},
    "topology": {"kind": "full"},
    "data": {"name": "digits", "partition": "iid"},
    "training": {"lr": 0.3, "local_steps": 30},
}
LATE = {"kind": "delay", "delay_s": 0.05}
"""No machine is fast enough to end a run with it in less than 0.7 s: what begins before that finds it going on."""
COST = 0.01
"""The accuracy that faults may cost."""


@pytest.fixture(scope="module")
def the_launcher():
    yield launcher()
    launcher().close()
    launcher.cache_clear()


@pytest.fixture
def run(the_launcher, tmp_path):
    """``run(faults, clock, **tables)`` gives the ended command; whatever it started has ended too."""
    commands = []

    def begin(faults, clock="real", **tables):
        folder = tmp_path / str(len(commands))
        file = experiment(folder, **RUN | tables, faults=faults)
        commands.append(the_launcher.start(folder, "run", file, "--clock", clock, "--out", "run", "--quiet"))
        commands[-1].code = commands[-1].wait()
        return commands[-1]

    yield begin
    for command in commands:
        command.end()


@pytest.fixture(scope="module")
def calm_accuracy(the_launcher, tmp_path_factory):
    """What the run without faults reaches, the same in both worlds."""
    folder = tmp_path_factory.mktemp("calm") / "run"
    file = experiment(folder, **RUN)
    command = the_launcher.start(folder, "run", file, "--clock", "virtual", "--out", "run", "--quiet")
    try:
        assert command.wait() == 0
        return command.summary["metrics"]["accuracy"]["mean"]
    finally:
        command.end()


@pytest.fixture
def ended_well(calm_accuracy):
    """Whether a command has, with nothing left over and a result within the band; gives the command."""

    def see(command):
        assert (command.code, command.err) == (0, "")
        assert command.leftovers() == []
        assert not [path for path in (command.folder / "run").iterdir() if path.name.startswith("state-")]
        final = [done[-1] for node, done in rounds(command).items() if str(node) not in command.summary["lost"]]
        assert sum(recorded.accuracy for recorded in final) / len(final) > calm_accuracy - COST
        return command

    return see


class Recorded(NamedTuple):
    round: int
    time_s: float
    accuracy: float


def rounds(command):
    """The rounds that each node has recorded, in its order."""
    done = {}
    for row in pq.read_table(command.folder / "run" / "metrics.parquet").to_pylist():
        if row["metric"] == "accuracy":
            done.setdefault(row["node"], []).append(Recorded(row["round"], row["time_s"], row["value"]))
    return done


def values(command, metric):
    """What each node has recorded of a metric, in its order."""
    rows = pq.read_table(command.folder / "run" / "metrics.parquet", filters=[("metric", "=", metric)]).to_pylist()
    return {node: [row["value"] for row in rows if row["node"] == node] for node in range(5)}


def longest_gap_s(done):
    """The longest time between two rounds of a node."""
    return max(after.time_s - before.time_s for before, after in pairwise(done))


def test_a_killed_node_comes_back_as_itself_and_goes_on_where_the_others_are(run, ended_well):
    command = ended_well(run([LATE, {"kind": "restart", "nodes": [2], "at_s": 0.3, "for_s": 1.2}]))
    done = rounds(command)
    assert command.summary["lost"] == {}
    assert sorted(done) == list(range(5))
    for node, recorded in done.items():
        numbers = [each.round for each in recorded]
        assert numbers == sorted(numbers), "nobody goes back"
        if node != 2:
            assert numbers == list(range(ROUNDS)), "nobody who stayed skips a round, or does it again"
    numbers = [each.round for each in done[2]]
    assert len(numbers) - len(set(numbers)) <= 1, "only what was recorded and not yet saved is done again"
    assert (numbers[0], numbers[-1]) == (0, ROUNDS - 1)
    assert sum(after > before + 1 for before, after in pairwise(numbers)) <= 1, "it skips once: to where the others are"
    assert not [each for each in done[2] if 0.9 < each.time_s < 1.4], "it was away"


def test_a_killed_node_forgets_nothing_of_what_it_has_spent(run):
    """It spends again only what it was about to train when it was killed, and nothing on rounds that it has missed."""
    private = {"privacy": {"mechanism": "record", "noise_multiplier": 2.0}, "training": {"lr": 0.1, "local_steps": 4}}
    killed = run([LATE, {"kind": "restart", "nodes": [2], "at_s": 0.3, "for_s": 0.3}], **private)
    calm = run([], clock="virtual", **private)
    assert (killed.code, calm.code) == (0, 0), killed.err + calm.err
    spent, due = values(killed, "epsilon"), values(calm, "epsilon")
    assert {node: spent[node] for node in (0, 1, 3, 4)} == {node: due[node] for node in (0, 1, 3, 4)}
    assert spent[2] == sorted(spent[2])
    fewest = len(set(spent[2]))  # each new value is a training, or the sum of two where one was lost
    assert spent[2][-1] >= due[2][min(fewest, ROUNDS) - 1]
    beyond = due[2][-1] - due[2][-2]
    due_after = [*due[2], due[2][-1] + beyond, due[2][-1] + 2 * beyond]
    assert spent[2][-1] <= due_after[fewest + 1], "two trainings at most"


def test_a_node_that_is_killed_for_good_is_named(run, ended_well):
    command = ended_well(run([LATE, {"kind": "crash", "nodes": [4], "at_s": 0.3}]))
    assert command.summary["lost"] == {"4": "was killed by a fault at 0.3 s"}
    done = rounds(command)
    assert {node: len(recorded) for node, recorded in done.items() if node != 4} == dict.fromkeys(range(4), ROUNDS)
    assert len(done.get(4, ())) < ROUNDS


def test_a_stopped_node_is_not_taken_for_dead_and_goes_on(run, ended_well):
    command = ended_well(run([LATE, {"kind": "pause", "nodes": [1], "at_s": 0.2, "for_s": 2.0}]))
    assert command.summary["lost"] == {}
    numbers = {node: [each.round for each in recorded] for node, recorded in rounds(command).items()}
    stopped = numbers.pop(1)
    assert all(others == list(range(ROUNDS)) for others in numbers.values())
    assert (stopped[0], stopped[-1]) == (0, ROUNDS - 1)
    assert stopped == sorted(set(stopped)), "it does no round twice"
    assert sum(after > before + 1 for before, after in pairwise(stopped)) <= 1, "it skips once: to where the others are"
    assert not [each for each in rounds(command)[1] if 0.8 < each.time_s < 2.1], "it stood still"


def test_a_partition_that_heals(run, ended_well):
    command = ended_well(run([LATE, {"kind": "partition", "groups": [[0, 3]], "at_s": 0.2, "for_s": 1.5}]))
    assert [len(recorded) for _, recorded in sorted(rounds(command).items())] == [ROUNDS] * 5
    assert min(longest_gap_s(recorded) for recorded in rounds(command).values()) >= 0.29, "all waited for somebody"


def test_a_partition_in_one_direction(run, ended_well):
    """Those who hear nothing wait; those whom nobody hears do not."""
    cut = {"kind": "partition", "groups": [[0]], "one_way": True, "at_s": 0.1, "for_s": 60.0}
    command = ended_well(run([LATE, cut]))
    assert [len(recorded) for _, recorded in sorted(rounds(command).items())] == [ROUNDS] * 5
    assert min(longest_gap_s(rounds(command)[node]) for node in (1, 2, 3, 4)) >= 0.29


def test_a_full_disk_costs_what_was_not_saved_and_no_more(run, ended_well):
    full = {"kind": "full-disk", "nodes": [2], "at_s": 0.3}
    command = ended_well(run([LATE, full, {"kind": "restart", "nodes": [2], "at_s": 0.6, "for_s": 0.2}]))
    assert command.summary["lost"] == {}
    recorded = rounds(command)[2]
    saved = max((each.round for each in recorded if each.time_s < 0.3), default=0)
    again = next(each.round for each in recorded if each.time_s > 0.8)
    assert again >= saved, "a checkpoint was lost"
    log = (command.folder / "run" / "logs" / "node-2.log").read_text()
    assert "checkpoint not saved" in log
    assert "No space left on device" in log


def test_one_message_in_ten_is_lost_and_the_others_are_late(run, ended_well):
    lossy = [{"kind": "loss", "rate": 0.1}, {"kind": "delay", "delay_s": 0.01, "jitter_s": 0.01}]
    command = ended_well(run(lossy))
    times = [after.time_s - before.time_s for done in rounds(command).values() for before, after in pairwise(done)]
    late = sum(time_s > 0.25 for time_s in times)
    assert late > len(times) // 10, "a round in which something is lost takes until the deadline"


def test_garbage_is_refused_by_all_and_they_learn(run, ended_well):
    command = ended_well(run([{"kind": "garbage", "nodes": [3], "rate": 0.9}]))
    logs = {log.name: log.read_text() for log in (command.folder / "run" / "logs").iterdir()}
    assert sorted(logs) == [f"node-{node}.log" for node in (0, 1, 2, 4)]
    assert all("refused" in log and '"peer": 3' in log for log in logs.values()), logs
    assert [len(recorded) for _, recorded in sorted(rounds(command).items())] == [ROUNDS] * 5


def test_a_slow_node_is_waited_for_no_longer_than_the_deadline(run, ended_well):
    command = ended_well(run([{"kind": "slow", "nodes": [0], "rate": 0.3, "for_s": 1.0}]))
    assert [len(recorded) for _, recorded in sorted(rounds(command).items())] == [ROUNDS] * 5


@pytest.mark.parametrize("clock", ["real", "virtual"])
def test_both_worlds_take_the_same_table(run, ended_well, clock):
    faults = [
        LATE,
        {"kind": "restart", "nodes": [2], "at_s": 0.2, "for_s": 0.3},
        {"kind": "pause", "nodes": [1], "at_s": 0.1, "for_s": 0.3},
        {"kind": "loss", "nodes": [0], "to": [1, 2], "rate": 0.2, "for_s": 1.0},
        {"kind": "partition", "groups": [[3]], "one_way": True, "at_s": 0.1, "for_s": 0.3},
        {"kind": "garbage", "nodes": [0], "rate": 0.2, "for_s": 0.5},
        {"kind": "drift", "nodes": [4], "drift": 0.5, "at_s": 0.1},
        {"kind": "full-disk", "nodes": [2, 3], "at_s": 0.1, "for_s": 0.2},
    ]
    assert ended_well(run(faults, clock)).summary["rounds"] == ROUNDS


@pytest.mark.parametrize(
    ("clock", "faults", "line"),
    [
        ("real", [{"kind": "crash", "nodes": [9]}], "faults[0].nodes: there is no node 9; allowed: 0 to 4"),
        ("virtual", [{"kind": "crash", "nodes": [9]}], "faults[0].nodes: there is no node 9; allowed: 0 to 4"),
        ("real", [{"kind": "loss"}], "faults.0: kind = 'loss' needs 'rate'"),
    ],
)
def test_what_a_world_cannot_do_is_refused_in_one_line(run, clock, faults, line):
    command = run(faults, clock)
    assert command.code == 2
    assert line in command.err
    assert command.err.count("\n") == 1
    assert not (command.folder / "run" / "summary.json").exists()
