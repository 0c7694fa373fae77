"""How a member of a network comes to its peers, and knows at any time who of them is there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import structlog

from node.daemon.belonging import Belonging
from node.daemon.decrees import Decreeing, Decrees
from node.daemon.doorkeeper import Doorkeeper
from node.daemon.introduction import introduce, minutes
from node.daemon.members import Members, read_record, record_of
from node.daemon.remembering import Incarnations, keep_words, remembered_words
from node.daemon.renewal import Renewal
from node.daemon.state import State
from node.daemon.timekeeping import Time, Timekeeping
from node.daemon.trail import Trail
from node.errors import ConfigError, TransportError
from node.identity import Card
from node.live.discovery import Discovery
from node.live.door import Knock
from node.live.membership import Listeners, LiveMembership, Said
from node.live.rendezvous import Rendezvous
from node.live.transport import Transport
from node.membership.statement import State as Presence
from node.membership.statement import Statement
from node.membership.swim import Swim
from node.membership.timing import PRESETS
from node.membership.vocabulary import Gossip
from node.trust.certificate import Certificate
from node.trust.handshake import Local
from node.trust.refusal import Reason, Refused
from node.trust.registrar import Registrar
from node.trust.request import Member
from node.trust.session import Session

_LOOK_S = 0.25
_CALL_S = 3.0
_CALLS = 4
_AGAIN_S = 2.0
"""When a node that is alone calls again."""
_MOST_NAMED = 16
_MOST_SUGGESTED = 64
_TOLD = 32
"""How many hear at once of one who has come to the door."""


Door: TypeAlias = tuple[int | None, str, bytes]
"""Who ought to be there, where that is known, its address and its CURVE key."""


class Meeting:
    """One member's way in and its view of the others. All of it belongs to the event loop.

    Args:
        changed: called with a peer, and whether it is there now.
        usurped: another process has this node's keys.
        multicast: whether members of the local network may find this node, and it them; at this host's interface.
        probed: called with how long, in s, a peer has taken to answer a probe.
    """

    def __init__(
        self,
        belonging: Belonging,
        state: State,
        own: Card,
        nodes: int,
        timing: str,
        transport: Transport,
        rendezvous: Rendezvous,
        *,
        changed: Callable[[int, bool], None],
        usurped: Callable[[], None],
        probed: Callable[[float], None] = lambda seconds: None,
        multicast: str | None = None,
    ) -> None:
        self.awaited: list[int] = [node for node in range(nodes) if node != own.node]
        """The nodes that are waited for."""
        self._belonging = belonging
        self._state = state
        self._own = own
        self._timing = PRESETS[timing]
        self._transport = transport
        self._rendezvous = rendezvous
        self._changed = changed
        self._usurped = usurped
        self._probed = probed
        self._members = Members(belonging.trust, state.identity, belonging.certificate)
        self._renewal = Renewal(belonging, state.identity, self._renewed)
        self._renewing: asyncio.Task[None] | None = None
        self._record = record_of(belonging.certificate, own)
        self._members.take(self._record)
        self._incarnations = Incarnations(state)
        self._machine: Swim | None = None
        self._membership: LiveMembership | None = None
        self._trail = Trail(state.folder, own.node)
        self._doorkeeper = Doorkeeper(
            self._local, _registrar(belonging, self._members), transport.answer, self._met, self._trail
        )
        self._early: list[Statement] = []
        self._suspicions = 0
        self._log = structlog.get_logger().bind(node=own.node)
        self._decrees = Decreeing(belonging.trust, belonging.folder, transport, self._peers, self._admit, self._trail)
        self._timekeeping = Timekeeping(transport, nodes, self._peers)
        rendezvous.attend(Decrees, self._decrees.receive)
        rendezvous.attend(Time, self._timekeeping.receive)
        self._suggested: asyncio.Queue[Card] = asyncio.Queue(_MOST_SUGGESTED)
        self._discovery = None if multicast is None else Discovery(own, multicast, self._on_suggested)
        self._finding: asyncio.Task[None] | None = None

    # What a node shows of it

    @property
    def absent(self) -> list[int]:
        """The nodes that have not been heard yet, or have gone again before anything began."""
        return self._rendezvous.absent

    @property
    def refused(self) -> Counter[str]:
        """Knocks and words that were not believed, by reason."""
        return self._doorkeeper.refused + self._members.refused

    def addresses(self) -> dict[int, str]:
        """Where the members say that they listen, by node; ``outbound``: nowhere."""
        return self._members.addresses()

    def sightings(self) -> dict[int, dict[str, Any]]:
        """How each known member stands, by node: state, seconds since, incarnation, round-trip time."""
        if self._machine is None:
            return {}
        now_s = asyncio.get_running_loop().time()
        return {
            seen.peer: {
                "state": seen.state.name.lower(),
                "since_s": round(now_s - seen.since_s, 3),
                "incarnation": seen.incarnation,
                "rtt_s": seen.rtt_s,
                "role": _role(seen.record),
            }
            for seen in self._machine.known()
        }

    def vitals(self) -> dict[str, float]:
        """How this node itself does: how far it doubts itself, its incarnation, and how far its clock is off."""
        return {
            "health_score": 0 if self._machine is None else self._machine.health.score,
            "incarnation": self._incarnations.last,
            "clock_ahead_seconds": round(self._timekeeping.ahead_s, 3),
        }

    def tallies(self) -> dict[str, int]:
        """How often this node has suspected others, and objected to being suspected."""
        refutations = 0 if self._machine is None else self._machine.refutations
        return {"suspicions": self._suspicions, "refutations": refutations}

    # The way in

    def on_knock(self, knock: Knock) -> None:
        """Somebody knocks."""
        self._doorkeeper.on_knock(knock)

    async def run(self, returning: bool) -> None:
        """Wait until this node and all others can reach one another; one that returns waits for those who are there.

        Raises:
            ConfigError: what it must remember cannot be kept.
        """
        remembered = [word for word in remembered_words(self._state) if self._members.verify(word)]
        for word in remembered:
            self._members.take(word.record)
        for member in self._belonging.members:
            self._take_member(member)
        self._incarnations.use(self._incarnations.last + 1)
        if self._discovery is not None:
            await self._discovery.start()
        doors = self._doors(remembered)
        words = await self._call(doors)
        self._begin([*remembered, *(words or ())])
        self._finding = asyncio.get_running_loop().create_task(self._find(doors, words is not None))
        said: Sequence[int] = ()
        began_s = time.monotonic()
        while True:
            await self._rendezvous.greet()
            self.awaited = self._missing(returning and time.monotonic() - began_s > _LOOK_S)
            if not self.awaited:
                return
            if self.awaited != said:
                said = list(self.awaited)
                self._log.info("waiting", of=said[:_MOST_NAMED], missing=len(said))
            await asyncio.sleep(_LOOK_S)

    def _missing(self, those_who_are_there: bool) -> list[int]:
        if not those_who_are_there:
            return self._rendezvous.absent
        return [node for node in self._rendezvous.absent if node in self._peers()]

    async def close(self) -> None:
        """Say that this node goes, and remember who was there."""
        self._decrees.close()
        self._timekeeping.close()
        for task in (self._renewing, self._finding):
            if task is not None:
                task.cancel()
        if self._discovery is not None:
            self._discovery.close()
        await self._doorkeeper.close()
        if self._membership is not None and self._machine is not None:
            words = self._machine.statements()
            keep_words(self._state, [word for word in words if word.peer != self._own.node])
            self._membership.leave()

    async def _find(self, doors: Sequence[Door], is_found: bool) -> None:
        """Call wherever multicast suggests until somebody is there, and again at these doors whenever nobody is."""
        if self._discovery is not None and not is_found:
            self._discovery.seek()
        while True:
            suggested = await self._suggestion()
            if self._peers() and (is_found or not suggested):
                continue
            words = await self._call(suggested or doors)
            if words is None:
                continue
            is_found = True
            if self._discovery is not None:
                self._discovery.rest()
            assert self._membership is not None
            for word in words:
                self._membership.hear(word.peer, Gossip((word,)))

    async def _suggestion(self) -> list[Door]:
        try:
            async with asyncio.timeout(_AGAIN_S):
                card = await self._suggested.get()
        except TimeoutError:
            return []
        return [(card.node, card.address, card.curve_key)]

    def _on_suggested(self, card: Card) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self._suggested.put_nowait(card)

    async def _call(self, doors: Sequence[Door]) -> tuple[Statement, ...] | None:
        """Introduce this node to the first who is there, and hear of revocations and members; None: nobody is."""
        own = self._word()
        for node, address, key in doors[:_CALLS]:
            try:
                local = self._local()
                session, said = await asyncio.to_thread(introduce, local, own, address, key, node, _CALL_S)
            except TransportError as error:
                self._log.info("not introduced", address=address, reason=str(error))
                continue
            self._timekeeping.observe(session.peer.node, session.offset_s)
            self._decrees.take(said.revocations, said.successions)
            self._log.info("introduced", to=session.peer.node, address=address, members=len(said.words))
            return said.words
        return None

    def _word(self) -> Statement:
        own = Statement(Presence.ALIVE, self._own.node, self._incarnations.last, self._own.node, self._record)
        return own._replace(signature=self._members.sign(own.signed_bytes))

    def _doors(self, remembered: Sequence[Statement]) -> list[Door]:
        """Where to call: the admitting nodes first, then whoever is remembered."""
        doors: list[Door] = [(None, f"tcp://{each.address}", each.curve_key) for each in self._belonging.bootstrap]
        for word in remembered:
            _, card = read_record(word.record)
            if not card.is_outbound:
                doors.append((card.node, card.address, card.curve_key))
        return [door for door in doors if door[2] != self._own.curve_key]

    def _begin(self, words: Sequence[Statement]) -> None:
        rng = np.random.default_rng(int.from_bytes(os.urandom(16)))
        machine = self._machine = Swim(
            self._own.node, self._incarnations.last, self._record, self._timing, rng, self._members
        )
        listeners = Listeners(self._keep_incarnation, self._on_changed, self._usurped, self._probed)
        self._membership = LiveMembership(machine, self._transport, listeners)
        self._rendezvous.attend(Said, self._membership.receive)
        self._admit()
        self._membership.start([member.certificate.node for member in self._belonging.members], words)
        early, self._early = self._early, []
        for word in early:
            self._membership.hear(word.peer, Gossip((word,)))
        self._decrees.start()
        self._timekeeping.start()
        self._renewing = asyncio.get_running_loop().create_task(self._renewal.run())

    def _take_member(self, member: Member) -> None:
        if not member.card:  # it was admitted, and has not been here since
            return
        try:
            self._members.take(record_of(member.certificate, Card.from_bytes(member.card)))
        except TransportError as error:
            self._log.info("member not known yet", member=member.certificate.node, reason=str(error))

    # Who is there

    def _on_changed(self, peer: int, presence: Presence | None) -> None:
        self._suspicions += presence is Presence.SUSPECT
        if presence is Presence.ALIVE:
            self._know(peer)
        elif presence is None:
            self._members.forget(peer)
            self._admit()
        if presence in (None, Presence.DEAD, Presence.LEFT):
            self._timekeeping.lose(peer)
        if presence in (Presence.ALIVE, Presence.DEAD, Presence.LEFT):
            self._changed(peer, presence is Presence.ALIVE)
            self._log.info("member", peer=peer, state=presence.name.lower())

    def _know(self, peer: int) -> None:
        assert self._machine is not None
        try:
            if self._members.take(self._machine.sighting(peer).record):
                self._admit()
        except Refused as refused:
            self._log.warning("member refused", peer=peer, reason=refused.reason.value, detail=refused.detail)

    def _peers(self) -> tuple[int, ...]:
        return () if self._machine is None else self._machine.peers()

    def _admit(self) -> None:
        self._transport.admit(self._members.roster(), self._members.shut_out())

    def _local(self) -> Local:
        return Local(self._state.identity, self._renewal.certificate, self._belonging.trust, self._incarnations.last)

    def _renewed(self, certificate: Certificate) -> None:
        self._record = record_of(certificate, self._own)
        self._members.take(self._record)
        self._trail.note("admitting node", "renew", f"certificate {certificate.serial} of node {certificate.node}")
        if self._membership is not None:
            self._membership.describe(self._record)

    def _met(self, session: Session, word: Statement) -> bytes:
        """A member has come to the door and has proved to be one."""
        self._timekeeping.observe(session.peer.node, session.offset_s)
        if word.peer != session.peer.node:
            raise Refused(Reason.SENDER, f"node {session.peer.node} brings the word of node {word.peer}")
        others: Sequence[Statement]
        if self._membership is None or self._machine is None:
            others = tuple(self._early)
            self._early.append(word)
        else:
            others = self._machine.statements()
            self._membership.hear(word.peer, Gossip((word,)))
            # Who does not know it does not let it in: gossip alone might take longer than its patience lasts.
            self._membership.pass_on(Gossip((word,)), _TOLD)
        self._log.info("met", peer=session.peer.node)
        trust = self._belonging.trust
        # Its own word, too: who calls here may know nobody else, and lets nobody in that it does not know.
        return minutes(tuple(trust.revocations), tuple(trust.successions), (self._word(), *others))

    # What outlives the process

    def _keep_incarnation(self, incarnation: int) -> None:
        try:
            self._incarnations.use(incarnation)
        except ConfigError as error:  # to be silent now would be death; to be taken for a twin may never happen
            self._log.error("incarnation not kept, so the next start may be taken for a twin", reason=str(error))


def _registrar(belonging: Belonging, members: Members) -> Registrar | None:
    folder = belonging.folder
    if folder is None:
        return None
    return Registrar(folder.authority, folder.audit, folder.settings.name, folder.experiment, members.cards)


def _role(record: bytes) -> str | None:
    try:
        certificate, _ = read_record(record)
    except Refused:
        return None
    return certificate.role.value
