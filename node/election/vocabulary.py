"""What the members of a cohort say to each other, what goes into the machine, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from node.election.entry import Count, Durable, Entry, Stamp

# Messages. Each carries the term of its sender.


@dataclass(frozen=True, slots=True)
class PreVoteRequest:
    """Would you vote for me, if I stood? Asked first, so that one who cannot win raises nobody's term."""

    term: Count
    accepted: Stamp


@dataclass(frozen=True, slots=True)
class PreVote:
    """I would."""

    term: Count


@dataclass(frozen=True, slots=True)
class VoteRequest:
    """I stand for election in this term."""

    term: Count
    accepted: Stamp
    handed_over: bool
    """The last leader has stepped aside for me: you need not wait until it was silent for long enough."""


@dataclass(frozen=True, slots=True)
class Vote:
    """You have my vote, and nobody else has it in this term."""

    term: Count


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """I lead."""

    term: Count
    sent_s: float
    """When, on the leader's clock."""
    committed: Stamp


@dataclass(frozen=True, slots=True)
class Alive:
    """I follow."""

    term: Count
    sent_s: float
    """Of the heartbeat that this answers."""
    accepted: Entry


@dataclass(frozen=True, slots=True)
class Proposal:
    """Accept this entry, in place of all before it.

    Said again after each heartbeat that is answered without it, so that it is best sent without the model: who lacks
    that asks for it, once.
    """

    term: Count
    entry: Entry
    committed: Stamp


@dataclass(frozen=True, slots=True)
class Accepted:
    """I have accepted it, and keep its model."""

    term: Count
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class StepAside:
    """I do not lead any longer; stand for election now."""

    term: Count


@dataclass(frozen=True, slots=True)
class Stale:
    """What you said is from a term that is over."""

    term: Count


PeerMessage: TypeAlias = (
    PreVoteRequest | PreVote | VoteRequest | Vote | Heartbeat | Alive | Proposal | Accepted | StepAside | Stale
)

# Inputs


@dataclass(frozen=True, slots=True)
class Start:
    """The node begins, or begins again; the first input, once."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: a timer has gone off, or the caller's clock ticks. One too many is harmless."""


@dataclass(frozen=True, slots=True)
class Received:
    """A message has come; a proposal only once its model is at hand (until then, drop it: it is repeated)."""

    sender: int
    message: PeerMessage


@dataclass(frozen=True, slots=True)
class Aggregated:
    """The leader has made the next round's model, in this term of its own; to anybody else it means nothing."""

    term: int
    round: int
    digest: str


@dataclass(frozen=True, slots=True)
class Change:
    """The leader shall have a node join the cohort, or leave it."""

    node: int
    joins: bool


@dataclass(frozen=True, slots=True)
class Rotate:
    """The leader shall end its epoch and step aside for whom the preference then puts first."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The model that a new leader wanted is at hand."""

    digest: str


@dataclass(frozen=True, slots=True)
class Unavailable:
    """No holder gives that model."""

    digest: str


Wish: TypeAlias = Aggregated | Change | Rotate
Input: TypeAlias = Start | Tick | Received | Wish | Fetched | Unavailable

# Actions, to be carried out in their order


@dataclass(frozen=True, slots=True)
class Persist:
    """Keep this, and the models that it names, and only then go on."""

    state: Durable


@dataclass(frozen=True, slots=True)
class Send:
    """Send to some peers."""

    to: tuple[int, ...]
    message: PeerMessage


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Give a :class:`Tick` at this time of the caller's clock; takes the place of every timer before."""

    at_s: float


@dataclass(frozen=True, slots=True)
class BecomeLeader:
    """This node leads, and the cohort has accepted its beginning: go on after this entry, in this term."""

    term: int
    entry: Entry


@dataclass(frozen=True, slots=True)
class StepDown:
    """This node does not lead any longer: send nothing more in this term."""

    term: int


@dataclass(frozen=True, slots=True)
class Commit:
    """This entry is the cohort's, whoever leads it next."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get this model from one of those who hold it, then input :class:`Fetched` or :class:`Unavailable`."""

    digest: str
    holders: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Warn:
    """One line for the log."""

    line: str


Action: TypeAlias = Persist | Send | SetTimer | BecomeLeader | StepDown | Commit | Fetch | Warn
