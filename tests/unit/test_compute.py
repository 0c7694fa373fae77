"""What a protocol computes with beside plain training and mixing: guides, halves of models, several values, budgets."""

from __future__ import annotations

import math

import pytest

from node import ConfigError, Context, Mod, Protocol, ProtocolError, op
from node.config import DevicesSection
from node.errors import BudgetSpent
from node.learn.federated import filled
from node.solver import InlineExecutor
from node.testing import Quadratic, run_protocol

TARGETS = [[4.0, 8.0, 12.0], [-4.0, 0.0, 2.0]]


def outcome_of(behave, nodes=2, private=0, **options):
    class Told(Protocol):
        @classmethod
        def private_layers(cls, config):
            return private

        async def run(self, ctx: Context):
            return await behave(ctx)

    options.setdefault("workload", Quadratic(nodes, TARGETS[:nodes], lr=0.5))
    return run_protocol(Told(), nodes, **options)


def model_of(behave, **options):
    """The final model of node 0, whose target is 4, 8, 12."""
    return outcome_of(behave, **options).models[0].tolist()


class Unguided(Quadratic):
    """Has no guided training."""

    def _adapt(self, task):
        raise AssertionError("plain training needs no guide")


# Models to start from


def test_draw_0_is_the_common_start_and_every_other_draw_a_model_of_its_own():
    drawn = {}

    async def behave(ctx):
        refs = [ctx.initial_model(draw) for draw in (0, 1, 2, 1)]
        drawn[ctx.me] = [tuple(value.tolist()) for value in await ctx.values(refs)]

    outcome_of(behave)
    assert drawn[0] == drawn[1]
    start, one, two, again = drawn[0]
    assert start == (0.0, 0.0, 0.0)
    assert one == again
    assert len({start, one, two}) == 3


# Guided training


def test_training_without_guides_is_the_plain_op():
    async def behave(ctx):
        model = await ctx.train(ctx.initial_model(), proximal=1.0)
        return await ctx.train(model, steps=2, lr=0.25, part="all", repeats=1)

    model = model_of(behave, workload=Unguided(2, TARGETS, lr=0.5))
    assert model == pytest.approx([target * (1 - 0.5 * 0.75**2) for target in TARGETS[0]])


def test_the_pull_is_to_the_start_or_to_another_model():
    async def behave(ctx):
        anchor = await ctx.train(ctx.initial_model(), lr=1.0)  # the target itself
        to_start = await ctx.train(ctx.initial_model(), 200, 3.0, lr=0.1)
        to_other = await ctx.train(ctx.initial_model(), 200, 3.0, toward=anchor, lr=0.1)
        return ctx.mix([to_start, to_other], [1.0, 100.0])

    assert model_of(behave) == pytest.approx([target / 4 + 100 * target for target in TARGETS[0]])


def test_a_pull_of_no_strength_leaves_training_alone():
    async def behave(ctx):
        other = await ctx.train(ctx.initial_model(), lr=0.3)
        return await ctx.train(ctx.initial_model(), toward=other)

    assert model_of(behave) == [target * 0.5 for target in TARGETS[0]]


@pytest.mark.parametrize(("part", "moved"), [("core", (1, 1, 0)), ("head", (0, 0, 1)), ("all", (1, 1, 1))])
def test_only_a_part_of_the_layers_moves(part, moved):
    async def behave(ctx):
        return await ctx.train(ctx.initial_model(), part=part)

    expected = [target * 0.5 * moves for target, moves in zip(TARGETS[0], moved, strict=True)]
    assert model_of(behave, private=1) == expected


def test_a_mask_holds_elements_where_they_are():
    @op
    def first_only(model):
        mask = model * 0.0
        mask[0] = 1.0
        return mask

    async def behave(ctx):
        model = ctx.initial_model()
        return await ctx.train(model, mask=ctx.apply(first_only, model))

    assert model_of(behave) == [2.0, 0.0, 0.0]


def test_a_correction_is_added_to_every_gradient():
    """Of (x - target) / 2 a step, twice: a correction is a target that lies elsewhere."""

    async def behave(ctx):
        ones = ctx.apply(filled, ctx.initial_model(), by=1.0)
        return await ctx.train(ctx.initial_model(), steps=2, correction=ones)

    assert model_of(behave) == [(target - 1) * 0.75 for target in TARGETS[0]]


