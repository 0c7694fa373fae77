"""Which samples each training step reads: a pure function of the task's key, for one task or for thousands at once.

A node goes through its shard in passes, each in a fresh order, in batches without replacement; the last batch of a
pass holds what is left. The order comes from a counter-based hash instead of a generator, so that the batches of many
tasks are drawn in a few array operations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from node.op import Key

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_PLACE = np.uint64(0xFFFFFFFF)
_BLOCK_HASHES = 1 << 16


class Batches(NamedTuple):
    """The batches of some tasks, as places in each task's own shard."""

    places: np.ndarray
    """int64 [steps, tasks, width]; 0 beyond a batch's own size."""
    sizes: np.ndarray
    """int64 [steps, tasks]: samples that a batch holds."""


def batches_per_pass(shard: int, batch_size: int) -> int:
    """Batches that one pass over a shard takes."""
    return -(-shard // batch_size)


def samples(shard: int, batch_size: int, steps: int) -> int:
    """Samples that some steps process, short batches counted as what they hold."""
    passes, rest = divmod(steps, batches_per_pass(shard, batch_size))
    return passes * shard + rest * batch_size


def draw(keys: Sequence[Key], shards: np.ndarray, batch_size: int, steps: int, width: int) -> Batches:
    """Draw the batches of some tasks with shards of the given sizes, int64 [tasks], none of them 0.

    A task's batches depend on its own key and shard size only. ``width`` is at least the largest batch's size.
    """
    states = _states(keys)
    places = np.zeros((steps, len(keys), width), np.int64)
    sizes = np.zeros((steps, len(keys)), np.int64)
    for block in _blocks(shards, batch_size, steps):
        places[:, block], sizes[:, block] = _draw_block(states[block], shards[block], batch_size, steps, width)
    return Batches(places, sizes)


def _blocks(shards: np.ndarray, batch_size: int, steps: int) -> Iterator[np.ndarray]:
    """Tasks with shards of about one size, few enough that their hashes fit in the cache; int64 [tasks of a block]."""
    order = np.argsort(shards, kind="stable")
    while len(order):
        passes = -(-steps // batches_per_pass(int(shards[order[0]]), batch_size))
        hashes = np.arange(1, len(order) + 1) * passes * shards[order]
        count = max(1, int(np.searchsorted(hashes, _BLOCK_HASHES, "right")))
        yield order[:count]
        order = order[count:]


def _draw_block(
    states: np.ndarray, shards: np.ndarray, batch_size: int, steps: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places [steps, tasks, width] and sizes [steps, tasks] of a few tasks."""
    per_pass = -(-shards // batch_size)
    passes, batch = np.divmod(np.arange(steps)[:, None], per_pass)
    first = batch * batch_size
    sizes = np.minimum(batch_size, shards - first)
    within = np.arange(width) < sizes[:, :, None]
    orders = _orders(states, shards, int(passes.max(initial=0)) + 1)
    columns = np.where(within, first[:, :, None] + np.arange(width), 0)
    places = orders[np.arange(len(states))[:, None], passes[:, :, None], columns]
    return np.where(within, places, 0), sizes


def _orders(states: np.ndarray, shards: np.ndarray, passes: int) -> np.ndarray:
    """A random order of each shard for each pass, int64 [tasks, passes, largest shard].

    Places sorted by a random upper half: unlike an argsort, that is vectorised, and no two are ever equal.
    """
    place = np.arange(int(shards.max()), dtype=np.uint64)
    counters = (np.arange(1, passes + 1, dtype=np.uint64)[:, None] << np.uint64(32)) | place
    keyed = (_hash(states[:, None, None] + counters * _GOLDEN) & ~_PLACE) | place
    if shards.min() < len(place):
        keyed[np.broadcast_to(place >= shards[:, None, None].astype(np.uint64), keyed.shape)] = ~np.uint64(0)
    keyed.sort(axis=-1)
    return (keyed & _PLACE).astype(np.int64)


def _states(keys: Sequence[Key]) -> np.ndarray:
    """One well-mixed starting state for each key, uint64 [tasks]."""
    seeds, nodes, counters = np.array(keys, np.uint64).T
    return _hash(_hash(_hash(seeds) + nodes * _GOLDEN) + counters * _GOLDEN)


def _hash(values: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), element by element."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: np.ndarray = values ^ (values >> np.uint64(31))
    return hashed
