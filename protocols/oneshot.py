"""One-shot federated learning: every client trains, uploads once and is done; one node makes a predictor of it all.

Guha, Talwalkar, Smith: One-Shot Federated Learning, 2019. What is uploaded and what becomes of it is up to the
algorithm (``starling list algorithms``), which gets only what it has declared.

Node 0 is the aggregator: it holds no data and trains nothing. All others are clients. It closes when every client has
uploaded or is gone, or before that at its deadline, at a quorum, or when each class is covered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field

from node import ConfigError, Context, Message, OneShot, Protocol, Ref, Row, Sent, on
from node.assumptions import Asked, Precision, Reveal
from protocols.intake import Intake, Missing

AGGREGATOR = 0
_KINDS = ("model", "parts", "control")


class Upload(Message, name="oneshot/upload/1", any_shape=True):
    """All that a client ever tells. What its algorithm has not declared stays empty."""

    model: Ref | None
    parts: tuple[Ref, ...]
    samples: int
    counts: tuple[int, ...]
    """Samples of each class."""
    score: float
    """Accuracy on what the client holds out."""


class Again(Message, name="oneshot/again/1"):
    """The aggregator has been started again, and has lost what it had."""


class Taken(Message, name="oneshot/taken/1"):
    """What an aggregator tells itself, to wake up: a client has uploaded."""


class OneShotLearning(Protocol):
    """One upload from each client, one aggregation."""

    uses_topology = False

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        algorithm: str = "average"
        """What is uploaded, and what becomes of it: a name of ``starling list algorithms``, or module:Class."""
        options: dict[str, Any] = Field(default_factory=dict)
        """The algorithm's own."""
        reveal: Reveal = "samples"
        """What clients may tell at most; an algorithm that needs more is refused."""
        upload: Precision = "float32"
        """In which numbers models are uploaded."""
        deadline_s: float = Field(0.0, ge=0)
        """When the aggregator closes, from the start; 0: when all clients have uploaded or are gone."""
        quorum: int = Field(0, ge=0)
        """Close after so many uploads that count; 0: wait for all."""
        cover: int = Field(0, ge=0)
        """Close as soon as each class is in so many uploads, where clients reveal their labels; 0: do not count."""
        incremental: bool = False
        """Make another predictor whenever late uploads have come, until all clients have uploaded or are gone."""
        most_samples: int = Field(0, ge=0)
        """As many samples as a client may claim at most, in all its classes together: a claim beyond is cut to it, and
        label counts in proportion. What clients claim is their weight; 0: believe them."""
        window: int = Field(64, ge=1)
        """Where uploads are added up as they come: how many may wait for those of lower numbers. As long as these are
        enough, the result has the same bits in whatever order uploads come."""

    config: Config

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._intake: Intake | None = None
        self._uploaded: Upload | None = None

    @classmethod
    def check(cls, config: Config, nodes: int) -> None:
        """There must be clients enough."""
        if nodes < 2:
            raise ConfigError("nodes: oneshot needs an aggregator and at least one client; allowed: 2 or more")
        for key in ("quorum", "cover"):
            if (asked := getattr(config, key)) > nodes - 1:
                raise ConfigError(f"protocol.{key}: {asked} of {nodes - 1} clients; allowed: 0 to {nodes - 1}")

    @classmethod
    def roles(cls, config: Config, nodes: int) -> Mapping[int, str]:
        """Node 0 aggregates."""
        return {AGGREGATOR: "aggregator"}

    @classmethod
    def asked(cls, config: Config) -> Asked:
        """The algorithm."""
        return Asked(config.algorithm, config.options, config.reveal)

    async def run(self, ctx: Context) -> Ref | None:
        """Aggregate, or be a client."""
        return await (self.aggregate(ctx) if ctx.me == AGGREGATOR else self.learn(ctx))

    def oneshot(self, ctx: Context) -> OneShot:
        """The algorithm at this node."""
        return ctx.oneshot(self.config.algorithm, self.config.options, self.config.upload)

    # A client

    async def learn(self, ctx: Context) -> Ref | None:
        """Train once, upload once; a client that is started again uploads what it had trained.

        It ends with what it has trained, where that is a model of the experiment's architecture.
        """
        oneshot = self.oneshot(ctx)
        if (saved := ctx.restore()) is None:
            began_s = ctx.now
            trained = await oneshot.trained()
            client_s = ctx.now - began_s
            await ctx.checkpoint(model=trained, client_s=client_s)
        else:
            trained, client_s = saved["model"], saved["client_s"]
        began_s = ctx.now
        sent = await oneshot.upload(trained)
        client_s += ctx.now - began_s
        self._uploaded = Upload(**{name: value for name, value in sent._asdict().items() if name != "client"})
        await ctx.send(AGGREGATOR, self._uploaded)
        sizes = oneshot.sizes(self._uploaded)
        ctx.record(round=0, client_s=client_s, **{f"bytes/{kind}": float(sizes[kind]) for kind in _KINDS})
        return self.final(ctx, trained)

    @on(Again)
    def upload_again(self, ctx: Context, sender: int, message: Again) -> Upload | None:
        """Upload once more, to nobody but the aggregator."""
        return self._uploaded if sender == AGGREGATOR else None

    # The aggregator

    async def aggregate(self, ctx: Context) -> Ref | None:
        """Hear clients until it is time to close, and make one predictor of what has come.

        It ends with the predictor, where that is a model like the clients'.

        Raises:
            ProtocolError: no client has uploaded anything that counts.
        """
        intake, oneshot = self.intake(ctx), self.oneshot(ctx)
        if ctx.restore() is not None:
            await ctx.send(ctx.peers(), Again())
        await ctx.checkpoint()
        await self.hear(ctx, intake)
        if not self.config.incremental:
            intake.close()
        round = 0
        predictor, uploads = await self.predicted(ctx, oneshot, intake, round)
        while await self.has_grown(ctx, intake, uploads):
            round += 1
            predictor, uploads = await self.predicted(ctx, oneshot, intake, round)
        return self.final(ctx, predictor)

    async def has_grown(self, ctx: Context, intake: Intake, uploads: int) -> bool:
        """Wait for late uploads, where another predictor is made of them; whether there are more than so many."""
        while len(intake.counted) == uploads and self.config.incremental and (awaited := intake.awaited()):
            await ctx.collect(Taken, frm=awaited, quorum=1)
            await intake.prove()
        return len(intake.counted) != uploads

    async def predicted(self, ctx: Context, oneshot: OneShot, intake: Intake, round: int) -> tuple[Ref, int]:
        """One predictor of what has come, and of how many uploads.

        Keeps how good it is, what it took, and who has no part in it.
        """
        closed_s = ctx.now
        predictor, uploads = await intake.predictor()
        metrics = await ctx.value(oneshot.judge(predictor))
        intake.settle()
        ctx.record(
            round=round,
            **metrics,
            uploads=uploads,
            closed_s=closed_s,
            aggregated_s=ctx.now - closed_s,
            held_bytes=float(intake.held_bytes),
            result_bytes=float(predictor.spec.size_bytes),
            **{f"missing/{client}": float(why) for client, why in sorted(intake.missing.items())},
        )
        return predictor, uploads

    def final(self, ctx: Context, made: Ref) -> Ref | None:
        """What a node ends with, where it is a model like everybody's."""
        return made if made.spec == ctx.initial_model().spec else None

    def intake(self, ctx: Context) -> Intake:
        """What has come; uploads may come before ``run`` has begun."""
        if self._intake is None:
            clients = [node for node in ctx.nodes if node != AGGREGATOR]
            self._intake = Intake(ctx, self.oneshot(ctx), clients, self.config.most_samples, self.config.window)
        return self._intake

    @on(Upload)
    def hear_upload(self, ctx: Context, client: int, upload: Upload) -> None:
        """Take an upload in, and look whether that was all."""
        if ctx.me != AGGREGATOR:
            return
        sent = Sent(client, upload.model, upload.parts, upload.samples, upload.counts, upload.score)
        if self.intake(ctx).take(sent):
            ctx.deliver(client, Taken())

    async def hear(self, ctx: Context, intake: Intake) -> None:
        """Wait until all clients have uploaded or are gone, or it is time to close."""
        config = self.config
        quorum = config.quorum or math.inf
        while (awaited := intake.awaited()) and len(intake.counted) < quorum and not self.is_covered(intake):
            left_s = max(0.0, config.deadline_s - ctx.now) if config.deadline_s else None
            most = 1 if config.cover else min(quorum - len(intake.counted), len(awaited))
            came = await ctx.collect(Taken, frm=awaited, quorum=int(most), timeout_s=left_s)
            await intake.prove()
            if not came:
                break

    def is_covered(self, intake: Intake) -> bool:
        """Whether enough clients have samples of each class."""
        return bool(self.config.cover) and intake.covers() >= self.config.cover

    @classmethod
    def summary(cls, config: Config, rows: Iterable[Row], traffic: Mapping[str, int]) -> Mapping[str, Any]:
        """Who is missing and why, and the bytes of uploads by what they are for: of all, and of the largest."""
        rows = list(rows)
        last = max((row.round for row in rows), default=0)
        missing: dict[str, list[int]] = {}
        sizes: dict[str, list[float]] = {kind: [] for kind in _KINDS}
        for row in rows:
            what, _, which = row.metric.partition("/")
            if what == "missing" and row.round == last:
                missing.setdefault(Missing(int(row.value)).name.lower(), []).append(int(which))
            elif what == "bytes":
                sizes[which].append(row.value)
        uploaded = {kind: {"total": int(sum(each)), "most": int(max(each, default=0))} for kind, each in sizes.items()}
        return {
            "algorithm": config.algorithm,
            "options": config.options,
            "reveal": config.reveal,
            "upload": config.upload,
            "missing": missing,
            "uploaded_bytes": uploaded,
            "sent_bytes": dict(traffic),
        }
