"""Starling: decentralized learning with real networked nodes, and the same code under a virtual clock.

What a protocol author needs is here; see ``protocols/README.md``.
"""

from node.arithmetic import scale, shift
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
from node.op import Op, Ref, Spec, op
from node.private import LEAST_SENDERS, ShownKey
from node.protocol import Protocol, on

__all__ = [
    "LEAST_SENDERS",
    "ConfigError",
    "Context",
    "DeadlineExceeded",
    "Future",
    "Message",
    "Mod",
    "Observer",
    "Op",
    "Protocol",
    "ProtocolError",
    "Ref",
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
