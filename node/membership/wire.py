"""Messages of members as bytes."""

from __future__ import annotations

import msgspec

from node.errors import BadFrame, FrameTooLarge
from node.membership.vocabulary import EXCHANGE_BYTES, Message

MOST_BYTES = 4 * EXCHANGE_BYTES
"""No message is longer; all but answers to comparisons fit 2 kB."""

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """A message as MessagePack: an array of its kind and its fields."""
    return _encoder.encode(message)


def decode(frame: bytes) -> Message:
    """What :func:`encode` made, with every field within its bounds.

    Raises:
        FrameTooLarge: longer than any message.
        BadFrame: no member that follows this module has sent that.
    """
    if len(frame) > MOST_BYTES:
        raise FrameTooLarge(f"membership: a message of {len(frame)} bytes; allowed: {MOST_BYTES}")
    try:
        return _decoder.decode(frame)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # ValueError: a kind that is no UTF-8
        # What it quotes is the sender's, and may be anything.
        raise BadFrame(f"membership: no message: {str(error)!a}") from error
