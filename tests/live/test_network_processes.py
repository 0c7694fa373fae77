"""A network as an operator types it: found, invite, join; a member is killed, and started again in its folder."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tomli_w

from launch import Command
from networks import until
from node.config import ExperimentConfig
from node.experiment.loading import load
from node.experiment.setup import prepare
from node.experiment.virtual import run_virtual
from node.live.checkpoints import Checkpoints

NODES, ROUNDS = 4, 40
VICTIM = 2
"""Counted in the order of joining."""


class Member:
    """A node's command, and the folder that it keeps its state in."""

    def __init__(self, command: Command, state: Path) -> None:
        self.command = command
        self.state = state

    def events(self, name: str) -> list[dict[str, object]]:
        """What it has logged so far under a name."""
        path = self.command.folder / "stderr"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        events = [json.loads(line) for line in lines if line.endswith("\n")]
        return [event for event in events if event["event"] == name]

    @property
    def admin(self) -> str:
        return str(self.events("started")[0]["admin"])

    @property
    def round(self) -> int:
        """The first that its checkpoint leaves to do."""
        saved = [Checkpoints(folder).load() for folder in (self.state / "checkpoints").glob("*")]
        return max((int(found[0]["round"]) for found in saved if found is not None), default=0)

    def accuracies(self) -> dict[int, float]:
        """By round, as its last life has measured them."""
        rows = pq.read_table(self.state / "metrics.parquet", filters=[("metric", "=", "accuracy")]).to_pylist()
        return {row["round"]: row["value"] for row in rows}


class Operator:
    """Types commands, each in a folder of its own."""

    def __init__(self, start, folder: Path) -> None:
        self._start = start
        self._typed = 0
        self.folder = folder

    def types(self, *words: str) -> Command:
        self._typed += 1
        return self._start(self.folder / f"command-{self._typed}", *words)

    def told(self, *words: str) -> str:
        """What a command prints, which ends well."""
        command = self.types(*words)
        assert command.wait() == 0, command.err
        return command.out

    def order(self, what: str, member: Member) -> None:
        self.told(what, "--node", member.admin, "--token-file", str(member.state / "admin.token"))

    async def founds(self, experiment: Path) -> Member:
        """The first node of a new network, started."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            listen = f"127.0.0.1:{probe.getsockname()[1]}"
        network = self.folder / "network"
        self.told("network", "create", "--experiment", str(experiment), "--folder", str(network), "--listen", listen)
        command = self.types("node", "--config", str(network / "node.toml"), "--admin", "127.0.0.1:0")
        founder = Member(command, network / "state")
        await until(lambda: founder.events("started"))
        return founder

    def joins(self, name: str, *words: str) -> Member:
        """A node in the folder of that name, new or back."""
        state = self.folder / name / "state"
        return Member(self.types("node", "--state", str(state), *words), state)


@pytest.fixture
def operator(start, tmp_path) -> Operator:
    return Operator(start, tmp_path)


def experiment() -> ExperimentConfig:
    """Rounds long enough for a node to be killed in the midst of them."""
    return load("digits-gossip").model_validate(
        {
            "name": "digits",
            "nodes": NODES,
            "clock": "real",
            "protocol": {"use": "dpsgd", "rounds": ROUNDS, "deadline_s": 30.0},
            "topology": {"kind": "full"},
            "data": {"name": "digits", "partition": "dirichlet", "alpha": 0.5},
            "model": {"name": "mlp", "hidden": [32]},
            "training": {"lr": 0.15, "local_steps": 40},
        }
    )


def undisturbed(config: ExperimentConfig) -> float:
    """The mean accuracy of all final models where nobody is killed: the simulation has the same bits."""
    rows = run_virtual(prepare(config), lambda *_: None).recorder.rows()
    return float(np.mean([row.value for row in rows if row.metric == "accuracy" and row.round == ROUNDS - 1]))


async def test_a_killed_member_goes_on_with_its_round_and_nothing_is_lost(operator, tmp_path):
    config = experiment()
    path = tmp_path / "experiment.toml"
    path.write_text(tomli_w.dumps(config.model_dump(exclude_none=True)))
    founder = await operator.founds(path)
    invite = operator.told("network", "invite", "--folder", str(tmp_path / "network"), "--uses", str(NODES - 1))
    members = [founder, *[operator.joins(f"member-{number}", "--join", invite.strip()) for number in range(1, NODES)]]
    first = members[VICTIM]
    await until(lambda: first.round >= 3)

    os.kill(first.command.pid, signal.SIGKILL)
    assert first.command.wait() == -signal.SIGKILL
    saved = first.round
    await until(lambda: founder.round > saved + 1)  # the others have noticed, and go on without it
    operator.order("pause", founder)
    second = members[VICTIM] = operator.joins(f"member-{VICTIM}")
    await until(lambda: second.events("restored"))
    operator.order("resume", founder)
    for member in members:
        await until(lambda member=member: member.events("finished"))

    assert second.events("restored")[0]["round"] == saved
    assert second.events("caught up")[0]["round"] > saved
    assert [second.events("started")[0]["node"]] == [first.events("started")[0]["node"]]
    assert "Traceback" not in second.command.err
    for member in members:
        os.kill(member.command.pid, signal.SIGTERM)
        assert member.command.wait() == 0
    measured = [member.accuracies() for member in members]
    assert min(measured[VICTIM]) >= saved
    assert max(measured[VICTIM]) == ROUNDS - 1
    accuracy = np.mean([found[ROUNDS - 1] for found in measured])
    assert abs(accuracy - await asyncio.to_thread(undisturbed, config)) <= 0.01
    for member in members:
        assert member.command.leftovers() == []
