"""What the admission key says to everybody, revocations and its own successors, and how it comes to all members.

Whoever hears something new passes it on at once to a few others; and every member tells one other what it knows, now
and then, so that nobody is left out who slept. A member that is cut off learns late; nothing can be done about that.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import structlog

from node import codec
from node.codec import Header
from node.daemon.trail import Trail
from node.errors import StarlingError, StoreError, TransportError
from node.live.transport import Transport
from node.message import Message
from node.op import Ref
from node.trust.certificate import id_text
from node.trust.folder import NetworkFolder
from node.trust.revocation import Revocation
from node.trust.succession import Succession
from node.trust.trust import Trust

TELL_EVERY_S = 15.0
LOOK_EVERY_S = 1.0
PASS_ON = 8
"""How many are told at once of what is new."""


class Decrees(Message, name="starling/decrees/1"):
    """All that the admission key has said and that still matters."""

    revocations: tuple[bytes, ...]
    successions: tuple[bytes, ...]


class Decreeing:
    """One member's part in it.

    Args:
        folder: the network's, where this node is its owner's: looked at for what he has decided meanwhile.
        peers: who is there.
        changed: called after something new was believed.
        trail: where what was believed is written down.
    """

    def __init__(
        self,
        trust: Trust,
        folder: NetworkFolder | None,
        transport: Transport,
        peers: Callable[[], Sequence[int]],
        changed: Callable[[], None],
        trail: Trail,
    ) -> None:
        self._trust = trust
        self._folder = folder
        self._transport = transport
        self._peers = peers
        self._changed = changed
        self._trail = trail
        self._rng = np.random.default_rng(int.from_bytes(os.urandom(16)))
        self._passing: asyncio.Task[None] | None = None
        self._log = structlog.get_logger()

    def start(self) -> None:
        """Begin to tell others."""
        self._passing = asyncio.get_running_loop().create_task(self._pass_on())

    def close(self) -> None:
        """Tell nobody any more."""
        if self._passing is not None:
            self._passing.cancel()

    def receive(self, sender: int, header: Header, buffers: list[memoryview]) -> None:
        """A member passes on :class:`Decrees`; one that are none of the admission key's cost it."""
        try:
            said = codec.decode(header, buffers, _no_value)
            assert isinstance(said, Decrees)
            revocations = [Revocation.from_bytes(each) for each in said.revocations]
            new = self.take(revocations, [Succession.from_bytes(each) for each in said.successions])
        except TransportError as error:
            self._transport.refuse(sender, str(error))
            self._trail.note(f"node {sender}", "decree", str(error), "signature")
            return
        if new:
            self._tell(PASS_ON)

    def take(self, revocations: Sequence[Revocation], successions: Sequence[Succession]) -> bool:
        """Believe what the admission key has said; whether any of it was new. Refused where it has not said it."""
        now_s = time.time()
        new = self._trust.succeed(successions)
        if new:
            self._trail.note("admission key", "succeed", f"admission key {successions[-1].new_key.hex()}")
        for revocation in revocations:
            if self._revoke(revocation, now_s):
                new = True
                self._log.warning("revoked", number=revocation.number, why=revocation.why)
                self._trail.note("admission key", "revoke", f"peer {id_text(revocation.peer_id)}, {revocation.number}")
        if new:
            self._changed()
        return new

    def _revoke(self, revocation: Revocation, now_s: float) -> bool:
        try:
            return self._trust.revoke(revocation, now_s)
        except StoreError as error:  # it is told again and again, until there is room for it
            self._log.error("revocation not kept, so it does not count here yet", reason=str(error))
            return False

    async def _pass_on(self) -> None:
        while True:
            told_s = time.monotonic()
            while time.monotonic() - told_s < TELL_EVERY_S:
                await asyncio.sleep(LOOK_EVERY_S)
                if self._folder is not None and self._look(self._folder):
                    self._tell(PASS_ON)
            self._tell(1)

    def _look(self, folder: NetworkFolder) -> bool:
        try:
            with folder.authority() as authority:
                revocations, successions = authority.in_force(time.time()), tuple(authority.lineage.successions)
            return self.take(revocations, successions)
        except StarlingError as error:
            self._log.warning("the network's folder cannot be read", reason=str(error))
            return False

    def _tell(self, most: int) -> None:
        decrees = Decrees(
            revocations=tuple(each.to_bytes() for each in self._trust.revocations),
            successions=tuple(each.to_bytes() for each in self._trust.successions),
        )
        if not (decrees.revocations or decrees.successions):
            return
        peers, encoded = self._peers(), codec.encode(decrees, _no_buffer)
        for position in self._rng.permutation(len(peers))[:most]:
            self._transport.post(peers[int(position)], encoded)


def _no_buffer(ref: Ref) -> memoryview:
    raise AssertionError(f"decrees carry no {ref}")


def _no_value(buffer: memoryview, spec: object) -> Ref:
    raise AssertionError("decrees carry no values")
