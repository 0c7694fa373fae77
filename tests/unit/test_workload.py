import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.config import DataSection, ModelSection, TrainingSection
from node.errors import ComputeError, ConfigError
from node.learn.data import Federation, load
from node.learn.models import build
from node.learn.partition import Shards
from node.learn.workload import Workload, prepare_torch
from node.op import Key, Spec, Task

SIZES = [1, 2, 3, 5, 16, 17, 40, 100, 1, 2, 3, 3]
NODES = len(SIZES)
TRAIN, TEST = load(DataSection(), 0)


def shards_of(sizes, start=0):
    return Shards(np.cumsum([0, *sizes]), np.arange(start, start + sum(sizes)))


DATA = Federation(TRAIN, TEST, shards_of(SIZES), shards_of([0, 4, *[0] * (NODES - 2)], start=500))


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch, tmp_path_factory):
    prepare_torch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "kernels"))


def workload(name="mlp", seed=7, kernel="auto", **training):
    shape = tuple(TRAIN.features.shape[1:])
    model = build(ModelSection(name=name, hidden=(24,)), shape, TRAIN.classes)
    return Workload(DATA, model, TrainingSection(**training), seed, kernel)


def models(work, count):
    return [work._model.initial(seed) for seed in range(count)]


def train_task(work, node, model=None, steps=5, lr=0.1, proximal=0.0, counter=0):
    start = models(work, 1)[0] if model is None else model
    return Task((start,), {"steps": steps, "lr": lr, "proximal": proximal}, Key(7, node, counter))


def train_tasks(work):
    """All nodes, each with a rate of its own, some with other steps or a proximal term."""
    flats = models(work, NODES)
    return [
        train_task(work, i, flats[i], steps=(5, 3)[i % 3 == 2], lr=0.05 + 0.01 * i, proximal=(0.0, 0.2)[i % 5 == 4])
        for i in range(NODES)
    ]


def evaluate_task(model, on, node=0):
    return Task((model,), {"on": on}, Key(7, node, 0))


def mix_task(flats, weights):
    return Task(tuple(flats), {"weights": tuple(weights)}, Key(7, 0, 0))


