"""Several models made one through ``ctx.unify``: its ops, what they cost, and what is refused."""

import dataclasses
from contextlib import closing

import numpy as np
import pytest
import torch

from node import Context, Protocol
from node.config import DataSection, DevicesSection, ModelSection, PublicSection, TrainingSection
from node.learn.cost import inference_flops, training_flops
from node.learn.data import federate
from node.learn.models import build
from node.learn.processes import ProcessExecutor
from node.learn.unify import diagonal, fisher_mean
from node.learn.workload import Workload, prepare_torch
from node.op import Key, Task
from node.solver import BatchedExecutor
from node.testing import check_op, check_protocol, run_protocol
from node.unifiers import UNIFIERS, Distillation, Generation

NODES = 3
PUBLIC = PublicSection(name="held-out", samples=90, check_fraction=0.2)
DATA = DataSection(partition="dirichlet", alpha=0.3)
FEDERATION = federate(DATA, NODES, 3, PUBLIC)
LONELY = federate(DATA, NODES, 3)
LABELS = ((0.2,) * 10, (0.5,) * 10, (0.3,) * 10)
QUICK = Distillation(steps=6, batch_size=32)
MADE_UP = Generation(epochs=2, steps=2, batch_size=16)
KEY = Key(7, 1, 4)
HOW = {"rule": "logits", "loss": "l1", "temperature": 1.0, "steps": 4, "batch_size": 32, "lr": 1e-3}


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch, tmp_path_factory):
    prepare_torch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "kernels"))


def model(name="mlp", hidden=(24,)):
    return build(ModelSection(name=name, hidden=hidden), (1, 8, 8), 10)


def workload(federation=FEDERATION, name="mlp", student=None):
    return Workload(federation, model(name), TrainingSection(batch_size=8), 7, student=student)


def flats(count=NODES, name="mlp"):
    return [model(name).initial(seed) for seed in range(count)]


def solved(op, *inputs, key=KEY, **static):
    return op.solve(Task(inputs, static, key))


def told(behave, work=None, nodes=1, **options):
    """What a node's behaviour in a simulation leads to."""

    class Told(Protocol):
        async def run(self, ctx: Context):
            return await behave(ctx)

    return run_protocol(Told(), nodes, workload=work or workload(), **options)


# Ops


def every_op(unify):
    """Each op with inputs and static arguments of its own."""
    models = flats()
    said = [solved(unify.logits, flat) for flat in models]
    together = {"rule": "probabilities", "weights": LABELS}
    student = solved(unify.fresh, draw=0)
    return [
        (unify.logits, models[:1], {}),
        (unify.halved, said[:1], {}),
        (unify.combined, said, together),
        (unify.familiarity, said, {}),
        (unify.fresh, [], {"draw": 2}),
        (unify.distil, [student, said[0]], HOW),
        (unify.generated, [student, *models], dataclasses.asdict(MADE_UP)),
        (unify.agreement, [student, said[0]], {}),
        (unify.judge, models, together),
        (unify.judge_student, [student], {}),
        (unify.fisher, models[:1], {"samples": 5}),
        (unify.fisher_mean, [*models, *[flat.abs() for flat in models]], {"weights": (0.2, 0.3, 0.5)}),
    ]


@pytest.mark.parametrize("student", [None, "softmax"])
def test_every_op_is_pure_keeps_to_its_spec_and_equals_its_batch(student):
    unify = workload(student=student and model(student)).unify
    cases = every_op(unify)
    assert [op for op, _, _ in cases] == list(unify.ops)
    for op, inputs, static in cases:
        if op is unify.fisher:
            continue  # the nodes of check_op are more than hold data
        check_op(op, inputs, **static)


def test_fisher_information_is_of_the_nodes_own_samples():
    work, flat = workload(), flats(1)[0]
    found = [solved(work.unify.fisher, flat, samples=6, key=Key(7, node, 4)) for node in range(NODES)]
    assert not torch.equal(found[0], found[1])
    assert torch.equal(solved(work.unify.fisher, flat, samples=6, key=Key(7, 0, 4)), found[0])
    assert not torch.equal(solved(work.unify.fisher, flat, samples=6, key=Key(7, 0, 5)), found[0])
    every = FEDERATION.train.features[FEDERATION.shards.of(0)]
    whole = solved(work.unify.fisher, flat, samples=10**6, key=Key(7, 0, 4))
    assert whole.numpy() == pytest.approx(diagonal(model(), flat, every).numpy(), abs=1e-9)


@pytest.mark.parametrize("name", ["mlp", "softmax", "lenet"])
def test_many_models_at_once_say_what_each_says(name):
    work = workload(name=name)
    tasks = [Task((flat,), {}, Key(7, 0, i)) for i, flat in enumerate(flats(11, name))]
    alone = [work.unify.logits.solve(task) for task in tasks]
    together = BatchedExecutor().solve(work.unify.logits, tasks)
    assert len(together) == 11
    for one, other in zip(alone, together, strict=True):
        assert one.shape == other.shape == (90, 10)
        assert one.numpy() == pytest.approx(other.numpy(), abs=1e-5)


