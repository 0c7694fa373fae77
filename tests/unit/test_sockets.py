"""What every connection is given: how the kernel looks after it, and that ZeroMQ itself does not."""

import os
import socket
from contextlib import contextmanager
from functools import partial

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from node.codec import Limits
from node.identity import Identity
from node.live.sockets import QUEUE_FRAMES, SILENCE_S, Sockets

WAIT_MS = 10_000


@pytest.fixture
def made():
    sockets = Sockets(0, Identity.generate(), Limits(), encrypted=False)
    yield sockets
    sockets.close(0)


def card_of(address):
    return Identity.generate().card(1, address, "net")


@contextmanager
def kernel_side(monitored, kind):
    """Finds the kernel's socket of the next connection that a monitor tells of; a duplicate, which closes nothing."""
    monitor = monitored.get_monitor_socket(kind)

    def found():
        assert monitor.poll(WAIT_MS), "no connection came about"
        return socket.socket(fileno=os.dup(recv_monitor_message(monitor)["value"]))

    yield found
    monitored.disable_monitor()
    monitor.close(0)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_the_kernel_ends_connections_that_are_dead_at_both_ends(made, host):
    with made.router((host, 0)) as router:
        address = router.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        with (
            made.dealer(card_of(address)) as dealer,
            kernel_side(router, zmq.EVENT_ACCEPTED) as accepted,
            kernel_side(dealer, zmq.EVENT_CONNECTED) as dialled,
        ):
            dealer.connect(address)
            for find in (accepted, dialled):
                with find() as connection:
                    tcp = partial(connection.getsockopt, socket.IPPROTO_TCP)
                    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                    assert tcp(socket.TCP_USER_TIMEOUT) == SILENCE_S * 1000
                    probing_s = tcp(socket.TCP_KEEPINTVL) * tcp(socket.TCP_KEEPCNT)
                    assert tcp(socket.TCP_KEEPIDLE) + probing_s <= SILENCE_S + 2


def test_no_socket_has_heartbeats_which_end_the_process_where_a_connection_with_a_full_queue_breaks(made):
    with made.router(None) as router, made.dealer(card_of("tcp://127.0.0.1:1")) as dealer:
        assert router.heartbeat_ivl == dealer.heartbeat_ivl == 0


def test_queues_hold_few_frames_and_nothing_lingers(made):
    with made.router(None) as router, made.dealer(card_of("tcp://127.0.0.1:1")) as dealer:
        for each in (router, dealer):
            assert (each.sndhwm, each.rcvhwm, each.linger) == (QUEUE_FRAMES, QUEUE_FRAMES, 0)
