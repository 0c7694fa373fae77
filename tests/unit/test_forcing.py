"""Values that several nodes wait for at one instant."""

from __future__ import annotations

import pytest

from node import Protocol, op
from node.config import ChurnSection, DevicesSection, Distribution, FaultSection
from node.errors import ComputeError
from node.solver import BatchedExecutor
from node.testing import Quadratic, run_protocol

SPEEDS = DevicesSection(seconds_per_sample=Distribution(distribution="uniform", low=1.0, high=2.0))


class Calls(BatchedExecutor):
    """Keeps how many tasks of which op were solved at once."""

    def __init__(self):
        self.calls = []

    def solve(self, op, tasks):
        self.calls.append((op.name.partition(":")[2], len(tasks)))
        return super().solve(op, tasks)


@op
def fails(model):
    """No value at all."""
    raise ValueError("no value")


def run(behave, nodes=4, **options):
    """``behave(ctx)`` on every node; what each gave, by node."""
    said = {}

    class Behaving(Protocol):
        async def run(self, ctx):
            said[ctx.me] = await behave(ctx)

    return said, run_protocol(Behaving(), nodes, workload=options.pop("workload", Quadratic(nodes)), **options)


async def losses(ctx):
    model = await ctx.train(ctx.initial_model())
    found = await ctx.values([ctx.evaluate(model), ctx.evaluate(ctx.initial_model())])
    return [value["loss"] for value in found], ctx.now


def test_what_nodes_want_at_one_instant_is_solved_together():
    calls = Calls()
    said, outcome = run(losses, executor=calls)
    assert ("train", 4) in calls.calls
    assert len([name for name, _ in calls.calls if name == "train"]) == 1
    assert outcome.forced_solves == 8
    assert len({loss[0] for loss, _ in said.values()}) == 4


def test_at_different_instants_it_is_solved_apart_and_gives_the_same():
    calls = Calls()
    apart, _ = run(losses, executor=calls, devices=SPEEDS)
    together, _ = run(losses)
    assert [count for name, count in calls.calls if name == "train"] == [1, 1, 1, 1]
    assert {node: loss for node, (loss, _) in apart.items()} == {node: loss for node, (loss, _) in together.items()}


@pytest.mark.parametrize("how", ["value", "values"])
def test_no_time_passes(how):
    async def behave(ctx):
        model = await ctx.train(ctx.initial_model())
        before = ctx.now
        await (ctx.value(ctx.evaluate(model)) if how == "value" else ctx.values([ctx.evaluate(model)] * 2))
        return ctx.now - before

    said, _ = run(behave, devices=SPEEDS)
    assert said == dict.fromkeys(range(4), 0.0)


def test_a_value_that_is_there_is_not_waited_for():
    async def behave(ctx):
        metrics = ctx.evaluate(await ctx.train(ctx.initial_model()))
        first = await ctx.value(metrics)
        assert await ctx.value(metrics) == first
        assert await ctx.values([metrics, metrics]) == [first, first]
        return await ctx.values([])

    said, outcome = run(behave)
    assert said == {node: [] for node in range(4)}
    assert outcome.forced_solves == 4


def test_only_the_node_whose_value_fails_is_told():
    async def behave(ctx):
        model = await ctx.train(ctx.initial_model())
        if ctx.me == 2:
            try:
                await ctx.value(ctx.apply(fails, model))
            except ComputeError as error:
                return str(error)
        return (await ctx.value(ctx.evaluate(model)))["loss"] > 0

    said, _ = run(behave)
    assert said.pop(2) == "test_forcing:fails failed for node 2: ValueError: no value"
    assert said == {0: True, 1: True, 3: True}


def test_a_failure_that_nobody_catches_ends_the_run():
    async def behave(ctx):
        return await ctx.value(ctx.apply(fails, ctx.initial_model()))

    with pytest.raises(ComputeError, match=r"test_forcing:fails failed for node 0"):
        run(behave)


def test_what_a_node_that_has_gone_wanted_is_not_computed():
    """It crashes at the instant at which its training ends: its loss is nobody's any more."""
    crash = FaultSection(time_s=1.0, node=1, what="crash")
    said, outcome = run(losses, churn=ChurnSection(schedule=(crash,)), devices=DevicesSection(seconds_per_sample=1.0))
    assert sorted(said) == [0, 2, 3]
    assert outcome.forced_solves == 6
    assert list(outcome.lost) == [1]
