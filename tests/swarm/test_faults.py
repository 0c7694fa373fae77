"""Protocols under random faults end, keep what they have saved, and learn what they would have learnt without them.

The seed and the faults of a schedule are in the message of whatever does not hold.
"""

import numpy as np
import pytest
from fault_schedules import BAND, KINDS, MADE, Heard, Schedule, Violation, mean_model, shrunk

from node import Ref
from node.config import InjectedFaultSection
from protocols.dpsgd import DPSGD, Model

EACH = 25
"""Schedules of each protocol; ``fault_schedules.py`` runs thousands."""


def failing(schedule):
    try:
        schedule.run()
    except Violation:
        return True
    return False


def first_found(make, protocol="dpsgd", most=100):
    """The first schedule in a row that a mistake shows in."""
    return next(schedule for seed in range(most) if failing(schedule := Schedule(seed, protocol, make=make)))


@pytest.mark.parametrize("protocol", sorted(MADE))
def test_runs_end_well_under_random_faults(protocol):
    healed = 0
    for seed in range(EACH):
        schedule = Schedule(seed, protocol)
        world = schedule.run()
        if schedule.heals:
            healed += 1
            far = schedule.distance(world) / schedule.bias
            assert far < BAND, f"{far:.3f} biases from the undisturbed run: {schedule}"
    assert healed > EACH // 4


def test_the_schedules_visit_what_they_should():
    schedules = [Schedule(seed) for seed in range(300)]
    assert {fault.kind for schedule in schedules for fault in schedule.faults} == set(KINDS)
    assert {schedule.protocol for schedule in schedules} == set(MADE)
    assert 75 < sum(schedule.heals for schedule in schedules) < 225
    faults = [[fault for fault in schedule.faults if fault.kind != "full-disk"] for schedule in schedules]
    assert {len(each) for each in faults} == {1, 2, 3, 4}, "whose disk fills up is restarted, which is one more"
    assert {fault.one_way for each in faults for fault in each if fault.kind == "partition"} == {None, True}
    assert {fault.to is None for each in faults for fault in each if fault.kind == "loss"} == {True, False}
    served = [fault for schedule in schedules if schedule.has_server for fault in schedule.faults]
    assert not any(fault.kind == "crash" and 0 in fault.nodes for fault in served), "nobody would serve"


def test_a_schedule_is_the_same_every_time():
    runs = [Schedule(5, "adpsgd") for _ in range(2)]
    models = [mean_model(schedule.run()).tolist() for schedule in runs]
    assert models[0] == models[1]
    assert runs[0].faults == runs[1].faults
    assert [heard.taken for heard in runs[0].heard] == [heard.taken for heard in runs[1].heard]


def test_faults_do_something():
    """Or everything above could hold because nothing goes wrong."""
    calm = Schedule(1, "dpsgd", faults=())
    without = calm.run().clock.time()
    for kind, options in {
        "restart": {"nodes": (1,), "at_s": 0.25, "for_s": 0.5},
        "pause": {"nodes": (1,), "at_s": 0.25, "for_s": 0.5},
        "slow": {"nodes": (1,), "rate": 0.5},
        "partition": {"groups": ((0, 1),), "for_s": 1.0},
        "loss": {"rate": 0.3},
        "delay": {"delay_s": 0.05},
        "garbage": {"nodes": (1,), "rate": 0.5},
    }.items():
        disturbed = Schedule(1, "dpsgd", faults=[InjectedFaultSection(kind=kind, **options)])
        assert disturbed.run().clock.time() > without + 0.2, kind
    loss = InjectedFaultSection(kind="loss", rate=0.3)
    slow = InjectedFaultSection(kind="drift", nodes=tuple(range(6)), drift=-0.5)
    prompt_s, late_s = (Schedule(1, "dpsgd", faults=faults).run().clock.time() for faults in ([loss], [loss, slow]))
    assert late_s > prompt_s + 0.2, "who waits for what is lost waits longer by a slow clock"


def test_a_full_disk_costs_the_rounds_since_and_no_more():
    """``_check_kept`` sees to it that it costs no more."""

    def began_again(*full):
        restart = InjectedFaultSection(kind="restart", nodes=(1,), at_s=1.0, for_s=0.1)
        world = Schedule(1, "dpsgd", make=made(Again), faults=[*full, restart]).run()
        return next(row.round for row in world.recorder.rows() if row.node == 1 and row.time_s > 1.1)

    assert began_again(InjectedFaultSection(kind="full-disk", nodes=(1,), at_s=0.5)) < began_again()


# Mistakes that must be found


