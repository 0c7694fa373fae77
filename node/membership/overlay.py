"""What nodes with partial views say to each other, and how large their views are."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, TypeAlias

import msgspec

from node.errors import ConfigError
from node.membership.statement import Statement

CONTENT_BYTES = 2**16
"""No broadcast is longer."""
MOST_HOPS = 255
"""Of a broadcast that are counted."""

Hops = Annotated[int, msgspec.Meta(ge=0, le=16)]
Words = Annotated[tuple[Statement, ...], msgspec.Meta(max_length=32)]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of views, walks and shuffles; the defaults are for 10,000 nodes.

    After the HyParView paper's evaluation (unverified but for the two view sizes).

    Raises:
        ConfigError: a value is out of its range.
    """

    active: int = 5
    """Peers to talk to: the fan-out of a broadcast, and one."""
    passive: int = 30
    """Peers to fall back on."""
    active_walk: int = 6
    """Hops of a newcomer's announcement, which ends in somebody's active view."""
    passive_walk: int = 3
    """Hops that are left when it goes into a passive view."""
    shuffled_active: int = 3
    shuffled_passive: int = 4
    shuffle_interval_s: float = 20.0
    """At which an idle node sends less than 1 kB/s."""
    answer_timeout_s: float = 2.0
    """Who has not answered a request to be neighbours by then is forgotten."""
    forget_s: float = 86_400.0
    """A passive peer of which nothing was heard for so long is forgotten."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 < getattr(self, field.name) < float("inf"):
                raise ConfigError(
                    f"{field.name}: {getattr(self, field.name)} is out of range; allowed: above 0, finite"
                )
        if not self.passive_walk < self.active_walk <= 16:
            raise ConfigError(
                f"passive_walk: {self.passive_walk} of {self.active_walk} hops; allowed: below active_walk, that to 16"
            )
        if self.shuffled_active + self.shuffled_passive > 31:
            raise ConfigError("shuffled_passive: more than 31 peers do not fit a shuffle with shuffled_active")

    @property
    def most_alike(self) -> int:
        """Passive peers from one introducer, or of one group, at most: who has many addresses gets no whole view."""
        return max(1, self.passive // 4)


class Join(msgspec.Struct, frozen=True, array_like=True, tag="join"):
    """Let me in."""

    word: Statement


class ForwardJoin(msgspec.Struct, frozen=True, array_like=True, tag="forward-join"):
    """Somebody is new; a random walk."""

    word: Statement
    hops: Hops
    """Left to go."""


class Neighbour(msgspec.Struct, frozen=True, array_like=True, tag="neighbour"):
    """Be my neighbour; urgent: I have none, or was told to come."""

    word: Statement
    is_urgent: bool


class NeighbourAnswer(msgspec.Struct, frozen=True, array_like=True, tag="neighbour-answer"):
    """Whether I am."""

    word: Statement
    is_accepted: bool


class Disconnect(msgspec.Struct, frozen=True, array_like=True, tag="disconnect"):
    """I am not your neighbour any longer; with a farewell: nobody's."""

    farewell: Statement | None = None


class Shuffle(msgspec.Struct, frozen=True, array_like=True, tag="shuffle"):
    """Some that I know, for some that you know; a random walk."""

    word: Statement
    """Of who began it."""
    hops: Hops
    words: Words


class ShuffleAnswer(msgspec.Struct, frozen=True, array_like=True, tag="shuffle-answer"):
    """Some that I know in return."""

    words: Words


OverlayMessage: TypeAlias = Join | ForwardJoin | Neighbour | NeighbourAnswer | Disconnect | Shuffle | ShuffleAnswer


# Broadcasts

Id = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Hop = Annotated[int, msgspec.Meta(ge=0, le=MOST_HOPS)]


class Broadcast(msgspec.Struct, frozen=True, array_like=True, tag="broadcast"):
    """Something for everybody, over a link of the tree."""

    content: Annotated[bytes, msgspec.Meta(max_length=CONTENT_BYTES)]
    hop: Hop
    """Links that it has come over."""


class IHave(msgspec.Struct, frozen=True, array_like=True, tag="i-have"):
    """I have that; it should come to you along the tree."""

    id: Id


class Graft(msgspec.Struct, frozen=True, array_like=True, tag="graft"):
    """It did not: send it, and have our link in the tree from now on."""

    id: Id


class Prune(msgspec.Struct, frozen=True, array_like=True, tag="prune"):
    """I had that already: our link is not of the tree."""


TreeMessage: TypeAlias = Broadcast | IHave | Graft | Prune