def test_a_buffer_from_the_network_gives_the_same_bits_wherever_it_begins():
    work, flat = workload(), flats(1)[0]
    memory = torch.empty(len(flat) + 16)
    for shift in (1, 3, 7):
        moved = memory[shift : shift + len(flat)].copy_(flat)
        assert torch.equal(solved(work.unify.logits, moved), solved(work.unify.logits, flat))


def test_other_processes_give_the_same_bits():
    work = workload()
    said = solved(work.unify.logits, flats(1)[0])
    tasks = [Task((flat, said), HOW, Key(7, 0, i)) for i, flat in enumerate(flats())]
    with closing(ProcessExecutor(2, work.ops)) as executor:
        elsewhere = executor.fetch(executor.solve(work.unify.distil, tasks))
        logits = executor.fetch(executor.solve(work.unify.logits, [Task((flats(1)[0],), {}, KEY)]))
    assert all(map(torch.equal, elsewhere, [work.unify.distil.solve(task) for task in tasks]))
    assert torch.equal(logits[0], said)


def test_students_learn_from_no_sample_that_they_are_compared_on():
    unify = workload().unify
    start, said = solved(unify.fresh, draw=0), solved(unify.logits, flats(1)[0])
    changed = said.clone()
    changed[-18:] += 100.0
    assert unify.check_samples == 18
    assert torch.equal(solved(unify.distil, start, said, **HOW), solved(unify.distil, start, changed, **HOW))
    changed[0] += 100.0
    assert not torch.equal(solved(unify.distil, start, said, **HOW), solved(unify.distil, start, changed, **HOW))


def test_an_ensemble_of_one_is_judged_as_the_model_is():
    work, flat = workload(), flats(1)[0]
    expected = solved(work.evaluate, flat, on="test")
    for rule in ("logits", "probabilities"):
        assert solved(work.unify.judge, flat, rule=rule, weights=()) == pytest.approx(expected, abs=1e-6)
    assert solved(work.unify.judge_student, flat) == pytest.approx(expected, abs=1e-6)


def with_other_samples(public):
    return dataclasses.replace(public, features=public.features.flip(0))


def test_every_draw_is_another_student_and_none_is_what_nodes_begin_with():
    work = workload()
    students = [solved(work.unify.fresh, draw=draw) for draw in range(3)]
    narrow = workload(student=model("mlp", (8,)))
    others = [*students, solved(work.init), solved(narrow.unify.fresh, draw=0)]
    assert len({tuple(flat.tolist()) for flat in others}) == 5
    assert torch.equal(solved(work.unify.fresh, draw=1, key=Key(7, 2, 9)), students[1])


def test_what_is_cached_follows_from_public_samples_student_and_node():
    def basis(federation=FEDERATION, student=None, key=KEY):
        work = workload(federation, student=student)
        work.arithmetic(batched=False)
        return work.unify.distil.basis(key)

    others = [
        basis(LONELY),
        basis(dataclasses.replace(FEDERATION, public=with_other_samples(FEDERATION.public))),
        basis(federate(DATA, NODES, 3, PUBLIC.model_copy(update={"check_fraction": 0.3}))),
        basis(student=model("softmax")),
        basis(key=KEY._replace(node=2)),
        basis(key=KEY._replace(seed=8)),
    ]
    assert basis() == basis()
    assert len({basis(), *others}) == 1 + len(others)


# Through a context


async def unified(ctx, name, models=None, **options):
    models = [ctx.initial_model(draw) for draw in range(NODES)] if models is None else models
    unifier = UNIFIERS[name]
    if unifier.by_fisher:
        options["fishers"] = [await ctx.unify.fisher(model, 5) for model in models]
    return await ctx.unify.unified(name, models, by_label=LABELS if unifier.by_label else None, how=QUICK, **options)


@pytest.mark.parametrize("name", UNIFIERS)
def test_every_unifier_gives_what_it_promises(name):
    seen = {}

    async def behave(ctx):
        result = await unified(ctx, name)
        seen["metrics"] = await ctx.value(result.metrics)
        seen["agreement"] = None if result.agreement is None else await ctx.value(result.agreement)
        assert (result.model is None) == UNIFIERS[name].is_ensemble
        return result.model

    told(behave)
    assert 0 <= seen["metrics"]["accuracy"] <= 1 < seen["metrics"]["loss"] * 10
    assert (seen["agreement"] is not None) == UNIFIERS[name].needs_public


