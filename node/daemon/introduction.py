"""Two members meet at a door: each proves who it is, the one says its word, and the other tells what it knows.

So a node that was away, or was let in a moment ago, becomes known where it calls, and hears of revocations before it
accepts anybody. What is said here is believed as everywhere: each statement for its signature.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Annotated, TypeVar

import msgspec

from node.live.door import visit
from node.live.frames import ANSWER_BYTES
from node.membership.statement import Statement
from node.trust.handshake import DEADLINE_S, Handshake, Local
from node.trust.refusal import Reason, Refused
from node.trust.revocation import Revocation
from node.trust.session import Session
from node.trust.succession import MOST, Succession

_MOST_STATEMENTS = 4_096
_Struct = TypeVar("_Struct")


class Topic(IntEnum):
    """What a knock is about: its first byte."""

    ADMISSION = 1
    HANDSHAKE = 2
    PROOF = 3


class Proven(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The last message of the handshake, and what its sender has to say about itself."""

    proof: bytes
    word: Statement


class Minutes(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a member tells one who has proved to be one."""

    revocations: Annotated[tuple[Revocation, ...], msgspec.Meta(max_length=_MOST_STATEMENTS)]
    successions: Annotated[tuple[Succession, ...], msgspec.Meta(max_length=MOST)]
    words: Annotated[tuple[Statement, ...], msgspec.Meta(max_length=_MOST_STATEMENTS)]

    def within(self, size_bytes: int = ANSWER_BYTES) -> bytes:
        """As bytes, with as many words as fit; gossip tells the others."""
        words = self.words
        while len(encoded := msgspec.msgpack.encode(msgspec.structs.replace(self, words=words))) > size_bytes and words:
            words = words[: len(words) // 2]
        return encoded


def read(data: bytes, kind: type[_Struct]) -> _Struct:
    """Read what was said at a door; Refused (malformed) for anything else."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (ValueError, RecursionError) as error:
        raise Refused(Reason.MALFORMED, f"nothing that is said at a door: {error}") from None


def introduce(
    local: Local, word: Statement, address: str, curve_key: bytes, node: int | None, timeout_s: float
) -> tuple[Session, Minutes]:
    """Call at a member's door, ``tcp://host:port``; blocks. ``node``: who ought to be there.

    Raises:
        Refused: it is somebody else, or did not believe us.
        TransportError: nobody is there, or not in time.
    """

    def talk(ask: Callable[[bytes], bytes]) -> tuple[Session, Minutes]:
        handshake = Handshake(local, os.urandom(32), curve_key, time.monotonic(), timeout_s=timeout_s)
        opening = handshake.open(time.time(), node)
        outcome = handshake.receive(ask(bytes([Topic.HANDSHAKE]) + opening), time.monotonic(), time.time())
        assert outcome.send is not None
        assert outcome.session is not None
        proven = msgspec.msgpack.encode(Proven(outcome.send, word))
        return outcome.session, read(ask(bytes([Topic.PROOF]) + proven), Minutes)

    return visit(local.identity, address, curve_key, talk, timeout_s)


class Reception:
    """The other side: those who have begun to prove who they are, by connection. In bounded memory."""

    def __init__(self, local: Callable[[], Local], most: int = 256) -> None:
        self._local = local
        self._most = most
        self._begun: dict[bytes, Handshake] = {}

    def begin(self, connection: bytes, curve_key: bytes, opening: bytes) -> bytes:
        """Somebody opens a handshake; gives our reply. Refused where it is not believed."""
        now_s = time.monotonic()
        self._begun = {who: handshake for who, handshake in self._begun.items() if handshake.deadline_s > now_s}
        if len(self._begun) >= self._most:
            raise Refused(Reason.RATE, f"{self._most} handshakes have begun and not ended")
        handshake = Handshake(self._local(), os.urandom(32), curve_key, now_s, timeout_s=DEADLINE_S)
        outcome = handshake.receive(opening, now_s, time.time())
        assert outcome.send is not None
        self._begun[connection] = handshake
        return outcome.send

    def end(self, connection: bytes, proven: bytes) -> tuple[Session, Statement]:
        """Somebody proves itself; gives who it is and what it says of itself. Refused where it does not."""
        handshake = self._begun.pop(connection, None)
        if handshake is None:
            raise Refused(Reason.ORDER, "a proof without a handshake that would have begun")
        said = read(proven, Proven)
        outcome = handshake.receive(said.proof, time.monotonic(), time.time())
        if outcome.session is None:
            raise Refused(Reason.ORDER, "a second opening where a proof was to come")
        return outcome.session, said.word


def minutes(revocations: Sequence[Revocation], successions: Sequence[Succession], words: Sequence[Statement]) -> bytes:
    """What to answer to one who has proved to be a member."""
    return Minutes(tuple(revocations), tuple(successions), tuple(words)).within()
