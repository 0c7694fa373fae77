"""How much memory a node's process takes: what malloc keeps, and what peers may make it hold."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping

from node.codec import Limits

SMALL_LIMITS = Limits(
    message_bytes=64 << 20,
    header_bytes=256 << 10,
    transfers=1,
    arriving_bytes=64 << 20,
    queue_bytes=4 << 20,
    backlog_bytes=4 << 20,
)
"""What a peer may ask of a node with little memory: one message of 64 MiB at a time."""

# M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD and M_ARENA_MAX of glibc's malloc.h; all but the last in bytes.
_KEEP = {-3: 32 << 20, -1: 256 << 20, -2: 16 << 20}
_GIVE_BACK = {-3: 128 << 10, -1: 128 << 10, -2: 0, -8: 1}


def keep_freed_memory() -> bool:
    """Have malloc keep what received models are read into, instead of asking the kernel anew each time.

    Gives whether it could: glibc alone has the call.
    """
    return _mallopt(_KEEP)


def give_back_freed_memory() -> bool:
    """Have malloc return memory to the kernel as soon as it is free, and keep one heap for all threads.

    Gives whether it could: glibc alone has the call.
    """
    return _mallopt(_GIVE_BACK)


def _mallopt(options: Mapping[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(mallopt(option, value) for option, value in options.items())
