"""Starling: decentralized learning with real networked nodes, and the same code under a virtual clock.

What a protocol author needs is here; see ``protocols/README.md``.
"""

from node.arithmetic import scale, shift
from node.chunking import Chunks
from node.config import TopologySection
from node.context import Context, Future
from node.errors import (
    ConfigError,
    DeadlineExceeded,
    ProtocolError,
    StarlingError,
    TransportError,
    Unreachable,
)
from node.message import Message
from node.mods import Mod, Observer
from node.oneshot import OneShot, Sent
from node.op import Op, Ref, Spec, op
from node.private import LEAST_SENDERS, ShownKey
from node.protocol import Protocol, on
from node.row import Row
from node.summing import Gathered, Part

__all__ = [
    "LEAST_SENDERS",
    "Chunks",
    "ConfigError",
    "Context",
    "DeadlineExceeded",
    "Future",
    "Gathered",
    "Message",
    "Mod",
    "Observer",
    "OneShot",
    "Op",
    "Part",
    "Protocol",
    "ProtocolError",
    "Ref",
    "Row",
    "Sent",
    "ShownKey",
    "Spec",
    "StarlingError",
    "TopologySection",
    "TransportError",
    "Unreachable",
    "on",
    "op",
    "scale",
    "shift",
]
