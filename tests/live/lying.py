"""A mod that sends nonsense in place of models, to receivers that must live on; copied into the folder of the run."""

import torch

from node import Mod, Observer, Spec, op
from protocols.dpsgd import Model


def _longer(inputs, static):
    return Spec((inputs[0].shape[0] * static["times"] + static["more"],), inputs[0].dtype)


@op(spec=_longer)
def lengthened(model, *, times, more):
    return torch.ones(len(model) * times + more)


@op
def filled(model, *, value):
    return torch.full_like(model, float(value))


LIES = {
    "nan": lambda ctx, model: ctx.apply(filled, model, value="nan"),
    "inf": lambda ctx, model: ctx.apply(filled, model, value="-inf"),
    "huge": lambda ctx, model: ctx.apply(filled, model, value="3e38"),
    "longer": lambda ctx, model: ctx.apply(lengthened, model, times=1, more=1),
    "tenfold": lambda ctx, model: ctx.apply(lengthened, model, times=10, more=0),
}


class Lying(Mod):
    class Config(Mod.Config):
        lie: str
        """What is sent: a name in LIES."""

    def outgoing(self, ctx, to, message):
        if not isinstance(message, Model):
            return message
        return Model(round=message.round, model=LIES[self.config.lie](ctx, message.model))


@op(spec=lambda inputs, static: Spec((2,), "float64", ("lowest", "highest")))
def extremes(model):
    return {"lowest": float(model.min()), "highest": float(model.max())}


class Extent(Observer):
    """Records between which numbers all of a node's trained weights are."""

    def __init__(self, config=None):
        super().__init__(config)
        self.round = 0

    def trained(self, ctx, before, after):
        found = ctx.apply(extremes, after)
        ctx.record(round=self.round, lowest=found, highest=found)
        self.round += 1
