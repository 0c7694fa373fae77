"""FENS: every client uploads its model, gets those of all, and together they learn how much to believe which.

Allouah, Dhasade, Guerraoui, Gupta, Kermarrec, Pinot, Pires, Sharma: Revisiting Ensembling in One-Shot Federated
Learning, NeurIPS 2024. The models are trained once, on what clients do not hold out; a small model on top of what they
say, the stack, is then trained on what they do hold out, by FedAdam (Reddi et al., ICLR 2021). That is not one round:
each client downloads every model, and the stack travels in each of many rounds. All these bytes count.

Node 0 is the aggregator; all others are clients. Whoever is killed and started again goes on: the others tell it once
more what it has lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import Field

from node import ConfigError, Context, Message, OneShot, Protocol, ProtocolError, Ref, Row, Sent, Unreachable, on
from node.assumptions import Assumptions, Precision
from node.learn.federated import ServerOptimizer

AGGREGATOR = 0
_MEMBERS = "ensemble-probabilities"
"""The one-shot algorithm whose uploads are the models."""
_KINDS = ("upload", "members", "moments", "assignment", "update", "again")

M = TypeVar("M", bound=Message)


class Upload(Message, name="fens/upload/1", any_shape=True):
    """A client's model."""

    model: Ref


class Members(Message, name="fens/members/1", any_shape=True):
    """All models."""

    models: tuple[Ref, ...]


class Moments(Message, name="fens/moments/1"):
    """How many numbers the models have said of what a client holds out, their sum, and that of their squares."""

    samples: int
    count: int
    sum: float
    squares: float

    @property
    def is_sound(self) -> bool:
        """Whether such figures can be."""
        return self.count > 0 and math.isfinite(self.sum) and 0 <= self.squares < math.inf


class Assignment(Message, name="fens/assignment/1", any_shape=True):
    """The stack to take a step from."""

    round: int
    stack: Ref
    scale: float
    """What all that the models say is divided by."""
    last: bool = False
    """There is nothing more to do."""


class Update(Message, name="fens/update/1", key=("round",), any_shape=True):
    """A client's stack after its step."""

    round: int
    stack: Ref


class Again(Message, name="fens/again/1"):
    """Its sender has been started again, and has lost what it was told."""


