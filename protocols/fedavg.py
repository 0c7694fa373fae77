"""Federated averaging with a server node, and its relatives.

FedAvg: McMahan, Moore, Ramage, Hampson, Agüera y Arcas, AISTATS 2017. FedProx: Li, Sahu, Zaheer, Sanjabi, Talwalkar,
Smith, MLSys 2020 (``proximal``). FedAdam: Reddi et al.: Adaptive Federated Optimization, ICLR 2021 (``server =
"adam"``). Over-selection and check-in: Bonawitz et al.: Towards Federated Learning at Scale, MLSys 2019.

Node 0 is the server: it holds no data and trains nothing. All others are clients.

Absent nodes: the server asks clients that are not known to be gone. Without ``deadline_s`` all that it has asked are
needed, and one that goes in its round ends the run. With it, a round closes at the deadline, or when those that are
missing are gone, and the average is over the updates that have come; a round without any changes nothing, and without
any client left the run ends. A client that comes back in a round that it was asked in is asked again. Clients wait
``server_wait_s`` for a server that is gone; one that comes back goes on with the round that it has saved.
"""

from collections.abc import Mapping, Sequence

from pydantic import Field

from node import ConfigError, Context, Message, Protocol, ProtocolError, Ref, Unreachable, on
from node.cohorts import generator, number_to_ask, uniform
from protocols.server import ServerOptions

SERVER = 0


class Assignment(Message, name="fedavg/assignment/1"):
    """The global model, for a client to train; the last one is the result."""

    round: int
    model: Ref
    last: bool = False


class CheckIn(Message, name="fedavg/check-in/1"):
    """A client is there: it may have come after the last round, or have lost what it was assigned."""

    again: bool
    """Whether it has been there before."""


class Update(Message, name="fedavg/update/1", key=("round",)):
    """What a client made of it."""

    round: int
    model: Ref
    samples: int


