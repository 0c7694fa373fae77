"""Keys and values of all requests, a place for each, so that requests of any lengths are one batch.

A batch reads what its rows have kept, up to the longest; what is behind a row's own end is masked, and written over
before it is ever seen. So padding costs time and never changes a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache


class KeyValues:
    """Preallocated when a layer is first computed. For the one thread that computes."""

    def __init__(self, places: int, tokens: int) -> None:
        """``tokens``: that each place has room for."""
        self.tokens = tokens
        self._places = places
        self._free = list(range(places))
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def free(self) -> int:
        """How many places nobody has."""
        return len(self._free)

    @property
    def size_bytes(self) -> int:
        """Of all places."""
        return sum(keys.nbytes + values.nbytes for keys, values in self._layers.values())

    def take(self) -> int:
        """The lowest free place; IndexError where there is none."""
        return self._free.pop(0)

    def give_back(self, place: int) -> None:
        """The place is free; what is in it stays until it is written over."""
        self._free.append(place)
        self._free.sort()

    def layer(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The room of a layer whose keys and values have these shapes: [places, heads, tokens, dim]."""
        if index not in self._layers:
            sizes = [(self._places, each.shape[1], self.tokens, each.shape[3]) for each in (keys, values)]
            self._layers[index] = (keys.new_zeros(sizes[0]), values.new_zeros(sizes[1]))
        return self._layers[index]


class Window(Cache):
    """What one forward pass sees of them: the rows of its batch, with their new tokens behind what they have kept."""

    def __init__(self, kept: KeyValues, places: Sequence[int], starts: Sequence[int], count: int) -> None:
        """``starts``: how many tokens each row has kept; ``count``: new ones of each row, with padding."""
        super().__init__(layers=[])
        self._kept = kept
        self._rows = torch.tensor(places)
        neighbours = list(places) == list(range(places[0], places[0] + len(places)))
        self._read = slice(places[0], places[0] + len(places)) if neighbours else self._rows
        self._longest = max(starts) + count
        self.positions = torch.tensor(starts)[:, None] + torch.arange(count)
        """[rows, count]: of the new tokens."""

    def mask(self, dtype: torch.dtype) -> Tensor:
        """[rows, 1, count, longest]: 0 where a token attends, else the least number of the dtype."""
        hidden = torch.arange(self._longest)[None, None] > self.positions[:, :, None]
        return torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, torch.finfo(dtype).min)[:, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep new keys and values, [rows, heads, count, dim]; gives all of the rows', [rows, heads, longest, dim]."""
        found = []
        for new, kept in zip(
            (key_states, value_states), self._kept.layer(layer_idx, key_states, value_states), strict=True
        ):
            kept[self._rows[:, None], :, self.positions] = new.transpose(1, 2)
            found.append(kept[self._read, :, : self._longest])
        return found[0], found[1]

    def get_seq_length(self, layer_idx: int = 0, *args: Any, **kwargs: Any) -> int:
        """The longest row's, before this pass; models that are given positions and a mask do not need it."""
        return self._longest - self.positions.shape[1]
