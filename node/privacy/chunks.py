"""Shatter: a model in k chunks that travel under k names (Biswas et al., PoPETs 2025).

Each node owns k virtual nodes, and each of them carries one chunk. All nodes cut their models alike, anew in every
round, along lines that follow from a public beacon and from nothing about the node: a chunk tells nobody whose it is.
That holds only as far as addresses, sizes and times of the messages do not. This is no differential privacy.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from node.errors import ConfigError, ProtocolError
from node.op import Spec, Static, Value, op

Indices = NDArray[np.int64]


def chunk_size(dimension: int, chunks: int, chunk: int, beacon: str, round: int) -> int:
    """Coordinates of one of the chunks, counted from 0, in a round: no two chunks differ by more than one."""
    turn = (chunk - _first(_drawn(beacon, round), chunks)) % chunks
    return (dimension - turn + chunks - 1) // chunks


@functools.lru_cache(maxsize=4)
def partition(sizes: tuple[int, ...], chunks: int, beacon: str, round: int) -> tuple[Indices, ...]:
    """The coordinates of each chunk in a round, sorted, as read-only arrays.

    ``sizes``: parameters of each tensor of the model; every tensor is dealt out in a random order of its own, so that
    each chunk has its share of each. ``beacon``: public randomness that is the same at all nodes.

    Raises ConfigError for fewer than one chunk, or more than there are parameters.
    """
    dimension = sum(sizes)
    if not 1 <= chunks <= dimension:
        raise ConfigError(f"chunks: {chunks} of a model with {dimension} parameters; allowed are 1 to {dimension}")
    rng = _drawn(beacon, round)
    first = _first(rng, chunks)
    ends = np.cumsum(sizes)
    dealt = np.concatenate([ends[i] - sizes[i] + rng.permutation(sizes[i]) for i in rng.permutation(len(sizes))])
    parts = tuple(np.sort(dealt[(chunk - first) % chunks :: chunks]) for chunk in range(chunks))
    for part in parts:
        part.flags.writeable = False
    return parts


def merge(own: Tensor, received: Sequence[tuple[Indices, Tensor]]) -> Tensor:
    """The mean, coordinate by coordinate, of a model [dimension] and all received values of that coordinate.

    ``received``: coordinates, each at most once, and their values. They are added up as given: sort them first.
    """
    total = own.clone()
    counts = torch.ones_like(own)
    for indices, values in received:
        where = torch.tensor(indices)
        if len(where) != len(values):
            raise ProtocolError(f"a chunk of {len(values)} values, where the round's partition has {len(where)}")
        total[where] += values
        counts[where] += 1
    return total.div_(counts)


def _chunk_spec(inputs: Sequence[Spec], static: Static) -> Spec:
    size = chunk_size(inputs[0].shape[0], static["chunks"], static["chunk"], static["beacon"], static["round"])
    return Spec((size,), inputs[0].dtype)


@op(spec=_chunk_spec)
def cut(model: Value, *, sizes: tuple[int, ...], chunks: int, chunk: int, beacon: str, round: int) -> Value:
    """One chunk of a model, by its number; see :func:`partition`."""
    return model[torch.tensor(partition(sizes, chunks, beacon, round)[chunk])]


@op
def merged(
    model: Value,
    *received: Value,
    sizes: tuple[int, ...],
    chunks: int,
    numbers: tuple[int, ...],
    beacon: str,
    round: int,
) -> Value:
    """The mean of a model and the chunks received in a round, of which ``numbers`` says which they are."""
    parts = partition(sizes, chunks, beacon, round)
    return merge(model, [(parts[number], values) for number, values in zip(numbers, received, strict=True)])


def _drawn(beacon: str, round: int) -> np.random.Generator:
    seed = hashlib.blake2b(f"{round}\0{beacon}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(seed, "little")))


def _first(rng: np.random.Generator, chunks: int) -> int:
    """The chunk that is dealt to first: its number is all that the chunks' sizes depend on."""
    return int(rng.integers(chunks))