class Forgetful(DPSGD):
    """Begins anew after a crash."""

    async def run(self, ctx):
        ctx.restore()
        return await self.learn(ctx, 0)

    async def learn(self, ctx, first) -> Ref:
        model = ctx.initial_model()
        for round in range(first, self.config.rounds):
            model = await ctx.train(model)
            await ctx.send(ctx.neighbours(round), Model(round=round, model=model))
            heard = await ctx.collect(Model, frm=ctx.sources(round), timeout_s=self.config.deadline_s, round=round)
            model = self.mixed(ctx, model, heard, round)
            ctx.record(round=round, **ctx.judge(model))
            await ctx.checkpoint(round=round + 1, model=model)
        return model

    def mixed(self, ctx, model, heard, round):
        return ctx.mix([model, *(message.model for message in heard.values())])


class Hasty(Forgetful):
    """Takes up the round after the one that it has saved."""

    async def run(self, ctx):
        saved = ctx.restore()
        return await self.learn(ctx, 0 if saved is None else saved["round"] + 1)


class Waiting(Forgetful):
    """Waits for all its neighbours for ever."""

    async def run(self, ctx):
        saved = ctx.restore()
        self.config = self.config.model_copy(update={"deadline_s": None})
        return await self.learn(ctx, 0 if saved is None else saved["round"])


class Again(Forgetful):
    """Makes no mistake: takes up the round that it was in, and does not catch up."""

    async def run(self, ctx):
        saved = ctx.restore()
        return await self.learn(ctx, 0 if saved is None else saved["round"])


class Shrinking(Again):
    """Gives absent neighbours the weight that they would have, of nothing."""

    def mixed(self, ctx, model, heard, round):
        return ctx.mix([model, *(message.model for message in heard.values())], [0.2] * (1 + len(heard)))


class Loitering(DPSGD):
    """Leaves work behind that nobody ends."""

    async def run(self, ctx):
        import asyncio

        asyncio.get_running_loop().create_task(ctx.sleep(1e6))
        return await super().run(ctx)


def made(kind):
    return lambda: kind(kind.Config(rounds=24, deadline_s=0.3))


@pytest.mark.parametrize(
    ("kind", "claim"),
    [(Forgetful, "goes back"), (Hasty, "skips"), (Waiting, "does not end well"), (Loitering, "tasks are left")],
)
def test_a_planted_mistake_is_found_and_shrunk(kind, claim):
    found = first_found(made(kind))
    smallest = shrunk(found, failing)
    assert len(smallest.faults) <= 1
    with pytest.raises(Violation, match=f"(?s){claim}.*seed {found.seed}, dpsgd"):
        smallest.run()


def test_one_that_forgets_what_it_kept_before_its_disk_was_full_is_found():
    faults = [
        InjectedFaultSection(kind="full-disk", nodes=(1,), at_s=1.0, for_s=0.3),
        InjectedFaultSection(kind="restart", nodes=(1,), at_s=1.2, for_s=0.1),
    ]
    Schedule(1, "dpsgd", faults=faults).run()
    with pytest.raises(Violation, match=r"node 1 had saved round \d+, and goes on at 0"):
        Schedule(1, "dpsgd", make=made(Forgetful), faults=faults).run()


def test_weights_that_are_not_made_up_for_are_found():
    seed = max(range(20), key=lambda seed: np.linalg.norm(Schedule(seed, "dpsgd").workload.optimum))
    lossy = [InjectedFaultSection(kind="loss", rate=0.5)]
    wrong, right = Schedule(seed, "dpsgd", make=made(Shrinking), faults=lossy), Schedule(seed, "dpsgd", faults=lossy)
    assert right.distance(right.run()) / right.bias < BAND / 2
    assert wrong.distance(wrong.run()) / wrong.bias > BAND


@pytest.mark.parametrize(
    ("taken", "claim"),
    [
        ((0.5, 9), "hears 9, which is no node"),
        ((0.9, 1), "1 is heard at 0.9 s"),
        ((2.5, 2), "2 is heard at 2.5 s"),
    ],
)
def test_a_message_that_should_not_have_come_is_found(taken, claim):
    schedule = Schedule(
        3,
        "dpsgd",
        faults=[
            InjectedFaultSection(kind="crash", nodes=(1,), at_s=0.5),
            InjectedFaultSection(kind="partition", groups=((0,),), at_s=1.0, for_s=2.0),
        ],
    )
    schedule.heard[0] = Heard(0, [taken])
    with pytest.raises(Violation, match=claim):
        schedule._check_messages()


def test_the_band_is_less_than_what_one_node_pulls():
    """A node that had all to itself would be outside it."""
    biases = [Schedule(seed, "dpsgd").bias for seed in range(20)]
    own = [
        np.linalg.norm(schedule.workload.targets[0] - schedule.workload.optimum) / schedule.bias
        for schedule in [Schedule(seed, "dpsgd") for seed in range(20)]
    ]
    assert np.mean(own) > 2 * BAND
    assert min(biases) > 0.5
