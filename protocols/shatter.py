"""Shatter: every node cuts its model into chunks, and each travels under the name of a virtual node.

Biswas, Even, Kermarrec, Massoulié, Pires, Sharma, de Vos: Noiseless Privacy-Preserving Decentralized Learning, PoPETs
2025, algorithm 1. Here the virtual nodes of a node share its one address: whoever receives a chunk knows whose it is,
so a run measures what chunks hide by themselves.
"""

from pydantic import Field

from node import ConfigError, Context, Message, Protocol, Ref


class Chunk(Message, name="shatter/chunk/1", key=("round", "lane"), any_shape=True):
    """One chunk of a model after its local training of a round."""

    round: int
    lane: int
    """Tells apart the chunks that one address sends to another in a round."""
    chunk: int
    """Which coordinates these are, by the round's public partition."""
    values: Ref


class Shatter(Protocol):
    """Every round: train, cut, and pass each chunk along a random regular graph of all virtual nodes."""

    uses_topology = False
    side_channels = ("address of virtual nodes", "time and size of messages")

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
        """Longest wait for the chunks of a round; 0: all are needed."""

    config: Config

    @classmethod
    def check(cls, config: Config, nodes: int) -> None:
        """There must be a regular graph of all virtual nodes."""
        virtual = nodes * config.chunks
        if config.degree >= virtual or virtual * config.degree % 2:
            raise ConfigError(
                f"protocol.degree: no graph of {virtual} virtual nodes has {config.degree} neighbours each; allowed: "
                f"below {virtual}, and even where {virtual} is odd"
            )

    async def run(self, ctx: Context) -> Ref:
        """Take part in every round; the final model is the last mean, coordinate by coordinate."""
        chunks = ctx.privacy.chunks(self.config.chunks, self.config.degree, self.config.beacon)
        model, first = ctx.initial_model(), 0
        if saved := ctx.restore():
            model, first = saved["model"], saved["round"]
        for round in range(first, self.config.rounds):
            model = await ctx.train(model)
            for hop, values in chunks.outgoing(model, round):
                await ctx.send(hop.to, Chunk(round=round, lane=hop.lane, chunk=hop.chunk, values=values))
            model = chunks.merged(model, await self.received(ctx, round, chunks.lanes(round)), round)
            ctx.record(round=round, **ctx.judge(model))
            await ctx.checkpoint(round=round + 1, model=model)
        return model

    async def received(self, ctx: Context, round: int, lanes: list[tuple[int, ...]]) -> list[tuple[int, Ref]]:
        """The chunks of a round that have come in time, by lane and sender."""
        until_s = ctx.now + self.config.deadline_s if self.config.deadline_s else None
        received = []
        for lane, senders in enumerate(lanes):
            left_s = None if until_s is None else max(0.0, until_s - ctx.now)
            heard = await ctx.collect(Chunk, frm=senders, timeout_s=left_s, round=round, lane=lane)
            received += [(message.chunk, message.values) for message in heard.values()]
        return received
