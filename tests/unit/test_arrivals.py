"""Whom a refused handshake is laid to, and whom it never is."""

import asyncio
import socket

from structlog.testing import capture_logs

from loopback import WAIT_S, Party, acquaint
from node.live.arrivals import Arrivals, remote_address


def test_a_failed_handshake_is_laid_to_the_connection_that_ends_next():
    arrivals = Arrivals()
    arrivals.accepted(7, "tcp://192.0.2.1:1")
    arrivals.accepted(8, "tcp://192.0.2.2:2")
    arrivals.failed("another key")
    assert arrivals.disconnected(8) == ("tcp://192.0.2.2:2", "another key")
    assert arrivals.disconnected(7) == ("tcp://192.0.2.1:1", "ended without a handshake: not a Starling node")


def test_who_may_have_proved_himself_is_never_accused():
    arrivals = Arrivals()
    arrivals.accepted(7, "tcp://192.0.2.1:1")
    arrivals.accepted(8, "tcp://192.0.2.2:2")
    arrivals.succeeded()
    assert arrivals.disconnected(7) is None
    assert arrivals.disconnected(8) is None


def test_who_comes_after_a_success_is_unproved_again():
    arrivals = Arrivals()
    arrivals.accepted(7, "tcp://192.0.2.1:1")
    arrivals.succeeded()
    arrivals.accepted(9, "tcp://192.0.2.3:3")
    assert arrivals.disconnected(7) is None
    assert arrivals.disconnected(9) == ("tcp://192.0.2.3:3", "ended without a handshake: not a Starling node")
    assert arrivals.disconnected(9) is None


def test_a_failure_is_told_even_where_its_connection_was_never_seen():
    arrivals = Arrivals()
    arrivals.failed("another key")
    assert arrivals.disconnected(5) == ("unknown", "another key")
    assert arrivals.disconnected(5) is None


def test_a_flood_of_connections_is_not_remembered_without_end():
    arrivals = Arrivals()
    for descriptor in range(10_000):
        arrivals.accepted(descriptor, "tcp://192.0.2.1:1")
    assert len(arrivals._pending) == 4_096
    assert arrivals.disconnected(0) is None
    assert arrivals.disconnected(9_999) is not None


def test_the_remote_address_is_the_other_ends():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            host, port = client.getsockname()
            assert remote_address(accepted.fileno()) == f"tcp://{host}:{port}"
            descriptor = accepted.fileno()
        assert remote_address(descriptor) == "unknown"


async def test_a_stranger_who_stays_until_he_is_refused_is_named():
    party = Party(0)
    acquaint(party)
    arrivals = party.transport._io.entrance._arrivals
    host, port = party.transport.address.removeprefix("tcp://").split(":")
    try:
        with capture_logs() as logs, socket.create_connection((host, int(port))) as stranger:
            mine = "tcp://{}:{}".format(*stranger.getsockname())
            async with asyncio.timeout(WAIT_S):
                while mine not in arrivals._pending.values():
                    await asyncio.sleep(0.001)
                stranger.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
                while not logs:
                    await asyncio.sleep(0.001)
        assert [(line["event"], line["address"]) for line in logs[:1]] == [("handshake refused", mine)]
    finally:
        await party.transport.close()
