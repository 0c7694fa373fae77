"""Real runs that do not go as planned: nodes die, protocols fail, people lose patience. Nothing stays behind."""

from __future__ import annotations

import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from gate import Gate
from launch import experiment

HERE = Path(__file__).parent
DPSGD = {"use": "dpsgd", "rounds": 8}


def lay_out(folder, **tables):
    """The experiment, and the code that it names, in a folder."""
    file = experiment(folder, **tables)
    for name in ("gate.py", "faulty.py"):
        shutil.copy(HERE / name, folder)
    return file


@contextmanager
def held(start, tmp_path, node=2, training=4, **tables):
    """A run in whose middle one node waits at the gate; gives the command, the gate and the node's process id."""
    with Gate(tmp_path, node, training) as gate:
        file = lay_out(tmp_path / "it", mods=gate.mods, **tables)
        command = start(tmp_path / "it", "run", file, "--clock", "real", "--out", "run")
        yield command, gate, gate.reached()


def rounds_of(command) -> dict[int, int]:
    """Rounds whose accuracy was kept, by node."""
    table = pq.read_table(command.folder / "run" / "metrics.parquet", filters=[("metric", "=", "accuracy")])
    nodes = table["node"].to_pylist()
    return {node: nodes.count(node) for node in sorted(set(nodes))}


def assert_gone(command):
    assert command.leftovers() == []
    assert not (command.folder / "run" / ".writable").exists()


# A node dies


def test_a_protocol_that_needs_everybody_fails_when_a_node_is_killed(start, tmp_path):
    with held(start, tmp_path, protocol=DPSGD) as (command, _, pid):
        psutil.Process(pid).kill()
        assert command.wait() == 3
    summary = command.summary
    assert summary["status"] == "failed"
    assert "node 2, which is gone" in summary["error"]
    assert "give the protocol a deadline" in summary["error"]
    assert summary["lost"] == {"2": "was killed by SIGKILL"}
    assert "node 2 was killed by SIGKILL" in command.err
    assert "Traceback" not in command.err
    assert {0, 1, 3, 4, 5} <= set(rounds_of(command))
    assert max(rounds_of(command).values()) < DPSGD["rounds"]
    assert (command.folder / "run" / "report.html").exists()
    assert_gone(command)


@pytest.mark.parametrize(
    "protocol",
    [
        {"use": "adpsgd", "rounds": 6, "deadline_s": 0.5},
        {"use": "epidemic", "variant": "oracle", "degree": 3, "rounds": 6, "deadline_s": 0.5},
        {"use": "dpsgd", "rounds": 6, "deadline_s": 0.5},
    ],
    ids=lambda protocol: protocol["use"],
)
def test_a_protocol_with_a_deadline_goes_on_without_a_killed_node(start, tmp_path, protocol):
    with held(start, tmp_path, protocol=protocol, record={"models": True}) as (command, _, pid):
        psutil.Process(pid).kill()
        assert command.wait() == 0
    summary = command.summary
    assert (summary["status"], summary["error"]) == ("finished", None)
    assert summary["lost"] == {"2": "was killed by SIGKILL"}
    assert sorted(command.models()) == [f"{node}.safetensors" for node in (0, 1, 3, 4, 5)]
    assert rounds_of(command).pop(2, 0) <= 3
    assert {**rounds_of(command), 2: 0} == {0: 6, 1: 6, 2: 0, 3: 6, 4: 6, 5: 6}
    assert_gone(command)


def test_a_node_that_ends_by_itself_is_lost_with_its_status(start, tmp_path):
    file = lay_out(tmp_path / "it", protocol={"use": "faulty:Dies"})
    command = start(tmp_path / "it", "run", file, "--clock", "real", "--out", "run", "--json")
    assert command.wait() == 3
    assert command.summary["lost"] == {"3": "exited with status 7"}
    assert "node 3, which is gone" in command.summary["error"]
    assert_gone(command)


