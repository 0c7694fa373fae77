"""One real node in its own process, from its start until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any

import structlog

from node import durable
from node.daemon.belonging import Belonging
from node.daemon.cards import CardFolder, network_of
from node.daemon.control import Orders
from node.daemon.joining import Joining
from node.daemon.journal import Journal
from node.daemon.meeting import Meeting
from node.daemon.memory import SMALL_LIMITS
from node.daemon.nodefile import Address, NodeFile
from node.daemon.notifying import READY, STOPPING, Notifier
from node.daemon.standing import Phase, Standing, Watched
from node.daemon.state import State
from node.errors import ConfigError, StoreError
from node.experiment.loading import digest
from node.experiment.participant import Participant, paces
from node.experiment.result import write_run
from node.experiment.setup import Setup
from node.identity import OUTBOUND, Card
from node.learn.tensors import save_model
from node.live.checkpoints import Checkpoints
from node.live.door import Knock
from node.live.http import Face, HttpServer
from node.live.metrics import Metrics
from node.live.parcels import Parcels
from node.live.rendezvous import Rendezvous
from node.live.spending import Spending
from node.live.steps import Steps
from node.live.transport import Transport
from node.op import Value
from node.world import cannot_go_on

SUCCESS, FAILED = 0, 3

_BEGUN = "begun"


class Daemon:
    """One node: joins, takes part, keeps what came of it, and goes on answering its peers until it is stopped.

    ``on_stop`` is called once, when the node is told to stop. One that belongs to no network finds cards in a folder.
    """

    def __init__(
        self,
        settings: NodeFile,
        setup: Setup,
        state: State,
        on_stop: Callable[[], None],
        belonging: Belonging | None = None,
        notifier: Notifier | None = None,
        journal: Journal | None = None,
    ) -> None:
        config = setup.config
        self._settings = settings
        self._setup = setup
        self._state = state
        self._on_stop = on_stop
        self._belonging = belonging
        self._notifier = notifier or Notifier()
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
            listen=None if settings.outbound else _resolved(listen.host),
            port=listen.port,
            limits=SMALL_LIMITS if settings.low_memory else None,
            pace=rates[settings.node] if rates else None,
            on_knock=None if belonging is None else self._on_knock,
        )
        self._rendezvous.transport = self._transport
        self._parcels = None if belonging is None else self._makes_parcels(_resolved(listen.host))
        self._metrics = Metrics(lambda: self.standing.reading())
        self.standing = Standing(
            settings,
            config,
            self._transport,
            Watched(setup.executor()),
            Steps(lambda seconds: self._metrics.took("train", seconds)),
            journal or Journal(),
            Checkpoints(settings.state / "checkpoints" / digest(config)),
        )
        """What there is to know of it at any time."""
        self.standing.parcels = self._parcels
        self._http: HttpServer | None = None
        self._work: asyncio.Task[int] | None = None

    async def run(self) -> int:
        """Live; gives the exit status. Raises ConfigError where an address or the cards cannot be used."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._unhandled)
        if self._parcels is not None:
            self._parcels.start()
        self._transport.start()
        self._work = loop.create_task(self._live())
        probing = loop.create_task(self._metrics.probe_lag())
        feeding = loop.create_task(self._notifier.feed(self.standing.ill))
        try:
            with contextlib.suppress(asyncio.CancelledError):
                return await self._work
            return SUCCESS
        finally:
            self.standing.phase = Phase.STOPPING
            if self.standing.joining is not None:
                await self.standing.joining.close()
            if self._parcels is not None:
                await self._parcels.close()
            await self._transport.close(self._settings.linger_s)
            probing.cancel()
            feeding.cancel()
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
            history=standing.history,
            metrics=self._metrics.text,
        )
        control = Orders(standing, standing.journal, self.stop).control()
        advertised = Address.parse(self._settings.advertise or self._settings.listen)
        self._http = HttpServer(face, control, self._state.token, (admin.host, advertised.host))
        standing.admin = await self._http.start(*admin)

    def stop(self, how: str) -> None:
        """End in order, and soon; calling it again changes nothing."""
        if self.standing.phase is not Phase.STOPPING and self._work is not None:
            self._log.info("stopping", how=how)
            self.standing.phase = Phase.STOPPING
            self._notifier.tell(STOPPING)
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
        if self.standing.steps.is_draining:
            return SUCCESS
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
        if not address.port and not settings.outbound:
            address = address._replace(port=int(self._transport.address.rpartition(":")[2]))
        standing.address = OUTBOUND if settings.outbound else f"tcp://{address}"
        network = self._belonging.network if self._belonging is not None else network_of(config)
        own = self._state.identity.card(settings.node, standing.address, network)
        self._log.info("started", address=standing.address, admin=standing.admin, network=network, pid=os.getpid())
        standing.phase = Phase.WAITING
        self._notifier.tell(READY)
        standing.joining = self._way_in(own, network)
        await standing.joining.run(self._has_begun)

    def _way_in(self, own: Card, network: str) -> Joining | Meeting:
        settings, nodes = self._settings, self._setup.config.nodes
        if self._belonging is None:
            cards = CardFolder(settings.cards, network, nodes)
            cards.publish(own)
            return Joining(own, nodes, cards, self._transport, self._rendezvous)
        return Meeting(
            self._belonging,
            self._state,
            own,
            nodes,
            settings.timing,
            self._transport,
            self._rendezvous,
            changed=lambda peer, is_there: self._regain(peer) if is_there else self._lose(peer),
            usurped=lambda: self.stop("usurped"),
            probed=lambda seconds: self._metrics.took("probe_rtt", seconds),
            multicast=Address.parse(settings.listen).host if settings.multicast else None,
        )

    def _on_knock(self, knock: Knock) -> None:
        if isinstance(self.standing.joining, Meeting):
            self.standing.joining.on_knock(knock)

    @property
    def _has_begun(self) -> bool:
        """Whether an earlier life of this node took part in this experiment: then the others may be far ahead."""
        try:
            return (self._state.folder / _BEGUN).read_text(encoding="ascii") == digest(self._setup.config)
        except OSError:
            return False

    def _note_begun(self) -> None:
        try:
            durable.replace(self._state.folder / _BEGUN, digest(self._setup.config).encode())
        except OSError as error:
            self._log.warning("not noted that it has begun", reason=str(error))

    def _take_part(self) -> Participant:
        standing, spending = self.standing, Spending(self._settings.state / "spent.json")
        participant = standing.participant = Participant(
            self._setup,
            self._settings.node,
            checkpoints=standing.checkpoints,
            on_settled=standing.tell_progress,
            folder=self._settings.state,
            executor=standing.executor,
            keep_spent=spending.keep,
            spent=spending.load(),
        )
        participant.world.steps = standing.steps
        participant.world.took = self._metrics.took
        participant.world.parcels = self._parcels
        standing.phase = Phase.RUNNING
        self._note_begun()
        absent = self._rendezvous.absent
        self._rendezvous.hand_over(participant.world.receive, self._lose, self._regain)
        for peer in absent:
            self._lose(peer)
        self._log.info("joined", peers=self._setup.config.nodes - 1 - len(absent))
        return participant

    def _lose(self, peer: int) -> None:
        standing = self.standing
        if self._parcels is not None:
            self._parcels.lose(peer)
        if peer not in standing.lost and standing.participant is not None:
            standing.lost[peer] = "has gone"
            self._log.warning("peer lost", peer=peer)
            standing.participant.world.lose(peer)

    def _regain(self, peer: int) -> None:
        standing = self.standing
        if standing.lost.pop(peer, None) is not None and standing.participant is not None:
            self._log.info("peer back", peer=peer)
            standing.participant.world.regain(peer)

    def _makes_parcels(self, listen: str) -> Parcels:
        settings = self._settings
        parcels = Parcels(
            settings.node,
            self._transport,
            settings.state / "parcels",
            self._rendezvous.receive,
            limits=SMALL_LIMITS if settings.low_memory else None,
            listen=listen,
            port=settings.bulk_port,
            advertised_port=settings.bulk_advertise_port,
            rate_bps=settings.bulk_rate_bps,
        )
        for kind in parcels.KINDS:
            self._rendezvous.attend(kind, parcels.receive)
        return parcels

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
