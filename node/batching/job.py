"""A request as a scheduler sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Adapter: TypeAlias = str
"""An adapter by its name and version."""


@dataclass(frozen=True)
class Job:
    """One request for tokens."""

    id: int
    client: str
    adapters: tuple[Adapter, ...]
    """What has to be resident for it; none: the base model alone."""
    input_tokens: int
    most_output_tokens: int
    arrived_s: float
