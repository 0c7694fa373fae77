"""What storage and compute nodes say to each other."""

from __future__ import annotations

from node import Message, Ref


class Describe(Message, name="serving/describe/1"):
    """What does an adapter consist of?"""

    adapter: str


class Described(Message, name="serving/described/1"):
    """Layer by layer."""

    adapter: str
    layers_bytes: tuple[int, ...]
    chunk_bytes: int
    digests: tuple[str, ...]


class Absent(Message, name="serving/absent/1"):
    """It is not here."""

    adapter: str


class Get(Message, name="serving/get/1"):
    """Send a chunk."""

    adapter: str
    chunk: int


class Data(Message, name="serving/data/1", any_shape=True):
    """A chunk. Its bytes are a Ref: a simulation charges links for their number, and never has them."""

    adapter: str
    chunk: int
    content: Ref


class Want(Message, name="serving/want/1"):
    """Keep an adapter for a while, too: it is popular. To be said again in every period."""

    adapter: str


class Heard(Message, name="serving/heard/1"):
    """What the sender knows of who holds what; asks for what is newer."""

    digest: bytes


class News(Message, name="serving/news/1"):
    """What is newer."""

    deltas: bytes


class Status(Message, name="serving/status/1"):
    """How busy a compute node is, and what it has."""

    load: int
    slot_wait_s: float
    link_free_in_s: float
    resident: tuple[str, ...]


class Ask(Message, name="serving/ask/1"):
    """A request that another node has taken in."""

    request: int
    adapter: str
    prompt_tokens: int
    output_tokens: int
    client: str


class Progress(Message, name="serving/progress/1"):
    """So many tokens of a request are there; said of the first and of the last."""

    request: int
    tokens: int
    is_over: bool
    error: str
    load_wait_s: float
    queue_s: float
    prefill_s: float


class Answered(Message, name="serving/answered/1"):
    """All that this node was asked by its clients has been answered."""
