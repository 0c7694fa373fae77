"""An aggregator among real nodes that is killed, and started again: it goes on, and loses nobody's upload."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import threading
from pathlib import Path

import psutil
import pytest

from gate import Gate
from launch import WAIT_S, experiment

HERE = Path(__file__).parent
CLIENTS = 3
SMALL = {
    "nodes": CLIENTS + 1,
    "data": {"name": "digits", "partition": "iid", "local_test_fraction": 0.1},
    "training": {"lr": 0.1, "local_steps": 5},
}


class Network:
    """Nodes of one experiment, each with a state that outlives it."""

    def __init__(self, start, folder, **tables):
        self._start, self._folder = start, folder
        self._file = folder / "it" / experiment(folder / "it", **{**SMALL, **tables})
        self._started = 0
        self._ports = free_ports(CLIENTS + 1)
        self.running = {}

    def start(self, node):
        """Begin a node, anew or again."""
        self._started += 1
        folder = self._folder / f"life-{self._started}"
        folder.mkdir()
        shutil.copy(HERE / "gate.py", folder)
        (folder / "node.toml").write_text(
            f'experiment = "{self._file}"\nnode = {node}\nlisten = "127.0.0.1:{self._ports[node]}"\nadmin = ""\n'
            f'state = "{self.state(node)}"\ncards = "{self._folder / "cards"}"\n'
        )
        self.running[node] = self._start(folder, "node", "--config", "node.toml")

    def kill(self, node):
        psutil.Process(self.running[node].pid).kill()
        assert self.running.pop(node).wait() == -signal.SIGKILL

    def state(self, node):
        return self._folder / f"state-{node}"

    def kept(self, node):
        """What a node has kept of its run, as it lies on disk."""
        return b"".join(path.read_bytes() for path in self.state(node).rglob("checkpoint.current"))

    def ended(self):
        """The summary of each node, once all clients have their model."""
        until(lambda: all((self.state(node) / "model.safetensors").exists() for node in range(1, CLIENTS + 1)))
        until(lambda: (self.state(0) / "summary.json").exists())
        found = {}
        for node, command in self.running.items():
            psutil.Process(command.pid).terminate()
            assert command.wait() == 0, command.err
            found[node] = json.loads((self.state(node) / "summary.json").read_text())
        return found


def free_ports(count):
    """As many ports that nobody listens at: a node that is started again has to be where its peers look for it."""
    with contextlib.ExitStack() as held:
        servers = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


def until(condition):
    waiting = threading.Event()
    for _ in range(int(WAIT_S / 0.01)):
        if condition():
            return
        waiting.wait(0.01)
    raise AssertionError("it has never come to that")


@pytest.mark.parametrize("algorithm", ["average", "ensemble-probabilities"])
def test_uploads_that_a_killed_aggregator_had_are_sent_again(start, tmp_path, algorithm):
    """One client is held at its training, so that the aggregator is killed while it waits."""
    protocol = {"use": "oneshot", "algorithm": algorithm}
    with Gate(tmp_path, 2, 1) as gate:
        network = Network(start, tmp_path, protocol=protocol, mods=gate.mods)
        for node in range(CLIENTS + 1):
            network.start(node)
        gate.reached()
        until(lambda: network.kept(0))
        until(lambda: (network.state(1) / "model.safetensors").exists())  # it has uploaded, and is done
        network.kill(0)
        network.start(0)
        gate.open()
        summaries = network.ended()
    assert summaries[0]["metrics"]["uploads"]["max"] == CLIENTS
    assert summaries[0]["oneshot"]["missing"] == {}


def test_the_stack_of_a_killed_aggregator_goes_on_from_its_checkpoint(start, tmp_path):
    protocol = {"use": "fens", "rounds": 300, "checkpoint_rounds": 5}
    network = Network(start, tmp_path, protocol=protocol)
    for node in range(CLIENTS + 1):
        network.start(node)
    until(lambda: b"stack" in network.kept(0))
    network.kill(0)
    network.start(0)
    summaries = network.ended()
    assert summaries[0]["metrics"]["uploads"]["max"] == CLIENTS
    assert summaries[0]["fens"]["sent_bytes"]["members"] == 0  # the models were known before
    assert summaries[0]["fens"]["sent_bytes"]["again"] > 0
    assert summaries[0]["metrics"]["accuracy"]["max"] > 0.2