class FENS(Protocol):
    """One upload, one download of everything, and rounds of a small model."""

    uses_topology = False
    declares = Assumptions(
        reveals="scalars", proxy=True, mixed_architectures=True, result="ensemble", rounds=3, selection="clients"
    )
    """What it takes for granted, as one-shot algorithms declare it; 3 exchanges stand for more than 2."""
    side_channels = ("steps on what clients hold out, and two sums of what models say of it, carry no noise",)

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(300, ge=1)
        """Of the stack; 500 in the paper."""
        hidden: int = Field(2, ge=1)
        """Units of the stack's hidden layer, for each model."""
        lr: float = Field(1.0, gt=0)
        """Of a client's step."""
        server_lr: float = Field(0.01, gt=0)
        """Of the aggregator; 0.001 in the paper."""
        batch_size: int = Field(128, ge=1)
        """Samples of a client's step."""
        upload: Precision = "float32"
        """In which numbers models are uploaded, and come back to all."""
        deadline_s: float = Field(0.0, ge=0)
        """When uploads end, from the start; 0: when all clients have uploaded or are gone."""
        checkpoint_rounds: int = Field(10, ge=1)
        """Rounds after which the aggregator keeps its state again, all models with it."""
        aggregator_wait_s: float = Field(300.0, ge=0)
        """How long clients wait for an aggregator that is gone to come back."""
        most_over_median: float = Field(0.0, ge=0)
        """A client counts for no more samples than so many times the (lower) median of all; 0: as many as it claims.
        Against clients that lie about them, at the cost of those that do hold out far more than most."""

    config: Config

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._newest: dict[type[Message], Message] = {}
        """What this node has said that others need who are started again, by its kind."""

    @classmethod
    def check(cls, config: Config, nodes: int) -> None:
        """There must be clients enough."""
        if nodes < 2:
            raise ConfigError("nodes: fens needs an aggregator and at least one client; allowed: 2 or more")

    @classmethod
    def roles(cls, config: Config, nodes: int) -> Mapping[int, str]:
        """Node 0 aggregates."""
        return {AGGREGATOR: "aggregator"}

    @classmethod
    def uses_local_tests(cls, config: Config) -> bool:
        """The stack learns from what clients hold out."""
        return True

    async def run(self, ctx: Context) -> Ref | None:
        """Aggregate, or be a client; a client ends with its own model."""
        members = ctx.oneshot(_MEMBERS, {}, self.config.upload)
        return await (self.aggregate(ctx, members) if ctx.me == AGGREGATOR else self.learn(ctx, members))

    async def tell(self, ctx: Context, to: Sequence[int], message: Message) -> None:
        """Send a message, and keep it for those who are started again."""
        self._newest[type(message)] = message
        await ctx.send(to, message)

    @on(Again)
    def catch_up(self, ctx: Context, sender: int, message: Again) -> None:
        """Say it all once more; clients owe that to nobody but the aggregator."""
        if AGGREGATOR in (ctx.me, sender):
            ctx.spawn(self.repeat(ctx, sender))

    async def repeat(self, ctx: Context, to: int) -> None:
        """Send what has been said last of each kind."""
        for message in [*self._newest.values()]:
            await ctx.send(to, message)

    # A client

    async def learn(self, ctx: Context, members: OneShot) -> Ref:
        """Train and upload; then take steps of the stack, until the last.

        Raises:
            Unreachable: the aggregator is gone, and does not come back.
        """
        saved = ctx.restore()
        trained = await members.trained() if saved is None else saved["model"]
        await ctx.checkpoint(model=trained)
        sent = await members.upload(trained)
        assert sent.model is not None
        await self.tell(ctx, (AGGREGATOR,), Upload(model=sent.model))
        if saved is not None:
            await ctx.send(AGGREGATOR, Again())
        models = opened(members, (await self.heard(ctx, Members)).models)
        stacking, held = ctx.stacking(len(models), self.config.hidden), ctx.data.held_samples
        if not held:
            await self.tell(ctx, (AGGREGATOR,), Moments(samples=0, count=0, sum=0.0, squares=0.0))
            return trained
        said = await stacking.said(models)
        count, total, squares = await stacking.moments(said)
        await self.tell(ctx, (AGGREGATOR,), Moments(samples=held, count=count, sum=total, squares=squares))
        config = self.config
        while not (assignment := await self.heard(ctx, Assignment)).last:
            after = await stacking.stepped(assignment.stack, said, assignment.scale, config.lr, config.batch_size)
            await ctx.send(AGGREGATOR, Update(round=assignment.round, stack=after))
        return trained

    async def heard(self, ctx: Context, kind: type[M]) -> M:
        """The newest message of a kind from the aggregator; waits while that is away.

        Raises:
            Unreachable: it does not come back in ``aggregator_wait_s``.
        """
        while True:
            heard = await ctx.collect(kind, frm=(AGGREGATOR,), quorum=1)
            if not heard:  # it is gone; what it says once it is back ends the wait
                heard = await ctx.collect(kind, quorum=1, timeout_s=self.config.aggregator_wait_s)
            if AGGREGATOR in heard:
                return heard[AGGREGATOR]
            if not ctx.peers("aggregator"):
                raise Unreachable(
                    f"node {ctx.me}: the aggregator, node {AGGREGATOR}, is gone, and has not come back in "
                    f"{self.config.aggregator_wait_s:g} s (protocol.aggregator_wait_s)"
                )

    # The aggregator

    async def aggregate(self, ctx: Context, members: OneShot) -> None:
        """Hear all models, send them to all, and train the stack; started again, go on from the last checkpoint.

        Raises:
            ProtocolError: no client has uploaded anything that counts, or none holds anything out.
        """
        saved = ctx.restore()
        if saved is not None:
            await ctx.send(ctx.peers("learner"), Again())
        kept = dict(saved or {})
        await ctx.checkpoint(**kept)
        if not (models := by_client(kept, "model")):
            models = await self.uploads(ctx, members)
            kept |= {f"model/{client}": model for client, model in models.items()}
            await ctx.checkpoint(**kept)
        everything = Members(models=tuple(models.values()))
        if "scale" in kept:
            self._newest[Members] = everything
        else:
            await self.tell(ctx, tuple(models), everything)
            kept |= scaled(await everybody(ctx, Moments, tuple(models)))
        stack = await self.trained(ctx, members, len(models), kept)
        stacking = ctx.stacking(len(models), self.config.hidden)
        metrics = await ctx.value(stacking.judge(stack, opened(members, models.values()), kept["scale"]))
        ctx.record(round=0, **metrics, uploads=len(models))

    async def trained(self, ctx: Context, members: OneShot, models: int, kept: dict[str, Any]) -> Ref:
        """The stack after all rounds, or after those that are left of them; everybody gets it as the last assignment.

        Args:
            models: how many there are.
            kept: what there was to keep before the first round, or has been kept after one.
        """
        samples = believed(by_client(kept, "samples"), self.config.most_over_median)
        scale, rounds = kept["scale"], self.config.rounds
        optimizer = ServerOptimizer("adam", self.config.server_lr)
        stack: Ref = kept.get("stack", ctx.stacking(models, self.config.hidden).fresh())
        first = int(kept.get("round", 0))
        state: Mapping[str, Ref] = {
            name: kept.get(name, start) for name, start in optimizer.moments(ctx, stack).items()
        }
        for round in range(first, rounds):
            there = ctx.alive(samples)
            await self.tell(ctx, there, Assignment(round=round, stack=stack, scale=scale))
            heard = await everybody(ctx, Update, there, round=round)
            stacks = {client: update.stack for client, update in heard.items() if update.stack.spec == stack.spec}
            updates = await self.sound(ctx, members, stacks)
            if not updates:
                break
            weights = [samples[client] / sum(samples[other] for other in updates) for client in updates]
            mean = ctx.mix([*updates.values()], weights)
            stack, state = optimizer.step(ctx, stack, mean, state)
            if (round + 1) % self.config.checkpoint_rounds == 0 or round + 1 == rounds:
                await ctx.checkpoint(**kept | {"round": round + 1, "stack": stack, **state})
        await self.tell(ctx, ctx.alive(samples), Assignment(round=rounds, stack=stack, scale=scale, last=True))
        return stack

    async def sound(self, ctx: Context, members: OneShot, stacks: Mapping[int, Ref]) -> dict[int, Ref]:
        """The stacks that one can take the mean of."""
        found = await ctx.values([members.sound(Sent(client, stack)) for client, stack in stacks.items()])
        kept = {}
        for (client, stack), verdict in zip(stacks.items(), found, strict=True):
            if verdict["sound"]:
                kept[client] = stack
            else:
                ctx.log.warning("a stack that does not count", client=client, reason=members.unsound)
        return kept

    async def uploads(self, ctx: Context, members: OneShot) -> dict[int, Ref]:
        """The models of clients that have uploaded what counts, as they came."""
        clients = ctx.peers("learner")
        heard = await everybody(ctx, Upload, clients, timeout_s=self.config.deadline_s or None)
        models = {}
        for client, upload in heard.items():
            sent = Sent(client, upload.model)
            reason = members.refusal(sent)
            if not reason and not (await ctx.value(members.sound(members.opened(sent))))["sound"]:
                reason = members.unsound
            if reason:
                ctx.log.warning("an upload that does not count", client=client, reason=reason)
            else:
                models[client] = upload.model
        if not models:
            raise ProtocolError("fens: no client has uploaded a model that counts; there is nothing to believe")
        return models

    @classmethod
    def summary(cls, config: Config, rows: Iterable[Row], traffic: Mapping[str, int]) -> Mapping[str, Any]:
        """What it assumes, and the bytes of each kind of message, downloads and rounds included."""
        sent = {kind: traffic.get(f"fens/{kind}/1", 0) for kind in _KINDS}
        return {"assumptions": cls.declares.cell, "sent_bytes": sent}


