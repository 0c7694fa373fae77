"""Identities beyond the nodes live and die with the device that they are on."""

from __future__ import annotations

import psutil
import pyarrow.parquet as pq

from gate import Gate
from test_real_runs import assert_gone, lay_out, rounds_of
from test_supervisor import finish, show, watched  # noqa: F401 - a fixture

SHATTER = {"use": "shatter", "rounds": 6, "chunks": 2, "degree": 3, "deadline_s": 8.0}


async def test_what_is_on_a_device_is_gone_with_it(watched):  # noqa: F811
    async def die(node, channel):
        await show(node, channel)
        raise ValueError("out of luck")

    async def wait(node, channel):
        await show(node, channel)
        await channel.hear()

    run = watched(die, finish, wait, finish)
    assert await run.run(device=lambda number: 0 if number == 2 else number) is None
    assert run.lost == {
        0: "exited with status 1: ValueError: out of luck",
        2: "was on the device of node 0, which is gone",
    }
    assert [child.finished is not None for child in run.children] == [False, True, False, True]


async def test_an_identity_that_is_gone_takes_nobody_along(watched):  # noqa: F811
    async def die(node, channel):
        await show(node, channel)
        raise ValueError("out of luck")

    run = watched(finish, finish, die)
    assert await run.run(device=lambda number: 0 if number == 2 else number) is None
    assert list(run.lost) == [2]
    assert [child.finished is not None for child in run.children] == [True, True, False]


def test_others_go_on_without_a_killed_node_and_its_virtual_nodes(start, tmp_path):
    """They have a deadline, and need not wait for it: who is gone is known to be."""
    with Gate(tmp_path, 2, 4) as gate:
        file = lay_out(tmp_path / "it", mods=gate.mods, protocol=SHATTER, nodes=5)
        command = start(tmp_path / "it", "run", file, "--clock", "real", "--out", "run")
        psutil.Process(gate.reached()).kill()
        assert command.wait() == 0, command.err
    summary = command.summary
    assert summary["status"] == "finished"
    assert summary["lost"] == {"2": "was killed by SIGKILL"}
    rounds = rounds_of(command)
    assert {node: rounds[node] for node in (0, 1, 3, 4)} == dict.fromkeys((0, 1, 3, 4), 6)
    assert rounds[2] <= 3
    owners = summary["identities"]["owners"]
    sent = pq.read_table(command.folder / "run" / "metrics.parquet", filters=[("metric", "=", "bytes_sent")])
    last = dict(zip(sent["node"].to_pylist(), sent["round"].to_pylist(), strict=True))
    assert {last.get(5 + place) for place, owner in enumerate(owners) if owner != 2} == {5}
    assert all(last.get(5 + place, -1) < 3 for place, owner in enumerate(owners) if owner == 2)
    assert_gone(command)


def test_without_a_deadline_all_are_needed(start, tmp_path):
    with Gate(tmp_path, 1, 2) as gate:
        protocol = {**SHATTER, "deadline_s": 0.0}
        file = lay_out(tmp_path / "it", mods=gate.mods, protocol=protocol, nodes=4)
        command = start(tmp_path / "it", "run", file, "--clock", "real", "--out", "run")
        psutil.Process(gate.reached()).kill()
        assert command.wait() == 3
    assert "which is gone; give the protocol a deadline" in command.summary["error"]
    assert_gone(command)
