"""Guided training, held to plain torch: a module, autograd and a loop, nothing of the package's own."""

import itertools

import pytest
import torch
from torch.nn.functional import cross_entropy

from node.config import DataSection, ModelSection, TrainingSection
from node.learn.data import federate
from node.learn.models import build
from node.learn.training import Guide, Trainer
from node.learn.workload import Workload, prepare_torch
from node.op import Key, Task
from node.solver import BatchedExecutor, InlineExecutor

NODES, LR = 6, 0.1
RULES = {
    "sgd": {},
    "decay": {"weight_decay": 0.01},
    "momentum and decay": {"momentum": 0.9, "weight_decay": 0.01},
    "adam": {"optimizer": "adam"},
}
FEDERATION = federate(DataSection(partition="dirichlet"), NODES, 3)


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch, tmp_path_factory):
    prepare_torch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "kernels"))


def model_of(name="mlp"):
    return build(ModelSection(name=name, hidden=(24,)), (1, 8, 8), 10)


def workload(name="mlp", **training):
    return Workload(FEDERATION, model_of(name), TrainingSection(**training), 7)


def batches(count, size=16):
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(size, 1, 8, 8, generator=generator), torch.randint(0, 10, (size,), generator=generator))
        for _ in range(count)
    ]


def random_mask(model, seed=9):
    return (torch.rand(model.dimension, generator=torch.Generator().manual_seed(seed)) < 0.5).float()


def random_correction(model, seed=11):
    return 0.1 * torch.randn(model.dimension, generator=torch.Generator().manual_seed(seed))