async def everybody(
    ctx: Context, kind: type[M], clients: Sequence[int], timeout_s: float | None = None, **key: Any
) -> dict[int, M]:
    """A message of each client that is not gone, in the order of their numbers; none of those that go meanwhile."""
    if not clients:
        return {}
    return await ctx.collect(kind, frm=clients, quorum=len(clients), timeout_s=timeout_s, **key)


def opened(members: OneShot, models: Iterable[Ref]) -> list[Ref]:
    """Models as they were uploaded, in full precision."""
    found = [members.opened(Sent(place, model)).model for place, model in enumerate(models)]
    return [model for model in found if model is not None]


def by_client(kept: Mapping[str, Any], name: str) -> dict[int, Any]:
    """What is kept of each client under a name, in the order of their numbers."""
    found = {int(key.removeprefix(f"{name}/")): value for key, value in kept.items() if key.startswith(f"{name}/")}
    return dict(sorted(found.items()))


def scaled(moments: Mapping[int, Moments]) -> dict[str, float]:
    """What all that the models say is divided by, and the samples of each client that holds some out.

    Raises:
        ProtocolError: none does.
    """
    there = {client: told for client, told in moments.items() if told.samples > 0}
    if not there:
        raise ProtocolError("fens: no client holds out any samples; raise data.local_test_fraction")
    samples = {f"samples/{client}": told.samples for client, told in there.items()}
    return {"scale": deviation([told for told in there.values() if told.is_sound]), **samples}


def believed(samples: Mapping[int, int], most_over_median: float) -> dict[int, float]:
    """The samples that each client counts for: none for more than so many times the (lower) median; 0: as it claims."""
    if not most_over_median:
        return dict(samples)
    most = most_over_median * sorted(samples.values())[(len(samples) - 1) // 2]
    return {client: min(count, most) for client, count in samples.items()}


def deviation(moments: Sequence[Moments]) -> float:
    """The standard deviation of all that models have said of what clients hold out; 1 where that does not vary."""
    count = max(1, sum(told.count for told in moments))
    mean = sum(told.sum for told in moments) / count
    return math.sqrt(max(0.0, sum(told.squares for told in moments) / count - mean * mean)) or 1.0