def test_repeats_are_steps_that_take_their_time():
    times = []

    async def behave(ctx):
        model = await ctx.train(ctx.initial_model(), steps=2, repeats=3)
        times.append(ctx.now)
        return model

    model = model_of(behave, devices=DevicesSection(seconds_per_sample=2.0))
    assert model == pytest.approx([target * (1 - 0.5**6) for target in TARGETS[0]])
    assert times == [12.0, 12.0]


def test_the_learning_rate_is_the_schedules_or_one_s_own():
    """A training at a rate of its own is no step of the schedule."""

    class Falling(Quadratic):
        def lr(self, call):
            return 1 / (call + 2)

    seen = []

    async def behave(ctx):
        seen.append(ctx.lr)
        model = await ctx.train(ctx.initial_model(), lr=1.0)
        seen.append(ctx.lr)
        model = await ctx.train(model)
        seen.append(ctx.lr)
        assert not ctx.is_private
        return await ctx.train(model, lr=0.0)

    outcome = outcome_of(behave, nodes=1, workload=Falling(1, [[6.0]]))
    assert outcome.models[0].tolist() == [6.0]
    assert seen == [1 / 2, 1 / 2, 1 / 3]


def test_mods_see_guided_training():
    class Halving(Mod):
        def trained(self, ctx, before, after):
            return ctx.mix([before, after])

    async def behave(ctx):
        return await ctx.train(ctx.initial_model(), part="head")

    assert model_of(behave, private=1, mods=[Halving()]) == [0.0, 0.0, 3.0]


# Halves of models


@pytest.mark.parametrize("private", [1, 2])
def test_core_and_head_are_a_models_first_and_last_layers(private):
    parts = []

    async def behave(ctx):
        model = await ctx.train(ctx.initial_model(), lr=1.0)
        core, head = ctx.split(model)
        assert (core.spec.shape, head.spec.shape) == ((3 - private,), (private,))
        parts.append([value.tolist() for value in await ctx.values([core, head])])
        return ctx.join(core, head)

    outcome = outcome_of(behave, private=private)
    assert [model.tolist() for model in outcome.models.values()] == TARGETS
    cut = 3 - private
    assert sorted(parts) == sorted([target[:cut], target[cut:]] for target in TARGETS)


def test_private_layers_may_read_the_config():
    class Split(Protocol):
        class Config(Protocol.Config):
            layers: int = 2

        @classmethod
        def private_layers(cls, config):
            return config.layers

        async def run(self, ctx):
            return ctx.split(await ctx.train(ctx.initial_model(), lr=1.0))[1]

    models = run_protocol(Split(), 2, workload=Quadratic(2, TARGETS)).models
    assert [model.tolist() for model in models.values()] == [target[1:] for target in TARGETS]


@pytest.mark.parametrize("private", [0, 3, 4])
def test_there_is_no_head_of_nothing_or_of_everything(private):
    async def behave(ctx):
        for use in (ctx.split, lambda model: ctx.train(model, part="head")):
            with pytest.raises(ConfigError, match=f"private layers: {private} of 3; allowed: 1 to 2"):
                use(ctx.initial_model())

    outcome_of(behave, private=private)


# Several values


class Counting(InlineExecutor):
    def __init__(self):
        self.batches = []

    def solve(self, op, tasks):
        self.batches.append((op.name, len(tasks)))
        return super().solve(op, tasks)


def test_values_are_solved_together_and_given_in_order():
    executor = Counting()

    async def behave(ctx):
        if ctx.me:
            return
        models = [await ctx.train(ctx.initial_model(), lr=lr) for lr in (0.1, 0.2, 0.3)]
        losses = await ctx.values([ctx.evaluate(model, on="train") for model in models])
        first = [loss["loss"] for loss in losses]
        again = await ctx.values([])
        assert again == []
        assert first == sorted(first, reverse=True)

    outcome = outcome_of(behave, executor=executor, workload=Quadratic(2, [TARGETS[0]] * 2))
    assert ("quadratic:evaluate", 3) in executor.batches
    assert outcome.forced_solves == 3


# Budgets and lineage


class Book:
    """A ledger that allows some steps, and then either no more or none at all."""

    def __init__(self, most=math.inf, raises=False):
        self.most, self.raises, self.charges = most, raises, []

    def charge(self, node, steps):
        if sum(charged for _, charged in self.charges) + steps > self.most:
            if self.raises:
                raise BudgetSpent(f"node {node}: no budget for {steps} steps")
            return False
        self.charges.append((node, steps))
        return True

    def spent(self, node):
        return {"epsilon": float(len(self.charges))}