# Somebody ends the run


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_an_interrupted_run_keeps_what_was_measured(start, tmp_path, how):
    with held(start, tmp_path, protocol=DPSGD) as (command, gate, _):
        if how == "SIGINT":
            command.to_all(signal.SIGINT)  # as a terminal's Ctrl-C: to the nodes as well
        else:
            psutil.Process(command.pid).terminate()
        gate.open()
        assert command.wait() == 130
    assert command.summary["status"] == "interrupted"
    assert command.summary["lost"] == {}
    assert set(rounds_of(command)) == set(range(6))
    assert min(rounds_of(command).values()) >= 1
    assert "Traceback" not in command.err
    assert_gone(command)


def test_an_interrupt_ends_a_run_whose_nodes_do_not_answer(start, tmp_path):
    """One node's event loop is blocked for good: it is killed."""
    with held(start, tmp_path, protocol=DPSGD) as (command, _, _):
        command.to_all(signal.SIGINT)
        assert command.wait() == 130
        assert command.summary["status"] == "interrupted"
        assert_gone(command)


@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM"])
def test_an_interrupted_simulation_keeps_what_was_measured(start, tmp_path, how):
    with Gate(tmp_path, 2, 400) as gate:
        file = lay_out(tmp_path / "it", protocol={"use": "dpsgd", "rounds": 100_000}, mods=gate.mods)
        command = start(tmp_path / "it", "run", file, "--clock", "virtual", "--out", "run", "--quiet")
        assert gate.reached() == command.pid
        psutil.Process(command.pid).send_signal(getattr(signal, how))
        gate.open()
        assert command.wait() == 130
    assert (command.summary["status"], command.err) == ("interrupted", "starling: interrupted: interrupted\n")
    assert min(rounds_of(command).values()) >= 300
    assert_gone(command)


def test_no_node_outlives_a_killed_supervisor(start, tmp_path):
    with held(start, tmp_path, protocol=DPSGD) as (command, gate, _):
        nodes = [process for process in command.processes() if process.pid != command.pid]
        assert len(nodes) == 6
        psutil.Process(command.pid).kill()
        assert command.wait() == -signal.SIGKILL
        gate.open()
        assert_gone(command)


# A protocol fails

FAILURES = {
    "InRun": "TypeError: no such thing",
    "InLibrary": "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/at/all'",
    "InHandler": "IndexError: list index out of range",
    "InSpawned": "ZeroDivisionError",
    "InMod": "KeyError: 'mod'",
    "InConstructor": "RuntimeError: cannot be made",
    "AfterTheEnd": "LookupError: too late",
}


@pytest.mark.parametrize("clock", ["real", "virtual"])
@pytest.mark.parametrize("where", FAILURES)
def test_a_failure_is_told_with_node_error_file_and_line(start, tmp_path, where, clock):
    lines = (HERE / "faulty.py").read_text().splitlines()
    number = 1 + next(i for i, line in enumerate(lines) if line.endswith(f"# here: {where}"))
    use = "Sound" if where == "InMod" else where
    mods = [{"use": "faulty:InMod"}] if where == "InMod" else []
    file = lay_out(tmp_path / "it", protocol={"use": f"faulty:{use}"}, mods=mods)
    command = start(tmp_path / "it", "run", file, "--clock", clock, "--out", "run", "--quiet")
    assert command.wait() == 3
    node = command.summary["error"].partition(":")[0]
    assert node == "node 3" or where == "InConstructor"
    assert command.summary["error"] == f"{node}: {FAILURES[where]} (faulty.py, line {number})"
    assert command.summary["status"] == "failed"
    assert command.err == f"starling: failed: {command.summary['error']}\n"
    assert command.summary["lost"] == {}
    rounds = set(rounds_of(command).values()) if where != "InConstructor" else set()
    assert (max(rounds) >= 2) if where not in ("InConstructor", "AfterTheEnd") else True
    assert_gone(command)
