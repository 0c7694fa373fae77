"""Tensors in memory that a process shares with those forked from it: no tensor travels, only where it is.

The memory is one file without a name, cut into slabs, and a slab into slots of one size. A slot is held by the tensor
that was made on it, by its views, and by what was told of it; when the last of them dies, it is free for the next.
Whoever has inherited the file maps a slab when it first hears of it, so that slabs may be added after a fork.
"""

from __future__ import annotations

import bisect
import math
import mmap
import os
import tempfile
import weakref
from typing import TypeAlias

import msgspec
import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes. Matrix products round by where in a vector register's width their operands begin, so a copy keeps that."""

_FIRST_SLOTS = 64


class Slot(msgspec.Struct, frozen=True, array_like=True):
    """Room for one tensor; all numbers in bytes."""

    slab: int
    """Where the slab begins in the file."""
    slab_bytes: int
    at: int
    """Where the slot begins in its slab: a multiple of ALIGNMENT."""
    room: int
    """The slot's size: that of the tensor, and ALIGNMENT more."""


class Layout(msgspec.Struct, frozen=True, array_like=True):
    """What lies in a slot."""

    shift: int
    """Bytes between the slot's beginning and the tensor's, less than ALIGNMENT."""
    dtype: str
    shape: tuple[int, ...]

    def on(self, memory: mmap.mmap | memoryview, at: int) -> Tensor:
        """The tensor, in a slot that begins ``at`` bytes into some memory, which it keeps alive."""
        dtype = getattr(torch, self.dtype)
        if not (count := math.prod(self.shape)):
            return torch.empty(self.shape, dtype=dtype)
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=at + self.shift).view(self.shape)


Place: TypeAlias = tuple[Slot, Layout]
"""A tensor, for a process that shares the memory."""


def can_share(value: object) -> bool:
    """Whether a copy of a value's elements is as good as the value: a plain tensor, without gaps or history."""
    return (
        type(value) is Tensor
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and value.is_contiguous()
        and not (value.requires_grad or value.is_conj() or value.is_neg() or value.is_quantized)
    )


def layout_of(tensor: Tensor) -> Layout:
    """How a copy of a tensor must lie, to be computed with exactly as the tensor is."""
    return Layout(
        tensor.data_ptr() % ALIGNMENT if tensor.numel() else 0,
        str(tensor.dtype).removeprefix("torch."),
        tuple(tensor.shape),
    )


class Held:
    """A slot in use: it is free again when this, and every tensor made on it, has died."""

    __slots__ = ("memory", "slot")

    def __init__(self, slot: Slot, memory: memoryview) -> None:
        self.slot = slot
        self.memory = memory

    def tensor(self, layout: Layout) -> Tensor:
        """The tensor that lies here."""
        return layout.on(self.memory, 0)


class Arenas:
    """The side that hands out slots; the processes forked from it see them through a :class:`View`."""

    def __init__(self) -> None:
        self.file = _unnamed_file()
        self._end = 0
        self._addresses: list[int] = []
        self._slabs: list[tuple[int, int, mmap.mmap]] = []
        self._free: dict[int, list[tuple[Slot, mmap.mmap]]] = {}
        self._slots: dict[int, int] = {}

    def reserve(self, size_bytes: int) -> Held:
        """A slot for a tensor of so many bytes."""
        room = _rounded(size_bytes, ALIGNMENT) + ALIGNMENT
        free = self._free.setdefault(room, [])
        if not free:
            self._add_slab(room, free)
        slot, memory = owned = free.pop()
        view = memoryview(memory)[slot.at : slot.at + room]
        weakref.finalize(view, free.append, owned).atexit = False
        return Held(slot, view)

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor in a slot of its own."""
        there = self.reserve(tensor.nbytes).tensor(layout_of(tensor))
        return there.copy_(tensor)

    def place(self, tensor: Tensor) -> Place | None:
        """Where a tensor (or a view of one) lies; None: not here."""
        address = tensor.data_ptr()
        number = bisect.bisect_right(self._addresses, address) - 1
        if number < 0:
            return None
        start, size, _ = self._slabs[number]
        offset = address - self._addresses[number]
        if offset >= size:
            return None
        layout = layout_of(tensor)
        return Slot(start, size, offset - layout.shift, _rounded(tensor.nbytes, ALIGNMENT) + ALIGNMENT), layout

    @property
    def used_slots(self) -> int:
        """Slots that somebody holds."""
        return sum(self._slots.values()) - sum(len(free) for free in self._free.values())

    def close(self) -> None:
        """Let go of the file: no more slots. Those that are held live on, and their memory goes with their holders."""
        os.close(self.file)

    def _add_slab(self, room: int, free: list[tuple[Slot, mmap.mmap]]) -> None:
        """Double the slots of one size. Pages that nobody has written to take no memory."""
        slots = self._slots.get(room) or _FIRST_SLOTS
        start, size = self._end, _rounded(slots * room, mmap.ALLOCATIONGRANULARITY)
        os.ftruncate(self.file, start + size)
        memory = mmap.mmap(self.file, size, offset=start)
        self._end += size
        address = torch.frombuffer(memory, dtype=torch.uint8, count=1).data_ptr()
        number = bisect.bisect(self._addresses, address)
        self._addresses.insert(number, address)
        self._slabs.insert(number, (start, size, memory))
        self._slots[room] = self._slots.get(room, 0) + slots
        free.extend((Slot(start, size, at * room, room), memory) for at in reversed(range(slots)))


class View:
    """The slots as a forked process sees them."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._slabs: dict[int, mmap.mmap] = {}

    def tensor(self, place: Place) -> Tensor:
        """A tensor, where it lies."""
        slot, layout = place
        return layout.on(self._slab(slot), slot.at)

    def fill(self, slot: Slot, tensor: Tensor) -> Layout | None:
        """Copy a tensor into a slot; None: it is not one to copy, or too large."""
        if not can_share(tensor) or tensor.nbytes > slot.room - ALIGNMENT:
            return None
        layout = layout_of(tensor)
        layout.on(self._slab(slot), slot.at).copy_(tensor)
        return layout

    def _slab(self, slot: Slot) -> mmap.mmap:
        if slot.slab not in self._slabs:
            self._slabs[slot.slab] = mmap.mmap(self._file, slot.slab_bytes, offset=slot.slab)
        return self._slabs[slot.slab]


def _rounded(size: int, to: int) -> int:
    return -(-size // to) * to


def _unnamed_file() -> int:
    """A file that is gone when nobody uses it any more: in memory, not in ``/dev/shm``, which is often small."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("starling")
    with tempfile.TemporaryFile(prefix="starling-") as file:
        return os.dup(file.fileno())
