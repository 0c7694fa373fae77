"""What members say to each other, what goes into the machine, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias
from typing import Protocol as Interface

import msgspec

from node.membership.overlay import OverlayMessage, TreeMessage
from node.membership.statement import Incarnation, Peer, State, Statement
from node.membership.view import BUCKETS, Sighting

PIGGYBACK_BYTES = 1400
"""Of statements by the way, in one message: it fits a datagram of most networks."""
EXCHANGE_BYTES = 2**16
"""Of statements in one answer to a comparison; more takes more answers."""
MOST_STATEMENTS = 4096
"""In one answer, however short they are."""

SequenceNumber = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
Milliseconds = Annotated[int, msgspec.Meta(ge=0, lt=2**31)]
Updates = Annotated[tuple[Statement, ...], msgspec.Meta(max_length=64)]

# Messages


class Ping(msgspec.Struct, frozen=True, array_like=True, tag="ping"):
    """Are you there? What is held against the receiver comes first in the updates, so that it can object at once."""

    seq: SequenceNumber
    updates: Updates = ()


class Ack(msgspec.Struct, frozen=True, array_like=True, tag="ack"):
    """I am, and so late do my timers run; or, from a helper: it is."""

    seq: SequenceNumber
    lag_ms: Milliseconds
    updates: Updates = ()


class PingRequest(msgspec.Struct, frozen=True, array_like=True, tag="ping-request"):
    """Ask another for me; report either way before I conclude. It carries no news: a lossy network has many of them."""

    seq: SequenceNumber
    target: Peer
    within_ms: Milliseconds


class Nack(msgspec.Struct, frozen=True, array_like=True, tag="nack"):
    """I have asked, and have heard nothing yet; but you hear me."""

    seq: SequenceNumber


class Gossip(msgspec.Struct, frozen=True, array_like=True, tag="gossip"):
    """News, and nothing else."""

    updates: Updates


class Summary(msgspec.Struct, frozen=True, array_like=True, tag="summary"):
    """What I know, in hashes; tell me where you know something else."""

    hashes: Annotated[
        tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(min_length=BUCKETS, max_length=BUCKETS)
    ]
    updates: Updates = ()


class Differences(msgspec.Struct, frozen=True, array_like=True, tag="differences"):
    """All I know of the peers in some buckets."""

    buckets: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0, lt=BUCKETS)], ...], msgspec.Meta(max_length=BUCKETS)]
    statements: Annotated[tuple[Statement, ...], msgspec.Meta(max_length=MOST_STATEMENTS)]
    wants_answer: bool
    """Whether the receiver is to tell what it knows beyond this."""
    has_more: bool
    """Whether there are more buckets to compare than fitted."""


PeerMessage: TypeAlias = Ping | Ack | PingRequest | Nack | Gossip | Summary | Differences
"""Of full membership."""
Message: TypeAlias = PeerMessage | OverlayMessage | TreeMessage
"""Of full membership, of partial views and of broadcasts."""

# Inputs


@dataclass(frozen=True, slots=True)
class Start:
    """The node begins, or begins again; the first input, once."""

    seeds: tuple[int, ...] = ()
    """Peers that can be reached without knowing anybody; asked for the others, and again while nobody is there."""
    remembered: tuple[Statement, ...] = ()
    """What it knew when it went down; it need not be true any longer."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: a timer has gone off. One too many is harmless; one too late is noticed, and counts as lag."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message has come from a peer whose link is authenticated; strangers are the caller's to keep out."""

    sender: int
    message: Message


@dataclass(frozen=True, slots=True)
class Lag:
    """The caller's event loop has run something so much later than scheduled."""

    lag_s: float


@dataclass(frozen=True, slots=True)
class Lost:
    """The link to a peer is broken, or could not be made. Partial views rest on it; full membership probes instead."""

    peer: int


@dataclass(frozen=True, slots=True)
class Describe:
    """From now on this node's record is another (a new address, say)."""

    record: bytes


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell everybody something short, 64 KiB at most (partial views only)."""

    content: bytes


@dataclass(frozen=True, slots=True)
class Leave:
    """The node goes on purpose; the last input."""


Input: TypeAlias = Start | Tick | Received | Lag | Lost | Describe | Tell | Leave

# Actions, to be carried out in their order


@dataclass(frozen=True, slots=True)
class Persist:
    """Keep this incarnation, and only then go on: a node must never use one twice."""

    incarnation: Incarnation


@dataclass(frozen=True, slots=True)
class Send:
    """Send to some peers, without waiting; it may get lost."""

    to: tuple[int, ...]
    message: Message


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Give a :class:`Tick` at this time of the caller's clock; takes the place of every timer before."""

    at_s: float


@dataclass(frozen=True, slots=True)
class Changed:
    """A peer is in another state, or in the same with a new word of its own; None: it is forgotten."""

    peer: int
    state: State | None


@dataclass(frozen=True, slots=True)
class Introduce:
    """How to reach a peer that is about to be talked to: its record (partial views only)."""

    word: Statement


@dataclass(frozen=True, slots=True)
class Deliver:
    """Somebody has told everybody something, and it is new here."""

    content: bytes
    hop: int
    """Links that it came over; 0: this node's own."""


@dataclass(frozen=True, slots=True)
class Usurped:
    """Somebody signs as this node, with an incarnation that it has not issued: its keys run twice. Log it and stop."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class Warn:
    """One line for the log."""

    line: str


Action: TypeAlias = Persist | Send | SetTimer | Changed | Introduce | Deliver | Usurped | Warn


class Membership(Interface):
    """Who is there, how sure that is, and what changes: the one face of full membership and of partial views."""

    me: int
    deadline_s: float
    """When something is due on this node's clock."""

    def step(self, event: Input, now: float) -> Sequence[Action]:
        """Take in what has happened at a time of the node's own clock, in s; gives what is to be done, in order."""
        ...

    def peers(self) -> tuple[int, ...]:
        """Those to talk to, without this node, sorted: known to be there, or only suspected."""
        ...

    def known(self) -> tuple[Sighting, ...]:
        """All that are known, whatever their state, sorted by peer; without this node."""
        ...
