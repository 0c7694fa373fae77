"""What devices spend on training: without pauses, each second once, and never more for nothing than in all."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node import Message, Mod, Protocol, Ref
from node.clock import VirtualClock
from node.config import ChurnSection, DevicesSection, FaultSection, NetworkSection, TopologySection
from node.graph import Graph
from node.op import Spec, op
from node.record import Recorder
from node.sim import labour
from node.sim.surroundings import surround
from node.sim.world import SimWorld
from node.solver import InlineExecutor, Solver
from node.tape import Tape
from node.testing import Quadratic, run_protocol
from node.topology import build
from node.usage import Usage

HOUR = 3600
PLACE = {
    "network": NetworkSection(latency_s=0.25, up_bps=1e30, down_bps=1e30),
    "topology": TopologySection(kind="full"),
}


class Model(Message, name="test.labour/model/1", key=("number",)):
    number: int
    model: Ref


@op
def doubled(model):
    return model * 2


class Doubled(Mod):
    """Changes what is trained, as privacy and compression do."""

    def trained(self, ctx, before, after):
        return ctx.apply(doubled, ctx.apply(doubled, after))


class Ended(Mod):
    """Throws away what is trained at once."""

    def trained(self, ctx, before, after):
        return before


def faults(*events):
    """A schedule of (time_s, node, what)."""
    return ChurnSection(
        schedule=tuple(FaultSection(time_s=time_s, node=node, what=what) for time_s, node, what in events)
    )


def summary(behave, *events, nodes=2, mods=(), **devices):
    """What nodes that behave so have spent, with one second for a training, under a schedule."""

    class Behaving(Protocol):
        async def run(self, ctx):
            return await behave(ctx)

    section = DevicesSection(**{"seconds_per_sample": 1.0, **devices})
    churn = faults(*events) if events else None
    return run_protocol(Behaving(), nodes, churn=churn, devices=section, mods=mods, **PLACE).usage.summary()


def seconds(found):
    """Total, lost and discarded device seconds."""
    return [found["device_hours"][name] * HOUR for name in ("total", "lost", "discarded")]


async def train_once(ctx):
    return await ctx.train(ctx.initial_model())


async def train_for_nothing(ctx):
    for _ in range(3):
        await ctx.train(ctx.initial_model())


async def train_two_at_once(ctx):
    model = ctx.initial_model()
    return ctx.mix(await asyncio.gather(ctx.train(model), ctx.train(model)))


# Pauses


def test_a_pause_is_offline_and_no_training():
    found = summary(train_once, (0.25, 0, "pause"), (1000.25, 0, "return"))
    assert seconds(found) == pytest.approx([2.0, 0.0, 0.0])
    assert found["shares"]["offline"] == pytest.approx(1000 / 2002)
    assert found["online_hours"] * HOUR == pytest.approx(1002)
    assert found["utilisation"]["max"] == pytest.approx(1.0)


def test_several_pauses_in_one_training_are_all_left_out():
    events = [(time_s, 0, what) for time_s, what in ((0.2, "pause"), (5, "return"), (5.5, "pause"), (9, "return"))]
    found = summary(train_once, *events, nodes=1)
    assert seconds(found)[0] == pytest.approx(1.0)
    assert found["shares"]["offline"] == pytest.approx((4.8 + 3.5) / 9.3)


def test_a_pause_without_a_training_is_offline_too():
    async def idle(ctx):
        await ctx.sleep(10)

    found = summary(idle, (2.0, 0, "pause"), (6.0, 0, "return"), nodes=1)
    assert found["shares"] == pytest.approx({"training": 0, "sending": 0, "waiting": 0.6, "offline": 0.4})


def test_a_pause_that_lasts_until_the_end_is_offline_and_what_was_trained_before_it_counts():
    async def behave(ctx):
        await (train_once(ctx) if ctx.me == 0 else ctx.sleep(10))

    found = summary(behave, (0.25, 0, "pause"))
    assert seconds(found) == pytest.approx([0.25, 0.0, 0.0])
    assert found["shares"]["offline"] == pytest.approx(9.75 / 20)


def test_what_was_trained_before_and_after_a_pause_is_discarded_as_a_whole_without_the_pause():
    found = summary(train_for_nothing, (1.5, 0, "pause"), (50.0, 0, "return"), nodes=1)
    assert seconds(found) == pytest.approx([3.0, 0.0, 3.0])


# Cut short


@pytest.mark.parametrize("mods", [(), (Doubled(),), (Ended(),)], ids=["plain", "changed", "thrown away"])
def test_a_cut_training_is_lost_and_not_discarded_besides(mods):
    found = summary(train_once, (0.5, 0, "crash"), (2.0, 0, "return"), nodes=1, mods=mods)
    assert seconds(found) == pytest.approx([1.5, 0.5, 1.0 if mods and isinstance(mods[0], Ended) else 0.0])


@pytest.mark.parametrize("cores", [0, 1], ids=["own machines", "a shared core"])
def test_two_trainings_that_are_cut_at_once_are_lost_each_second_once(cores):
    found = summary(train_two_at_once, (0.5, 0, "crash"), (9.0, 0, "return"), nodes=1, cores=cores)
    again_s = 2.0 if cores else 1.0
    assert seconds(found) == pytest.approx([0.5 + again_s, 0.5, 0.0])


def test_no_ghost_of_an_earlier_life_slows_a_shared_machine_down():
    ended_s = []

    async def behave(ctx):
        await (train_two_at_once(ctx) if ctx.now < 1 else train_once(ctx))
        ended_s.append(ctx.now)

    summary(behave, (0.5, 0, "crash"), (1.0, 0, "return"), nodes=1, cores=1)
    assert ended_s == [2.0]


def test_a_training_of_the_next_life_can_be_cut_as_well():
    events = [(0.5, 0, "crash"), (0.6, 0, "return"), (1.2, 0, "crash"), (2.0, 0, "return")]
    for cores in (0, 1):
        found = summary(train_two_at_once, *events, nodes=1, cores=cores)
        assert seconds(found)[1] == pytest.approx(0.5 + 0.6), cores


def test_an_evaluation_before_a_crash_is_not_paid_for_afterwards():
    async def behave(ctx):
        if ctx.now == 0:
            ctx.record(round=0, accuracy=ctx.evaluate(ctx.initial_model()))
            await ctx.sleep(5)
        return await train_once(ctx)

    assert seconds(summary(behave, (0.5, 0, "crash"), (1.0, 0, "return"), nodes=1, evaluate_time=True))[0] == 1.0


# For nothing


@pytest.mark.parametrize("mods", [(), (Doubled(),), (Ended(),)], ids=["plain", "changed", "thrown away"])
@pytest.mark.parametrize("devices", [{}, {"jitter": 0.5}, {"cores": 1}, {"cores": 1.5, "jitter": 0.5}], ids=str)
def test_where_everything_is_for_nothing_all_that_was_spent_is_discarded(mods, devices):
    total_s, lost_s, discarded_s = seconds(summary(train_for_nothing, nodes=3, mods=mods, **devices))
    assert discarded_s == pytest.approx(total_s)
    assert lost_s == 0
    assert total_s > 0


def test_on_shared_cores_a_training_costs_the_seconds_that_it_takes():
    assert seconds(summary(train_for_nothing, nodes=4, cores=1)) == pytest.approx([48.0, 0.0, 48.0])


def test_evaluation_that_delays_a_training_is_discarded_with_it():
    async def behave(ctx):
        ctx.evaluate(ctx.initial_model())
        await ctx.train(ctx.initial_model())

    total_s, _, discarded_s = seconds(summary(behave, evaluate_time=True))
    assert discarded_s == total_s > 2.0


def test_of_two_trainings_at_once_the_one_that_nobody_needs_is_half_of_the_time():
    async def behave(ctx):
        needed, _ = await asyncio.gather(ctx.train(ctx.initial_model()), ctx.train(ctx.initial_model()))
        return needed

    assert seconds(summary(behave, nodes=1)) == pytest.approx([1.0, 0.0, 0.5])


def test_a_mod_does_not_change_how_long_a_device_takes():
    plain, changed = (summary(train_once, mods=mods, jitter=0.5) for mods in ((), (Doubled(),)))
    assert seconds(plain)[0] == seconds(changed)[0]


def ran(behave, *, window_tasks=10**9, nodes=1):
    """A world after its run and the end of its clock, and what its nodes have spent."""

    class Behaving(Protocol):
        async def run(self, ctx):
            return await behave(ctx)

    async def main():
        devices = DevicesSection(seconds_per_sample=1.0)
        world = SimWorld(
            nodes,
            3,
            Quadratic(nodes, seed=3),
            build(TopologySection(kind="full"), nodes, 3),
            Solver(Graph(3), InlineExecutor()),
            Recorder(),
            Tape(),
            surround(nodes, 3, devices, PLACE["network"], ChurnSection(), learners=range(nodes)),
            usage=Usage(nodes),
            roles={},
            window_tasks=window_tasks,
        )
        await world.run(Behaving, lambda node: None)
        return world

    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        world = runner.run(main())
    world.solver.counters()
    world.usage.close(world.clock.time())
    return world, seconds(world.usage.summary())


def test_what_is_still_being_trained_at_the_end_has_cost_its_time_until_then():
    async def behave(ctx):
        async def beside():
            await ctx.train(ctx.initial_model())

        ctx.spawn(beside())
        await ctx.sleep(0.5)

    world, spent = ran(behave)
    assert spent == pytest.approx([0.5, 0.0, 0.5])
    assert world.labour.discarded == 1


def test_trainings_that_were_solved_are_forgotten(monkeypatch):
    monkeypatch.setattr(labour, "_KEPT", 4)
    kept = []

    async def behave(ctx):
        model = ctx.initial_model()
        for round in range(40):
            model = await ctx.train(model)
            ctx.record(round, accuracy=ctx.evaluate(model))
            kept.append(len(ctx._world.labour._spent_s))
        return model

    world, spent = ran(behave, window_tasks=4)
    assert spent == pytest.approx([40.0, 0.0, 0.0])
    assert world.labour.discarded == 0
    assert max(kept) <= 8, "a few for each window, not one for each training"


def test_trainings_that_were_skipped_are_forgotten():
    world, spent = ran(train_for_nothing)
    assert spent == pytest.approx([3.0, 0.0, 3.0])
    assert world.labour.discarded == 3
    assert world.labour._spent_s == {}


def test_a_task_is_pending_until_it_is_solved_skipped_or_retired(monkeypatch):
    monkeypatch.setattr("node.graph._RETIRE", 1)
    graph = Graph(0)
    start = graph.constant(np.ones(2), Spec((2,), "float64"))
    solved, skipped, waiting = (graph.record(graph.call(doubled, (start,), {}), (start,), 0, i) for i in range(3))
    ids = solved.id, skipped.id, waiting.id
    assert [graph.is_pending(id) for id in ids] == [True, True, True]
    graph.commit(solved.id, np.ones(2))
    del skipped
    graph.drain()
    assert [graph.is_pending(id) for id in ids] == [False, False, True]
    del solved
    graph.drain()
    graph.retire()
    assert len(graph) == 1
    assert [graph.is_pending(id) for id in ids] == [False, False, True]


STEPS = st.lists(st.sampled_from(["keep", "drop", "two", "evaluate", "sleep"]), min_size=1, max_size=6)
ABSENCES = st.lists(st.tuples(st.floats(0.01, 2), st.floats(0.01, 2)), max_size=3)


@settings(max_examples=60)
@given(
    steps=STEPS,
    absences=ABSENCES,
    what=st.sampled_from(["crash", "leave", "pause"]),
    cores=st.sampled_from([0, 1, 1.5]),
    mods=st.sampled_from([(), (Doubled(),)]),
    jitter=st.sampled_from([0.0, 0.4]),
)
def test_never_more_is_spent_for_nothing_than_in_all_nor_more_than_the_time_online(
    steps, absences, what, cores, mods, jitter
):
    async def behave(ctx):
        model = ctx.initial_model()
        for step in steps:
            if step == "evaluate":
                ctx.record(round=0, accuracy=ctx.evaluate(model))
            elif step == "sleep":
                await ctx.sleep(0.3)
            elif step == "two":
                model, _ = await asyncio.gather(ctx.train(model), ctx.train(model))
            else:
                trained = await ctx.train(model)
                model = trained if step == "keep" else model
        return model

    events, time_s = [], 0.0
    for online_s, away_s in absences:
        events += [(time_s + online_s, 0, what), (time_s + online_s + away_s, 0, "return")]
        time_s += online_s + away_s
    cores = 0 if what == "pause" else cores
    found = summary(behave, *events, nodes=2, mods=mods, jitter=jitter, cores=cores, evaluate_time=True)
    total_s, lost_s, discarded_s = seconds(found)
    assert lost_s + discarded_s <= total_s * (1 + 1e-9)
    assert total_s <= found["online_hours"] * HOUR * (1 + 1e-9)
    assert sum(found["shares"].values()) == pytest.approx(1)
