"""Who is there: membership and failure detection, as state machines without I/O.

:class:`Swim` knows all members. :class:`Partial` knows a few (:class:`HyParView`), in networks too large for that, and
reaches all others through those few (:class:`Plumtree`). A machine takes inputs and the time, and gives actions;
sockets, disks, clocks and keys are the caller's::

    swim = Swim(me, kept_incarnation, record, PRESETS["lan"], rng, signatures)
    for action in swim.step(Start(seeds=(0,)), now):
        ...

and from then on ``Received`` with each message, ``Tick`` when the timer that was set goes off, and ``Lag`` where the
caller's event loop has been late. Members are numbered, and their links authenticated, by the caller. What is said
about members is signed by its author: an incarnation by its owner, an accusation by its accuser (``statement.py``).

Members may crash, hang, run late and lose messages. One that lies can have others called dead until they object, and
its signature tells that it was it; it cannot speak for them.
"""

from node.membership.hyparview import HyParView
from node.membership.overlay import Broadcast, Disconnect, Graft, IHave, OverlayMessage, Prune, Sizes, TreeMessage
from node.membership.partial import Partial
from node.membership.plumtree import Plumtree
from node.membership.statement import RECORD_BYTES, Signatures, State, Statement, Unsigned
from node.membership.swim import Swim
from node.membership.timing import PRESETS, Timing
from node.membership.view import Sighting
from node.membership.vocabulary import (
    PIGGYBACK_BYTES,
    Ack,
    Action,
    Changed,
    Deliver,
    Describe,
    Differences,
    Gossip,
    Input,
    Introduce,
    Lag,
    Leave,
    Lost,
    Membership,
    Message,
    Nack,
    PeerMessage,
    Persist,
    Ping,
    PingRequest,
    Received,
    Send,
    SetTimer,
    Start,
    Summary,
    Tell,
    Tick,
    Usurped,
    Warn,
)
from node.membership.wire import decode, encode

__all__ = [
    "PIGGYBACK_BYTES",
    "PRESETS",
    "RECORD_BYTES",
    "Ack",
    "Action",
    "Broadcast",
    "Changed",
    "Deliver",
    "Describe",
    "Differences",
    "Disconnect",
    "Gossip",
    "Graft",
    "HyParView",
    "IHave",
    "Input",
    "Introduce",
    "Lag",
    "Leave",
    "Lost",
    "Membership",
    "Message",
    "Nack",
    "OverlayMessage",
    "Partial",
    "PeerMessage",
    "Persist",
    "Ping",
    "PingRequest",
    "Plumtree",
    "Prune",
    "Received",
    "Send",
    "SetTimer",
    "Sighting",
    "Signatures",
    "Sizes",
    "Start",
    "State",
    "Statement",
    "Summary",
    "Swim",
    "Tell",
    "Tick",
    "Timing",
    "TreeMessage",
    "Unsigned",
    "Usurped",
    "Warn",
    "decode",
    "encode",
]
