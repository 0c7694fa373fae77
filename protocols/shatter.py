"""Shatter: every node cuts its model into chunks, and each travels under the name of a virtual node.

Biswas, Even, Kermarrec, Massoulié, Pires, Sharma, de Vos: Noiseless Privacy-Preserving Decentralized Learning, PoPETs
2025, algorithm 1. A virtual node has keys and an address of its own. It passes its owner's chunk on to its neighbours
in a public graph of virtual nodes, which is fresh every round, and hands what it hears to its owner: of a chunk, nobody
else learns more than the round, what part of a model it is, and which virtual node sent it.
"""

from collections.abc import Iterator, Mapping, Sequence

from pydantic import Field

from node import Chunks, ConfigError, Context, Message, Protocol, Ref, Unreachable, on


class Chunk(Message, name="shatter/chunk/2", key=("round",), any_shape=True):
    """One chunk of a model after its local training of a round."""

    round: int
    chunk: int
    """Which coordinates these are, by the round's public partition."""
    values: Ref


class Handed(Chunk, name="shatter/handed/1", key=("round",), any_shape=True):
    """A chunk on its way from its owner to the virtual node that is to pass it on."""


class Heard(Message, name="shatter/heard/1", key=("round",), any_shape=True):
    """All chunks that a virtual node has heard in a round, for its owner."""

    round: int
    sources: tuple[int, ...]
    """The virtual node that each came from."""
    chunks: tuple[int, ...]
    values: tuple[Ref, ...]


class Over(Message, name="shatter/over/1"):
    """The owner needs its virtual nodes no longer."""


class Shatter(Protocol):
    """Every round: train, cut, and pass each chunk along a random regular graph of all virtual nodes."""

    uses_topology = False
    hides_models = True
    side_channels = ("network address of the host of virtual nodes", "time and size of messages, time of absences")

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Rounds of training and mixing."""
        chunks: int = Field(4, ge=1)
        """Virtual nodes of each node (``k``), with a chunk each."""
        degree: int = Field(4, ge=1)
        """Virtual nodes that each passes its chunk to (``r``): each parameter reaches about as many nodes."""
        beacon: str = "starling"
        """Public randomness, drawn after the nodes are known: partitions and graphs follow from it."""
        deadline_s: float = Field(0.0, ge=0)
        """Longest wait of a virtual node for the chunks of a round; 0: all are needed."""

    config: Config

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._passed_on = -1

    @classmethod
    def check(cls, config: Config, nodes: int) -> None:
        """There must be a regular graph of all virtual nodes."""
        virtual = nodes * config.chunks
        if config.degree >= virtual or virtual * config.degree % 2:
            raise ConfigError(
                f"protocol.degree: no graph of {virtual} virtual nodes has {config.degree} neighbours each; allowed: "
                f"below {virtual}, and even where {virtual} is odd"
            )

    @classmethod
    def virtual_nodes(cls, config: Config) -> int:
        """One for each chunk."""
        return config.chunks

    async def run(self, ctx: Context) -> Ref | None:
        """Take part in every round; a node's final model is the last mean, coordinate by coordinate."""
        chunks = self._chunks(ctx)
        if chunks.owner is None:
            return await self._learn(ctx, chunks)
        try:
            await ctx.collect(Over, frm=(chunks.owner,))
        except Unreachable:
            ctx.log.info("owner gone")
        return None

    def _chunks(self, ctx: Context) -> Chunks:
        return ctx.privacy.chunks(self.config.chunks, self.config.degree, self.config.beacon)

    # A node

    async def _learn(self, ctx: Context, chunks: Chunks) -> Ref:
        model, first = ctx.initial_model(), 0
        if saved := ctx.restore():
            model, first = saved["model"], saved["round"]
        for round in range(first, self.config.rounds):
            model = await ctx.train(model)
            for chunk, (virtual, values) in enumerate(zip(chunks.virtual, chunks.cut(model, round), strict=True)):
                await ctx.send(virtual, Handed(round=round, chunk=chunk, values=values))
            # Twice as long: each of its virtual nodes waits for others before it answers.
            patience_s = 2 * self.config.deadline_s or None
            heard = await ctx.collect(Heard, frm=chunks.virtual, timeout_s=patience_s, round=round)
            model = chunks.merged(model, list(_of_others(heard, chunks.virtual)), round)
            ctx.record(round=round, **ctx.judge(model))
            await ctx.checkpoint(round=round + 1, model=model)
        await ctx.send(chunks.virtual, Over())
        return model

    # A virtual node

    @on(Handed)
    def _handed(self, ctx: Context, sender: int, message: Handed) -> Heard | None:
        """Pass a chunk on, once a round; an owner that was away may ask again, and has then missed the round."""
        if sender != self._chunks(ctx).owner:
            return None
        if message.round <= self._passed_on:
            return Heard(round=message.round, sources=(), chunks=(), values=())
        self._passed_on = message.round
        ctx.spawn(self._pass_on(ctx, sender, message))
        return None

    async def _pass_on(self, ctx: Context, owner: int, handed: Handed) -> None:
        others, round = self._chunks(ctx).neighbours(handed.round), handed.round
        await ctx.send(others, Chunk(round=round, chunk=handed.chunk, values=handed.values))
        heard = await ctx.collect(Chunk, frm=others, timeout_s=self.config.deadline_s or None, round=round)
        numbers, values = tuple(each.chunk for each in heard.values()), tuple(each.values for each in heard.values())
        ctx.record(round=round)  # before its owner can go on: what it has sent is then the same in every run
        await ctx.send(owner, Heard(round=round, sources=tuple(heard), chunks=numbers, values=values))


def _of_others(heard: Mapping[int, Heard], own: Sequence[int]) -> Iterator[tuple[int, Ref]]:
    """What a node's virtual nodes have heard of others', as numbers of chunks and values."""
    for message in heard.values():
        for source, chunk, values in zip(message.sources, message.chunks, message.values, strict=True):
            if source not in own:
                yield chunk, values
