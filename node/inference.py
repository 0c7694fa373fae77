"""What a node of an inference service is given by its world: a model that takes time, adapters, and who asks for what.

A world has one :class:`Inference`, made for the run, of which each context takes its own parts: a protocol that serves
cannot tell a table of times from a real model, nor sizes from bytes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple
from typing import Protocol as Interface

from node.op import Ref

if TYPE_CHECKING:
    from node.context import Context
    from node.workloads.requests import Request


class Prefill(NamedTuple):
    """Some layers of the forward pass over a prompt; the last of them gives the first token."""

    request: int
    adapter: str
    """Empty: the base model alone."""
    tokens: int
    layers: range


class Decode(NamedTuple):
    """One more token of a request whose prompt has been read."""

    request: int
    adapter: str


class Card(NamedTuple):
    """An adapter, as everybody knows it."""

    rank: int
    size_bytes: int


class Manifest(NamedTuple):
    """What an adapter consists of, layer by layer."""

    name: str
    layers_bytes: tuple[int, ...]
    chunk_bytes: int
    """Each layer is cut into chunks of this size, but for its last."""
    digests: tuple[str, ...] = ()
    """SHA-256 of each chunk, in hexadecimal digits; none where there are sizes alone."""


class Engine(Interface):
    """A base model that works on many requests at a time."""

    @property
    def layers(self) -> int:
        """How many layers the model has."""
        ...

    def step(self, prefills: Sequence[Prefill], decodes: Sequence[Decode]) -> Awaitable[None]:
        """One step: layers of some prompts, and a token of each of some other requests, together."""
        ...

    def expected_s(self, prompt_tokens: int, output_tokens: int) -> float:
        """About how long a request takes here that runs alone."""
        ...


class Shelf(Interface):
    """The contents of adapters, for those who hold them and those who receive them."""

    def manifest(self, name: str) -> Manifest:
        """What an adapter consists of. Raises Missing where there is none of that name."""
        ...

    def content(self, name: str, chunk: int) -> Ref:
        """A chunk, to be sent."""
        ...

    def accepts(self, manifest: Manifest, chunk: int, content: Ref) -> Awaitable[bool]:
        """Whether what has come is that chunk; it is kept if so."""
        ...


class Inference(Interface):
    """All that a world offers for inference; each context takes what is its own."""

    @property
    def cards(self) -> Mapping[str, Card]:
        """The adapters that there are, by name."""
        ...

    def engine(self, ctx: Context) -> Engine:
        """The model of a node."""
        ...

    def shelf(self, ctx: Context) -> Shelf:
        """The contents that a node has or gets."""
        ...

    def requests(self, ctx: Context) -> Sequence[tuple[int, Request]]:
        """What clients ask of a compute node, by time, with numbers that are a request's own among all nodes."""
        ...
