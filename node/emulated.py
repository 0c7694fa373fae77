"""Inference without a model: steps take the time that a table says, and adapters are sizes.

Time passes through the context, so it is virtual in a simulation, and real where real nodes are to be timed without a
model.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from node.config.section import NotNegative, Positive, Section
from node.errors import Missing
from node.inference import Card, Decode, Manifest, Prefill
from node.op import Op, Ref, Spec, Static, Task
from node.streaming.layout import Layout
from node.workloads.requests import Request, WorkloadSection, generate
from node.world import Done

if TYPE_CHECKING:
    from node.context import Context


class TimesSection(Section):
    """How long a step of the model takes, with all layers: a linear table."""

    prefill_token_s: NotNegative = 0.25e-3
    """For each token of a prompt."""
    decode_s: NotNegative = 0.012
    """For a batch of next tokens, however many."""
    decode_row_s: NotNegative = 0.0
    """For each of them besides."""
    rank_s: NotNegative = 0.0
    """For each row of a batch, and each rank of its adapter, besides."""


class ModelSection(Section):
    """The dimensions that the sizes of adapters follow from."""

    layers: int = 12
    """Transformer layers."""
    hidden: int = 4096
    """Width of a layer: each target is a square matrix of this width."""
    targets: int = 7
    """Matrices of a layer that have an adapter."""
    element_bytes: Positive = 2
    """Of each number."""
    chunk_bytes: int = 1 << 20
    """Layers travel in chunks of this size."""

    def layer_bytes(self, rank: int) -> int:
        """One layer of an adapter: two thin matrices for each target."""
        return int(2 * rank * self.hidden * self.targets * self.element_bytes)


@dataclass(frozen=True)
class Emulated:
    """An :class:`~node.inference.Inference` of numbers alone.

    Args:
        ranks: of the adapters, in turn.
        entries: the nodes at which requests come in, one after another.
        blank: an op that gives ``size_bytes`` bytes, for worlds in which bytes really travel.
    """

    model: ModelSection
    times: TimesSection
    workload: WorkloadSection
    adapters: int
    ranks: tuple[int, ...]
    entries: tuple[int, ...]
    blank: Op[...] = field(default_factory=lambda: Op("emulated:blank", _zeros, None, blank_spec))

    @cached_property
    def cards(self) -> Mapping[str, Card]:
        """The adapters that there are, by name."""
        size_of = self.model.layer_bytes
        ranks = [self.ranks[number % len(self.ranks)] for number in range(self.adapters)]
        return {name_of(n): Card(rank, self.model.layers * size_of(rank)) for n, rank in enumerate(ranks)}

    def engine(self, ctx: Context) -> TimedEngine:
        """A model that sleeps."""
        return TimedEngine(ctx.sleep, self.model.layers, self.times, self.cards)

    def shelf(self, ctx: Context) -> SizedShelf:
        """Contents without values."""
        return SizedShelf(self, ctx)

    def requests(self, ctx: Context) -> Sequence[tuple[int, Request]]:
        """Its part of the workload, which all nodes draw alike."""
        place = self.entries.index(ctx.me)
        return list(enumerate(self._drawn(ctx.seed)))[place :: len(self.entries)]

    def _drawn(self, seed: int) -> Sequence[Request]:
        if seed not in self._workloads:
            self._workloads[seed] = generate(self.workload, self.adapters, np.random.default_rng([seed, *b"requests"]))
        return self._workloads[seed]

    @cached_property
    def _workloads(self) -> dict[int, Sequence[Request]]:
        return {}


class TimedEngine:
    """Steps that pass the time of a table."""

    def __init__(
        self,
        sleep: Callable[[float], Awaitable[None]],
        layers: int,
        times: TimesSection,
        cards: Mapping[str, Card],
    ) -> None:
        self.layers = layers
        self._sleep = sleep
        self._times = times
        self._cards = cards

    def step(self, prefills: Sequence[Prefill], decodes: Sequence[Decode]) -> Awaitable[None]:
        """Let the time of a step pass."""
        return self._sleep(self.step_s(prefills, decodes))

    def step_s(self, prefills: Sequence[Prefill], decodes: Sequence[Decode]) -> float:
        """How long a step takes."""
        times = self._times
        read_s = [self._prefill_s(each) for each in prefills]
        rows_s = [times.decode_row_s + self._rank_s(each.adapter) for each in decodes]
        return math.fsum(read_s) + (times.decode_s + math.fsum(rows_s) if decodes else 0.0)

    def expected_s(self, prompt_tokens: int, output_tokens: int) -> float:
        """How long a request takes alone."""
        times = self._times
        return prompt_tokens * times.prefill_token_s + (output_tokens - 1) * (times.decode_s + times.decode_row_s)

    def _prefill_s(self, prefill: Prefill) -> float:
        token_s = self._times.prefill_token_s + self._rank_s(prefill.adapter)
        return prefill.tokens * token_s * len(prefill.layers) / self.layers

    def _rank_s(self, adapter: str) -> float:
        return self._times.rank_s * self._cards[adapter].rank if adapter else 0.0


class SizedShelf:
    """Every adapter there is, of which nobody looks at the content."""

    def __init__(self, inference: Emulated, ctx: Context) -> None:
        self._inference = inference
        self._ctx = ctx
        self._blanks: dict[int, Ref] = {}

    def manifest(self, name: str) -> Manifest:
        """What an adapter consists of. Raises Missing where there is none of that name."""
        model = self._inference.model
        if name not in self._inference.cards:
            raise Missing(f"there is no adapter {name!r}")
        layer_bytes = model.layer_bytes(self._inference.cards[name].rank)
        return Manifest(name, (layer_bytes,) * model.layers, model.chunk_bytes)

    def content(self, name: str, chunk: int) -> Ref:
        """As many bytes as the chunk has; all of one size are one value, which a simulation never computes."""
        size_bytes = _chunk_bytes(self.manifest(name), chunk)
        if size_bytes not in self._blanks:
            self._blanks[size_bytes] = self._ctx.apply(self._inference.blank, size_bytes=size_bytes)
        return self._blanks[size_bytes]

    def accepts(self, manifest: Manifest, chunk: int, content: Ref) -> Awaitable[bool]:
        """Whether the size is right."""
        return Done(content.spec == Spec((_chunk_bytes(manifest, chunk),), "uint8"))


def name_of(adapter: int) -> str:
    """What an adapter of a workload is called."""
    return f"adapter-{adapter}"


def blank_spec(inputs: Sequence[Spec], static: Static) -> Spec:
    """Bytes."""
    return Spec((static["size_bytes"],), "uint8")


def _zeros(task: Task) -> NDArray[np.uint8]:
    return np.zeros(task.static["size_bytes"], np.uint8)


def _chunk_bytes(manifest: Manifest, chunk: int) -> int:
    return Layout(manifest.layers_bytes, manifest.chunk_bytes).chunk(chunk).size_bytes
