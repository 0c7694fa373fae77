"""What a member keeps from start to start besides its keys: how often it has begun, and who was there."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import structlog

from node import durable
from node.daemon.state import State
from node.errors import ConfigError
from node.membership.statement import Statement

RESERVED = 64
"""Incarnations that are kept in advance, so that a node whose disk is full can still object to being called gone."""

_INCARNATION, _WORDS = "incarnation", "members"


def incarnation_of(state: State) -> int:
    """The incarnation that was kept last; 0: none. ConfigError where it cannot be known."""
    path = state.folder / _INCARNATION
    try:
        return int(path.read_text(encoding="ascii"))
    except FileNotFoundError:
        return 0
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"state: {path} cannot be read: {error}; restore it, or join again in another folder"
        ) from None


class Incarnations:
    """The incarnations that a member may use: each has been on the disk before, and none is used in two lives."""

    def __init__(self, state: State) -> None:
        """ConfigError where the last one cannot be known."""
        self.last = incarnation_of(state)
        """The newest that may have been used."""
        self._state = state
        self._kept = self.last

    def use(self, incarnation: int) -> None:
        """This one is used now, and is on the disk, with RESERVED more. ConfigError where it cannot be."""
        self.last = incarnation
        if incarnation > self._kept:
            try:
                durable.replace(self._state.folder / _INCARNATION, b"%d\n" % (incarnation + RESERVED))
            except OSError as error:
                raise ConfigError(f"state: the incarnation cannot be written: {error.strerror}; make room") from None
            self._kept = incarnation + RESERVED


def remembered_words(state: State) -> list[Statement]:
    """What the members that were there had said of themselves, unchecked; empty where that is lost."""
    path = state.folder / _WORDS
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=list[Statement])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        structlog.get_logger().warning("members forgotten", file=str(path), reason=str(error))
        return []


def keep_words(state: State, words: Sequence[Statement]) -> None:
    """Keep what the members that are there say of themselves; without it they have to be found again."""
    try:
        durable.replace(state.folder / _WORDS, msgspec.msgpack.encode(words))
    except OSError as error:
        structlog.get_logger().warning("members not kept", reason=str(error))
