"""One node's live world, with its peers in the same process: real transports, numbers for models."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import numpy as np
import pytest
from structlog.testing import capture_logs

from node import Context, Message, Mod, Protocol, ProtocolError, Ref, Spec, TopologySection, Unreachable, on, op
from node.errors import ComputeError, Corrupt
from node.identity import Identity, Roster
from node.live.checkpoints import Checkpoints
from node.live.transport import Transport
from node.live.world import LiveWorld, Tensors
from node.mods import Wrapping
from node.record import Recorder
from node.solver import InlineExecutor
from node.tape import Tape
from node.testing import Quadratic, run_protocol
from node.topology import build
from protocols.dpsgd import DPSGD

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


@op
def broken(model):
    raise RuntimeError("no such number")


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


# What a run gives


async def test_live_worlds_end_with_the_models_of_the_simulation():
    protocol = DPSGD(DPSGD.Config(rounds=4))
    async with worlds(3) as made:
        finals = await asyncio.gather(*[world.run(DPSGD(protocol.config), None) for world in made])
        simulated = await asyncio.to_thread(
            run_protocol, protocol, 3, workload=Quadratic(3, seed=3), topology=FULL, seed=3
        )
        for node, final in enumerate(finals):
            assert final.tobytes() == np.asarray(simulated.models[node]).tobytes()
        assert sum(world.messages for world in made) == simulated.messages
        assert sum(world.bytes_sent for world in made) == simulated.bytes_sent
        assert [row.round for row in made[1].recorder.rows() if row.metric == "accuracy"] == [0, 1, 2, 3]


async def test_only_every_nth_round_and_the_last_is_kept_and_computed():
    solved = []

    @op(spec=lambda inputs, static: Spec((), "float64"))
    def counted(model, *, round):
        solved.append(round)
        return float(model[0])

    async def script(protocol, ctx):
        model = ctx.initial_model()
        for round in range(6):
            model = await ctx.train(model)
            ctx.record(round=round, first=ctx.apply(counted, model, round=round))
        return model

    async with worlds(1, every=4) as (world,):
        await world.run(Scripted(script), None)
        assert [row.round for row in world.recorder.rows() if row.metric == "first"] == [0, 4, 5]
        assert solved == [0, 4, 5]


async def test_a_node_may_send_to_itself_and_ask_itself():
    async def script(protocol, ctx):
        await ctx.send(ctx.me, Note(number=1))
        answer = await ctx.request(ctx.me, Note(number=5), timeout_s=WAIT_S)
        assert (protocol.noted, answer.number) == ([(0, 1), (0, 5)], 6)
        assert ctx.bytes_sent > 0

    async with worlds(1) as (world,):
        assert await world.run(Handled(script), None) is None


async def test_a_handler_answers_after_its_own_run_has_ended():
    async def ask(protocol, ctx):
        answer = await ctx.request(1, Note(number=7), timeout_s=WAIT_S)
        assert answer.number == 8
        return ctx.initial_model()

    async with worlds(2) as (asking, ended):
        handled = Handled(idle)
        await ended.run(handled, None)
        await asking.run(Handled(ask), None)
        assert handled.noted == [(0, 7)]


# What comes from others


async def test_a_model_of_another_shape_is_refused_unless_the_message_allows_it():
    async def send(protocol, ctx):
        odd = ctx.apply(longer, ctx.initial_model())
        await ctx.send(1, Model(number=1, model=odd))
        await ctx.send(1, Odd(number=1, model=odd))
        await ctx.send(1, Model(number=2, model=ctx.initial_model()))

    async def hear(protocol, ctx):
        heard = await ctx.collect(Odd, frm=[0], number=1)
        assert heard[0].model.spec.shape == (ctx.initial_model().spec.shape[0] + 1,)
        assert 0 in await ctx.collect(Model, frm=[0], number=2)
        with pytest.raises(ProtocolError, match="rising"):  # number 1 never came, and now would be late
            ctx.collect(Model, frm=[0], number=1)

    with capture_logs() as logs:
        async with worlds(2) as (one, other):
            await asyncio.gather(one.run(Scripted(send), None), other.run(Scripted(hear), None))
            assert other.refused_messages == 1
    (refused,) = [line for line in logs if line["event"] == "message refused"]
    assert (refused["node"], refused["peer"], refused["log_level"]) == (1, 0, "warning")
    assert "but a model here is" in refused["reason"]


async def test_what_comes_before_the_run_waits_for_it():
    async def send(protocol, ctx):
        for number in (1, 2):
            await ctx.send(1, Note(number=number))
        await ctx.send(1, Model(number=1, model=ctx.initial_model()))

    async def hear(protocol, ctx):
        assert protocol.noted == [], "the first step of run comes before any handler"
        heard = await ctx.collect(Model, frm=[0], number=1)
        assert list(heard) == [0]
        assert protocol.noted == [(0, 1), (0, 2)]

    async with worlds(2) as (one, other):
        await one.run(Handled(send), None)
        while len(other._early) < 3:
            await asyncio.sleep(0)
        await other.run(Handled(hear), None)


async def test_who_was_lost_before_the_run_is_not_waited_for():
    async def hear(protocol, ctx):
        await asyncio.sleep(0)
        assert ctx.peers() == ()
        assert await ctx.collect(Note, frm=[0], timeout_s=WAIT_S, number=1) == {}
        await ctx.collect(Note, frm=[0], number=2)

    async with worlds(2) as (one, other):
        other.watch([0])
        await one.transport.close()
        while not other._lost_early:
            await asyncio.sleep(0)
        with pytest.raises(Unreachable, match="node 1 needs test.live_world/note/1 number=2 from node 0"):
            await other.run(Scripted(hear), None)


# What fails


async def bad_note(protocol, ctx):
    await ctx.send(1, Note(number=-1))


async def wait(protocol, ctx):
    await ctx.collect(Model, frm=[0], number=1)


async def test_the_failure_of_a_handler_is_the_nodes():
    async with worlds(2) as (one, other):
        running = asyncio.create_task(other.run(Handled(wait), None))
        await one.run(Handled(bad_note), None)
        with pytest.raises(LookupError, match="a bad note"):
            await running


async def test_the_failure_of_a_handler_after_the_run_is_kept():
    async with worlds(2) as (one, other):
        await other.run(Handled(idle), None)
        await one.run(Handled(bad_note), None)
        with pytest.raises(LookupError, match="a bad note"):
            await asyncio.shield(other.failure)
        assert not one.failure.done()


async def test_the_failure_of_a_handler_for_early_messages_is_the_nodes():
    async with worlds(2) as (one, other):
        await one.run(Handled(bad_note), None)
        while not other._early:
            await asyncio.sleep(0)
        with pytest.raises(LookupError, match="a bad note"):
            await other.run(Handled(wait), None)


async def test_the_failure_of_a_mod_is_the_nodes():
    class Picky(Mod):
        def incoming(self, ctx, sender, message):
            raise OverflowError("too much")

    async with worlds(2) as (one, other):
        running = asyncio.create_task(other.run(Scripted(wait), Wrapping([Picky()], [])))
        await one.run(Handled(bad_note), None)
        with pytest.raises(OverflowError, match="too much"):
            await running


async def test_the_failure_of_spawned_work_is_the_nodes():
    async def later():
        raise ArithmeticError("beside it")

    async def script(protocol, ctx):
        ctx.spawn(later())
        await ctx.sleep(WAIT_S)

    async with worlds(1) as (world,):
        with pytest.raises(ArithmeticError, match="beside it"):
            await world.run(Scripted(script), None)


async def test_the_failure_of_an_op_names_it_and_the_node():
    async def script(protocol, ctx):
        ctx.record(round=0, number=1.0)
        await ctx.value(ctx.apply(broken, ctx.initial_model()))

    async with worlds(1) as (world,):
        with pytest.raises(ComputeError, match="broken failed for node 0: RuntimeError: no such number"):
            await world.run(Scripted(script), None)
        assert [row.metric for row in world.recorder.rows()] == ["number", "bytes_sent"]


async def test_closing_ends_spawned_work():
    ended = []

    async def later(ctx):
        try:
            await ctx.sleep(WAIT_S)
        finally:
            ended.append(ctx.me)

    async def script(protocol, ctx):
        ctx.spawn(later(ctx))
        await ctx.sleep(0)

    async with worlds(1) as (world,):
        await world.run(Scripted(script), None)
        assert ended == []
    assert ended == [0]


# What is kept on disk


def saving(model_of, **state):
    async def script(protocol, ctx):
        assert ctx.restore() is None
        model = model_of(ctx)
        await ctx.checkpoint(model=model, **state)
        return model

    return script


async def restored(checkpoints):
    found = []

    async def script(protocol, ctx):
        state = ctx.restore()
        found.append({**state, "model": await ctx.value(state["model"])})
        return state["model"]

    async with worlds(1, checkpoints=checkpoints) as (world,):
        final = await world.run(Scripted(script), None)
    assert final.tobytes() == found[0]["model"].tobytes()
    return found[0]


async def test_a_restarted_node_goes_on_from_its_checkpoint(tmp_path):
    def trained(ctx):
        return ctx.apply(ctx._world.workload.train, ctx.initial_model(), steps=1, lr=0.5, proximal=0.0)

    async with worlds(1, checkpoints=Checkpoints(tmp_path / "state")) as (world,):
        final = await world.run(Scripted(saving(trained, round=3, phase="late")), None)
    state = await restored(Checkpoints(tmp_path / "state"))
    assert (state["round"], state["phase"]) == (3, "late")
    assert state["model"].tobytes() == final.tobytes()
    assert np.abs(final).max() > 0


async def save_twice(folder):
    async def script(protocol, ctx):
        for round in (1, 2):
            await ctx.checkpoint(model=ctx.initial_model(), round=round)

    async with worlds(1, checkpoints=Checkpoints(folder)) as (world,):
        await world.run(Scripted(script), None)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.current", "checkpoint.previous"]
    return folder / "checkpoint.current", folder / "checkpoint.previous"


@pytest.mark.parametrize("tear", ["cut", "flip", "empty"])
async def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path, tear):
    current, _ = await save_twice(tmp_path)
    data = current.read_bytes()
    current.write_bytes({"cut": data[:-1], "flip": data[:-1] + bytes([data[-1] ^ 1]), "empty": b""}[tear])
    with capture_logs() as logs:
        assert (await restored(Checkpoints(tmp_path)))["round"] == 1
    assert [line["event"] for line in logs if "checkpoint" in line["event"]] == ["checkpoint is torn, falling back"]


async def test_a_crash_between_the_two_renames_loses_nothing(tmp_path):
    current, previous = await save_twice(tmp_path)
    current.rename(previous)
    (tmp_path / "checkpoint.new").write_bytes(b"half")
    assert (await restored(Checkpoints(tmp_path)))["round"] == 2


async def test_without_a_whole_checkpoint_a_node_does_not_start_anew_by_itself(tmp_path):
    for path in await save_twice(tmp_path):
        path.write_bytes(b"torn")
    with capture_logs(), pytest.raises(Corrupt, match="no checkpoint is whole; move the folder away"):
        Checkpoints(tmp_path).load()


async def test_a_checkpoint_that_cannot_be_written_costs_a_warning(tmp_path):
    (tmp_path / "file").touch()
    with capture_logs() as logs:
        async with worlds(1, checkpoints=Checkpoints(tmp_path / "file" / "below")) as (world,):
            await world.run(Scripted(saving(lambda ctx: ctx.initial_model(), round=1)), None)
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["checkpoint not saved"]