class FedAvg(Protocol):
    """Rounds of: the server samples clients, they train its model, it averages what comes back."""

    uses_topology = False
    aggregates = True
    side_channels = ("number of samples",)

    class Config(ServerOptions):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Rounds of the server."""
        sample: int = Field(0, ge=0)
        """Clients whose updates make a round; 0: all."""
        over_select: float = Field(0.0, ge=0)
        """Share of further clients to ask; the first ``sample`` to answer count."""
        deadline_s: float = Field(0.0, ge=0)
        """Longest wait for a round's updates; 0: without end."""
        server_wait_s: float = Field(300.0, ge=0)
        """How long clients wait for a server that is gone to come back."""
        most_over_median: float = Field(0.0, ge=0)
        """A client's samples count for no more than so many times the (lower) median of its round; 0: for as many as it
        claims. Against clients that lie about them, at the cost of those that do hold far more than most."""

    config: Config
    newest: Assignment | None = None
    """What the server has assigned last."""
    assigned: Sequence[int] = ()
    """The clients that it went to."""

    @classmethod
    def check(cls, config: Config, nodes: int) -> None:
        """There must be clients enough."""
        if nodes < 2:
            raise ConfigError("nodes: fedavg needs a server and at least one client; allowed: 2 or more")
        if config.sample > nodes - 1:
            raise ConfigError(f"protocol.sample: {config.sample} of {nodes - 1} clients; allowed: 0 to {nodes - 1}")

    @classmethod
    def aggregated(cls, config: Config, nodes: int) -> int:
        """The server aggregates the updates of a round; the global model is what they are judged by."""
        return config.sample or nodes - 1

    @classmethod
    def roles(cls, config: Config, nodes: int) -> Mapping[int, str]:
        """Node 0 serves."""
        return {SERVER: "server"}

    async def run(self, ctx: Context) -> Ref:
        """Serve, or be a client; everybody ends with the global model."""
        return await (self.serve(ctx) if ctx.me == SERVER else self.learn(ctx))

    async def learn(self, ctx: Context) -> Ref:
        """A client: train what the server assigns, newest first, until the last."""
        again = ctx.restore() is not None
        await ctx.checkpoint()
        await ctx.send(SERVER, CheckIn(again=again))
        while not (assignment := await self.assignment(ctx)).last:
            model = await ctx.train(assignment.model, proximal=self.config.proximal)
            await ctx.checkpoint()  # the learning rate and the order of batches go on from here after a crash
            await ctx.send(SERVER, Update(round=assignment.round, model=model, samples=ctx.data.samples))
            ctx.record(round=assignment.round)
        return assignment.model

    async def assignment(self, ctx: Context) -> Assignment:
        """The server's newest assignment.

        Raises:
            Unreachable: the server is gone, and does not come back in ``server_wait_s``.
        """
        while True:
            heard = await ctx.collect(Assignment, frm=(SERVER,), quorum=1)
            if not heard:  # the server is gone; once it is back, its next assignment ends the wait
                heard = await ctx.collect(Assignment, quorum=1, timeout_s=self.config.server_wait_s)
            if SERVER in heard:
                return heard[SERVER]
            if not ctx.peers("server"):
                raise Unreachable(
                    f"node {ctx.me}: the server, node {SERVER}, is gone, and has not come back in "
                    f"{self.config.server_wait_s:g} s (protocol.server_wait_s)"
                )

    async def serve(self, ctx: Context) -> Ref:
        """The server: all rounds, then the result to everybody."""
        model, first = ctx.initial_model(), 0
        optimizer = self.config.optimizer
        moments = optimizer.moments(ctx, model)
        if saved := ctx.restore():
            model, first = saved["model"], saved["round"]
            moments = {name: saved[name] for name in moments}
        for round in range(first, self.config.rounds):
            updates = await self.round(ctx, round, model)
            if updates:
                mean = average(ctx, model, updates, round / self.config.rounds, self.config.most_over_median)
                model, moments = optimizer.step(ctx, model, mean, moments)
            metrics = ctx.evaluate(model)
            ctx.record(round=round, accuracy=metrics, loss=metrics, clients=len(updates))
            await ctx.checkpoint(round=round + 1, model=model, **moments)
        await self.assign(ctx, ctx.peers(), Assignment(round=self.config.rounds, model=model, last=True))
        return model

    async def assign(self, ctx: Context, clients: Sequence[int], assignment: Assignment) -> None:
        """Give some clients their next work, or the result."""
        self.assigned, self.newest = clients, assignment
        await ctx.send(clients, assignment)

    @on(CheckIn)
    def missed(self, ctx: Context, client: int, message: CheckIn) -> Assignment | None:
        """The result, once it is there; until then, for a client of this round that was away, its assignment again."""
        newest = self.newest
        if newest is None or newest.last:
            return newest
        return newest if message.again and client in self.assigned else None

    async def round(self, ctx: Context, round: int, model: Ref) -> dict[int, Update]:
        """Assign the model to this round's clients and hear them, at most ``sample`` of them."""
        sample, deadline_s = self.config.sample, self.config.deadline_s or None
        there = ctx.peers()
        count = number_to_ask(sample, 1 + self.config.over_select) if sample else len(there)
        clients = uniform(there, count, generator(ctx.seed, 0, round))
        if not clients:
            raise ProtocolError("fedavg: every client is gone; nothing is left to average")
        await self.assign(ctx, clients, Assignment(round=round, model=model))
        quorum = sample if sample and self.config.over_select else None
        heard = await ctx.collect(Update, frm=clients, quorum=quorum, timeout_s=deadline_s, round=round)
        return {client: update for client, update in heard.items() if update.samples > 0}


def average(
    ctx: Context, model: Ref, updates: dict[int, Update], progress: float, most_over_median: float = 0.0
) -> Ref:
    """The mean of the clients' models, weighted by their samples; the global ``model`` is no part of it.

    With ``most_over_median``, none counts for more samples than so many times the (lower) median.
    """
    samples: list[float] = [update.samples for update in updates.values()]
    if most_over_median:
        most = most_over_median * sorted(samples)[(len(samples) - 1) // 2]
        samples = [min(count, most) for count in samples]
    total = sum(samples)
    weights = [0.0, *(count / total for count in samples)]
    return ctx.aggregate(model, {client: update.model for client, update in updates.items()}, weights, progress)
