"""Adapters at storage nodes, requests at compute nodes: fetched, cached, streamed, batched, and sent where they fit.

What disaggregated serving of many LoRA adapters consists of; after S-LoRA (Sheng et al., MLSys 2024), with storage
nodes in place of the host's memory. The first ``storage`` nodes store, all others compute, and take in the requests of
clients.

Storage nodes that go are nobody's loss but time: fetches go on elsewhere, and what they kept is copied. Requests at a
compute node that goes are asked anew of others by the nodes that have taken them in; those that it took in are lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from node import Context, Message, Protocol, Ref, Row, on
from node.emulated import Emulated
from protocols.computing import Computing
from protocols.directory import Directory
from protocols.dispatching import Dispatching
from protocols.serving_messages import (
    Absent,
    Answered,
    Ask,
    Data,
    Describe,
    Get,
    Heard,
    News,
    Progress,
    Status,
    Want,
)
from protocols.serving_settings import ServingConfig
from protocols.storing import Storing

_LOOK_S = 1.0
"""How often a node looks whether it waits for one that is gone."""


class Serving(Protocol):
    """Serves the requests of a workload, and ends when all are answered."""

    uses_topology = False

    class Config(ServingConfig):
        """Options of ``[protocol]``."""

    config: Config

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._parts: tuple[Directory, Storing | None, Computing | None, Dispatching | None] | None = None
        self._answered: set[int] = set()
        self._all_answered: Any = None

    @classmethod
    def check(cls, config: ServingConfig, nodes: int) -> None:
        """Roles, sizes and choices must fit together."""
        config.check_nodes(nodes)

    @classmethod
    def roles(cls, config: ServingConfig, nodes: int) -> Mapping[int, str]:
        """The first nodes store, the others compute."""
        return {node: "storage" if node < config.storage else "compute" for node in range(nodes)}

    @classmethod
    def inference(cls, config: ServingConfig, nodes: int) -> Emulated:
        """Sizes and times from the options."""
        computing = tuple(range(config.storage, nodes))
        return Emulated(config.model, config.times, config.workload, config.adapters, config.ranks, computing)

    async def run(self, ctx: Context) -> Ref | None:
        """Store, or compute, until every compute node that is there has answered all that it was asked."""
        directory, storing, computing, dispatching = self._at(ctx)
        ctx.spawn(directory.gossip())
        if storing is not None:
            ctx.spawn(storing.run())
        if computing is not None and dispatching is not None:
            for work in (computing.run(), dispatching.gossip(), dispatching.take_in()):
                ctx.spawn(work)
        while not self._is_over(ctx):
            await ctx.sleep(_LOOK_S)
        self._record(ctx, storing, computing)
        return None

    def _is_over(self, ctx: Context) -> bool:
        *_, dispatching = self._at(ctx)
        is_done_here = dispatching is None or dispatching.has_answered_all
        return is_done_here and self._answered.issuperset(ctx.peers("compute"))

    def _record(self, ctx: Context, storing: Storing | None, computing: Computing | None) -> None:
        if storing is not None:
            ctx.record(round=0, **{"store/sent_bytes": storing.sent_bytes, "store/copied": storing.copied})
        if computing is not None:
            larder = computing.larder
            ctx.record(
                round=0,
                **{
                    "compute/served": computing.served,
                    "compute/refetched": larder.refetched,
                    "compute/peak_bytes": larder.peak_bytes,
                },
            )

    def _at(self, ctx: Context) -> tuple[Directory, Storing | None, Computing | None, Dispatching | None]:
        """The parts of this node; messages may come before ``run`` has begun."""
        if self._parts is None:
            config = self.config
            directory = Directory(ctx, config)
            if ctx.me < config.storage:
                self._parts = directory, Storing(ctx, config, directory), None, None
            else:

                def tell(entry: int, progress: Progress) -> None:
                    if entry == ctx.me:
                        dispatching.progressed(progress)
                    else:
                        ctx.spawn(ctx.send(entry, progress))

                computing = Computing(ctx, config, directory, tell)
                dispatching = Dispatching(ctx, config, lambda: computing.status, computing.take)
                self._parts = directory, None, computing, dispatching
        return self._parts

    # What storage nodes are asked

    @on(Describe)
    def describe(self, ctx: Context, sender: int, message: Describe) -> Message:
        """What an adapter consists of."""
        _, storing, *_ = self._at(ctx)
        return Absent(adapter=message.adapter) if storing is None else storing.describe(message)

    @on(Get)
    def get(self, ctx: Context, sender: int, message: Get) -> Message:
        """A chunk."""
        _, storing, *_ = self._at(ctx)
        return Absent(adapter=message.adapter) if storing is None else storing.get(message)

    @on(Want)
    def want(self, ctx: Context, sender: int, message: Want) -> None:
        """Keep an adapter, too."""
        _, storing, *_ = self._at(ctx)
        if storing is not None:
            storing.want(message)

    # What comes to who fetches

    @on(Data)
    def came(self, ctx: Context, sender: int, message: Data) -> None:
        """A chunk has come."""
        _, storing, computing, _ = self._at(ctx)
        there = storing.fetching if storing is not None else computing.larder.fetching if computing else {}
        if message.adapter in there:
            there[message.adapter].came(sender, message.chunk, message.content)

    @on(Absent)
    def absent(self, ctx: Context, sender: int, message: Absent) -> None:
        """Who was asked for a chunk has not got it."""
        _, storing, computing, _ = self._at(ctx)
        there = storing.fetching if storing is not None else computing.larder.fetching if computing else {}
        if message.adapter in there:
            there[message.adapter].absent(sender)

    @on(Heard)
    def heard(self, ctx: Context, sender: int, message: Heard) -> News | None:
        """Say what is stored where."""
        directory, *_ = self._at(ctx)
        return directory.answer(message)

    # What compute nodes say

    @on(Status)
    def hear_status(self, ctx: Context, sender: int, message: Status) -> None:
        """How busy another compute node is."""
        *_, dispatching = self._at(ctx)
        if dispatching is not None:
            dispatching.hear(sender, message)

    @on(Ask)
    def ask(self, ctx: Context, sender: int, message: Ask) -> None:
        """Serve a request that another node has taken in."""
        _, _, computing, _ = self._at(ctx)
        if computing is not None:
            computing.take(sender, message)

    @on(Progress)
    def progress(self, ctx: Context, sender: int, message: Progress) -> None:
        """A request that was taken in here gets on."""
        *_, dispatching = self._at(ctx)
        if dispatching is not None:
            dispatching.progressed(message)

    @on(Answered)
    def hear_answered(self, ctx: Context, sender: int, message: Answered) -> None:
        """A compute node has answered all that it was asked."""
        self._answered.add(sender)

    @classmethod
    def summary(cls, config: ServingConfig, rows: Iterable[Row], traffic: Mapping[str, int]) -> Mapping[str, Any]:
        """How requests were served, and how far caches were from the best."""
        from protocols.serving_summary import summarised  # with scipy's statistics, which nothing else here needs

        return summarised(config, rows, traffic)
