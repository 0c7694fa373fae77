"""How many requests fit: the tokens that will have to be kept at the worst moment stay below a budget.

S-LoRA (Sheng et al., MLSys 2024), after LightLLM: requests end at different times, and what they have kept is free
again then. Sorted by how much is left to do, the most first, the worst moment is one of their ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Footprint(NamedTuple):
    """What one request keeps: tokens so far, input included, and how many may still come."""

    kept_tokens: int
    remaining_tokens: int


@dataclass(frozen=True)
class Budget:
    """What a compute node has room for."""

    tokens: int
    """Kept at once, over all requests; adapters take theirs from it."""
    running: int
    """Requests at once."""
    adapters: int
    """Different adapters in one batch."""

    def has_room(self, requests: Iterable[Footprint], adapter_tokens: int) -> bool:
        """Whether these requests can all run to their ends, beside adapters that take so many tokens' room."""
        footprints = list(requests)
        return len(footprints) <= self.running and peak_tokens(footprints) < self.tokens - adapter_tokens


def peak_tokens(requests: Iterable[Footprint]) -> int:
    """The most tokens kept at once, if every request generates all it may and nobody else comes."""
    peak = kept = 0
    by_end = sorted(requests, key=lambda each: each.remaining_tokens, reverse=True)
    for count, each in enumerate(by_end, start=1):
        kept += each.kept_tokens
        peak = max(peak, each.remaining_tokens * count + kept)
    return peak
