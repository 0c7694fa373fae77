"""Clients of one-shot learning that go wrong; copied into the folder of the run."""

import dataclasses
import os
import signal

from node import Mod, Observer, Spec, op


@op(spec=lambda inputs, static: Spec((inputs[0].shape[0] - 1,), inputs[0].dtype))
def shorter(model):
    return model[1:].clone()


@op
def spoilt(model):
    broken = model.clone()
    broken[7] = float("nan")
    return broken


class Killed(Observer):
    """Its process is killed when it has begun to train."""

    def trained(self, ctx, before, after):
        os.kill(os.getpid(), signal.SIGKILL)


class Changed(Mod):
    """Sends an upload with another model."""

    change = shorter

    def outgoing(self, ctx, to, message):
        return dataclasses.replace(message, model=ctx.apply(self.change, message.model))


class Spoilt(Changed):
    change = spoilt


class Silent(Mod):
    """Sends nothing."""

    def outgoing(self, ctx, to, message):
        return None
