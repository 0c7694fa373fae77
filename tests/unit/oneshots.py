"""What the tests of one-shot learning share: small experiments, and clients that do not do as they should."""

from __future__ import annotations

import dataclasses

import numpy as np

from node import Mod, Spec, op
from node.experiment.loading import validated
from node.experiment.setup import prepare
from node.experiment.virtual import run_virtual

NODES = 7
"""An aggregator and six clients."""


def merged(table, changes):
    """A table of tables with some of their keys changed."""
    return table | {
        key: merged(table[key], value) if isinstance(value, dict) and isinstance(table.get(key), dict) else value
        for key, value in changes.items()
    }


def experiment(**tables):
    """A checked configuration of a small one-shot experiment."""
    small = {
        "name": "small",
        "seed": 3,
        "nodes": NODES,
        "clock": "virtual",
        "protocol": {"use": "oneshot"},
        "data": {"name": "digits", "partition": "dirichlet", "alpha": 0.5},
        "model": {"name": "mlp", "hidden": [12]},
        "training": {"lr": 0.1, "momentum": 0.9, "local_steps": 25},
    }
    return validated(merged(small, tables), "here")


def checked(**tables):
    """The experiment, ready to run."""
    return prepare(experiment(**tables))


class Run:
    """What a run has led to."""

    def __init__(self, **tables):
        self.setup = checked(**tables)
        self.result = run_virtual(self.setup, lambda *_: None)
        self.summary = self.result.summary(self.setup)
        self.own = self.summary["oneshot"] if self.summary["protocol"] == "oneshot" else {}
        self.models = {node: np.asarray(model).tobytes() for node, model in self.result.models.items()}
        self.result.close()

    @property
    def missing(self):
        return self.own["missing"]

    def metric(self, name, node=0):
        """What a node has recorded last under a name."""
        return [row.value for row in self.result.recorder.rows() if (row.metric, row.node) == (name, node)][-1]

    @property
    def verdict(self):
        """All that the aggregator has found out about its predictor."""
        names = ("accuracy", "loss", "brier", "ece", "macro_f1", "uploads")
        return {name: self.metric(name) for name in names}


def mod(name, *nodes, **options):
    """The ``[[mods]]`` table of a mod of this module."""
    return {"use": f"{__name__}:{name}", "nodes": list(nodes), **options}


@op(spec=lambda inputs, static: Spec((inputs[0].shape[0] + 1,), inputs[0].dtype))
def longer(model):
    return model.new_ones(len(model) + 1)


@op
def spoilt(model, *, value):
    broken = model.clone()
    broken[0] = value
    return broken


@op
def halved(model):
    return model / 2


class Changing(Mod):
    """Sends something else in place of an upload."""

    class Config(Mod.Config):
        what: str
        """A method of this class."""
        value: float = float("nan")
        factor: int = 1
        then: str = ""
        """What is sent after it."""

    is_over = False

    def outgoing(self, ctx, to, message):
        if "oneshot/upload" not in message.wire_name or self.is_over:
            return message
        if self.config.then:
            self.is_over = True
            ctx.spawn(self.send_later(ctx, to, getattr(self, self.config.then)(ctx, message)))
        return getattr(self, self.config.what)(ctx, message)

    async def send_later(self, ctx, to, message):
        await ctx.sleep(0.1)
        await ctx.send(to, message)

    def plain(self, ctx, message):
        return message

    def nothing(self, ctx, message):
        return None

    def half(self, ctx, message):
        return dataclasses.replace(message, model=ctx.apply(halved, message.model))

    def shape(self, ctx, message):
        return dataclasses.replace(message, model=ctx.apply(longer, message.model))

    def no_model(self, ctx, message):
        return dataclasses.replace(message, model=None)

    def number(self, ctx, message):
        return dataclasses.replace(message, model=ctx.apply(spoilt, message.model, value=self.config.value))

    def absurd_parts(self, ctx, message):
        parts = tuple(ctx.apply(spoilt, part, value=self.config.value) for part in message.parts)
        return dataclasses.replace(message, parts=parts)

    def more_parts(self, ctx, message):
        return dataclasses.replace(message, parts=(message.model,))

    def claims(self, ctx, message):
        factor = self.config.factor
        counts = tuple(count * factor for count in message.counts)
        return dataclasses.replace(message, samples=message.samples * factor, counts=counts)

    def claims_samples(self, ctx, message):
        return dataclasses.replace(message, samples=5)

    def claims_counts(self, ctx, message):
        return dataclasses.replace(message, samples=5, counts=(5, *[0] * 9))

    def negative(self, ctx, message):
        return dataclasses.replace(message, samples=-5)


@op
def enlarged(model):
    return 30 * model


class Loud(Mod):
    """Sends a model whose logits are enormous."""

    def outgoing(self, ctx, to, message):
        return dataclasses.replace(message, model=ctx.apply(enlarged, message.model))
