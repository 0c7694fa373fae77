"""Who leads a cohort, and which of its aggregates are committed: a state machine without I/O.

The rules are those of Raft's elections (Ongaro and Ousterhout, USENIX ATC 2014; pre-vote, leases, hand-over and
membership changes of one node at a time: Ongaro, PhD thesis, Stanford 2014, chapters 3, 4, 6 and 9). In place of a log
there is one register, the cohort's newest model, as in a Paxos that proposes again and again (Lamport, 2001).

:class:`Election` takes inputs and the time, and gives actions; sockets, disks, clocks and models are the caller's::

    election = Election(me, saved, Timing(timeout_s=2.0), rng, preference=sortition("cohort-0"))
    for action in election.step(Start(), now):
        ...

Members may crash, and come back with what they kept; they do not lie. Safety (one leader a term, no committed round
lost) rests on majorities of the membership and on what was kept before it was said, never on clocks. Clocks and
preferences decide only how soon there is a leader, and how long a lease lasts.
"""

from node.election.entry import Durable, Entry, Stamp
from node.election.machine import Election
from node.election.member import Role
from node.election.preference import Preference, by_rank, rotating, score, sortition
from node.election.timing import Timing
from node.election.vocabulary import (
    Accepted,
    Action,
    Aggregated,
    Alive,
    BecomeLeader,
    Change,
    Commit,
    Fetch,
    Fetched,
    Heartbeat,
    Input,
    PeerMessage,
    Persist,
    PreVote,
    PreVoteRequest,
    Proposal,
    Received,
    Rotate,
    Send,
    SetTimer,
    Stale,
    Start,
    StepAside,
    StepDown,
    Tick,
    Unavailable,
    Vote,
    VoteRequest,
    Warn,
    Wish,
)
from node.election.wire import pack, unpack

__all__ = [
    "Accepted",
    "Action",
    "Aggregated",
    "Alive",
    "BecomeLeader",
    "Change",
    "Commit",
    "Durable",
    "Election",
    "Entry",
    "Fetch",
    "Fetched",
    "Heartbeat",
    "Input",
    "PeerMessage",
    "Persist",
    "PreVote",
    "PreVoteRequest",
    "Preference",
    "Proposal",
    "Received",
    "Role",
    "Rotate",
    "Send",
    "SetTimer",
    "Stale",
    "Stamp",
    "Start",
    "StepAside",
    "StepDown",
    "Tick",
    "Timing",
    "Unavailable",
    "Vote",
    "VoteRequest",
    "Warn",
    "Wish",
    "by_rank",
    "pack",
    "rotating",
    "score",
    "sortition",
    "unpack",
]
