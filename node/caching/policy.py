"""What a cache policy is told, and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from typing import TypeAlias

Key: TypeAlias = Hashable
"""What a cached thing is called: the name and version of an adapter, the layer and number of an expert."""

IsPinned: TypeAlias = Callable[[Key], bool]


class Policy(ABC):
    """Orders what is resident in a cache. It knows sizes and accesses; room and pins are the cache's.

    An access is told by :meth:`on_access`, and then by :meth:`on_hit`, or, where the key is let in, by :meth:`on_miss`,
    as many calls of :meth:`evict` as it takes to make room, and :meth:`insert`. Shares of the capacity are in bytes, so
    with entries of size 1 a policy is exactly that of its paper.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes

    def on_access(self, key: Key, size_bytes: int) -> None:  # noqa: B027
        """Somebody wants a key, resident or not."""

    def on_hit(self, key: Key) -> None:  # noqa: B027
        """The key that was accessed is resident."""

    def on_miss(self, key: Key, size_bytes: int) -> None:  # noqa: B027
        """The key that was accessed is not resident, and is about to be inserted: room is made next."""

    @abstractmethod
    def evict(self, is_pinned: IsPinned) -> Key:
        """Choose the entry that goes next, never a pinned one, and let it go. One at least must not be pinned."""

    @abstractmethod
    def insert(self, key: Key, size_bytes: int) -> None:
        """A key becomes resident; there is room for it."""

    @abstractmethod
    def remove(self, key: Key) -> None:
        """A resident key was taken out by its owner, and not for want of room."""

    @abstractmethod
    def score(self, key: Key) -> float:
        """What speaks for keeping a resident key, in the policy's own terms; more is better."""
