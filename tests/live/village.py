"""What the tests of the live world share: worlds of some nodes in one process, over real transports."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import numpy as np

from node import Context, Message, Protocol, Ref, Spec, TopologySection, on, op
from node.identity import Identity, Roster
from node.live.checkpoints import Checkpoints
from node.live.transport import Transport
from node.live.world import LiveWorld, Tensors
from node.record import Recorder
from node.solver import InlineExecutor
from node.tape import Tape
from node.testing import Quadratic
from node.topology import build

WAIT_S = 10.0
FULL = TopologySection(kind="full")
NUMPY = Tensors(
    lambda value: memoryview(np.ascontiguousarray(value)).cast("B"),
    lambda buffer, spec: np.frombuffer(buffer, dtype=spec.dtype).reshape(spec.shape),
)


class Note(Message, name="test.live_world/note/1", key=("number",)):
    number: int


class Told(Message, name="test.live_world/told/1"):
    number: int


class Model(Message, name="test.live_world/model/1", key=("number",)):
    number: int
    model: Ref


class Odd(Message, name="test.live_world/odd/1", key=("number",), any_shape=True):
    number: int
    model: Ref


@op(spec=lambda inputs, static: Spec((inputs[0].shape[0] + 1,), inputs[0].dtype))
def longer(model):
    return np.append(model, 0.0)


class Scripted(Protocol):
    """Runs whatever coroutine function the test gives it."""

    def __init__(self, script):
        super().__init__()
        self.script = script
        self.noted = []

    async def run(self, ctx: Context):
        return await self.script(self, ctx)


class Handled(Scripted):
    """As it, with a handler; a negative note is one too many."""

    @on(Note)
    def note(self, ctx, sender, message):
        if message.number < 0:
            raise LookupError("a bad note")
        self.noted.append((sender, message.number))
        return Told(number=message.number + 1)


@asynccontextmanager
async def worlds(count, *, every=1, checkpoints=None):
    """Worlds of as many nodes that have been admitted to one another, and are closed in the end."""
    made = []
    cards = []
    for me in range(count):
        identity = Identity.generate()
        world = LiveWorld(
            me,
            count,
            3,
            Quadratic(count, seed=3),
            build(FULL, count, 3),
            InlineExecutor(),
            Recorder(every),
            Tape(),
            tensors=NUMPY,
            roles={},
            checkpoints=checkpoints or Checkpoints(None),
        )
        world.transport = Transport(me, identity, on_message=world.receive, on_lost=world.lose, grace_s=0.2)
        world.transport.start()
        made.append(world)
        cards.append(identity.card(me, world.transport.address, "test"))
    for world in made:
        world.transport.admit(Roster(cards))
    try:
        async with asyncio.timeout(WAIT_S):
            yield made
    finally:
        for world in made:
            await world.transport.close(0.1)
            await world.close()


async def idle(protocol, ctx):
    """A part in which nothing happens."""
    return ctx.initial_model()
