"""Messages of an election as plain values, to travel in a message of the protocol that holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args

import msgspec

from node.election.vocabulary import PeerMessage
from node.errors import ProtocolError

_KINDS: Mapping[str, type[PeerMessage]] = {kind.__name__: kind for kind in get_args(PeerMessage)}
_NAMES = {kind: tuple(field.name for field in fields(kind)) for kind in _KINDS.values()}


def pack(message: PeerMessage) -> tuple[str, tuple[Any, ...]]:
    """Kind and fields: numbers, texts, and tuples of them."""
    kind = type(message)
    return kind.__name__, tuple([getattr(message, name) for name in _NAMES[kind]])


def unpack(kind: str, values: Sequence[Any]) -> PeerMessage:
    """What :func:`pack` took apart; lists may have taken the place of tuples.

    Raises:
        ProtocolError: no member that follows this module has packed that.
    """
    if kind not in _KINDS:
        raise ProtocolError(f"election: no message is called {kind!r}; allowed: {', '.join(_KINDS)}")
    names = _NAMES[_KINDS[kind]]
    if len(values) != len(names):
        raise ProtocolError(f"election: {kind} has the fields {', '.join(names)}; got {len(values)} values")
    try:
        return msgspec.convert(dict(zip(names, values, strict=True)), _KINDS[kind])
    except msgspec.ValidationError as error:
        raise ProtocolError(f"election: {kind} is malformed: {error}") from error
