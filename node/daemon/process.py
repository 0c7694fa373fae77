"""The process of ``starling node``: what is set up before the event loop, and how signals end it."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import structlog
import uvloop

from node.config import ExperimentConfig
from node.daemon.belonging import Belonging, belong
from node.daemon.daemon import SUCCESS, Daemon
from node.daemon.journal import Journal
from node.daemon.memory import give_back_freed_memory, keep_freed_memory
from node.daemon.nodefile import Address, NodeFile, load_experiment
from node.daemon.notifying import Notifier
from node.daemon.state import State, open_state
from node.errors import ConfigError
from node.experiment.setup import Setup, prepare
from node.logs import configure
from node.trust.certificate import Certificate
from node.trust.token import Token

INTERRUPTED = 130

_GONE_BY_S = 4.5
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_node(settings: NodeFile, config: ExperimentConfig) -> int:
    """Run a node in this process until it is told to stop; gives the exit status: 0, or 3 where its protocol failed.

    Raises:
        ConfigError: an address, a folder or the experiment cannot be used.
        StoreError: the result cannot be written.
    """
    configure(verbose=True)
    with open_state(settings.state) as state:
        return _run(settings, config, state, None)


def run_member(
    settings: NodeFile,
    token: Token | None,
    environ: Mapping[str, str],
    adapt: Callable[[ExperimentConfig, Certificate], ExperimentConfig] = lambda config, certificate: config,
) -> int:
    """Run a member of a network, which an invitation may have to make it first; else as :func:`run_node`.

    ``adapt`` gives the experiment as this member runs it.

    Raises:
        TransportError: no admitting node answers.
    """
    configure(verbose=True)
    with open_state(settings.state) as state:
        belonging = belong(settings, state, token)
        config = load_experiment(str(belonging.experiment), environ)
        number = belonging.certificate.node
        if number >= config.nodes:
            raise ConfigError(
                f"{belonging.experiment}: nodes: {config.nodes}, but this is node {number} of its network"
            )
        return _run(placed(settings, belonging, number), adapt(config, belonging.certificate), state, belonging)


def placed(settings: NodeFile, belonging: Belonging, number: int) -> NodeFile:
    """A member's settings: where nothing was said, it listens at a free port of the address that leads to others."""
    found: dict[str, Any] = {"node": number}
    if "listen" not in settings.model_fields_set and belonging.folder is None:
        found["listen"] = f"{local_address(Address.parse(belonging.bootstrap[0].address).host)}:0"
        if "admin" not in settings.model_fields_set:
            found["admin"] = "127.0.0.1:0"
    return settings.model_copy(update=found)


def local_address(host: str) -> str:
    """The address of this machine from which packets to a host leave, an IPv6 one in brackets."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            found = str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigError(f"listen: no way to {host} was found: {error.strerror}; say --listen HOST:PORT") from None
    return f"[{found}]" if ":" in found else found


def _run(settings: NodeFile, config: ExperimentConfig, state: State, belonging: Belonging | None) -> int:
    journal = Journal()
    journal.begin()
    structlog.contextvars.bind_contextvars(node=settings.node)
    if settings.low_memory:
        give_back_freed_memory()
    else:
        keep_freed_memory()
    setup = prepare(config)
    _check_alone(setup)
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000)
    with _limited_leaving() as leaving, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        daemon = Daemon(settings, setup, state, leaving.start, belonging, Notifier(os.environ), journal)
        return runner.run(_until_signalled(daemon))


def _check_alone(setup: Setup) -> None:
    """Refuse what takes a supervisor: identities beyond the nodes, of which no file says whose they are, and faults."""
    if not setup.participants.are_nodes_alone:
        key = "attackers.identities" if setup.participants.sybils else "protocol.use"
        raise ConfigError(f"{key}: has identities beyond the nodes, which only starling run can start; allowed: none")
    if setup.config.faults:
        raise ConfigError("faults: only starling run injects faults; allowed: none")


@contextmanager
def _limited_leaving() -> Iterator[threading.Timer]:
    """A timer which, once started, ends the process in time, whatever is still computed: that cannot be interrupted."""
    timer = threading.Timer(_GONE_BY_S, os._exit, [SUCCESS])
    timer.daemon = True
    try:
        yield timer
    finally:
        timer.cancel()


def _leave_at_once(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(INTERRUPTED)


async def _until_signalled(daemon: Daemon) -> int:
    loop = asyncio.get_running_loop()

    def signalled() -> None:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
            signal.signal(number, _leave_at_once)
        daemon.stop("signal")

    for number in _SIGNALS:
        loop.add_signal_handler(number, signalled)
    return await daemon.run()
