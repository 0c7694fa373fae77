"""A workload: requests with all that the virtual clock, or a client, needs to make them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import AfterValidator, Field

from node.config.section import Positive, Section
from node.workloads import arrivals, popularity, traces
from node.workloads.arrivals import ArrivalSection
from node.workloads.popularity import PopularitySection


def _rising(lengths: tuple[int, int]) -> tuple[int, int]:
    low, high = lengths
    if not 1 <= low < high:
        raise ValueError("must be two rising numbers, the first at least 1")
    return lengths


Lengths = Annotated[tuple[int, int], AfterValidator(_rising)]


class Request(NamedTuple):
    """One request for inference."""

    arrival_s: float
    adapter: int
    prompt_tokens: int
    output_tokens: int
    client: int


class WorkloadSection(Section):
    """What is asked of a serving system."""

    requests: int = Field(1_000, ge=1)
    """How many requests; of a trace, its first."""
    trace: Path | None = None
    """A file of arrivals and lengths (Azure, Splitwise or BurstGPT); absent: both are drawn."""
    time_scale: Positive = 1.0
    """How much faster than recorded a trace is replayed."""
    arrivals: ArrivalSection = ArrivalSection()
    """When requests come, without a trace."""
    popularity: PopularitySection = PopularitySection()
    """Which adapters they want."""
    prompt_tokens: Lengths = (8, 512)
    """Shortest prompt and the length that all are below; drawn uniformly, without a trace."""
    output_tokens: Lengths = (8, 512)
    """The same of answers."""
    clients: int = Field(1, ge=1)
    """Who ask; drawn uniformly."""


def generate(section: WorkloadSection, adapters: int, rng: np.random.Generator) -> list[Request]:
    """All requests of a workload, by time.

    Args:
        adapters: how many there are to ask for.

    Raises:
        ConfigError: the trace cannot be read.
    """
    trace = _drawn(section, rng) if section.trace is None else _recorded(section, section.trace)
    keys = popularity.draw(section.popularity, rng, adapters, len(trace))
    clients = rng.integers(section.clients, size=len(trace))
    columns = trace.arrival_s, keys, trace.prompt_tokens, trace.output_tokens, clients
    return [Request(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _recorded(section: WorkloadSection, path: Path) -> traces.Trace:
    return traces.read(path).first(section.requests).faster(section.time_scale)


def _drawn(section: WorkloadSection, rng: np.random.Generator) -> traces.Trace:
    times = arrivals.draw(section.arrivals, rng, section.requests)
    prompts = rng.integers(*section.prompt_tokens, size=section.requests)
    return traces.Trace(times, prompts, rng.integers(*section.output_tokens, size=section.requests))
