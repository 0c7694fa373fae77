"""Python's garbage collection during a large simulation."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lean_garbage_collection(nodes: int) -> Iterator[None]:
    """Collect about once a round while a run makes millions of short-lived objects, few of them in cycles."""
    before = gc.get_threshold()
    if nodes >= 1_000:
        gc.collect()  # what an earlier run of this size may have left; with few nodes that takes longer than the run
    gc.freeze()
    gc.set_threshold(max(100_000, 25 * nodes), 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
