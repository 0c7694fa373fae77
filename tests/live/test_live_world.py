"""One node's live world, with its peers in the same process: real transports, numbers for models."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from structlog.testing import capture_logs

from node import Mod, ProtocolError, Spec, Unreachable, op
from node.errors import ComputeError
from node.mods import Wrapping
from node.testing import Quadratic, run_protocol
from protocols.dpsgd import DPSGD
from village import FULL, WAIT_S, Handled, Model, Note, Odd, Scripted, idle, longer, worlds


@op
def broken(model):
    raise RuntimeError("no such number")


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
            await other.transport.close()  # the I/O thread has logged what it was told
    (refused,) = [line for line in logs if line["event"] == "refused"]
    assert (refused["node"], refused["peer"], refused["log_level"]) == (1, 0, "warning")
    assert "but a model here is" in refused["detail"]


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
        while len(other._beginning._kept) < 3:
            await asyncio.sleep(0)
        await other.run(Handled(hear), None)


async def test_who_was_lost_before_the_run_is_not_waited_for():
    async def hear(protocol, ctx):
        await asyncio.sleep(0)
        assert ctx.peers() == ()
        assert await ctx.collect(Note, frm=[0], timeout_s=WAIT_S, number=1) == {}
        await ctx.collect(Note, frm=[0], number=2)

    async with worlds(2) as (one, other):
        other.transport.watch([0])
        await one.transport.close()
        while not other._beginning._kept:
            await asyncio.sleep(0)
        with pytest.raises(Unreachable, match=r"node 1 needs test\.live_world/note/1 number=2 from node 0"):
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
        while not other._beginning._kept:
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
