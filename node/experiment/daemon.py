"""``starling node``: one real node in its own process, from its start until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import structlog
import uvloop

from node.config import ExperimentConfig
from node.errors import ConfigError, StoreError
from node.experiment.cards import CardFolder, network_of
from node.experiment.joining import Joining
from node.experiment.loading import digest
from node.experiment.nodefile import Address, NodeFile
from node.experiment.participant import Participant, paces
from node.experiment.result import write_run
from node.experiment.setup import Setup, prepare
from node.experiment.standing import Phase, Standing, Watched
from node.experiment.state import State, open_state
from node.learn.tensors import save_model
from node.live.checkpoints import Checkpoints
from node.live.http import Face, HttpServer
from node.live.metrics import Metrics
from node.live.rendezvous import Rendezvous
from node.live.spending import Spending
from node.live.transport import Transport
from node.logs import configure
from node.op import Value
from node.world import cannot_go_on

SUCCESS, FAILED, INTERRUPTED = 0, 3, 130

_GONE_BY_S = 4.5
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_MALLOPT = {-3: 32 << 20, -1: 256 << 20, -2: 16 << 20}
"""M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD of glibc's malloc.h, in bytes."""


def run_node(settings: NodeFile, config: ExperimentConfig) -> int:
    """Run a node in this process until it is told to stop; gives the exit status: 0, or 3 where its protocol failed.

    Raises:
        ConfigError: an address, a folder or the experiment cannot be used.
        StoreError: the result cannot be written.
    """
    configure(verbose=True)
    structlog.contextvars.bind_contextvars(node=settings.node)
    keep_freed_memory()
    with open_state(settings.state) as state:
        setup = prepare(config)
        _check_alone(setup)
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000)
        with _limited_leaving() as leaving, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_until_signalled(Daemon(settings, setup, state, leaving.start)))


def _check_alone(setup: Setup) -> None:
    """Refuse identities beyond the nodes: no file says whose they are, and who would start them."""
    if not setup.participants.are_nodes_alone:
        key = "attackers.identities" if setup.participants.sybils else "protocol.use"
        raise ConfigError(f"{key}: has identities beyond the nodes, which only starling run can start; allowed: none")


