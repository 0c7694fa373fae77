"""The log of real nodes: what they send to themselves, refuse, save and lose, and a node that is killed."""

from __future__ import annotations

import asyncio
import json

import psutil
from structlog.testing import capture_logs

from node import Context, Message, Protocol, Ref, on
from node.live.checkpoints import Checkpoints
from node.provenance import PUBLIC, Log, Made, Received, read
from test_real_runs import held
from village import Model, Odd, Scripted, longer, worlds


class Question(Message, name="test.live_lineage/question/1"):
    model: Ref


class Answer(Message, name="test.live_lineage/answer/1"):
    model: Ref


class Asking(Protocol):
    """The first node asks the second one, which answers with a mix of its own."""

    async def run(self, ctx: Context) -> Ref:
        self.model = await ctx.train(ctx.initial_model())
        if ctx.me:
            return self.model
        answer = await ctx.request(1, Question(model=self.model))
        return ctx.mix([self.model, answer.model])

    @on(Question)
    def asked(self, ctx, sender, message):
        return Answer(model=ctx.mix([message.model, ctx.initial_model()], [0.25, 0.75]))


def keep(made, folder):
    for world in made:
        world.lineage = Log.of_life(folder, world.me)


def received(steps):
    return [step for step in steps if isinstance(step, Received)]


async def test_questions_and_answers_are_linked(tmp_path):
    async with worlds(2) as made:
        keep(made, tmp_path)
        await asyncio.gather(*[world.run(Asking(), None) for world in made])
    steps = read(tmp_path)
    ops = {step.value: (step.node, step.op, step.inputs) for step in steps if isinstance(step, Made)}
    got = {step.node: step.values[0] for step in received(steps)}
    assert ops[got[1]] == (0, "quadratic:train", (PUBLIC,))
    assert ops[got[0]] == (1, "quadratic:mix", (got[1], PUBLIC))


async def test_what_a_node_sends_to_itself_tells_it_nothing(tmp_path):
    async def script(protocol, ctx):
        model = await ctx.train(ctx.initial_model())
        await ctx.send(0, Model(number=1, model=model))
        return (await ctx.collect(Model, frm=[0], number=1))[0].model

    async with worlds(1) as made:
        keep(made, tmp_path)
        await made[0].run(Scripted(script), None)
    steps = read(tmp_path)
    assert [step.op for step in steps] == ["quadratic:train"]


async def test_refused_and_unread_messages(tmp_path):
    async def send(protocol, ctx):
        odd = ctx.apply(longer, ctx.initial_model())
        await ctx.send(1, Model(number=1, model=odd))
        for number in (2, 3):
            await ctx.send(1, Model(number=number, model=ctx.mix([ctx.initial_model()], [number])))
        await ctx.send(1, Odd(number=1, model=odd))

    async def hear(protocol, ctx):
        await ctx.collect(Odd, frm=[0], number=1)

    with capture_logs():
        async with worlds(2) as made:
            keep(made, tmp_path)
            await asyncio.gather(made[0].run(Scripted(send), None), made[1].run(Scripted(hear), None))
            assert made[1].refused_messages == 1
            await made[1].transport.close()
    steps = read(tmp_path)
    numbers = {step.op: step.value for step in steps if isinstance(step, Made)}
    # Both mixes have the same bits: the initial model is zero.
    assert [step.values for step in received(steps)][-1] == (numbers["village:longer"],)
    assert len(received(steps)) == 3


async def test_a_node_that_comes_back_goes_on_with_what_it_had(tmp_path):
    async def first(protocol, ctx):
        model = await ctx.train(ctx.initial_model())
        await ctx.checkpoint(model=model, other=ctx.mix([model], [0.5]))
        return model

    async def second(protocol, ctx):
        state = ctx.restore()
        return ctx.mix([state["other"], state["model"]])

    for script in (first, second):
        async with worlds(1, checkpoints=Checkpoints(tmp_path / "state")) as made:
            keep(made, tmp_path / "lineage")
            await made[0].run(Scripted(script), None)
    assert sorted(path.name for path in (tmp_path / "lineage").iterdir()) == ["0-0.jsonl", "0-1.jsonl"]
    trained, halved, mixed = read(tmp_path / "lineage")
    assert (halved.inputs, mixed.inputs) == ((trained.value,), (halved.value, trained.value))


async def test_what_leaves_is_written_before_it_is_sent(tmp_path):
    """So no node ever holds a value that no file knows of, whoever is killed."""
    written = []

    async def script(protocol, ctx):
        await ctx.send(1, Model(number=1, model=await ctx.train(ctx.initial_model())))

    async with worlds(2) as (sender, _):
        keep([sender], tmp_path)
        send = sender.transport.send

        async def watched(*arguments, **options):
            written.extend(json.loads(line)[0] for line in (tmp_path / "0-0.jsonl").read_bytes().splitlines())
            await send(*arguments, **options)

        sender.transport.send = watched
        await sender.run(Scripted(script), None)
    assert written == ["made", "left"]


def test_a_killed_node_leaves_no_gap(start, tmp_path):
    protocol = {"use": "dpsgd", "rounds": 6, "deadline_s": 0.5}
    with held(start, tmp_path, node=2, protocol=protocol, record={"lineage": True}) as (command, _, pid):
        psutil.Process(pid).kill()
        assert command.wait() == 0
    steps = read(command.folder / "run" / "lineage")
    assert {step.node for step in steps} == set(range(6))
    assert any(step.sender == 2 for step in received(steps))
    assert sum(step.op == "learn:train" for step in steps if isinstance(step, Made)) > 5 * 6 - 1
