"""Who minds a node's door: lets the admitting node's registrar decide, and has members prove that they are."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

import structlog

from node.daemon.introduction import Reception, Topic
from node.daemon.trail import Trail
from node.errors import StarlingError
from node.live.door import Knock
from node.membership.statement import Statement
from node.trust.handshake import Local
from node.trust.refusal import Reason, Refused
from node.trust.registrar import Registrar
from node.trust.session import Session

_MOST_WAITING = 256


class Doorkeeper:
    """Answers knocks, one admission at a time; the others do not wait for it.

    Args:
        local: this node's side of a handshake, as it is now.
        registrar: where this node admits others; None: it does not.
        answer: sends an answer to one who has knocked.
        met: takes in a member that has proved itself, and gives what to tell it.
        trail: where refusals are written down.
    """

    def __init__(
        self,
        local: Callable[[], Local],
        registrar: Registrar | None,
        answer: Callable[[Knock, bytes], None],
        met: Callable[[Session, Statement], bytes],
        trail: Trail,
    ) -> None:
        self._reception = Reception(local)
        self._registrar = registrar
        self._answer = answer
        self._met = met
        self._trail = trail
        self._refused: Counter[str] = Counter()
        self._admitting = asyncio.Lock()
        self._waiting: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger()

    @property
    def refused(self) -> Counter[str]:
        """How many were refused here, by reason."""
        refused = self._refused.copy()
        if self._registrar is not None:
            refused.update({reason.value: count for reason, count in self._registrar.refused.items()})
        return refused

    def on_knock(self, knock: Knock) -> None:
        """Answer, or not: to one who is refused in a handshake, silence is answer enough."""
        try:
            self._hear(knock, knock.payload[:1], knock.payload[1:])
        except Refused as refused:
            self._refused[refused.reason.value] += 1
            self._log.warning("refused at the door", address=knock.address, **_why(refused))
            self._trail.note(knock.address, "knock", refused.detail, refused.reason.value)

    def _hear(self, knock: Knock, topic: bytes, said: bytes) -> None:
        if topic == bytes([Topic.HANDSHAKE]):
            self._answer(knock, self._reception.begin(knock.connection, knock.curve_key, said))
        elif topic == bytes([Topic.PROOF]):
            session, word = self._reception.end(knock.connection, said)
            self._answer(knock, self._met(session, word))
        elif topic == bytes([Topic.ADMISSION]) and self._registrar is not None:
            self._admit(self._registrar, knock, said)
        else:
            raise Refused(Reason.MALFORMED, f"knocks about topic {topic.hex() or 'nothing'}, which is none here")

    def _admit(self, registrar: Registrar, knock: Knock, request: bytes) -> None:
        if len(self._waiting) >= _MOST_WAITING:
            raise Refused(Reason.RATE, f"{_MOST_WAITING} requests wait for admission")
        deciding = asyncio.get_running_loop().create_task(self._decide(registrar, knock, request))
        self._waiting.add(deciding)
        deciding.add_done_callback(self._waiting.discard)

    async def _decide(self, registrar: Registrar, knock: Knock, request: bytes) -> None:
        async with self._admitting:
            try:
                self._answer(
                    knock,
                    await asyncio.to_thread(registrar.answer, request, knock.curve_key, knock.address, time.time()),
                )
            except (StarlingError, OSError) as error:
                # It cannot be kept, so nobody was let in; who asks again may find the disk mended.
                self._log.error("nobody can be admitted", reason=str(error))

    async def close(self) -> None:
        """Decide what waits, and nothing more."""
        await asyncio.gather(*self._waiting, return_exceptions=True)


def _why(refused: Refused) -> dict[str, str]:
    return {"reason": refused.reason.value, "detail": refused.detail}