def test_unifying_is_the_same_in_every_run_window_and_batch():
    class Teaching(Protocol):
        async def run(self, ctx: Context):
            model = await ctx.train(ctx.initial_model(ctx.me + 1), steps=1)
            return (await unified(ctx, "kd-label-prob", [model] * NODES)).model

    check_protocol(Teaching(), NODES, workload=workload())


def test_averages_are_by_shares_and_by_information():
    work, (one, other) = workload(), flats(2)
    seen = {}

    async def behave(ctx):
        models = [ctx.initial_model(1), ctx.initial_model(2)]
        seen["models"] = await ctx.values(models)
        seen["average"] = await ctx.value((await ctx.unify.unified("average", models, shares=[30, 10])).model)
        fishers = [await ctx.unify.fisher(model, 4) for model in models]
        seen["fishers"] = await ctx.values(fishers)
        merged = await ctx.unify.unified("fisher", models, shares=[3, 1], fishers=fishers)
        seen["fisher"] = await ctx.value(merged.model)
        plain = await ctx.unify.unified("average", models, shares=[30, 10], fishers=fishers)
        assert torch.equal(await ctx.value(plain.model), seen["average"])
        return models[0]

    told(behave, work)
    one, other = seen["models"]
    assert torch.equal(seen["average"], (one * 0.75).add_(other, alpha=0.25))
    assert torch.equal(seen["fisher"], fisher_mean([one, other], seen["fishers"], [0.75, 0.25]))


def test_a_late_teacher_is_learned_from_by_the_student_that_is_there():
    seen = {}

    async def behave(ctx):
        unify, models = ctx.unify, [ctx.initial_model(draw) for draw in (1, 2)]
        said = [await unify.logits(model) for model in models]
        first = await unify.taught("kd-uniform", said[:1], how=Distillation(400, 32, 1e-2))
        both = await unify.taught("kd-uniform", said, student=first.model, how=Distillation(400, 32, 1e-2))
        judged = [unify.agreement(result.model, unify.combined(said, "logits")) for result in (first, both)]
        seen["agreement"] = [value["agreement"] for value in await ctx.values(judged)]
        return both.model

    told(behave)
    assert seen["agreement"][0] < seen["agreement"][1] > 0.7


def test_teachers_that_know_public_samples_are_familiar_with_them():
    seen = {}

    async def behave(ctx):
        model = ctx.initial_model()
        before = await ctx.unify.logits(model)
        after = await ctx.unify.logits(await ctx.train(model, steps=300))
        seen["confidence"] = [
            (await ctx.value(ctx.unify.familiarity([said])))["confidence"] for said in (before, after)
        ]
        return model

    told(behave)
    assert seen["confidence"][0] < 0.3 < 0.6 < seen["confidence"][1]


# What it costs


def test_time_and_flops_are_those_of_the_samples_that_are_processed():
    work, shape = workload(), (1, 8, 8)
    train, infer = training_flops(model(), shape), inference_flops(model(), shape)
    seen = {}

    async def behave(ctx):
        unify = ctx.unify
        before = ctx.now
        await unify.unified("kd-uniform", [ctx.initial_model(1), ctx.initial_model(2)], how=Distillation(9, 32))
        seen["kd"] = ctx.now - before, unify.flops
        before, unify = ctx.now, ctx.unify
        await unify.fisher(ctx.initial_model(), 5)
        seen["fisher"] = ctx.now - before, unify.flops
        unify.average([ctx.initial_model()])
        return ctx.initial_model()

    outcome = told(behave, work, devices=DevicesSection(seconds_per_sample=0.01, overhead_s=0.0))
    samples = 3 * 72  # three passes over the samples that are taught, in batches of 32, 32 and 8
    flops = samples * train + 2 * 90 * infer
    assert seen["kd"] == pytest.approx((0.01 * flops / train, flops))
    assert seen["fisher"] == pytest.approx((0.01 * 50, 50 * train))
    assert outcome.time_s == pytest.approx(seen["kd"][0] + seen["fisher"][0])
    assert 0.25 < infer / train < 0.5


def test_a_larger_student_takes_longer():
    async def behave(ctx):
        return (await ctx.unify.unified("kd-uniform", [ctx.initial_model(1)], how=QUICK)).agreement

    async def nothing(ctx):
        await behave(ctx)

    small, large = (told(nothing, workload(student=model(hidden=(width,)))).time_s for width in (8, 200))
    assert large > 3 * small


def test_nobody_s_data_is_needed_to_teach():
    """A server, which holds none, may be where models are unified."""
    federation = federate(DATA, 1, 3, PUBLIC)
    empty = type(federation.shards)(np.array([0, 0]), federation.shards.indices[:0])
    work = Workload(
        type(federation)(federation.train, federation.test, empty, empty, federation.public),
        model(),
        TrainingSection(),
        7,
    )

    async def behave(ctx):
        return (await ctx.unify.unified("kd-uniform", [ctx.initial_model(1)], how=QUICK)).model

    assert 0 in told(behave, work).models