def charged(book, behave):
    async def with_book(ctx):
        ctx._world.ledger = book
        return await behave(ctx)

    return outcome_of(with_book, nodes=1, devices=DevicesSection(seconds_per_sample=1.0))


def test_every_step_is_charged_before_it_is_taken():
    book = Book()

    async def behave(ctx):
        assert ctx.is_private
        training = ctx.train(ctx.initial_model(), steps=2, repeats=3)
        assert book.charges == [(0, 6)]
        return await ctx.train(await training)

    charged(book, behave)
    assert book.charges == [(0, 6), (0, 1)]


def test_without_budget_a_node_goes_on_without_training():
    async def behave(ctx):
        return await ctx.train(await ctx.train(ctx.initial_model()), steps=5)

    outcome = charged(Book(most=1), behave)
    assert outcome.models[0].tolist() == [target * 0.5 for target in TARGETS[0]]
    assert outcome.time_s == 1.0


def test_a_spent_budget_may_end_the_run():
    async def behave(ctx):
        with pytest.raises(BudgetSpent, match="node 0: no budget for 2 steps"):
            ctx.train(ctx.initial_model(), steps=2)
        return ctx.initial_model()

    assert charged(Book(most=1, raises=True), behave).models[0].tolist() == [0.0, 0.0, 0.0]


class Log:
    def __init__(self):
        self.made_values = []

    def made(self, node, value, op, inputs, static):
        self.made_values.append((node, op, [ref.id for ref in inputs], value.id, dict(static)))


def test_lineage_is_told_of_every_op_with_its_inputs():
    log = Log()

    async def behave(ctx):
        ctx._world.lineage = log
        start = ctx.initial_model()
        trained = await ctx.train(start, part="head")
        core, head = ctx.split(trained)
        joined = ctx.join(core, head)
        ctx._world.lineage = None
        ids = [ref.id for ref in (start, trained, core, head, joined)]
        return ctx.mix([joined], [float(ids == sorted(ids))])

    outcome_of(behave, nodes=1, private=1)
    names = [(node, name) for node, name, *_ in log.made_values]
    assert names == [(0, f"quadratic:{name}") for name in ("adapt", "part", "part", "join")]
    trained, core, head, joined = [entry[3] for entry in log.made_values]
    assert [entry[2] for entry in log.made_values[1:]] == [[trained], [trained], [core, head]]
    assert log.made_values[0][4]["part"] == "head"
    assert joined not in (core, head)


def test_a_node_without_data_cannot_train_guided_either():
    class Idle(Quadratic):
        def shard_size(self, node):
            return 0

    async def behave(ctx):
        with pytest.raises(ProtocolError, match="node 0 has no data to train on"):
            ctx.train(ctx.initial_model(), part="head")

    outcome_of(behave, nodes=1, private=1, workload=Idle(1, [[1.0, 2.0]]))


def test_numbers_with_a_word_before_them_are_parts_of_what_was_measured():
    async def behave(ctx):
        metrics = ctx.evaluate(ctx.initial_model(), on="own")
        ctx.record(round=0, accuracy=metrics, own_accuracy=metrics, own_loss=metrics, rest=metrics)

    recorder = outcome_of(behave, nodes=1, workload=Quadratic(1, [[3.0]])).recorder
    found = {row.metric: row.value for row in recorder.rows() if row.metric != "bytes_sent"}
    accuracy, loss = 1 / 4, 4.5
    assert found == {
        "accuracy": accuracy,
        "own_accuracy": accuracy,
        "own_loss": loss,
        "rest.accuracy": accuracy,
        "rest.loss": loss,
    }


@pytest.mark.parametrize("is_personal", [False, True])
def test_a_personal_model_is_judged_on_its_nodes_own_data_with_or_without_groups(is_personal):
    async def behave(ctx):
        ctx.record(round=0, **ctx.judge(ctx.initial_model(), is_personal=is_personal))

    names = {row.metric for row in outcome_of(behave, nodes=1).recorder.rows()}
    assert names == {"accuracy", "loss", "bytes_sent"} | ({"own_accuracy"} if is_personal else set())
