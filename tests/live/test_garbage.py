"""What strangers send to a node in the middle of a run changes nothing but its log."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
from pathlib import Path

import psutil
import pytest
import zmq

from gate import Gate
from launch import experiment
from node.identity import Identity

WAIT_S = 10.0
PROTOCOL = {"use": "dpsgd", "rounds": 5}
NULL_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
CURVE_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
HUGE = b"\x06" + (1 << 62).to_bytes(8, "big")  # a long command frame of ZMTP
BYTES = {
    "random": random.Random(5).randbytes(200_000),
    "http": b"GET / HTTP/1.1\r\nHost: node\r\n\r\n" * 20,
    "plain ZMTP": NULL_GREETING + b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER",
    "a huge length after the greeting": CURVE_GREETING + HUGE,
    "a false hello": CURVE_GREETING + b"\x04\xc8\x05HELLO" + bytes(194),
}


def run(start, folder, mods):
    file = experiment(folder, protocol=PROTOCOL, nodes=4, mods=mods, record={"models": True})
    shutil.copy(Path(__file__).with_name("gate.py"), folder)
    return start(folder, "run", file, "--clock", "real", "--out", "run", "--quiet")


def ports_of(process) -> list[int]:
    """Where a node listens."""
    return sorted(link.laddr.port for link in process.net_connections("tcp") if link.status == psutil.CONN_LISTEN)


def throw(data: bytes, port: int) -> None:
    """Send bytes and wait until the node hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as link, contextlib.suppress(ConnectionError):
        link.sendall(data)
        while link.recv(1 << 16):
            continue


def knock(port: int, server_key: bytes | None) -> int:
    """Speak ZeroMQ with a key of one's own; gives the event that ended the handshake."""
    context = zmq.Context()
    try:
        link = context.socket(zmq.DEALER)
        link.linger = 0
        if server_key is not None:
            stranger = Identity.generate()
            link.curve_serverkey = server_key
            link.curve_publickey, link.curve_secretkey = stranger.curve_public, stranger.curve_secret
        monitor = link.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED
        )
        link.connect(f"tcp://127.0.0.1:{port}")
        link.send(b"let me in")
        assert monitor.poll(int(WAIT_S * 1000)), "the node says nothing"
        event = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
        link.disable_monitor()
        return event
    finally:
        context.destroy(0)


def refusals(folder: Path) -> list[dict]:
    """Handshakes that some node's log calls refused."""
    lines = [json.loads(line) for log in folder.glob("run/logs/node-*.log") for line in log.read_text().splitlines()]
    return [line for line in lines if line["event"] == "handshake refused"]


@pytest.fixture
def undisturbed(start, tmp_path):
    """The final models of a run that nobody disturbs."""
    with Gate(tmp_path, 1, 3) as gate:
        command = run(start, tmp_path / "undisturbed", gate.mods)
        gate.reached()
        gate.open()
        assert command.wait() == 0
        return command.models()


def test_strangers_in_the_middle_of_a_run_change_no_bit_of_it(start, tmp_path, undisturbed):
    (tmp_path / "disturbed").mkdir()
    with Gate(tmp_path / "disturbed", 1, 3) as gate:
        command = run(start, tmp_path / "disturbed" / "it", gate.mods)
        held = gate.reached()
        nodes = [process for process in command.processes() if process.pid != command.pid]
        ports = {process.pid: ports_of(process) for process in nodes}
        assert sorted(map(len, ports.values())) == [1, 1, 1, 1], "each node listens once"
        for (port,) in ports.values():
            throw(BYTES["plain ZMTP"], port)
        (port,) = ports[held]
        for data in BYTES.values():
            throw(data, port)
        assert knock(port, None) != zmq.EVENT_HANDSHAKE_SUCCEEDED
        assert knock(port, Identity.generate().curve_public) != zmq.EVENT_HANDSHAKE_SUCCEEDED
        half_open = [socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) for _ in range(50)]
        assert all(psutil.pid_exists(process.pid) for process in nodes)
        gate.open()
        code = command.wait()
        for link in half_open:
            link.close()
    assert (code, command.err) == (0, "")
    assert command.models() == undisturbed
    assert command.summary["lost"] == {}
    assert command.leftovers() == []
    refused = refusals(command.folder)
    assert {line["node"] for line in refused} == {0, 1, 2, 3}
    assert {line["level"] for line in refused} == {"warning"}
    # A connection that is over before the monitor is read has no address any more.
    assert all(line["address"] == "unknown" or "127.0.0.1" in line["address"] for line in refused)
    assert all("not a Starling node" in line["detail"] for line in refused)
    assert all("peer" not in line for line in refused), "no member is blamed for what a stranger does"


def test_nodes_listen_on_loopback_alone(start, tmp_path):
    with Gate(tmp_path, 1, 2) as gate:
        command = run(start, tmp_path / "it", gate.mods)
        gate.reached()
        links = [link for process in command.processes() for link in process.net_connections("all") if link.laddr]
        assert {link.laddr.ip for link in links if link.family == socket.AF_INET} == {"127.0.0.1"}
        assert not [link for link in links if link.family == socket.AF_INET6]
        named = [link.laddr for link in links if link.family == socket.AF_UNIX and isinstance(link.laddr, str)]
        assert [name for name in named if os.path.exists(name)] == []
        gate.open()
        assert command.wait() == 0
