"""Guided training of many models at once, held to the reference that trains each alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from node.config import DataSection, ModelSection, TrainingSection
from node.learn import kernels, stacked
from node.learn.data import federate
from node.learn.kernels import OneByOne
from node.learn.models import build
from node.learn.slabs import UNGUIDED, Guides, StackedBatches, gather
from node.learn.stacked import DenseKernel
from node.learn.training import Guide, Trainer
from node.learn.vectorised import VmapKernel
from node.learn.workload import Workload, prepare_torch
from node.op import Key, Task
from node.solver import BatchedExecutor, InlineExecutor

RULES = {
    "sgd": {},
    "decay": {"weight_decay": 0.01},
    "momentum": {"momentum": 0.9, "weight_decay": 0.001},
    "adam": {"optimizer": "adam", "lr": 0.003},
}
KINDS = ["toward", "mask", "correction", "core", "head", "toward mask core", "toward mask correction head"]
NODES, SAMPLES = 6, 200
NORMED = f"{__name__}:normed"
FEATURES = torch.randn(SAMPLES, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(0, 5, (SAMPLES,), generator=torch.Generator().manual_seed(2))
FEDERATION = federate(DataSection(partition="dirichlet"), NODES, 3)


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch, tmp_path_factory):
    prepare_torch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "kernels"))


def normed(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.LayerNorm(24), nn.Tanh(), nn.Linear(24, classes))


def model_of(name="mlp", hidden=(32,)):
    return build(ModelSection(name=name, hidden=hidden), (1, 8, 8), 5)


def kernel_of(kind, model, section=None):
    return kernels.pinned(kind, model, section or TrainingSection(), (1, 8, 8), torch.device("cpu"))


def drawn(models, steps=5, width=8):
    """Batches of full and short size."""
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.integers(0, SAMPLES, (steps, models, width)))
    sizes = torch.from_numpy(rng.integers(1, width + 1, (steps, models)))
    return StackedBatches(FEATURES, LABELS, rows, sizes)


def starts(model, count, first=0):
    return [model.initial(seed) for seed in range(first, first + count)]


def masks(model, count):
    generator = torch.Generator().manual_seed(9)
    return [(torch.rand(model.dimension, generator=generator) < 0.5).float() for _ in range(count)]


def corrections(model, count):
    generator = torch.Generator().manual_seed(13)
    return [0.1 * torch.randn(model.dimension, generator=generator) for _ in range(count)]


def guides_of(kinds, model, count, layers=1):
    """Anchors, masks and corrections of their own for so many models, and one frozen part for all."""
    kinds = kinds.split()
    parts = [part for part in ("core", "head") if part in kinds]
    return Guides(
        gather(starts(model, count, 50)) if "toward" in kinds else None,
        gather(masks(model, count)) if "mask" in kinds else None,
        gather(corrections(model, count)) if "correction" in kinds else None,
        *([parts[0], model.cut(layers)] if parts else []),
    )


def slabs_of(guides):
    return guides.toward, guides.mask, guides.correction


def still(guides, model, i):
    """Which elements of one of the models must keep every bit."""
    frozen = torch.ones(model.dimension, dtype=torch.bool)
    frozen[guides.moving] = False
    return frozen if guides.mask is None else frozen | (guides.mask[i] == 0)


def trained(work, flats, batches, lr, pull, guides):
    with torch.no_grad():
        slab = gather(flats)
        work.train(slab, batches, lr, pull, guides)
    return slab


def reference(model, section, start, batches, i, lr, pull, guide):
    places = [rows[i, : int(sizes[i])] for rows, sizes in zip(batches.rows, batches.sizes, strict=True)]
    return Trainer(model, section).train(start, [(FEATURES[p], LABELS[p]) for p in places], lr, pull, guide)


def column(first, last, count=NODES):
    return torch.linspace(first, last, count, dtype=torch.float64).unsqueeze(1)


# The kernels


@pytest.mark.parametrize("pull", [0.0, 0.5])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("kind", ["loop", "stacked", "vmap"])
def test_every_kernel_follows_every_guide_as_the_reference_does(kind, kinds, rule, pull):
    """Each model at a rate, and under a pull, of its own."""
    section, model = TrainingSection(**RULES[rule]), model_of()
    batches, flats, guides = drawn(NODES), starts(model, NODES), guides_of(kinds, model, NODES)
    lr, pulls = column(0.5, 1.0) * section.lr, column(0.2, 1.0) * pull
    slab = trained(kernel_of(kind, model, section), flats, batches, lr, pulls, guides)
    for i, (rate, strength) in enumerate(zip(lr.flatten().tolist(), pulls.flatten().tolist(), strict=True)):
        expected = reference(model, section, flats[i], batches, i, rate, strength, guides.of(i))
        torch.testing.assert_close(slab[i], expected, rtol=1e-5, atol=1e-6)
        frozen = still(guides, model, i)
        assert torch.equal(slab[i][frozen], flats[i][frozen])
        assert not torch.equal(slab[i][~frozen], flats[i][~frozen])


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize(("name", "kind"), [("lenet", "loop"), ("lenet", "channels-last"), (NORMED, "vmap")])
def test_other_models_are_guided_too(name, kind, kinds):
    section, model = TrainingSection(), model_of(name)
    batches, flats, guides = drawn(4, steps=2), starts(model, 4), guides_of(kinds, model, 4)
    slab = trained(kernel_of(kind, model), flats, batches, column(0.05, 0.1, 4), column(0.1, 0.4, 4), guides)
    for i in range(4):
        lr, pull = float(column(0.05, 0.1, 4)[i]), float(column(0.1, 0.4, 4)[i])
        expected = reference(model, section, flats[i], batches, i, lr, pull, guides.of(i))
        torch.testing.assert_close(slab[i], expected, rtol=1e-4, atol=1e-5)
        frozen = still(guides, model, i)
        assert torch.equal(slab[i][frozen], flats[i][frozen])


@pytest.mark.parametrize("rule", ["sgd", "momentum"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("part", ["core", "head"])
def test_any_number_of_layers_can_be_frozen(part, layers, rule):
    section, model = TrainingSection(**RULES[rule]), model_of(hidden=(33, 20, 7))
    batches, flats, guides = drawn(4), starts(model, 4), guides_of(part, model, 4, layers)
    slab = trained(DenseKernel(model, section, 8), flats, batches, column(0.1, 0.1, 4), column(0, 0, 4), guides)
    for i in range(4):
        expected = reference(model, section, flats[i], batches, i, 0.1, 0.0, guides.of(i))
        torch.testing.assert_close(slab[i], expected, rtol=1e-5, atol=1e-6)
        frozen = still(guides, model, i)
        assert torch.equal(slab[i][frozen], flats[i][frozen])
        assert not torch.equal(slab[i][~frozen], flats[i][~frozen])


def test_no_error_is_propagated_into_frozen_early_layers(monkeypatch):
    model = model_of(hidden=(16, 8))
    passed = []
    backward = stacked._threshold_backward
    monkeypatch.setattr(
        stacked, "_threshold_backward", lambda *args, **named: passed.append(1) or backward(*args, **named)
    )

    def propagations(guides):
        passed.clear()
        rates = column(0.1, 0.1, 4), column(0, 0, 4)
        trained(DenseKernel(model, TrainingSection(), 8), starts(model, 4), drawn(4, steps=1), *rates, guides)
        return len(passed)

    assert propagations(UNGUIDED) == propagations(guides_of("core", model, 4)) == 2
    assert [propagations(guides_of("head", model, 4, layers)) for layers in (1, 2)] == [0, 1]


@pytest.mark.parametrize("rule", RULES)
def test_guides_that_say_nothing_change_no_bit(rule):
    section, model = TrainingSection(**RULES[rule]), model_of()
    work, batches, flats = DenseKernel(model, section, 8), drawn(4), starts(model, 4)
    lr, pull = column(0.1, 0.1, 4) * section.lr, column(0.1, 0.4, 4)
    plain = trained(work, flats, batches, lr, pull, UNGUIDED)
    ones = gather([torch.ones(model.dimension)] * 4)
    zeros = torch.zeros_like(ones)
    anchored, masked, corrected = Guides(toward=gather(flats)), Guides(mask=ones), Guides(correction=zeros)
    for guides in (anchored, masked, corrected, Guides(part="head"), Guides(cut=5)):
        assert torch.equal(trained(work, flats, batches, lr, pull, guides), plain)


@pytest.mark.parametrize("kind", ["loop", "stacked", "vmap"])
def test_guides_are_only_read(kind):
    model = model_of()
    guides = guides_of("toward mask correction", model, 4)
    before = guides.toward.clone(), guides.mask.clone(), guides.correction.clone()
    trained(kernel_of(kind, model), starts(model, 4), drawn(4), column(0.1, 0.1, 4), column(0.1, 0.4, 4), guides)
    assert torch.equal(guides.toward, before[0])
    assert torch.equal(guides.mask, before[1])
    assert torch.equal(guides.correction, before[2])


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_guided_row_does_not_depend_on_the_rows_beside_it(data):
    section = TrainingSection(**RULES[data.draw(st.sampled_from(sorted(RULES)))])
    model = model_of(*data.draw(st.sampled_from([("mlp", (32,)), ("mlp", (33, 2)), ("mlp", (7, 3)), (NORMED,)])))
    work = VmapKernel(model, section, 32) if model.name == NORMED else DenseKernel(model, section, 64)
    guides = guides_of(data.draw(st.sampled_from(KINDS)), model, 32)
    batches, flats = drawn(32, steps=3, width=data.draw(st.sampled_from([4, 5, 8]))), starts(model, 3) * 10
    flats += starts(model, 2)
    lr, pull = column(0.5, 1.0, 32) * section.lr, column(0.1, 0.9, 32)
    together = trained(work, flats, batches, lr, pull, guides)
    index = data.draw(st.lists(st.integers(0, 31), min_size=4, max_size=20))
    taken = StackedBatches(FEATURES, LABELS, batches.rows[:, index], batches.sizes[:, index])
    slabs = [None if slab is None else gather(list(slab[index])) for slab in slabs_of(guides)]
    fewer = Guides(*slabs, guides.part, guides.cut)
    apart = trained(work, [flats[i] for i in index], taken, lr[index], pull[index], fewer)
    assert torch.equal(apart, together[index])


def test_the_guide_of_one_model_has_its_rows():
    model = model_of()
    guides = guides_of("toward mask correction head", model, 3)
    guide = guides.of(1)
    assert torch.equal(guide.toward, guides.toward[1])
    assert torch.equal(guide.mask, guides.mask[1])
    assert torch.equal(guide.correction, guides.correction[1])
    assert (guide.part, guide.cut) == ("head", model.cut(1))
    nothing, empty = UNGUIDED.of(0), Guide()
    assert [getattr(nothing, name) for name in Guide.__slots__] == [getattr(empty, name) for name in Guide.__slots__]


# The op


def workload(name="mlp", kernel="auto", **training):
    model = build(ModelSection(name=name, hidden=(24,)), (1, 8, 8), 10)
    return Workload(FEDERATION, model, TrainingSection(**training), 7, kernel)


def task_of(work, node, kinds="", pull=0.0, lr=0.1, steps=3, repeats=1):
    guides = guides_of(kinds, work._model, 1)
    named = {name: slab[0] for name in ("toward", "mask", "correction") if (slab := getattr(guides, name)) is not None}
    static = {"steps": steps, "lr": lr, "proximal": pull, "guides": tuple(named)}
    static |= {"part": guides.part, "cut": guides.cut, "repeats": repeats}
    return Task((work._model.initial(node), *named.values()), static, Key(7, node, 4))


def variety(work):
    """Tasks that agree in some things, shuffled."""
    tasks = [
        task_of(work, node, kinds, 0.1 * node, 0.05 + 0.01 * node, steps, repeats)
        for node in range(NODES)
        for kinds in ("", *KINDS)
        for steps, repeats in ((3, 1), (1, 3))
    ]
    return [tasks[i] for i in np.random.default_rng(0).permutation(len(tasks))]


@pytest.mark.parametrize(
    ("rule", "kernel"),
    [*[(rule, "stacked") for rule in RULES], ("momentum", "loop"), ("momentum", "vmap"), ("momentum", "auto")],
)
def test_tasks_of_all_kinds_in_one_call_are_what_each_is_alone(rule, kernel):
    work = workload(kernel=kernel, **{**RULES[rule], "lr": 0.1})
    tasks = variety(work)
    if rule == "adam":
        tasks = [task._replace(static={**task.static, "lr": 0.003}) for task in tasks]
    inline, batched = (executor.solve(work.adapt, tasks) for executor in (InlineExecutor(), BatchedExecutor()))
    for task, one, many in zip(tasks, inline, batched, strict=True):
        torch.testing.assert_close(many, one, rtol=1e-5, atol=2e-6)
        frozen = still(Guides(part=task.static["part"], cut=task.static["cut"]), work._model, 0)
        assert torch.equal(many[frozen], task.inputs[0][frozen])


def counted(work, monkeypatch):
    """Notes the shape of each call of the kernel."""
    calls = []
    kernel = work._chosen()
    train = kernel.train

    def noting(slab, batches, lr, proximal, guides):
        calls.append((len(slab), len(batches.rows), guides.part, guides.toward is not None, guides.mask is not None))
        train(slab, batches, lr, proximal, guides)

    monkeypatch.setattr(kernel, "train", noting)
    return calls


def test_tasks_go_into_one_call_whatever_their_rates_and_pulls(monkeypatch):
    work = workload(kernel="stacked")
    calls = counted(work, monkeypatch)
    tasks = [task_of(work, i % NODES, "toward", 0.1 * (i + 1), 0.01 * (i + 1)) for i in range(40)]
    assert len({work._width(node) for node in range(NODES)}) == 1
    models = work.adapt.solve_batch(tasks)
    assert calls == [(40, 3, "all", True, False)]
    assert len({tuple(model.tolist()) for model in models}) == 40


@pytest.mark.parametrize(
    "other",
    [
        {"kinds": "toward mask"},
        {"kinds": "toward correction"},
        {"kinds": "toward core"},
        {"kinds": "toward head"},
        {"kinds": ""},
        {"steps": 4},
        {"repeats": 2},
        {"pull": 0.0},
    ],
    ids=str,
)
def test_tasks_that_differ_in_kind_have_calls_of_their_own(other, monkeypatch):
    work = workload(kernel="stacked")
    calls = counted(work, monkeypatch)
    usual = {"kinds": "toward", "pull": 0.3}
    tasks = [task_of(work, node, **(usual | other if node % 2 else usual)) for node in range(NODES)]
    work.adapt.solve_batch(tasks)
    assert len(calls) == 2


@pytest.mark.parametrize("repeats", [2, 5])
def test_each_batch_is_used_so_often_in_a_row(repeats, monkeypatch):
    work = workload(kernel="stacked", momentum=0.5)
    calls = counted(work, monkeypatch)
    tasks = [task_of(work, node, steps=2, repeats=repeats) for node in range(NODES)]
    models = work.adapt.solve_batch(tasks)
    assert calls == [(NODES, 2 * repeats, "all", False, False)]
    for task, model in zip(tasks, models, strict=True):
        batches = [batch for batch in work._batches(task) for _ in range(repeats)]
        expected = work._trainer.train(task.inputs[0], batches, 0.1)
        torch.testing.assert_close(model, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", ["loop", "stacked"])
def test_unguided_tasks_are_plain_training_to_the_last_bit(kernel):
    work = workload(kernel=kernel)
    tasks = [task_of(work, node, pull=0.2) for node in range(NODES)]
    plain = [Task(task.inputs, {"steps": 3, "lr": 0.1, "proximal": 0.2}, task.key) for task in tasks]
    assert all(map(torch.equal, work.adapt.solve_batch(tasks), work.train.solve_batch(plain)))


def test_one_task_alone_is_what_it_is_among_others():
    work = workload(kernel="stacked")
    tasks = [task_of(work, node, "toward mask head", 0.3) for node in range(NODES)]
    together = work.adapt.solve_batch(tasks)
    assert all(
        torch.equal(work.adapt.solve_batch([task])[0], model) for task, model in zip(tasks, together, strict=True)
    )


def test_inputs_are_only_read():
    work = workload(kernel="stacked")
    tasks = [task_of(work, node, "toward mask", 0.3) for node in range(NODES)]
    before = [[tensor.clone() for tensor in task.inputs] for task in tasks]
    work.adapt.solve_batch(tasks)
    assert all(all(map(torch.equal, task.inputs, copies)) for task, copies in zip(tasks, before, strict=True))


def test_masks_of_any_type_are_multiplied_in():
    work = workload(kernel="stacked")
    tasks = [task_of(work, node, "mask") for node in range(NODES)]
    as_bool = [task._replace(inputs=(task.inputs[0], task.inputs[1].bool())) for task in tasks]
    assert all(map(torch.equal, work.adapt.solve_batch(as_bool), work.adapt.solve_batch(tasks)))


def test_private_training_guides_one_model_at_a_time():
    class Private:
        digest = b"private"

    model = build(ModelSection(name="mlp"), (1, 8, 8), 10)
    work = Workload(FEDERATION, model, TrainingSection(), 7, private=Private())
    assert work.adapt.solve_batch is None


def test_one_by_one_guides_leave_the_gaps_of_a_slab_alone():
    model = model_of("lenet")
    slab = gather(starts(model, 3))
    guides = guides_of("toward mask head", model, 3)
    with torch.no_grad():
        work = OneByOne(model, TrainingSection(), "channels-last")
        work.train(slab, drawn(3, steps=1), column(0.1, 0.1, 3), column(0.1, 0.1, 3), guides)
    beyond = slab.as_strided((2, slab.stride(0) - model.dimension), (slab.stride(0), 1), model.dimension)
    assert not beyond.any()
