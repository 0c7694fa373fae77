"""FENS: every client uploads its model, gets those of all, and together they learn how much to believe which.

Allouah, Dhasade, Guerraoui, Gupta, Kermarrec, Pinot, Pires, Sharma: Revisiting Ensembling in One-Shot Federated
Learning, NeurIPS 2024. The models are trained once, on what clients do not hold out; a small model on top of what they
say, the stack, is then trained on what they do hold out, by FedAdam (Reddi et al., ICLR 2021). That is not one round:
each client downloads every model, and the stack travels in each of many rounds. All these bytes count.

Node 0 is the aggregator; all others are clients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import Field

from node import ConfigError, Context, Message, OneShot, Protocol, ProtocolError, Ref, Row, Sent
from node.assumptions import Assumptions, Precision
from node.learn.federated import ServerOptimizer

AGGREGATOR = 0
_MEMBERS = "ensemble-probabilities"
"""The one-shot algorithm whose uploads are the models."""
_KINDS = ("upload", "members", "moments", "assignment", "update")

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


class Assignment(Message, name="fens/assignment/1", key=("round",), any_shape=True):
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

    config: Config

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

    # A client

    async def learn(self, ctx: Context, members: OneShot) -> Ref:
        """Train and upload; then take steps of the stack, until the last.

        Raises:
            ProtocolError: training is private, and no budget covers the steps on what is held out.
            Unreachable: the aggregator is gone.
        """
        if ctx.is_private:
            raise ProtocolError("fens: no privacy budget covers what clients hold out; take away [privacy]")
        trained = await members.trained()
        sent = await members.upload(trained)
        assert sent.model is not None
        await ctx.send(AGGREGATOR, Upload(model=sent.model))
        heard = await ctx.collect(Members, frm=(AGGREGATOR,))
        models = opened(members, heard[AGGREGATOR].models)
        held = ctx.data.held_samples
        stacking = ctx.stacking(len(models), self.config.hidden)
        if not held:
            await ctx.send(AGGREGATOR, Moments(samples=0, count=0, sum=0.0, squares=0.0))
            return trained
        said = await stacking.said(models)
        count, total, squares = await stacking.moments(said)
        await ctx.send(AGGREGATOR, Moments(samples=held, count=count, sum=total, squares=squares))
        for round in range(self.config.rounds + 1):
            assignment = (await ctx.collect(Assignment, frm=(AGGREGATOR,), round=round))[AGGREGATOR]
            if assignment.last:
                break
            config = self.config
            after = await stacking.stepped(assignment.stack, said, assignment.scale, config.lr, config.batch_size)
            await ctx.send(AGGREGATOR, Update(round=round, stack=after))
        return trained

    # The aggregator

    async def aggregate(self, ctx: Context, members: OneShot) -> None:
        """Hear all models, send them to all, and train the stack.

        Raises:
            ProtocolError: no client has uploaded anything that counts, or none holds anything out.
        """
        models = await self.uploads(ctx, members)
        clients = tuple(models)
        await ctx.send(clients, Members(models=tuple(models.values())))
        moments = await everybody(ctx, Moments, clients)
        samples = {client: told.samples for client, told in moments.items() if told.samples > 0}
        if not samples:
            raise ProtocolError("fens: no client holds out any samples; raise data.local_test_fraction")
        scale = deviation([moments[client] for client in samples])
        stacking = ctx.stacking(len(models), self.config.hidden)
        stack, optimizer = stacking.fresh(), ServerOptimizer("adam", self.config.server_lr)
        state = optimizer.moments(ctx, stack)
        for round in range(self.config.rounds):
            there = ctx.alive(samples)
            await ctx.send(there, Assignment(round=round, stack=stack, scale=scale))
            updates = await everybody(ctx, Update, there, round=round)
            if not updates:
                break
            weights = [samples[client] / sum(samples[other] for other in updates) for client in updates]
            mean = ctx.mix([update.stack for update in updates.values()], weights)
            stack, state = optimizer.step(ctx, stack, mean, state)
        await ctx.send(ctx.alive(samples), Assignment(round=self.config.rounds, stack=stack, scale=scale, last=True))
        metrics = await ctx.value(stacking.judge(stack, opened(members, models.values()), scale))
        ctx.record(round=0, **metrics, uploads=len(models))

    async def uploads(self, ctx: Context, members: OneShot) -> dict[int, Ref]:
        """The models of clients that have uploaded what counts, as they came."""
        clients = ctx.peers("learner")
        heard = await everybody(ctx, Upload, clients, timeout_s=self.config.deadline_s or None)
        models = {}
        for client, upload in heard.items():
            sent = Sent(client, upload.model)
            reason = members.refusal(sent)
            if not reason and not (await ctx.value(members.sound(members.opened(sent))))["sound"]:
                reason = "a NaN or an infinity"
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


def deviation(moments: Sequence[Moments]) -> float:
    """The standard deviation of all that models have said of what clients hold out; 1 where that does not vary."""
    count = sum(told.count for told in moments)
    mean = sum(told.sum for told in moments) / count
    return math.sqrt(max(0.0, sum(told.squares for told in moments) / count - mean**2)) or 1.0
