"""What two nodes say to each other about a bulk transfer: over their encrypted link, since a key is among it."""

from __future__ import annotations

from node.codec import Encoded, encode
from node.message import Message
from node.op import Ref


class Fetch(Message, name="starling/bulk/fetch/1"):
    """A node wants an object, or what it misses of it."""

    number: int
    """Of the question, for the answer to name."""
    object: str
    missing: bytes
    """A bit for each chunk; empty where the manifest is not known yet: then all."""
    ciphers: tuple[str, ...]
    """Those that it knows."""


class Grant(Message, name="starling/bulk/grant/1"):
    """It may have it: whoever dials the port and knows the key is sent the chunks, once."""

    number: int
    transfer: bytes
    key: bytes
    cipher: str
    port: int
    manifest: bytes

    def __repr__(self) -> str:
        return f"<Grant {self.number} of transfer {self.transfer.hex()}, port {self.port}>"


class Denial(Message, name="starling/bulk/denial/1"):
    """It cannot have it."""

    number: int
    reason: str
    """``missing``, ``refused``, ``busy`` (ask again later) or ``malformed``."""


TRANSFER_BYTES = 16
"""Of the name of a transfer, which nobody can guess."""


def encoded(message: Message) -> Encoded:
    """One of these on its way out."""
    return encode(message, _no_buffer)


def belonging(network: str, sender: int, receiver: int, transfer: bytes, object: str, chunks: int) -> bytes:
    """What every chunk of a transfer is sealed with, so that it fits nowhere else."""
    return f"starling/bulk/1 {network} {sender}>{receiver} {transfer.hex()} {object} {chunks}".encode()


def _no_buffer(ref: Ref) -> memoryview:
    raise AssertionError(f"a word about a transfer carries no {ref}")
