"""A member's certificate ends; so it asks for the next one in time, and whenever the admission key has changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from node.daemon.belonging import Belonging
from node.daemon.introduction import Topic
from node.errors import StarlingError
from node.identity import Identity
from node.live.door import visit
from node.trust.arrival import arrive
from node.trust.certificate import Certificate, Role
from node.trust.request import Renew, Turned, Welcome, decode_answer, encode
from node.trust.token import Bootstrap

LOOK_EVERY_S = 60.0
_ANSWER_S = 10.0


class Renewal:
    """Keeps one member's certificate fresh.

    Args:
        renewed: called with a new certificate, which the trust already knows.
    """

    def __init__(self, belonging: Belonging, identity: Identity, renewed: Callable[[Certificate], None]) -> None:
        self.certificate = belonging.certificate
        """The newest."""
        self._belonging = belonging
        self._identity = identity
        self._renewed = renewed
        self._log = structlog.get_logger().bind(node=self.certificate.node)

    async def run(self) -> None:
        """Look now and then, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Renew the certificate if it is time to."""
        self._belonging.trust.forget(time.time())
        if not self._belonging.trust.should_renew(self.certificate, time.time()):
            return
        try:
            found = await self._next()
        except (StarlingError, OSError) as error:
            self._log.warning("certificate not renewed", ends_s=self.certificate.not_after_s, reason=str(error))
            return
        if found != self.certificate:
            self.certificate = found
            self._log.info("certificate renewed", serial=found.serial, ends_s=found.not_after_s)
            self._renewed(found)

    async def _next(self) -> Certificate:
        trust, folder = self._belonging.trust, self._belonging.folder
        if folder is not None:
            with folder.authority() as authority:
                found = authority.enrol(self._identity, Role.learner, time.time())
            trust.learn(found, time.time())
            return found
        bootstrap = self._belonging.bootstrap
        answer = await asyncio.to_thread(ask, self._identity, self._identity, trust.network, bootstrap)
        return arrive(trust, answer, self._identity, time.time())


def ask(old: Identity, new: Identity, network: bytes, bootstrap: Sequence[Bootstrap]) -> Welcome | Turned:
    """Ask for a member's next certificate, for its keys or for new ones; blocks.

    Raises:
        TransportError: the admitting node does not answer, or with something else.
    """
    request = bytes([Topic.ADMISSION]) + encode(Renew.by(old, new, network))
    address, curve_key = f"tcp://{bootstrap[0].address}", bootstrap[0].curve_key
    return decode_answer(visit(new, address, curve_key, lambda asked: asked(request), _ANSWER_S))
