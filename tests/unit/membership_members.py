"""Members in a row, whose messages a test passes on itself, and statements with signatures that can be wrong."""

import hashlib

import numpy as np

from node.membership import PRESETS, Received, Send, Start, State, Statement, Swim, Tick

LAN = PRESETS["lan"]


class Keyed:
    """Signatures of one node: a hash with the author's number, which nobody in a test forges unless it means to."""

    def __init__(self, me):
        self.me = me
        self.verified = []

    def sign(self, content):
        return hashlib.sha256(b"%d" % self.me + content).digest()

    def verify(self, statement):
        self.verified.append(statement)
        return statement.signature == hashlib.sha256(b"%d" % statement.author + statement.signed_bytes).digest()


def signed(state, peer, incarnation, author=None, record=b""):
    """A statement as its author would sign it."""
    author = peer if author is None else author
    statement = Statement(state, peer, incarnation, author, record)
    return statement._replace(signature=Keyed(author).sign(statement.signed_bytes))


def alive(peer, incarnation=1, record=b"r"):
    return signed(State.ALIVE, peer, incarnation, record=record)


def suspect(peer, author, incarnation=1):
    return signed(State.SUSPECT, peer, incarnation, author)


def dead(peer, author, incarnation=1):
    return signed(State.DEAD, peer, incarnation, author)


def left(peer, incarnation=2):
    return signed(State.LEFT, peer, incarnation)


def member(me=0, others=(), kept=0, timing=LAN, seeds=(), machine=Swim, **options):
    """A started member that remembers some others, and what it did first."""
    swim = machine(me, kept, b"r", timing, np.random.default_rng(me), Keyed(me), **options)
    remembered = tuple(alive(peer) for peer in others)
    return swim, swim.step(Start(seeds, remembered), 0.0)


def sent(actions, kind=None):
    """(receiver, message) of all that is sent."""
    return [
        (to, action.message)
        for action in actions
        if isinstance(action, Send) and (kind is None or isinstance(action.message, kind))
        for to in action.to
    ]


def of(actions, kind):
    return [action for action in actions if isinstance(action, kind)]


def tick_until(swim, kind, until_s=1000.0):
    """Let time pass, without an answer from anybody, until something of a kind is sent: (time, receiver, message)."""
    while swim.deadline_s <= until_s:
        now = swim.deadline_s
        for to, message in sent(swim.step(Tick(), now), kind):
            return now, to, message
    raise AssertionError(f"no {kind.__name__} until {until_s} s")


def pass_time(swim, until_s):
    """Let time pass without an answer; all actions."""
    actions = []
    while swim.deadline_s <= until_s:
        actions += swim.step(Tick(), swim.deadline_s)
    return actions


def tell(swim, sender, message, now):
    return swim.step(Received(sender, message), now)