def equal(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


# init


def test_init_is_the_model_that_the_experiment_s_seed_means():
    work = workload()
    first = work.init.solve(Task((), {}, Key(7, 3, 9)))
    assert torch.equal(first, work.init.solve(Task((), {}, Key(7, 8, 1))))
    assert torch.equal(first, work._model.initial(7))
    assert not torch.equal(first, workload(seed=8).init.solve(Task((), {}, Key(8, 3, 9))))
    assert work.init.spec([], {}) == work.model_spec == Spec(tuple(first.shape))


# train


def test_training_reads_the_shard_of_the_key_s_node():
    work = workload()
    results = [work.train.solve(train_task(work, node)) for node in range(NODES)]
    assert len({tuple(result.tolist()) for result in results}) == NODES


def test_training_is_a_function_of_model_static_and_key():
    work = workload()
    task = train_task(work, 7)
    first = work.train.solve(task)
    work.train.solve(train_task(work, 3))
    torch.manual_seed(99)
    assert torch.equal(work.train.solve(task), first)
    assert torch.equal(workload().train.solve(task), first)
    assert not torch.equal(work.train.solve(train_task(work, 7, counter=1)), first)


def test_training_is_declared_as_it_is():
    work = workload()
    assert work.train.seeded
    assert work.train.spec([work.model_spec], {}) == work.model_spec
    assert not work.mix.seeded
    assert not work.init.seeded


@pytest.mark.parametrize(
    "training",
    [{}, {"momentum": 0.9}, {"weight_decay": 0.01}, {"optimizer": "adam"}],
    ids=["sgd", "momentum", "decay", "adam"],
)
@pytest.mark.parametrize("name", ["softmax", "mlp"])
def test_batched_training_agrees_with_inline(name, training):
    work = workload(name, **training)
    tasks = train_tasks(work)
    if training.get("optimizer") == "adam":
        tasks = [task._replace(static={**task.static, "lr": 0.003}) for task in tasks]
    for task, value in zip(tasks, work.train.solve_batch(tasks), strict=True):
        torch.testing.assert_close(value, work.train.solve(task), rtol=1e-5, atol=1e-6)


def test_small_shards_agree_step_for_step_with_inline():
    work = workload()
    for node in range(4):
        task = train_task(work, node, steps=20)
        torch.testing.assert_close(work.train.solve_batch([task])[0], work.train.solve(task), rtol=1e-4, atol=1e-5)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_batched_training_does_not_depend_on_the_grouping(data):
    work = workload(**data.draw(st.sampled_from([{}, {"momentum": 0.9}, {"optimizer": "adam"}, {"batch_size": 5}])))
    tasks = train_tasks(work)
    together = work.train.solve_batch(tasks)
    order = data.draw(st.permutations(range(NODES)))
    cut = data.draw(st.integers(1, NODES - 1))
    parts = [order[:cut], order[cut:]]
    regrouped = [value for part in parts for value in work.train.solve_batch([tasks[i] for i in part])]
    assert equal(regrouped, [together[i] for i in order])


def test_more_tasks_than_one_call_holds():
    work = workload()
    tasks = [train_task(work, i % NODES, counter=i) for i in range(150)]
    values = work.train.solve_batch(tasks)
    assert equal(values[140:], work.train.solve_batch(tasks[140:]))


@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_training_leaves_its_input_alone(name):
    work = workload(name)
    tasks = [train_task(work, node, steps=1) for node in range(4)]
    before = [task.inputs[0].clone() for task in tasks]
    work.train.solve(tasks[0])
    work.train.solve_batch(tasks)
    assert equal([task.inputs[0] for task in tasks], before)


@pytest.mark.parametrize("training", [{}, {"momentum": 0.9, "weight_decay": 0.01}, {"optimizer": "adam", "lr": 0.003}])
@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_the_loop_is_inline_bit_for_bit(name, training):
    work = workload(name, kernel="loop", **training)
    tasks = train_tasks(work)[1:6]
    assert equal(work.train.solve_batch(tasks), [work.train.solve(task) for task in tasks])
    assert work.kernel_name == "loop"


@pytest.mark.parametrize("kernel", ["auto", "loop", "channels-last"])
def test_convolutional_models_do_not_depend_on_the_grouping(kernel):
    work = workload("lenet", kernel=kernel)
    tasks = train_tasks(work)
    together = work.train.solve_batch(tasks)
    assert equal([work.train.solve_batch([task])[0] for task in tasks[:4]], together[:4])
    assert equal(work.train.solve_batch(tasks[::-1]), together[::-1])
    for task, value in zip(tasks[4:7], together[4:7], strict=True):
        expected = work.train.solve(task)
        assert (value - expected).norm() < 1e-2 * (expected - task.inputs[0]).norm()


def test_convolutional_evaluations_agree_with_inline():
    work = workload("lenet", kernel="channels-last")
    tasks = [evaluate_task(model, "test") for model in models(work, 3)]
    for task, metrics in zip(tasks, work.evaluate.solve_batch(tasks), strict=True):
        inline = work.evaluate.solve(task)
        assert metrics["accuracy"] == pytest.approx(inline["accuracy"], abs=0.005)
        assert metrics["loss"] == pytest.approx(inline["loss"], rel=1e-5)


def test_no_kernel_is_chosen_before_many_models_train():
    work = workload()
    work.train.solve(train_task(work, 3))
    work.warm_up(batched=False)
    assert work._kernel is None
    assert work.kernel_name == "loop"
    work.train.solve_batch([train_task(work, 3)])
    assert work.kernel_name == work._kernel.name
    assert workload(kernel="stacked").kernel_name == "stacked-64"


@pytest.mark.parametrize(
    ("name", "kernel", "others"),
    [("resnet8", "stacked", "loop, channels-last"), ("mlp", "channels-last", "loop, stacked"), ("mlp", "fast", "loop")],
)
def test_a_kernel_that_the_model_does_not_have_is_refused(name, kernel, others):
    with pytest.raises(ConfigError, match=rf"^executor.kernel: '{kernel}' cannot train '{name}'; auto and {others}"):
        workload(name, kernel=kernel)


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(device):
    model = build(ModelSection(), tuple(TRAIN.features.shape[1:]), TRAIN.classes)
    with pytest.raises(ConfigError, match=r"^executor.device: .*(allowed: cpu, cuda|finds \d+ GPUs)$"):
        Workload(DATA, model, TrainingSection(), 0, device=device)


def test_no_steps_and_no_tasks():
    work = workload()
    task = train_task(work, 3, steps=0)
    assert torch.equal(work.train.solve(task), task.inputs[0])
    assert torch.equal(work.train.solve_batch([task])[0], task.inputs[0])
    assert work.train.solve_batch([]) == work.evaluate.solve_batch([]) == work.mix.solve_batch([]) == []


def test_trained_values_are_plain():
    work = workload()
    for value in (*work.train.solve_batch([train_task(work, 0)]), work.train.solve(train_task(work, 0))):
        assert not value.requires_grad
        assert not value.is_inference()
        assert value.is_contiguous()
        assert value.shape == work.model_spec.shape


def test_training_learns():
    work = workload()
    model = models(work, 1)[0]
    before = work.evaluate.solve(evaluate_task(model, "train", 7))
    after = work.evaluate.solve(evaluate_task(work.train.solve(train_task(work, 7, steps=60, lr=0.5)), "train", 7))
    assert after["loss"] < 0.5 * before["loss"]
    assert after["accuracy"] > 0.9


# evaluate


def test_evaluations_agree_and_do_not_depend_on_the_grouping():
    work = workload()
    tasks = [evaluate_task(model, "test", node) for node, model in enumerate(models(work, 11))]
    together = work.evaluate.solve_batch(tasks)
    for task, metrics in zip(tasks, together, strict=True):
        inline = work.evaluate.solve(task)
        assert metrics["accuracy"] == inline["accuracy"]
        assert metrics["loss"] == pytest.approx(inline["loss"], rel=1e-5)
    assert work.evaluate.solve_batch(tasks[::-1][:5]) == together[::-1][:5]


def test_an_evaluation_reads_the_set_that_it_names():
    work = workload()
    model = models(work, 1)[0]
    tasks = [evaluate_task(model, on, node) for on in ("train", "test", "local") for node in (1,)]
    tasks.append(evaluate_task(model, "train", 7))
    found = work.evaluate.solve_batch(tasks)
    assert len({metrics["loss"] for metrics in found}) == 4
    inline = [work.evaluate.solve(task) for task in tasks]
    assert [metrics["accuracy"] for metrics in found] == [metrics["accuracy"] for metrics in inline]
    alone = work._model.logits(model, TRAIN.features[500:504]).argmax(1) == TRAIN.labels[500:504]
    assert found[2]["accuracy"] == float(alone.float().mean())


def test_an_evaluation_does_not_depend_on_where_the_model_lies_in_memory():
    work = workload()
    model = models(work, 1)[0]
    metrics = work.evaluate.solve(evaluate_task(model, "test"))
    for shift in (1, 3, 8):
        moved = torch.zeros(len(model) + shift)[shift:].copy_(model)
        assert work.evaluate.solve(evaluate_task(moved, "test")) == metrics
        assert work.train.solve(train_task(work, 7, moved)).equal(work.train.solve(train_task(work, 7, model)))


def test_metrics_are_declared():
    spec = workload().evaluate.spec([Spec((5,))], {"on": "test"})
    assert spec.names == ("accuracy", "loss")


@pytest.mark.parametrize("solve", ["solve", "solve_batch"])
def test_a_set_that_is_not_there_is_refused(solve):
    work = workload()

    def run(task):
        return work.evaluate.solve(task) if solve == "solve" else work.evaluate.solve_batch([task])

    model = models(work, 1)[0]
    with pytest.raises(ComputeError, match=r"node 5 holds out no samples; raise data\.local_test_fraction"):
        run(evaluate_task(model, "local", 5))
    with pytest.raises(ComputeError, match=r"'validation': there are 'test', 'local' and 'train'"):
        run(evaluate_task(model, "validation"))


# mix


@given(st.integers(0, 2**31), st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_batched_mixing_is_inline_mixing_bit_for_bit(seed, count):
    work = workload()
    rng = np.random.default_rng(seed)
    flats = models(work, 12)
    tasks = []
    for _ in range(count):
        chosen = rng.integers(0, 12, rng.integers(1, 6))
        even = rng.random() < 0.5
        weights = [1 / len(chosen)] * len(chosen) if even else rng.random(len(chosen)).tolist()
        tasks.append(mix_task([flats[i] for i in chosen], weights))
    before = [flat.clone() for flat in flats]
    assert equal(work.mix.solve_batch(tasks), [work.mix.solve(task) for task in tasks])
    assert equal(flats, before)


@pytest.mark.parametrize("dimension", [1, 20_000, 200_000, 1_000_000])
def test_models_of_any_size_mix_as_inline(dimension):
    work = workload()
    flats = [torch.randn(dimension, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    tasks = [mix_task([flats[i], flats[i - 1], flats[i - 2]], (0.3, 0.3, 0.4)) for i in range(6)]
    assert equal(work.mix.solve_batch(tasks), [work.mix.solve(task) for task in tasks])


def test_mixing_is_the_weighted_sum():
    flats = [torch.randn(101, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    weights = [0.1, 0.2, 0.3, 0.4]
    expected = sum(weight * flat.double() for weight, flat in zip(weights, flats, strict=True))
    mixed = workload().mix.solve(mix_task(flats, weights))
    torch.testing.assert_close(mixed.double(), expected, rtol=1e-6, atol=1e-6)


def test_mixing_one_model_gives_a_new_one():
    model = torch.ones(5)
    mixed = workload().mix.solve(mix_task([model], [1.0]))
    assert torch.equal(mixed, model)
    assert mixed.data_ptr() != model.data_ptr()


def test_mixing_wants_a_weight_for_each_model():
    for run in (workload().mix.solve, lambda task: workload().mix.solve_batch([task, task])):
        with pytest.raises(ValueError):
            run(mix_task([torch.ones(2)] * 3, [0.5, 0.5]))


# what training amounts to


def test_steps_and_samples():
    work = workload(local_steps=5, batch_size=16)
    assert [work.steps(node) for node in range(3)] == [5, 5, 5]
    assert [work.samples(node, 5) for node in (0, 1, 4, 5, 7)] == [5, 10, 80, 2 * 17 + 16, 80]
    assert work.samples(7, 7) == 100
    assert [work.shard_size(node) for node in range(NODES)] == SIZES


def test_steps_of_whole_passes():
    work = workload(local_epochs=3, batch_size=16)
    assert [work.steps(node) for node in (0, 4, 5, 7)] == [3, 3, 6, 21]
    assert all(work.samples(node, work.steps(node)) == 3 * SIZES[node] for node in range(NODES))


def test_the_label_histogram():
    work = workload()
    histogram = work.label_histogram(7)
    assert histogram.shape == (TRAIN.classes,)
    assert histogram.sum() == 100
    assert histogram[3] == int((TRAIN.labels[DATA.shards.of(7)] == 3).sum())


def test_learning_rates():
    assert workload(lr=0.2).lr(1_000) == 0.2
    step = workload(lr=0.2, schedule="step", schedule_rounds=10, schedule_factor=0.5)
    assert [step.lr(call) for call in (0, 9, 10, 25)] == [0.2, 0.2, 0.1, 0.05]
    cosine = workload(lr=0.2, schedule="cosine", schedule_rounds=10)
    assert [cosine.lr(call) for call in (0, 5, 10, 99)] == pytest.approx([0.2, 0.1, 0.0, 0.0])
    assert cosine.lr(3) == pytest.approx(0.1 * (1 + math.cos(0.3 * math.pi)))


@pytest.mark.parametrize("name", ["softmax", "mlp", "lenet"])
def test_warming_up_changes_nothing(name):
    work = workload(name)
    expected = work.train.solve(train_task(work, 2, steps=1))
    work.warm_up()
    assert torch.equal(work.train.solve(train_task(work, 2, steps=1)), expected)


def test_preparing_means_one_thread_and_deterministic_algorithms():
    prepare_torch()
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
