"""A queue of keys whose total size is known."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from node.caching.policy import IsPinned, Key


class Segment:
    """Keys from the oldest to the newest, each with its size in bytes."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[Key, int] = OrderedDict()
        self.size_bytes = 0
        """Of all keys together."""

    def push(self, key: Key, size_bytes: int) -> None:
        """Put a key at the newest end."""
        self._sizes[key] = size_bytes
        self.size_bytes += size_bytes

    def pop(self, key: Key) -> int:
        """Take a key out, and give its size in bytes."""
        size_bytes = self._sizes.pop(key)
        self.size_bytes -= size_bytes
        return size_bytes

    def renew(self, key: Key) -> None:
        """Move a key to the newest end."""
        self._sizes.move_to_end(key)

    def oldest(self, is_pinned: IsPinned) -> Key | None:
        """The oldest key that is not pinned; None where there is none."""
        return next((key for key in self._sizes if not is_pinned(key)), None)

    def trim(self, most_bytes: float) -> None:
        """Drop the oldest keys until the rest fits."""
        while self.size_bytes > most_bytes:
            self.pop(next(iter(self._sizes)))

    def __contains__(self, key: Key) -> bool:
        return key in self._sizes

    def __iter__(self) -> Iterator[Key]:
        return iter(self._sizes)

    def __len__(self) -> int:
        return len(self._sizes)
