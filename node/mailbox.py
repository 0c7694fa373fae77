"""Where a node's messages wait to be collected: a state machine without I/O.

A wait is over at once, in one wake-up, when everybody it waits for has been heard, when a quorum has (and its grace has
passed), at its deadline, or when those who are missing are known to be gone, or to be further on already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from node.clock import Clock, Priority
from node.errors import ProtocolError, Unreachable
from node.message import Message, Slot

_MOST_UNCLAIMED = 256
"""Slots that one sender may open before anybody collects them: rounds that it may be ahead of us."""

_PASSED = 2
"""Rounds that a sender is ahead when a message is not waited for any longer where it is not needed. Not one: links keep
no strict order (a small message overtakes a large one, jitter does anything), but hardly is one late by two rounds."""


def describe(slot: Slot) -> str:
    """A slot in words: the wire name, then its key."""
    kind, *key = slot
    fields = " ".join(f"{field}={value}" for field, value in zip(kind.key_fields, key, strict=True))
    return f"{kind.wire_name} {fields}".rstrip()


def slot_of(kind: type[Message], key: Mapping[str, Any]) -> Slot:
    """The slot of a kind of message with these key fields. ProtocolError where they are not the kind's."""
    fields = kind.key_fields
    if len(fields) == 1 == len(key) and fields[0] in key:
        return (kind, key[fields[0]])
    if len(key) != len(fields) or any(field not in key for field in fields):
        wanted = ", ".join(f"{field}=" for field in fields) or "no key"
        raise ProtocolError(f"collect({kind.__name__}) takes {wanted}; got {sorted(key) or 'none'}")
    return (kind, *[key[field] for field in fields])


def _is_past(slot: Slot, other: Slot) -> bool:
    """Whether a slot is of the same kind and two rounds later, or more; of slots whose keys begin with a number."""
    return slot[0] is other[0] and len(slot) > 1 and isinstance(slot[1], int) and slot[1] - other[1] >= _PASSED


class Box:
    """What has come for one slot, and the one who waits for it."""

    __slots__ = (
        "awaited",
        "each",
        "frm",
        "future",
        "gone",
        "grace_s",
        "messages",
        "opener",
        "quorum",
        "since_s",
        "slot",
        "strict",
    )

    def __init__(self, slot: Slot, opener: int) -> None:
        self.slot = slot
        self.opener = opener
        self.messages: dict[int, Any] = {}
        self.future: asyncio.Future[dict[int, Any]] | None = None
        """Set while somebody waits; the rest says for what."""
        self.frm: Sequence[int] | None = None
        self.quorum: int | None = None
        self.grace_s = 0.0
        self.each: Callable[[int, Any], Any] | None = None
        """Makes of a message that counts what is kept of it."""
        self.since_s = 0.0
        self.strict = False
        self.gone: Sequence[int] = ()
        """Peers of ``frm`` that are not awaited any longer; what was on its way from them still counts."""
        self.awaited = -1
        """Peers of ``frm`` that may still be heard; without ``frm`` nobody knows, and it falls from -1."""

    def heard(self) -> int:
        """How many of those who are waited for have been heard."""
        return len(self.messages) if self.frm is None else sum(peer in self.messages for peer in self.frm)

    def take(self, sender: int, message: Message) -> None:
        """Keep a message, or what ``each`` makes of it: then only the first of a sender, and of those awaited."""
        if self.each is None or self.future is None:
            self.messages[sender] = message
        elif sender not in self.messages and (self.frm is None or sender in self.frm):
            self.messages[sender] = self.each(sender, message)

    def empty(self) -> dict[int, Any]:
        """Hand over what was heard, sorted by peer: a timer that still holds the box must keep no model alive."""
        messages, self.messages = self.messages, {}
        if self.frm is None:
            return dict(sorted(messages.items()))
        return {peer: messages[peer] for peer in self.frm if peer in messages}


