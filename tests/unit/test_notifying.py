"""What a service manager hears of a node: real datagrams, of the process's own loop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import aiohttp
import pytest

from node.config import ExperimentConfig, ModelSection, ProtocolSection, TopologySection
from node.daemon.daemon import Daemon
from node.daemon.nodefile import NodeFile
from node.daemon.notifying import READY, STOPPING, WATCHDOG, Notifier
from node.daemon.state import open_state
from node.errors import ConfigError
from node.experiment.setup import prepare

WAIT_S = 10.0


@pytest.fixture
def manager(tmp_path):
    """A service manager's end: a bound socket, and the variables that it starts a process with."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as receiver:
        path = str(tmp_path / "notify")
        receiver.bind(path)
        yield receiver, {"NOTIFY_SOCKET": path}


def heard(receiver):
    """Everything that has arrived."""
    found = []
    while True:
        try:
            found.append(receiver.recv(4096).decode())
        except BlockingIOError:
            return found


async def next_word(receiver):
    async with asyncio.timeout(WAIT_S):
        return (await asyncio.get_running_loop().sock_recv(receiver, 4096)).decode()


def test_each_state_is_one_datagram(manager):
    receiver, environ = manager
    notifier = Notifier(environ)
    notifier.tell(READY)
    notifier.tell(STOPPING)
    assert heard(receiver) == ["READY=1", "STOPPING=1"]


@pytest.mark.skipif(not hasattr(signal, "SIGPWR"), reason="abstract sockets are Linux's")
def test_a_name_with_an_at_sign_is_an_abstract_socket(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as receiver:
        receiver.bind(f"\0{tmp_path}")
        Notifier({"NOTIFY_SOCKET": f"@{tmp_path}"}).tell(READY)
        assert heard(receiver) == ["READY=1"]


def test_nobody_there_is_no_error(tmp_path):
    Notifier().tell(READY)
    Notifier({"NOTIFY_SOCKET": ""}).tell(READY)
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).tell(READY)


def test_a_manager_that_does_not_read_holds_up_nobody(manager):
    receiver, environ = manager
    notifier = Notifier(environ)
    for _ in range(2_000):  # more than any queue of a datagram socket holds
        notifier.tell(WATCHDOG)
    assert 0 < len(heard(receiver)) < 2_000


async def test_the_watchdog_is_fed_while_the_node_is_well_and_starves_while_it_is_ill(manager):
    receiver, environ = manager
    asked, trouble = asyncio.Event(), [None]

    def ill():
        asked.set()
        return trouble[0]

    feeding = asyncio.create_task(Notifier({**environ, "WATCHDOG_USEC": "30000"}).feed(ill))
    assert await next_word(receiver) == WATCHDOG
    assert await next_word(receiver) == WATCHDOG
    trouble[0] = "the worker thread is stuck"
    heard(receiver)
    for _ in range(3):
        asked.clear()
        await asyncio.wait_for(asked.wait(), WAIT_S)
    assert heard(receiver) == []
    trouble[0] = None
    assert await next_word(receiver) == WATCHDOG
    feeding.cancel()


@pytest.mark.parametrize(
    "watchdog",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "-5"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
    ],
)
async def test_without_a_watchdog_of_this_process_nothing_is_fed(manager, watchdog):
    receiver, environ = manager
    async with asyncio.timeout(WAIT_S):
        await Notifier({**environ, **watchdog}).feed(lambda: None)
    assert heard(receiver) == []


async def test_the_watchdog_of_this_very_process_is_fed_well_before_it_bites(manager):
    receiver, environ = manager
    notifier = Notifier({**environ, "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())})
    feeding = asyncio.create_task(notifier.feed(lambda: None))
    assert await next_word(receiver) == WATCHDOG
    assert notifier._feed_every_s <= 30.0
    feeding.cancel()


@pytest.fixture
def daemon(tmp_path, manager):
    """A network's only node, whose manager listens."""
    config = ExperimentConfig(
        name="alone",
        nodes=1,
        clock="real",
        protocol=ProtocolSection(use="local", rounds=1),
        topology=TopologySection(kind="full"),
        model=ModelSection(hidden=(4,)),
    )
    settings = NodeFile(listen="127.0.0.1:0", admin="127.0.0.1:0", state=tmp_path / "state", cards=tmp_path / "cards")
    environ = {**manager[1], "WATCHDOG_USEC": "3600000000"}
    with open_state(settings.state) as state:
        yield Daemon(settings, prepare(config), state, lambda: None, notifier=Notifier(environ))


async def test_a_node_is_ready_when_it_answers_and_says_that_it_stops(daemon, manager):
    receiver, _ = manager
    running = asyncio.create_task(daemon.run())
    words = [await next_word(receiver), await next_word(receiver)]
    assert sorted(words) == [READY, WATCHDOG]
    async with aiohttp.ClientSession() as session, session.get(f"{daemon.standing.admin}/healthz") as answer:
        assert answer.status == 200
    daemon.stop("test")
    daemon.stop("test")
    assert await asyncio.wait_for(running, WAIT_S) == 0
    assert heard(receiver) == [STOPPING]


async def test_a_node_that_cannot_listen_is_never_ready(daemon, manager):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        daemon._settings = daemon._settings.model_copy(update={"admin": f"127.0.0.1:{taken.getsockname()[1]}"})
        with pytest.raises(ConfigError, match=r"admin: .* cannot be bound"):
            await daemon.run()
    assert READY not in heard(manager[0])
