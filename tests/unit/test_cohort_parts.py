"""What cohort-parallel learning is made of: what a context gives, sums of models as they come, versions by digest."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import Context, Message, Protocol, on
from node.config import NetworkSection
from node.testing import Quadratic, run_protocol
from protocols import forming
from protocols.running_sum import RunningSum
from protocols.versions import Absent, Shelf, Version, Wanted

PLACE = {"network": NetworkSection(latency_s=1.0, up_bps=1e30, down_bps=1e30)}


class Part(Message, name="test.cohort-parts/part/1", key=("round",)):
    round: int
    text: str = ""


def at_node_0(behave, nodes=4, protocol=Protocol, **options):
    """What ``behave(ctx)`` gives at node 0; the others call ``others(ctx)``, where it is there."""
    said = []

    class Told(protocol):
        async def run(self, ctx: Context):
            if ctx.me == 0:
                said.append(await behave(ctx))
            elif hasattr(self, "others"):
                await self.others(ctx)

    run_protocol(Told(), nodes, **{**PLACE, **options})
    return said[0]


# What a context gives


class Sending(Protocol):
    """Every other node sends twice, the higher its number the later."""

    async def others(self, ctx):
        await ctx.sleep(ctx.me)
        for text in ("first", "again"):
            await ctx.send(0, Part(round=0, text=f"{text} of {ctx.me}"))


def test_each_is_called_once_for_every_sender_that_counts_when_it_comes():
    async def behave(ctx):
        calls = []
        heard = await ctx.collect_each(
            Part, lambda sender, part: calls.append((ctx.now, sender)) or part.text.upper(), frm=(1, 3), round=0
        )
        return heard, calls

    heard, calls = at_node_0(behave, protocol=Sending)
    assert heard == {1: "FIRST OF 1", 3: "FIRST OF 3"}
    assert calls == [(2.0, 1), (4.0, 3)]


def test_each_is_called_for_what_was_there_before_the_wait_in_order():
    async def behave(ctx):
        await ctx.sleep(10)
        calls = []
        heard = await ctx.collect_each(Part, lambda sender, part: calls.append(sender) or 7, frm=(3, 1), round=0)
        return heard, calls

    assert at_node_0(behave, protocol=Sending) == ({1: 7, 3: 7}, [1, 3])


def test_a_future_is_set_by_work_beside():
    async def behave(ctx):
        future = ctx.future()

        async def later():
            await ctx.sleep(3)
            future.set_result("done")

        ctx.spawn(later())
        return await future, ctx.now

    assert at_node_0(behave) == ("done", 3.0)


def test_a_digest_names_bits():
    async def behave(ctx):
        model = ctx.mix([ctx.initial_model()], [2.0])
        return await ctx.digest(model), await ctx.digest(ctx.initial_model()), await ctx.digest(await ctx.train(model))

    same, also, other = at_node_0(behave)
    assert same == also == hashlib.blake2b(np.zeros(4).tobytes(), digest_size=16).hexdigest()
    assert other != same


def test_all_nodes_know_the_seed_each_other_and_what_they_hold_out():
    async def behave(ctx):
        return ctx.seed, ctx.nodes, ctx.data.held_samples

    assert at_node_0(behave, seed=5) == (5, (0, 1, 2, 3), 1)


# Sums of models as they come


@given(order=st.permutations(range(6)), window=st.integers(1, 7), missing=st.integers(0, 5))
def test_a_running_sum_is_the_sum_in_whatever_order_models_come(order, window, missing):
    weights = {member: (member + 1) / 21 for member in range(6)}
    there = order[missing:]

    async def behave(ctx):
        models = [ctx.mix([ctx.initial_model(draw=1 + member)]) for member in range(6)]
        running = RunningSum(ctx, weights, window)
        for member in there:
            running.add(member, models[member], weights[member])
        value = await ctx.value(running.total())
        direct = await ctx.value(ctx.mix(models, list(weights.values())))
        each = [await ctx.value(model) for model in models]
        return value, direct, sum(weights[m] * each[m] for m in there)

    value, direct, expected = at_node_0(behave, nodes=1)
    assert value == pytest.approx(expected)
    if not missing and window >= 6:
        assert value.tobytes() == direct.tobytes()


def test_a_running_sum_of_nobody_is_none():
    async def behave(ctx):
        return RunningSum(ctx, [1], 4).total()

    assert at_node_0(behave) is None


# Versions by their digest


class Holders(Protocol):
    """Node 1 has nothing, node 2 something else under that name, node 3 what is wanted."""

    @on(Wanted)
    def answer(self, ctx, sender, wanted):
        if ctx.me == 1:
            return Absent(digest=wanted.digest)
        model = ctx.mix([ctx.initial_model(draw=1)], [2.0 if ctx.me == 2 else 1.0])
        return Version(digest=wanted.digest, model=model, losses=(1.5, 1.25), best="abc")


def test_a_version_is_fetched_from_the_first_who_really_has_it():
    async def behave(ctx):
        digest = await ctx.digest(ctx.initial_model(draw=1))
        shelf = Shelf(ctx, timeout_s=9.0)
        liar = await shelf.fetch(ctx, digest, (1, 2))
        return liar, await shelf.fetch(ctx, digest, (1, 2, 3)), shelf[digest].losses, digest in shelf

    assert at_node_0(behave, protocol=Holders) == (False, True, (1.5, 1.25), True)


def test_a_version_is_asked_for_once_however_many_wait_for_it():
    async def behave(ctx):
        digest, shelf, done = await ctx.digest(ctx.initial_model(draw=1)), Shelf(ctx, 9.0), []

        async def get():
            done.append((await shelf.fetch(ctx, digest, (3,)), ctx.now))

        ctx.spawn(get())
        ctx.spawn(get())
        await ctx.sleep(8)
        return done

    outcome = at_node_0(behave, protocol=Holders)
    assert outcome == [(True, 2.0), (True, 2.0)]


def test_a_shelf_survives_a_restart_and_lets_go_of_what_nobody_needs():
    async def behave(ctx):
        shelf, again = Shelf(ctx, 9.0), Shelf(ctx, 9.0)
        for name, best in (("aa", ""), ("bb", "aa"), ("cc", "bb")):
            shelf.add(Version(digest=name, model=ctx.initial_model(), losses=(0.1, float("nan")), best=best))
        shelf.keep(["aa", "bb"])
        again.restore(shelf.state())
        return [(again[name].best, str(again[name].losses)) for name in ("aa", "bb")], "cc" in again, "" in again

    assert at_node_0(behave) == ([("", "(0.1, nan)"), ("aa", "(0.1, nan)")], False, True)


def test_a_shelf_keeps_what_goes_with_a_model():
    async def behave(ctx):
        model, moment = ctx.initial_model(draw=1), ctx.initial_model(draw=2)
        shelf, again = Shelf(ctx, 9.0), Shelf(ctx, 9.0)
        shelf.add(Version(digest="aa", model=model, state={"mean": moment, "control": model}, sampler=b"\x00\xff"))
        shelf.add(Version(digest="aabb", model=model, losses=(2.0,)))
        again.restore(shelf.state())
        held = again["aa"]
        values = [await ctx.value(tensor) for tensor in (*held.tensors, model, moment)]
        return values, sorted(held.state), held.sampler, again["aabb"].state, again["aabb"].sampler

    (model, control, mean, *expected), names, sampler, *plain = at_node_0(behave)
    assert [model.tobytes(), mean.tobytes()] == [tensor.tobytes() for tensor in expected]
    assert control.tobytes() == model.tobytes()
    assert (names, sampler, plain) == (["control", "mean"], b"\x00\xff", [{}, b""])


def test_a_digest_is_of_all_tensors_in_their_order():
    async def behave(ctx):
        one, other = ctx.initial_model(draw=1), ctx.initial_model(draw=2)
        return [await ctx.digest(*tensors) for tensors in ((one,), (one, other), (other, one), (one, other))]

    alone, both, swapped, again = at_node_0(behave)
    assert both == again
    assert len({alone, both, swapped}) == 3


# Forming


def test_cohorts_survive_a_checkpoint():
    cohorts = ((0, 3), (), (1, 2, 4))
    assert forming.from_text(forming.to_text(cohorts)) == cohorts


def test_offices_are_spread_and_pass_to_the_next_one():
    async def behave(ctx):
        return [forming.elected(ctx, office) for office in ("unifier", "registrar")]

    unifier, registrar = at_node_0(behave, nodes=20, workload=Quadratic(20))
    assert sorted(unifier) == sorted(registrar) == list(range(20))
    assert unifier != registrar