class Mailbox:
    """One node's undelivered messages and open waits."""

    __slots__ = ("_boxes", "_clock", "_closed", "_excused", "_lenient", "_newest", "_opened", "late", "owner")

    def __init__(self, owner: int, clock: Clock) -> None:
        self.owner = owner
        self.late = 0
        """Messages dropped: their key had been collected already, or their sender had too many unclaimed ones."""
        self._clock = clock
        self._boxes: dict[Slot, Box] = {}
        self._newest: Box | None = None
        """The box opened last, where it is still open: most messages are for it, and finding it costs no hashing."""
        self._opened: dict[int, int] = {}
        """How many boxes each sender has opened that nobody has collected."""
        self._closed: dict[type[Message], tuple[Any, ...]] = {}
        self._lenient: dict[Slot, Box] = {}
        """The waits for certain peers that can do without them."""
        self._excused: dict[tuple[type[Message], int], tuple[Any, ...]] = {}
        """The first key of a kind that a peer has something to say of, where it has left out others."""

    def put(self, sender: int, message: Message) -> None:
        """Take in a message; may end a wait. A newer one of the same sender and slot takes the older one's place."""
        box = self._newest
        if box is None or box.slot != message.slot:
            box = self._boxes.get(message.slot) or self._open(message.slot, sender)
            if box is None:
                self.late += 1
                return
        messages = box.messages
        if box.future is None or sender in messages or box.future.cancelled():
            box.take(sender, message)
            if self._lenient:
                self._pass_by(sender, message.slot)
            return
        box.take(sender, message)
        if box.frm is None or sender in box.frm:
            if sender not in box.gone:
                box.awaited -= 1
            if box.awaited == 0:
                self._end(box, box.future)
            elif box.quorum is not None and box.heard() >= box.quorum:
                self._satisfied(box)

    def _open(self, slot: Slot, opener: int) -> Box | None:
        """A new box; None where the slot has been collected already, or where its opener has too many open."""
        closed = self._closed.get(slot[0])
        try:
            if closed is not None and slot[1:] <= closed:
                return None
        except TypeError as error:
            raise ProtocolError(f"{slot[0].__name__}: keys of one kind cannot be ordered: {error}") from error
        opened = self._opened.get(opener, 0)
        if opened >= _MOST_UNCLAIMED and opener != self.owner:
            return None
        self._opened[opener] = opened + 1
        box = self._newest = self._boxes[slot] = Box(slot, opener)
        return box

    def collect(
        self,
        slot: Slot,
        frm: Sequence[int] | None,
        lost: Collection[int],
        *,
        timeout_s: float | None,
        quorum: int | None,
        grace_s: float,
        each: Callable[[int, Any], Any] | None = None,
    ) -> Awaitable[dict[int, Any]] | dict[int, Any]:
        """Begin a wait: the result where it is over already, otherwise an awaitable for it."""
        box = self._boxes.get(slot) or self._open(slot, self.owner)
        if box is not None and box.future is not None and box.future.cancelled():
            box = self._anew(box)
        if box is None or box.future is not None:
            why = "again" if box is None else "twice at once"
            raise ProtocolError(f"node {self.owner} collects {describe(slot)} {why}; a key is collected once, rising")
        if frm is not None:
            frm = [peer for peer in sorted(set(frm)) if peer in box.messages or not self._is_excused(peer, slot)]
        box.frm, box.quorum, box.grace_s, box.each = frm, quorum, grace_s, each
        if each is not None:
            heard = sorted(box.messages) if frm is None else [peer for peer in frm if peer in box.messages]
            box.messages = {peer: each(peer, box.messages[peer]) for peer in heard}
        box.strict = quorum is None and timeout_s is None
        if not (box.strict or frm is None or len(self._boxes) == 1 or box.messages.keys() >= set(frm)):
            lost = {*lost, *self.passed(slot)}
        box.awaited = -1 if frm is None else self._missing(box, frm, lost)
        enough = quorum is not None and box.heard() >= quorum
        if box.awaited == 0 or (enough and not grace_s):
            self._close(slot)
            return box.empty()
        box.since_s = self._clock.time()
        box.future = self._clock.create_future()
        if frm is not None and not box.strict:
            self._lenient[slot] = box
        if timeout_s is not None:
            self._clock.post(timeout_s, self._finish, box, Priority.TIMER)
        if enough:
            self._clock.post(grace_s, self._finish, box, Priority.TIMER)
        return box.future

    def _anew(self, box: Box) -> Box:
        """A box for the next wait, where whoever waited has given up; timers of the old one find nothing to end."""
        new = self._boxes[box.slot] = Box(box.slot, box.opener)
        new.messages = box.messages
        self._newest = new if self._newest is box else self._newest
        return new

    def _missing(self, box: Box, frm: Sequence[int], lost: Collection[int]) -> int:
        """How many of ``frm`` may still come."""
        if not box.messages and not lost:
            return len(frm)
        missing = [peer for peer in frm if peer not in box.messages]
        if not lost:
            return len(missing)
        gone = [peer for peer in missing if peer in lost]
        if gone and box.strict:
            raise self._unreachable(box, gone[0])
        box.gone = gone
        return len(missing) - len(gone)

    def _satisfied(self, box: Box) -> None:
        if box.grace_s:
            self._clock.post(box.grace_s, self._finish, box, Priority.TIMER)
        else:
            self._finish(box)

    def _finish(self, box: Box) -> None:
        if self._boxes.get(box.slot) is not box or box.future is None or box.future.cancelled():
            return
        self._end(box, box.future)

    def _end(self, box: Box, future: asyncio.Future[dict[int, Any]]) -> None:
        self._close(box.slot)
        box.future = None
        future.set_result(box.empty())

    def _close(self, slot: Slot) -> None:
        box = self._boxes.pop(slot)
        self._lenient.pop(slot, None)
        if box is self._newest:
            self._newest = None
        if self._opened[box.opener] == 1:
            del self._opened[box.opener]
        else:
            self._opened[box.opener] -= 1
        if len(slot) > 1:
            self._closed[slot[0]] = slot[1:]

    def lose(self, peer: int) -> None:
        """A peer is gone: no wait waits for it any longer; one that needs it fails."""
        for box in self._waiting():
            if box.frm is None or peer not in box.frm or peer in box.messages or peer in box.gone:
                continue
            if box.strict:
                self._close(box.slot)
                if box.future is not None and not box.future.done():
                    box.future.set_exception(self._unreachable(box, peer))
                continue
            self._forgo(box, peer)

    def _forgo(self, box: Box, peer: int) -> None:
        """Wait no longer for a peer that was missing."""
        box.gone = (*box.gone, peer)
        box.awaited -= 1
        if box.awaited == 0:
            self._finish(box)

    def _pass_by(self, sender: int, slot: Slot) -> None:
        """Somebody has said something that nobody waits for: perhaps it is past what is waited for."""
        for waited, box in list(self._lenient.items()):
            missing = sender in (box.frm or ()) and sender not in box.messages and sender not in box.gone
            if missing and _is_past(slot, waited):
                self._forgo(box, sender)

    def passed(self, slot: Slot) -> tuple[int, ...]:
        """Who has sent messages of this kind that are two rounds later, sorted: one of this is hardly still to come."""
        later = [box.messages for other, box in self._boxes.items() if _is_past(other, slot)]
        return tuple(sorted({peer for messages in later for peer in messages}))

    def excuse(self, peer: int, slot: Slot) -> None:
        """A peer says nothing of this kind before this key: no wait is for it, not even where all are needed."""
        self._excused[slot[0], peer] = slot[1:]
        for box in self._waiting():
            if peer in (box.frm or ()) and peer not in box.messages and self._is_excused(peer, box.slot):
                box.frm = [other for other in box.frm or () if other != peer]
                if peer not in box.gone:
                    box.awaited -= 1
                if box.awaited == 0:
                    self._finish(box)

    def _is_excused(self, peer: int, slot: Slot) -> bool:
        first = self._excused.get((slot[0], peer)) if self._excused else None
        return first is not None and slot[1:] < first

    def forgo(self, slot: Slot) -> None:
        """Nothing up to this key is collected any more: what is there for it is dropped, and what comes will be."""
        kind, key = slot[0], slot[1:]
        for old in [other for other in self._boxes if other[0] is kind and other[1:] <= key]:
            if self._boxes[old].future is None:
                self.late += len(self._boxes[old].messages)
                self._close(old)
        if key:
            self._closed[kind] = max(key, self._closed.get(kind, key))

    def _waiting(self) -> list[Box]:
        return [box for box in self._boxes.values() if box.future is not None and not box.future.cancelled()]

    def _unreachable(self, box: Box, peer: int) -> Unreachable:
        return Unreachable(
            f"node {self.owner} needs {describe(box.slot)} from node {peer}, which is gone; "
            "give the protocol a deadline to go on without those who are missing"
        )

    def stories(self) -> Iterator[str]:
        """One line for each open wait: what for, from whom, since when."""
        for box in self._waiting():
            missing = "" if box.frm is None else f" from {[peer for peer in box.frm if peer not in box.messages]}"
            yield (
                f"node {self.owner} waits for {describe(box.slot)}{missing} since {box.since_s:g} s, "
                f"has heard {box.heard()}"
            )
