"""Which chunk to ask of whom: the receiver of a layered object, without sockets, clock or bytes."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from node.placement.rendezvous import Node
from node.streaming.layout import Layout
from node.streaming.patience import Patience
from node.streaming.source import Link, Source


@dataclass(frozen=True)
class Get:
    """Ask a node for a chunk."""

    node: Node
    chunk: int


@dataclass(frozen=True)
class Cancel:
    """Tell a node that a chunk has come from another; it may still come."""

    node: Node
    chunk: int


@dataclass(frozen=True)
class LayerReady:
    """All chunks of a layer are here."""

    layer: int


@dataclass(frozen=True)
class Done:
    """All layers are here."""


@dataclass(frozen=True)
class Ban:
    """A node sent a wrong chunk; nothing more of this object is taken from it."""

    node: Node


@dataclass(frozen=True)
class Charge:
    """A node sent what it was never asked for."""

    node: Node


@dataclass(frozen=True)
class Starved:
    """Chunks are missing and nobody is left to ask: find another source, or give up."""


Action: TypeAlias = Get | Cancel | LayerReady | Done | Ban | Charge | Starved


class Receiver:
    """Keeps each source busy with as many chunks as the way to it holds, the first missing chunks first.

    Every call returns what to do now; :attr:`next_tick_s` is when to call :meth:`tick` if nothing else happens. The
    caller checks a chunk's digest before it tells of it: a receiver needs to know only whether it was right.
    """

    def __init__(self, layout: Layout, present: Iterable[int] = ()) -> None:
        here = set(present)
        self._layout = layout
        self._missing = {chunk for chunk in range(layout.chunks) if chunk not in here}
        self._unasked = sorted(self._missing)
        self._left = [sum(chunk in self._missing for chunk in layout.of_layer(n)) for n in range(layout.layers)]
        self._sources: dict[Node, Source] = {}
        self._repetitions: dict[int, int] = {}
        self._patience = Patience()
        self._is_starved = False

    @property
    def is_done(self) -> bool:
        """Whether nothing is missing."""
        return not self._missing

    @property
    def next_tick_s(self) -> float:
        """When the first chunk is late; infinite while nothing is expected."""
        dues = (self._due_s(chunk) for source in self._sources.values() for chunk in source.asked_s)
        return min(dues, default=math.inf)

    def begin(self, links: Iterable[Link], now_s: float) -> list[Action]:
        """Start with these sources; layers that are here already are ready at once."""
        ready: list[Action] = [LayerReady(layer) for layer, left in enumerate(self._left) if not left]
        for link in links:
            self._sources[link.node] = Source(link)
        return [*ready, *([Done()] if self.is_done else []), *self._ask(now_s)]

    def joined(self, link: Link, now_s: float) -> list[Action]:
        """There is one more source, or one that was lost is there again; one that was banned stays so."""
        known = self._sources.get(link.node)
        if known is None:
            self._sources[link.node] = Source(link)
        else:
            known.return_by(link)
        return self._ask(now_s)

    def lost(self, node: Node, now_s: float) -> list[Action]:
        """A source has gone, or says that it has not got the object: others are asked for what it owes."""
        if node not in self._sources:
            return []
        self._sources[node].is_here = False
        return self._asked_in_vain(self._sources[node], now_s)

    def arrived(self, node: Node, chunk: int, is_right: bool, now_s: float) -> list[Action]:
        """A chunk has come, and its bytes were those of the object or not."""
        source = self._sources.get(node)
        if source is None or not source.was_asked(chunk):
            return [Charge(node)]
        if source.is_banned:
            return []
        if not is_right:
            source.is_banned = True
            return [Ban(node), *self._asked_in_vain(source, now_s)]
        took_s = source.settle(chunk, self._layout.chunk(chunk).size_bytes, now_s)
        if took_s is not None:
            self._patience.add(took_s)
        return [*(self._take(chunk) if chunk in self._missing else []), *self._ask(now_s)]

    def tick(self, now_s: float) -> list[Action]:
        """Time has passed: chunks that are late are asked for again, elsewhere where that is possible."""
        late = sorted({chunk for source in self._sources.values() for chunk in source.asked_s})
        actions: list[Action] = []
        for chunk in late:
            if self._due_s(chunk) <= now_s:
                source = min(self._others(chunk) or self._expecting(chunk), key=lambda source: source.wait)
                self._repetitions[chunk] = self._repetitions.get(chunk, 0) + 1
                source.ask(chunk, now_s)
                actions.append(Get(source.node, chunk))
        return actions

    def _take(self, chunk: int) -> list[Action]:
        self._missing.discard(chunk)
        self._repetitions.pop(chunk, None)
        actions: list[Action] = []
        for source in self._expecting(chunk):
            source.drop(chunk)
            actions.append(Cancel(source.node, chunk))
        layer = self._layout.chunk(chunk).layer
        self._left[layer] -= 1
        if not self._left[layer]:
            actions.append(LayerReady(layer))
        if self.is_done:
            actions.append(Done())
        return actions

    def _asked_in_vain(self, source: Source, now_s: float) -> list[Action]:
        for chunk in source.drop_all():
            if not self._expecting(chunk):
                heapq.heappush(self._unasked, chunk)
        return self._ask(now_s)

    def _ask(self, now_s: float) -> list[Action]:
        was_starved, self._is_starved = self._is_starved, self._nobody_is_left()
        if self._is_starved:
            return [] if was_starved else [Starved()]
        actions: list[Action] = []
        while self._unasked:
            free = [source for source in self._sources.values() if source.has_credit(self._layout.chunk_bytes)]
            if self._unasked[0] not in self._missing:
                heapq.heappop(self._unasked)
            elif free:
                source = min(free, key=lambda source: source.wait)
                chunk = heapq.heappop(self._unasked)
                source.ask(chunk, now_s)
                actions.append(Get(source.node, chunk))
            else:
                break
        return actions

    def _nobody_is_left(self) -> bool:
        return bool(self._missing) and not any(source.is_usable for source in self._sources.values())

    def _expecting(self, chunk: int) -> list[Source]:
        return [source for source in self._sources.values() if chunk in source.asked_s]

    def _others(self, chunk: int) -> list[Source]:
        return [source for source in self._sources.values() if source.is_usable and chunk not in source.asked_s]

    def _due_s(self, chunk: int) -> float:
        expecting = self._expecting(chunk)
        expected_s = max(source.expected_s(self._layout.chunk_bytes) for source in expecting)
        elsewhere = bool(self._others(chunk))
        wait_s = self._patience.wait_s(expected_s, self._repetitions.get(chunk, 0), elsewhere)
        return max(source.asked_s[chunk] for source in expecting) + wait_s