def in_plain_torch(model, start, steps, section, lr, pull=0.0, toward=None, mask=None, moving=None, correction=0.0):
    """The update rule as the textbooks have it, on one flat vector. ``moving``: elements that are not frozen."""
    flat, anchor = start.clone(), (start if toward is None else toward).clone()
    velocity, first, second = None, torch.zeros_like(flat), torch.zeros_like(flat)
    free = torch.ones_like(flat, dtype=torch.bool) if moving is None else moving
    for count, (features, labels) in enumerate(steps, 1):
        leaf = flat.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model.logits(leaf, features), labels), leaf)
        gradient = gradient + pull * (flat - anchor) + section.weight_decay * flat + correction
        if mask is not None:
            gradient = gradient * mask
        if section.optimizer == "adam":
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            change = (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
        else:
            velocity = gradient if velocity is None else section.momentum * velocity + gradient
            change = velocity
        flat = torch.where(free, flat - lr * change, flat)
    return flat


def close(one, other):
    return torch.allclose(one, other, rtol=1e-4, atol=2e-6)


def of_part(model, part, layers=1):
    """The cut, and which elements move."""
    cut = model.cut(layers)
    places = torch.arange(model.dimension)
    return cut, {"core": places < cut, "head": places >= cut, "all": places >= 0}[part]


# The trainer


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("part", ["all", "core", "head"])
@pytest.mark.parametrize(("pull", "masked"), [(0.0, True), (0.7, False), (0.7, True)])
def test_every_guide_is_the_textbook_rule(rule, part, pull, masked):
    model, section, lr = model_of(), TrainingSection(**RULES[rule]), 0.003 if rule == "adam" else LR
    start, other = model.initial(1), model.initial(2)
    cut, moving = of_part(model, part)
    mask = random_mask(model) if masked else None
    guide = Guide(toward=other, mask=mask, part=part, cut=cut)
    trained = Trainer(model, section).train(start, batches(6), lr, pull, guide)
    assert close(trained, in_plain_torch(model, start, batches(6), section, lr, pull, other, mask, moving))
    still = ~moving if mask is None else ~moving | (mask == 0)
    assert torch.equal(trained[still], start[still])
    assert not torch.equal(trained[~still], start[~still])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("part", ["all", "core", "head"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_correction_is_added_to_every_gradient_before_the_mask(rule, part, masked):
    model, section, lr = model_of(), TrainingSection(**RULES[rule]), 0.003 if rule == "adam" else LR
    start, correction = model.initial(1), random_correction(model)
    cut, moving = of_part(model, part)
    mask = random_mask(model) if masked else None
    guide = Guide(mask=mask, correction=correction, part=part, cut=cut)
    trained = Trainer(model, section).train(start, batches(6), lr, 0.2, guide)
    expected = in_plain_torch(model, start, batches(6), section, lr, 0.2, None, mask, moving, correction)
    assert close(trained, expected)
    still = ~moving if mask is None else ~moving | (mask == 0)
    assert torch.equal(trained[still], start[still])


def test_where_the_data_say_nothing_a_correction_moves_a_model_alone():
    """A network of zeros has no gradient before its last layer."""
    model = model_of()
    start, correction = torch.zeros(model.dimension), random_correction(model)
    first = model.parts[0][1]
    guide = Guide(correction=correction, part="core", cut=model.cut(1))
    one = Trainer(model, TrainingSection()).train(start, batches(1), LR, guide=guide)
    assert torch.equal(one[first], -LR * correction[first])


@pytest.mark.parametrize("name", ["softmax", "lenet", "resnet8"])
def test_guides_lead_other_models_too(name):
    shape = (1, 8, 8) if name == "softmax" else (1, 28, 28)
    model = build(ModelSection(name=name), shape, 10)
    generator = torch.Generator().manual_seed(5)
    steps = [(torch.randn(4, *shape, generator=generator), torch.tensor([0, 3, 5, 9])) for _ in range(2)]
    start, other, mask = model.initial(1), model.initial(2), random_mask(model)
    trained = Trainer(model, TrainingSection()).train(start, steps, LR, 0.3, Guide(toward=other, mask=mask))
    expected = in_plain_torch(model, start, steps, TrainingSection(), LR, 0.3, other, mask)
    assert torch.allclose(trained, expected, rtol=1e-3, atol=1e-5)
    if name != "softmax":
        cut, moving = of_part(model, "core")
        trained = Trainer(model, TrainingSection()).train(start, steps, LR, guide=Guide(part="core", cut=cut))
        assert torch.equal(trained[~moving], start[~moving])
        assert not torch.equal(trained[moving], start[moving])


@pytest.mark.parametrize("rule", RULES)
def test_an_empty_guide_changes_no_bit(rule):
    model, section = model_of(), TrainingSection(**RULES[rule])
    start = model.initial(1)
    plain = Trainer(model, section).train(start, batches(4), LR, 0.3)
    ones = torch.ones(model.dimension)
    for guide in (Guide(), Guide(start), Guide(mask=ones), Guide(correction=ones * 0), Guide(part="head", cut=0)):
        assert torch.equal(Trainer(model, section).train(start, batches(4), LR, 0.3, guide), plain)


def test_training_changes_neither_start_nor_guides():
    model = model_of()
    start, other, mask, correction = model.initial(1), model.initial(2), random_mask(model), random_correction(model)
    copies = [tensor.clone() for tensor in (start, other, mask, correction)]
    Trainer(model, TrainingSection(momentum=0.9)).train(start, batches(3), LR, 0.5, Guide(other, mask, correction))
    assert all(map(torch.equal, (start, other, mask, correction), copies))


def test_channels_last_guides_the_same_elements():
    """Anchors and masks of convolutions must lie as the weights do."""
    model = build(ModelSection(name="lenet"), (1, 28, 28), 10)
    generator = torch.Generator().manual_seed(5)
    steps = [(torch.randn(4, 1, 28, 28, generator=generator), torch.tensor([0, 3, 5, 9])) for _ in range(2)]
    start, guide = model.initial(1), Guide(model.initial(2), random_mask(model), random_correction(model))
    plain, arranged = (
        Trainer(model, TrainingSection(), channels_last=last).train(start, steps, LR, 0.3, guide) for last in (0, 1)
    )
    assert torch.allclose(plain, arranged, rtol=1e-3, atol=1e-5)
    still = guide.mask == 0
    assert torch.equal(arranged[still], start[still])


# The op


def adapt_task(work, node=1, guides=None, steps=3, proximal=0.0, part="all", repeats=1):
    guides = guides or {}
    cut = 0 if part == "all" else work.cut(1)
    static = {"steps": steps, "lr": LR, "proximal": proximal, "guides": tuple(guides)}
    static |= {"part": part, "cut": cut, "repeats": repeats}
    return Task((work._model.initial(node), *guides.values()), static, Key(7, node, 4))


def drawn(work, task):
    return [(features.clone(), labels) for features, labels in work._batches(task)]


def test_guided_training_reads_the_batches_of_plain_training():
    work = workload()
    task = adapt_task(work)
    plain = Task(task.inputs, {"steps": 3, "lr": LR, "proximal": 0.0}, task.key)
    assert torch.equal(work.adapt.solve(task), work.train.solve(plain))


@pytest.mark.parametrize("order", [("toward", "mask", "correction"), ("correction", "mask", "toward")])
def test_guides_are_told_apart_by_name(order):
    work = workload()
    named = {"toward": work._model.initial(8), "mask": random_mask(work._model)}
    named["correction"] = random_correction(work._model)
    task = adapt_task(work, guides={name: named[name] for name in order}, proximal=0.5)
    steps = drawn(work, task)
    expected = in_plain_torch(work._model, task.inputs[0], steps, TrainingSection(), LR, 0.5, **named)
    assert close(work.adapt.solve(task), expected)


@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_repeats_use_each_batch_so_often_in_a_row(repeats):
    work = workload(momentum=0.5)
    task = adapt_task(work, repeats=repeats)
    steps = list(itertools.chain.from_iterable([batch] * repeats for batch in drawn(work, task)))
    assert len(steps) == 3 * repeats
    section = TrainingSection(momentum=0.5)
    assert close(work.adapt.solve(task), in_plain_torch(work._model, task.inputs[0], steps, section, LR))


@pytest.mark.parametrize("name", ["mlp", "softmax"])
def test_many_guided_trainings_in_one_call_are_each_alone_up_to_rounding(name):
    work = workload(name)
    mask = random_mask(work._model)
    part = "head" if name == "mlp" else "all"
    tasks = [adapt_task(work, node, {"mask": mask}, proximal=0.1 * node, part=part) for node in range(NODES)]
    inline, batched = (executor.solve(work.adapt, tasks) for executor in (InlineExecutor(), BatchedExecutor()))
    assert all(map(close, inline, batched))
    assert len({tuple(model.tolist()) for model in inline}) == NODES


def test_a_frozen_half_is_the_same_to_the_last_bit():
    work = workload(momentum=0.9, weight_decay=0.1)
    cut = work.cut(1)
    for part, still in (("core", slice(cut, None)), ("head", slice(cut))):
        task = adapt_task(work, guides={"toward": work._model.initial(9)}, proximal=0.5, part=part)
        trained = work.adapt.solve(task)
        assert torch.equal(trained[still], task.inputs[0][still])
        assert not torch.equal(trained, task.inputs[0])