def keep_freed_memory() -> bool:
    """Have malloc keep what received models are read into, instead of asking the kernel anew each time.

    Gives whether it could: glibc alone has the call.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(mallopt(option, size) for option, size in _MALLOPT.items())


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


class Daemon:
    """One node: joins, takes part, keeps what came of it, and goes on answering its peers until it is stopped.

    ``on_stop`` is called once, when the node is told to stop.
    """

    def __init__(self, settings: NodeFile, setup: Setup, state: State, on_stop: Callable[[], None]) -> None:
        config = setup.config
        self._settings = settings
        self._setup = setup
        self._state = state
        self._on_stop = on_stop
        self._log = structlog.get_logger(node=settings.node)
        self._rendezvous = Rendezvous(node for node in range(config.nodes) if node != settings.node)
        listen = Address.parse(settings.listen)
        rates = paces(config)
        self._transport = Transport(
            settings.node,
            state.identity,
            on_message=self._rendezvous.receive,
            on_lost=self._rendezvous.lose,
            on_back=self._rendezvous.regain,
            listen=_resolved(listen.host),
            port=listen.port,
            pace=rates[settings.node] if rates else None,
        )
        self._rendezvous.transport = self._transport
        self.standing = Standing(settings, config, self._transport, Watched(setup.executor()))
        """What there is to know of it at any time."""
        self._metrics = Metrics(self.standing.reading)
        self._http: HttpServer | None = None
        self._work: asyncio.Task[int] | None = None

    async def run(self) -> int:
        """Live; gives the exit status. Raises ConfigError where an address or the cards cannot be used."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unhandled)
        self._transport.start()
        self._work = loop.create_task(self._live())
        probing = loop.create_task(self._metrics.probe_lag())
        try:
            with contextlib.suppress(asyncio.CancelledError):
                return await self._work
            return SUCCESS
        finally:
            self.standing.phase = Phase.STOPPING
            await self._transport.close(self._settings.linger_s)
            probing.cancel()
            if self._http is not None:
                await self._http.close()
            if self.standing.participant is not None:
                await self.standing.participant.world.close()
            self._log.info("stopped")

    async def _serve(self) -> None:
        standing, admin = self.standing, Address.parse(self._settings.admin)
        face = Face(
            ill=standing.ill,
            unready=standing.unready,
            status=standing.status,
            peers=standing.peers,
            metrics=self._metrics.text,
            stop=lambda: self.stop("http"),
        )
        advertised = Address.parse(self._settings.advertise or self._settings.listen)
        self._http = HttpServer(face, self._state.token, (admin.host, advertised.host))
        standing.admin = await self._http.start(*admin)

    def stop(self, how: str) -> None:
        """End in order, and soon; calling it again changes nothing."""
        if self.standing.phase is not Phase.STOPPING and self._work is not None:
            self._log.info("stopping", how=how)
            self.standing.phase = Phase.STOPPING
            self._on_stop()
            self._work.cancel()

    async def _live(self) -> int:
        if self._settings.admin:
            await self._serve()
        await self._join()
        participant = self._take_part()
        try:
            final = await participant.run(self._transport)
        except asyncio.CancelledError:
            self._keep(participant, "interrupted", "stopped before its protocol had ended")
            raise
        except Exception as error:
            self._keep(participant, "failed", cannot_go_on(error))
            return self._fail(error)
        self._keep(participant, "finished", None, final)
        try:
            await asyncio.shield(participant.world.failure)
        except Exception as error:
            return self._fail(error)
        return SUCCESS

    def _fail(self, error: Exception) -> int:
        self._log.error("failed", reason=cannot_go_on(error))
        return FAILED

    async def _join(self) -> None:
        settings, standing, config = self._settings, self.standing, self._setup.config
        address = Address.parse(settings.advertise or settings.listen)
        if not address.port:
            address = address._replace(port=int(self._transport.address.rpartition(":")[2]))
        standing.address = f"tcp://{address}"
        network = network_of(config)
        own = self._state.identity.card(settings.node, standing.address, network)
        self._log.info("started", address=standing.address, admin=standing.admin, network=network, pid=os.getpid())
        cards = CardFolder(settings.cards, network, config.nodes)
        cards.publish(own)
        standing.phase = Phase.WAITING
        standing.joining = Joining(own, config.nodes, cards, self._transport, self._rendezvous)
        await standing.joining.run()

    def _take_part(self) -> Participant:
        standing, spending = self.standing, Spending(self._settings.state / "spent.json")
        participant = standing.participant = Participant(
            self._setup,
            self._settings.node,
            checkpoints=Checkpoints(self._settings.state / "checkpoints" / digest(self._setup.config)),
            on_settled=standing.tell_progress,
            folder=self._settings.state,
            executor=standing.executor,
            keep_spent=spending.keep,
            spent=spending.load(),
        )
        standing.phase = Phase.RUNNING
        self._rendezvous.hand_over(participant.world.receive, self._lose, self._regain)
        self._log.info("joined", peers=self._setup.config.nodes - 1)
        return participant

    def _lose(self, peer: int) -> None:
        standing = self.standing
        if peer not in standing.lost and standing.participant is not None:
            standing.lost[peer] = "has gone"
            self._log.warning("peer lost", peer=peer)
            standing.participant.world.lose(peer)

    def _regain(self, peer: int) -> None:
        standing = self.standing
        if standing.lost.pop(peer, None) is not None and standing.participant is not None:
            self._log.info("peer back", peer=peer)
            standing.participant.world.regain(peer)

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._log.error("unhandled", reason=context["message"], exc_info=context.get("exception"))

    def _keep(self, participant: Participant, status: str, error: str | None, final: Value | None = None) -> None:
        folder, standing = self._settings.state, self.standing
        result = participant.result(status, error)
        result.recorder.drop_pending()
        result.wall_s, result.lost = standing.uptime_s, standing.lost
        try:
            write_run(folder, self._setup, result)
            if final is not None:
                save_model(folder / "model.safetensors", self._setup.model, final)
        except OSError as trouble:
            raise StoreError(f"state: the result cannot be written to {folder}: {trouble.strerror}") from None
        if status == "finished":
            standing.phase = Phase.FINISHED
            self._log.info("finished", folder=str(folder), **standing.progress())


def _resolved(host: str) -> str:
    """The address of a host to listen at, as ZeroMQ wants it."""
    try:
        address = str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ConfigError(
            f"listen: {host} cannot be resolved: {error.strerror}; allowed are an address or a name of this machine"
        ) from None
    return f"[{address}]" if ":" in address else address
