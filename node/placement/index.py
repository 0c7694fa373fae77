"""Who holds what, and what adapters there are: as far as this node has heard."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar

import msgspec

from node.errors import BadFrame
from node.placement.rendezvous import Node
from node.placement.scuttlebutt import MOST_ENTRIES, Change, Delta, Digest, Entry, Known, Scuttlebutt
from node.placement.silence import Silence

PERIOD_S = 30.0
"""Between two announcements of one node."""
CLOCK_SKEW_S = 5.0
"""By how much the clocks of two nodes may differ."""

_BEAT, _HOLD, _CARD = _TOPICS = "beat", "hold", "card"
_ALL = ""
"""The name of what is said once for a node."""
_T = TypeVar("_T")
_Said: TypeAlias = dict[str, dict[Node, _T]]
"""By name, then by who says it."""
_Text = Annotated[str, msgspec.Meta(max_length=256)]
_Number = Annotated[float, msgspec.Meta(ge=0, le=1e18)]


class Card(msgspec.Struct, frozen=True, array_like=True):
    """What an adapter is, for those who select one."""

    name: _Text
    version: _Text
    """The id of the object that the name points at."""
    rank: Annotated[int, msgspec.Meta(ge=0)]
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]
    base_fingerprint: _Text
    profile: Annotated[bytes, msgspec.Meta(max_length=3072)]
    """A unit vector in half precision, little-endian; empty where there is none."""
    published_s: _Number
    """When the name was made to point at this version; the latest counts."""


class Announcement(NamedTuple):
    """A node says that it holds a key, and how it could send it."""

    key: str
    version: str
    node: Node
    load: float
    bandwidth_bps: float
    expires_at_s: float


class _Beat(msgspec.Struct, frozen=True, array_like=True):
    load: _Number
    bandwidth_bps: _Number
    expires_at_s: _Number


class Index:
    """What the nodes announce of themselves, spread by anti-entropy; it tolerates being out of date.

    Each node announces what it holds once, and that it is there in every period: what it holds counts until it has
    missed two. To spread: send :meth:`digest` to somebody now and then, who answers with :meth:`newer`, which goes to
    :meth:`merge`. Holders may be wrong: who does not answer is left out for a while (:meth:`unanswered`). Members are
    believed about each other, but what is fetched is checked by its digests, so that lies cost time only.
    """

    def __init__(
        self, me: Node, generation: int, period_s: float = PERIOD_S, clock_skew_s: float = CLOCK_SKEW_S
    ) -> None:
        self._me = me
        self._lifetime_s = 2 * period_s + clock_skew_s
        self._latest_s = self._lifetime_s + clock_skew_s
        self._gossip = Scuttlebutt(me, generation)
        self._beats: _Said[_Beat] = {}
        self._holders: _Said[str] = {}
        self._cards: _Said[Card] = {}
        self._said: dict[str, _Said[Any]] = {_BEAT: self._beats, _HOLD: self._holders, _CARD: self._cards}
        self._silence = Silence()

    # What this node says

    def beat(self, load: float, bandwidth_bps: float, now_s: float) -> None:
        """This node is there, and has so much to do; to be said once a period."""
        beat = _Beat(load, bandwidth_bps, now_s + self._lifetime_s)
        self._say(_BEAT, msgspec.msgpack.encode(beat))

    def hold(self, key: str, version: str = "") -> None:
        """This node holds a key."""
        self._say(f"{_HOLD}/{key}", version.encode())

    def release(self, key: str) -> None:
        """This node no longer holds a key."""
        self._say(f"{_HOLD}/{key}", None)

    def publish(self, card: Card) -> None:
        """This node has an adapter of this name to offer."""
        self._say(f"{_CARD}/{card.name}", msgspec.msgpack.encode(card))

    def withdraw(self, name: str) -> None:
        """This node no longer offers an adapter; those who offer it still keep it in the index."""
        self._say(f"{_CARD}/{name}", None)

    # What is said to others, and by them

    def digest(self) -> dict[Node, Known]:
        """What is known here, for somebody to tell what is newer."""
        return self._gossip.digest()

    def newer(self, digest: Digest) -> list[Delta]:
        """What somebody with this digest has not heard."""
        self._gossip.object(digest)
        return self._gossip.newer(digest)

    def merge(self, deltas: Iterable[Delta]) -> bool:
        """Learn from somebody; whether the answer was cut, so that asking again at once brings more.

        BadFrame, and nothing learnt, where something in it means nothing.
        """
        deltas = list(deltas)
        for delta in deltas:
            for entry in delta.entries:
                _check(entry)
        for change in self._gossip.merge(deltas):
            self._apply(change)
        return sum(len(delta.entries) for delta in deltas) >= MOST_ENTRIES

    def tick(self, now_s: float) -> list[Node]:
        """Forget the nodes whose time is over; which they were."""
        gone = [node for node in self.digest() if node != self._me and not self._is_alive(node, now_s)]
        for node in gone:
            self.forget(node)
        return gone

    def forget(self, node: Node) -> None:
        """A node is known to be no member any more."""
        for change in self._gossip.forget(node):
            self._apply(change)
        self._silence.answered(node)

    def unanswered(self, node: Node, now_s: float) -> None:
        """A holder did not answer; it is left out, twice as long with each time in a row."""
        self._silence.unanswered(node, now_s)

    def answered(self, node: Node) -> None:
        """A holder did answer."""
        self._silence.answered(node)

    # What is known

    def holders(self, key: str, now_s: float) -> list[Announcement]:
        """Who says that it holds a key, by number, without those who did not answer lately."""
        return [
            self._announcement(key, version, node)
            for node, version in sorted(self._holders.get(key, {}).items())
            if self._is_alive(node, now_s) and not self._silence.is_out(node, now_s)
        ]

    def holdings(self, now_s: float) -> dict[str, list[Node]]:
        """Every key that somebody holds, with all its holders by number: for repair, so with those who are silent."""
        alive = {
            key: sorted(node for node in holders if self._is_alive(node, now_s))
            for key, holders in sorted(self._holders.items())
        }
        return {key: nodes for key, nodes in alive.items() if nodes}

    def cards(self, now_s: float) -> list[Card]:
        """The adapters there are, by name: of several cards for one, the one that was published last."""
        found = []
        for _, offers in sorted(self._cards.items()):
            alive = [card for node, card in offers.items() if self._is_alive(node, now_s)]
            if alive:
                found.append(max(alive, key=lambda card: (card.published_s, card.version)))
        return found

    def _announcement(self, key: str, version: str, node: Node) -> Announcement:
        beat = self._beats[_ALL][node]
        return Announcement(key, version, node, beat.load, beat.bandwidth_bps, beat.expires_at_s)

    def _is_alive(self, node: Node, now_s: float) -> bool:
        # Who says that it will be there for longer than anybody may has a clock that is wrong, or lies.
        beat = self._beats.get(_ALL, {}).get(node)
        return beat is not None and now_s < beat.expires_at_s <= now_s + self._latest_s

    def _say(self, key: str, value: bytes | None) -> None:
        self._gossip.put(key, value)
        self._apply(Change(self._me, key, value))

    def _apply(self, change: Change) -> None:
        topic, _, name = change.key.partition("/")
        by_node = self._said[topic].setdefault(name, {})
        if change.value is None:
            by_node.pop(change.writer, None)
        else:
            by_node[change.writer] = _read(change.key, change.value)
        if not by_node:
            del self._said[topic][name]


_BEATS = msgspec.msgpack.Decoder(_Beat)
_CARDS = msgspec.msgpack.Decoder(Card)


def _check(entry: Entry) -> None:
    topic, _, name = entry.key.partition("/")
    if topic not in _TOPICS or (topic == _BEAT) != (name == _ALL):
        raise BadFrame(f"{entry.key!r} is not announced: only {', '.join(_TOPICS)} are")
    if entry.value is not None:
        _read(entry.key, entry.value)


def _read(key: str, value: bytes) -> _Beat | Card | str:
    topic, _, name = key.partition("/")
    try:
        if topic == _BEAT:
            return _BEATS.decode(value)
        if topic == _HOLD:
            return value.decode()
        card = _CARDS.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadFrame(f"{key!r} is not announced like that: {error}") from error
    if card.name != name:
        raise BadFrame(f"{key!r} is not announced like that: it is the card of {card.name!r}")
    return card
