"""Reused memory for what arrives in chunks: touching fresh pages costs more than receiving into them."""

from __future__ import annotations

import mmap
import weakref
from collections import deque

import numpy as np

_GRAIN_BYTES = 64 << 10


class BufferPool:
    """Gives out destination buffers, and takes each back when the last view of it has gone.

    ``take`` belongs to one thread; a buffer may come back from any. Up to ``keep_bytes`` of unused memory are kept, the
    latest returned first.
    """

    def __init__(self, keep_bytes: int) -> None:
        self._keep_bytes = keep_bytes
        self._returned: deque[mmap.mmap] = deque()
        self._free: list[mmap.mmap] = []

    def take(self, size_bytes: int) -> memoryview:
        """A writable view of ``size_bytes`` bytes with any content, aligned to a page."""
        if not size_bytes:
            return memoryview(bytearray())
        raw = self._reuse(size_bytes) or mmap.mmap(-1, -(-size_bytes // _GRAIN_BYTES) * _GRAIN_BYTES)
        lease = np.frombuffer(raw, dtype=np.uint8, count=size_bytes)
        # The array lives as long as any view of it; a memoryview itself cannot be watched.
        weakref.finalize(lease, self._returned.append, raw).atexit = False
        return lease.data

    @property
    def free_bytes(self) -> int:
        """Bytes that wait to be used again."""
        self._collect()
        return sum(map(len, self._free))

    def _reuse(self, size_bytes: int) -> mmap.mmap | None:
        self._collect()
        fitting = [raw for raw in self._free if size_bytes <= len(raw) <= 2 * size_bytes + _GRAIN_BYTES]
        if not fitting:
            return None
        best = min(fitting, key=len)
        self._free = [raw for raw in self._free if raw is not best]
        return best

    def _collect(self) -> None:
        while self._returned:
            self._free.insert(0, self._returned.popleft())
        kept = 0
        for position, raw in enumerate(self._free):
            kept += len(raw)
            if kept > self._keep_bytes:
                del self._free[position:]
                break
