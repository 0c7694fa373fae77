"""What a unifier needs, and how it says in one line what is missing."""

import re

import pytest

from node import Context, Protocol, ProtocolError, Spec
from node.config import DataSection, ModelSection, PublicSection, TrainingSection
from node.learn.data import federate
from node.learn.models import build
from node.learn.workload import Workload, prepare_torch
from node.testing import Quadratic, run_protocol
from node.unifiers import UNIFIERS, Given, refusal
from node.unify import Distillation

PUBLIC = PublicSection(name="held-out", samples=40, check_fraction=0.2)
FEDERATION = federate(DataSection(), 1, 3, PUBLIC)
LONELY = federate(DataSection(), 1, 3)
LABELS = ((0.5,) * 10,) * 2
QUICK = Distillation(steps=4, batch_size=16)


@pytest.fixture(autouse=True)
def _deterministic():
    prepare_torch()


def model(name="mlp"):
    return build(ModelSection(name=name, hidden=(24,)), (1, 8, 8), 10)


def workload(federation=FEDERATION, student=None):
    return Workload(federation, model(), TrainingSection(batch_size=8), 7, student=student)


def told(behave, work=None):
    """What a node's behaviour in a simulation leads to."""

    class Told(Protocol):
        async def run(self, ctx: Context):
            return await behave(ctx)

    return run_protocol(Told(), 1, workload=work or workload())


async def unified(ctx, name):
    unifier, models = UNIFIERS[name], [ctx.initial_model(1), ctx.initial_model(2)]
    fishers = models if unifier.by_fisher else None
    weights = LABELS if unifier.by_label else None
    return await ctx.unify.unified(name, models, by_label=weights, fishers=fishers, how=QUICK)


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("kd-hart", Given(), "no unifier is called 'kd-hart'; did you mean 'kd-hard'\\?; known: average, fisher,"),
        ("kd-hard", Given(public=False), "'kd-hard' teaches a student on public data, and there is none; set public"),
        ("ensemble-label", Given(counts=False), "'ensemble-label' weighs models by the classes they have seen"),
        ("fisher", Given(fishers=False), "'fisher' weighs parameters by Fisher information, and nobody has told it"),
        ("fisher", Given(private=True), "'fisher' needs what no privacy budget covers: squared gradients of records"),
        ("logit-exchange", Given(public=False), "'logit-exchange' teaches a student on public data, and there is none"),
        ("average", Given(common_start=False), "averages parameters, and the models have not begun alike; allowed: kd"),
        ("fisher", Given(other_student=True), "'fisher' averages parameters, and the student has another architecture"),
        (
            "average",
            Given(other_student=True),
            "architecture \\(student.name\\); allowed: kd-uniform, kd-label",
        ),
        ("ensemble-uniform", Given(other_student=True), "'ensemble-uniform' keeps all models as they are"),
    ],
)
def test_what_a_unifier_lacks_is_said_in_one_line(name, given, says):
    assert re.search(says, refusal(name, given))
    assert "\n" not in refusal(name, given)


def test_nothing_is_refused_that_has_what_it_needs():
    assert refusal("", Given(False, False, False, False, True)) == ""
    assert [refusal(name, Given()) for name in UNIFIERS] == [""] * len(UNIFIERS)
    least = {"average": Given(False, False, False), "ensemble-uniform": Given(False, False, False, False)}
    assert [refusal(name, given) for name, given in least.items()] == ["", ""]
    distilled = [name for name, unifier in UNIFIERS.items() if unifier.loss]
    assert len(distilled) == 6
    assert [refusal(name, Given(common_start=False, other_student=True)) for name in distilled] == [""] * 6
    assert refusal("kd-generated", Given(False, False, False, False, True, True)) == ""


