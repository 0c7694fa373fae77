"""Solved values in memory, within a budget: what does not fit goes to a file and comes back bit for bit.

A budget counts the elements of tensors, from their specs: what a batch reads, what it is about to yield, and all that
is kept for later. Metrics and lone numbers always stay, and count as nothing. What goes first is what the plan reads
last (Belady, IBM Systems Journal 1966), and before that what it does not read at all, least recently used first.
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from node.errors import ComputeError, ConfigError, StoreError
from node.op import Spec, Value

_SPILLED = object()
"""In place of a value that is in the file."""
_GROWTH_BYTES = 64 << 20
"""The file grows by so much at a time,"""
_GROWTH_SLOTS = 256
"""or by so many slots, if that is less."""
_MOST_OF_DISK = 0.9
"""Share of the free space that one growth may take."""
_TRIM_SHARE = 0.5
"""Share of the budget that is made anew between two times that freed memory is given back."""
_ALIGNMENT = 64
"""Some kernels round by where a buffer starts, so that a value must not come back at another alignment."""


def size_bytes(spec: Spec) -> int:
    """What a value counts against the budget: its elements; 0 for metrics and lone numbers."""
    return spec.size_bytes if spec.shape and not spec.names else 0


class Entry:
    """One value, under one id or more."""

    __slots__ = ("holders", "next_use", "size_bytes", "slot", "spec", "used", "value")

    def __init__(self, value: Value, spec: Spec, size_bytes: int) -> None:
        self.value = value
        self.spec = spec
        self.size_bytes = size_bytes
        self.holders = 1
        self.slot: int | None = None
        """Where in the file a copy is, also after the value has come back: it need not be written twice."""
        self.next_use: float = math.inf
        self.used = 0


class Values(Mapping[int, Value]):
    """The values of a graph by id. One object under several ids is kept, and counted, once.

    Counts ``peak_resident_bytes``, ``spilled_bytes`` and ``unspilled_bytes``: written to the file, and read back.

    Args:
        budget_bytes: for all that is in memory; 0: no budget, and no file.
        folder: where the file is; empty: the system's folder for temporary files.
        to_buffer: a tensor's elements as bytes.
        from_buffer: a tensor on top of bytes.

    Raises ConfigError where there can be no file in ``folder``.
    """

    def __init__(
        self,
        budget_bytes: int = 0,
        folder: str = "",
        to_buffer: Callable[[Value], memoryview] = memoryview,
        from_buffer: Callable[[memoryview, Spec], Value] = lambda buffer, spec: buffer,
    ) -> None:
        self.budget_bytes = budget_bytes
        self.peak_resident_bytes = 0
        self.spilled_bytes = 0
        self.unspilled_bytes = 0
        self._file = SpillFile(folder) if budget_bytes else None
        self._to_buffer = to_buffer
        self._from_buffer = from_buffer
        self._entries: dict[int, Entry] = {}
        self._by_object: dict[int, Entry] = {}
        """The tensors in memory, by the identity of the object: entries keep their objects alive."""
        self._held_bytes = 0
        self._reserved_bytes = 0
        self._untrimmed_bytes = 0
        self._tick = 0

    # A mapping

    def __contains__(self, id: object) -> bool:
        return id in self._entries

    def __iter__(self) -> Iterator[int]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, id: int) -> Value:
        entry = self._entries[id]
        if entry.value is _SPILLED:
            self.admit((id,), 0)
        return entry.value

    def __delitem__(self, id: int) -> None:
        entry = self._entries.pop(id)
        entry.holders -= 1
        if entry.holders or not entry.size_bytes:
            return
        if entry.value is not _SPILLED:
            self._leave(entry)
        if entry.slot is not None and self._file is not None:
            self._file.free(entry.slot, entry.size_bytes)

    def put(self, id: int, value: Value, spec: Spec) -> None:
        """Keep a value; it takes the place of what was reserved for it, or of others."""
        entry = self._by_object.get(_identity(value))
        if entry is not None:
            entry.holders += 1
        else:
            entry = Entry(value, spec, size_bytes(spec))
            if entry.size_bytes:
                self._reserved_bytes = max(0, self._reserved_bytes - entry.size_bytes)
                self._tick += 1
                self._make_room(entry.size_bytes)
                self._enter(entry, value)
        self._entries[id] = entry

    def share(self, id: int, of: int) -> None:
        """Keep the value of one id under another one too."""
        entry = self._entries[id] = self._entries[of]
        entry.holders += 1

    def replace(self, id: int, value: Value) -> None:
        """Put another form of the same value in its place."""
        spec = self._entries[id].spec
        del self[id]
        self.put(id, value, spec)

    def spec_of(self, id: int) -> Spec:
        """The spec of a value."""
        return self._entries[id].spec

    # The budget

    @property
    def resident_bytes(self) -> int:
        """Bytes of tensors in memory, with those that the running batch is about to yield."""
        return self._held_bytes + self._reserved_bytes

    def is_resident(self, id: int) -> bool:
        """Whether a value is in memory."""
        return self._entries[id].value is not _SPILLED

    def expect(self, id: int, next_use: float) -> None:
        """Say when a value will be read next: its place in an order, infinity for not at all."""
        self._entries[id].next_use = next_use

    def admit(self, ids: Iterable[int], new_bytes: int) -> None:
        """Bring some values into memory, and reserve room beside them for what will be made of them.

        Raises:
            ConfigError: that is more than the budget.
            StoreError: the file cannot take what has to leave for it.
        """
        self._trim(new_bytes)
        self._reserved_bytes = 0
        self._tick += 1
        absent: dict[Entry, None] = {}
        for id in ids:
            entry = self._entries[id]
            entry.used = self._tick
            if entry.value is _SPILLED:
                absent[entry] = None
        self._make_room(sum(entry.size_bytes for entry in absent) + new_bytes)
        for entry in absent:
            self._unspill(entry)
        self._reserved_bytes = new_bytes
        self._note_peak()

    def unreserve(self) -> None:
        """Give back what was reserved and not used."""
        self._reserved_bytes = 0

    def check(self, needed_bytes: int) -> None:
        """Raise ConfigError where one task needs more than the budget."""
        if self.budget_bytes and needed_bytes > self.budget_bytes:
            raise ConfigError(
                f"executor.memory_bytes: {self.budget_bytes} is too little for one task with its inputs and its "
                f"output; allowed: at least {needed_bytes}, or 0 for no budget"
            )

    def apart(self, value: Value, spec: Spec) -> Value:
        """A copy in memory of its own, where there is a budget.

        What a batched kernel yields are rows of one slab, and the slab lasts as long as any of them: spilling a row
        would give nothing back.
        """
        if not self.budget_bytes or not size_bytes(spec) or _identity(value) in self._by_object:
            return value
        buffer = _aligned(size_bytes(spec))
        buffer[:] = self._elements(value, spec)
        return self._from_buffer(buffer, spec)

    def close(self) -> None:
        """Forget all values and give the file back. Safe to call twice."""
        self._entries.clear()
        self._by_object.clear()
        self._held_bytes = self._reserved_bytes = 0
        if self._file is not None:
            self._file.close()

    # Coming and going

    def _make_room(self, bytes: int) -> None:
        """Spill what is needed last, except for what this tick uses."""
        excess = self._held_bytes + self._reserved_bytes + bytes - self.budget_bytes
        if not self.budget_bytes or excess <= 0:
            return
        unused = [entry for entry in self._by_object.values() if entry.used != self._tick]
        for entry in sorted(unused, key=lambda entry: (-entry.next_use, entry.used)):
            self._spill(entry)
            excess -= entry.size_bytes
            if excess <= 0:
                return
        self.check(self.budget_bytes + excess)

    def _trim(self, new_bytes: int) -> None:
        """Now and then give back what earlier batches have freed: else the process grows beyond what is counted."""
        self._untrimmed_bytes += new_bytes
        if self.budget_bytes and self._untrimmed_bytes > _TRIM_SHARE * self.budget_bytes:
            self._untrimmed_bytes = 0
            _give_back_freed_memory()

    def _spill(self, entry: Entry) -> None:
        assert self._file is not None
        if entry.slot is None:  # else the file has it: a value never changes
            entry.slot = self._file.write(self._elements(entry.value, entry.spec))
            self.spilled_bytes += entry.size_bytes
        self._leave(entry)
        entry.value = _SPILLED

    def _unspill(self, entry: Entry) -> None:
        assert self._file is not None
        assert entry.slot is not None
        buffer = _aligned(entry.size_bytes)
        self._file.read(entry.slot, buffer)
        self.unspilled_bytes += entry.size_bytes
        self._enter(entry, self._from_buffer(buffer, entry.spec))

    def _enter(self, entry: Entry, value: Value) -> None:
        entry.value = value
        entry.used = self._tick
        self._by_object[_identity(value)] = entry
        self._held_bytes += entry.size_bytes
        self._note_peak()

    def _leave(self, entry: Entry) -> None:
        del self._by_object[_identity(entry.value)]
        self._held_bytes -= entry.size_bytes

    def _note_peak(self) -> None:
        self.peak_resident_bytes = max(self.peak_resident_bytes, self.resident_bytes)

    def _elements(self, value: Value, spec: Spec) -> memoryview:
        elements = self._to_buffer(value)
        if elements.nbytes != spec.size_bytes:
            raise ComputeError(
                f"an op's value has {elements.nbytes} bytes, but its spec {spec.dtype}{list(spec.shape)} means "
                f"{spec.size_bytes}: say what the op yields with @op(spec=...)"
            )
        return elements


class SpillFile:
    """A file of slots, one list of free ones for each size. It has no name, so it goes with the process at the latest.

    Raises ConfigError where it cannot be made.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder or tempfile.gettempdir()
        try:
            self._file, path = tempfile.mkstemp(prefix="starling-", dir=self._folder)
        except OSError as error:
            raise ConfigError(
                f"executor.spill_folder: no file can be made in {self._folder}: {error.strerror}; name a folder to "
                f"which this process may write"
            ) from error
        os.unlink(path)
        self._free: dict[int, list[int]] = {}
        self._end = 0
        self.close = weakref.finalize(self, os.close, self._file)

    def write(self, buffer: memoryview) -> int:
        """Write to a free slot and return where that is. Raises StoreError, keeping nothing, where the disk is full."""
        free = self._free.setdefault(buffer.nbytes, [])
        if not free:
            free.extend(self._grow(buffer.nbytes))
        self._move(os.pwritev, buffer, free[-1])
        return free.pop()

    def read(self, slot: int, buffer: memoryview) -> None:
        """Fill a buffer from a slot."""
        self._move(os.preadv, buffer, slot)

    def _move(self, call: Callable[[int, list[memoryview], int], int], buffer: memoryview, slot: int) -> None:
        done, size = 0, buffer.nbytes
        try:
            while done < size:  # one call moves 2 GiB at most
                done += call(self._file, [buffer[done:]], slot + done)
        except OSError as error:
            raise StoreError(f"{self._folder}: the file for values past executor.memory_bytes: {error}") from error

    def free(self, slot: int, size: int) -> None:
        """Give a slot back."""
        self._free[size].append(slot)

    def _grow(self, size: int) -> list[int]:
        """New slots, last one first; as many as are worth a call, or one where the disk has no room for more."""
        available = shutil.disk_usage(self._folder).free
        count = max(1, min(_GROWTH_SLOTS, min(_GROWTH_BYTES, int(available * _MOST_OF_DISK)) // size))
        try:
            if size > available * _MOST_OF_DISK:
                raise OSError("too little free space")
            # What is allocated now cannot be missing when it is written: no value is ever half in the file.
            os.posix_fallocate(self._file, self._end, count * size)
        except OSError as error:
            raise StoreError(
                f"{self._folder}: {size} more bytes are needed for values past executor.memory_bytes, {available} are "
                f"free: make room, raise executor.memory_bytes, or name another executor.spill_folder"
            ) from error
        slots = [self._end + size * i for i in reversed(range(count))]
        self._end += count * size
        return slots


_identity = id
"""The identity of an object; ``id`` is a task's number here."""


def _give_back_freed_memory() -> None:
    """Return the pages of malloc's gaps to the system; glibc alone has the call.

    It keeps gaps between what is still in use, and a gap that an aligned buffer has left is too small for the next such
    buffer, which is as large but need not begin alike.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _aligned(size: int) -> memoryview:
    room = np.empty(size + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + size].data