@pytest.mark.parametrize("name", ["average", "fisher"])
def test_parameters_of_another_architecture_are_not_averaged(name):
    async def behave(ctx):
        with pytest.raises(ProtocolError, match=f"unify: '{name}' averages parameters, and the student has another"):
            await unified(ctx, name)
        result = await unified(ctx, "kd-label-logit")
        assert result.model.spec == Spec((650,))
        assert result.model.spec != ctx.initial_model().spec
        assert 0 <= (await ctx.value(result.metrics))["accuracy"] <= 1

    told(behave, workload(student=model("softmax")))


def test_without_public_samples_there_are_no_students():
    async def behave(ctx):
        with pytest.raises(ProtocolError, match="unify: 'kd-uniform' teaches a student on public data, and there is"):
            await unified(ctx, "kd-uniform")
        with pytest.raises(ProtocolError, match=r"unify: there are no public samples; set public\.name"):
            await ctx.unify.logits(ctx.initial_model())
        assert (await unified(ctx, "ensemble-label")).agreement is None

    told(behave, workload(LONELY))


def test_what_does_not_fit_is_refused():
    async def behave(ctx):
        models, unify = [ctx.initial_model(1), ctx.initial_model(2)], ctx.unify
        for shares in ([1.0], [0.0, 0.0], [2.0, -1.0]):
            with pytest.raises(ProtocolError, match=r"unify: shares .* of 2 models; one for each, not negative"):
                unify.average(models, shares)
        for weights in (LABELS * 2, [[0.5] * 9] * 2):
            with pytest.raises(ProtocolError, match=r"unify: weights .* for 2 models and 10 classes"):
                unify.judge(models, "probabilities", weights)
        with pytest.raises(ProtocolError, match="unify needs at least one model"):
            await unify.unified("average", [])
        with pytest.raises(ProtocolError, match="unify needs at least one model"):
            await unify.unified("ensemble-uniform", [])
        with pytest.raises(ProtocolError, match="unify: 'fisher' teaches no student by logits; allowed: kd-uni"):
            await unify.taught("fisher", [await unify.logits(models[0])])
        with pytest.raises(ProtocolError, match="unify: 'kd-generated' teaches no student by logits; allowed: kd-uni"):
            await unify.taught("kd-generated", [await unify.logits(models[0])])
        with pytest.raises(ProtocolError, match="unify needs at least one model"):
            await unify.generated(unify.fresh(), [])
        with pytest.raises(ProtocolError, match="unify: 'kd-hard' weighs models by the classes they have seen"):
            await unify.taught("kd-hard", [await unify.logits(models[0])])
        with pytest.raises(ProtocolError, match="fisher_mean got 2 models and 1 Fisher diagonals"):
            unify.fisher_mean(models, models[:1])

    told(behave)


def test_no_budget_covers_fisher_information():
    async def behave(ctx):
        ctx._world.ledger = object()
        with pytest.raises(ProtocolError, match="Fisher information tells of records that no privacy budget covers"):
            await ctx.unify.fisher(ctx.initial_model())

    told(behave)


def test_without_a_part_that_is_kept_there_is_no_agreement():
    federation = federate(DataSection(), 1, 3, PUBLIC.model_copy(update={"check_fraction": 0.0}))

    async def behave(ctx):
        result = await unified(ctx, "kd-uniform")
        assert result.agreement is None
        with pytest.raises(ProtocolError, match=r"set public\.check_fraction above 0"):
            ctx.unify.agreement(result.model, await ctx.unify.logits(ctx.initial_model()))

    told(behave, workload(federation))


def test_a_workload_without_classes_averages():
    async def behave(ctx):
        result = await ctx.unify.unified("average", [ctx.initial_model(1), ctx.initial_model(2)])
        with pytest.raises(ProtocolError, match="this workload has no classes to tell apart; there is only 'average'"):
            ctx.unify.judge([result.model], "votes")
        with pytest.raises(ProtocolError, match="'kd-hard' teaches a student on public data"):
            await unified(ctx, "kd-hard")
        return result.model

    assert told(behave, Quadratic(1)).spread() == 0
