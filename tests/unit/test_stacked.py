import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from node.config import ModelSection, TrainingSection
from node.learn import kernels, stacked
from node.learn.models import build
from node.learn.slabs import StackedBatches, chunks, filled, gather
from node.learn.stacked import DenseKernel
from node.learn.training import Trainer
from node.learn.vectorised import VmapKernel
from node.learn.workload import prepare_torch

RULES = {
    "sgd": {},
    "decay": {"weight_decay": 0.01},
    "momentum": {"momentum": 0.9, "weight_decay": 0.001},
    "adam": {"optimizer": "adam", "lr": 0.003},
}
SAMPLES = 200
FEATURES = torch.randn(SAMPLES, 1, 4, 4, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(0, 5, (SAMPLES,), generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def _deterministic():
    prepare_torch()


def normed(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.LayerNorm(24), nn.Tanh(), nn.Linear(24, classes))


def branching(shape, classes):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, classes)

        def forward(self, features):
            logits = self.linear(features.flatten(1))
            return logits if float(logits.detach().sum()) > 0 else 2 * logits

    return Branching()


def model_of(name, hidden=(32,)):
    return build(ModelSection(name=name, hidden=hidden), (1, 4, 4), 5)


def drawn(models, steps=5, width=8, seed=0):
    """Batches of full and short size."""
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(rng.integers(0, SAMPLES, (steps, models, width)))
    sizes = torch.from_numpy(rng.integers(1, width + 1, (steps, models)))
    return StackedBatches(FEATURES, LABELS, rows, sizes)


def starts(model, count):
    return [model.initial(seed) for seed in range(count)]


def taken(batches, index):
    """The batches of some of the models."""
    return StackedBatches(FEATURES, LABELS, batches.rows[:, index], batches.sizes[:, index])


def trained(work, flats, batches, lr, proximal):
    with torch.no_grad():
        slab = gather(flats)
        work.train(slab, batches, lr, proximal)
    return slab


def reference(model, section, start, batches, i, lr, proximal):
    pairs = []
    for rows, sizes in zip(batches.rows, batches.sizes, strict=True):
        row = rows[i, : int(sizes[i])]
        pairs.append((FEATURES[row], LABELS[row]))
    return Trainer(model, section).train(start, pairs, lr, proximal)


def kernel(model, section, shape=(1, 4, 4)):
    """The stacked kernel of a model."""
    kind = "stacked" if model.name in ("softmax", "mlp") else "vmap"
    return kernels.pinned(kind, model, section, shape, torch.device("cpu"))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("proximal", [0.0, 0.3])
@pytest.mark.parametrize("name", ["softmax", "mlp", f"{__name__}:normed"])
def test_five_steps_agree_with_the_reference(name, rule, proximal):
    section = TrainingSection(**RULES[rule])
    model = model_of(name)
    work = kernel(model, section)
    batches = drawn(6)
    lr = torch.linspace(0.5, 1.0, 6).unsqueeze(1) * section.lr
    pull = torch.full((6, 1), proximal)
    flats = starts(model, 6)
    slab = trained(work, flats, batches, lr, pull)
    for i in range(6):
        expected = reference(model, section, flats[i], batches, i, float(lr[i]), proximal)
        torch.testing.assert_close(slab[i], expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(slab[i], flats[i])


@pytest.mark.parametrize("hidden", [(1,), (16, 8), (33, 20, 7)])
def test_any_depth_agrees_with_the_reference(hidden):
    model = model_of("mlp", hidden)
    section = TrainingSection()
    batches = drawn(4)
    slab = trained(
        DenseKernel(model, section, 8), starts(model, 4), batches, torch.full((4, 1), 0.1), torch.zeros(4, 1)
    )
    for i in range(4):
        expected = reference(model, section, model.initial(i), batches, i, 0.1, 0.0)
        torch.testing.assert_close(slab[i], expected, rtol=1e-5, atol=1e-6)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_a_row_does_not_depend_on_the_rows_beside_it(data):
    name = data.draw(st.sampled_from(["softmax", "mlp", f"{__name__}:normed"]))
    section = TrainingSection(**RULES[data.draw(st.sampled_from(sorted(RULES)))])
    width = data.draw(st.sampled_from([4, 5, 8, 13, 16]))
    model = model_of(name, data.draw(st.sampled_from([(32,), (13,), (33, 2), (7, 3)])))
    work = kernel(model, section)
    batches = drawn(32, steps=3, width=width)
    flats = [*starts(model, 3), *starts(model, 3)] * 5 + starts(model, 2)
    lr = torch.linspace(0.5, 1.0, 32).unsqueeze(1) * section.lr
    pull = torch.zeros(32, 1)
    together = trained(work, flats, batches, lr, pull)
    index = data.draw(st.lists(st.integers(0, 31), min_size=4, max_size=20))
    apart = trained(work, [flats[i] for i in index], taken(batches, index), lr[index], pull[index])
    assert torch.equal(apart, together[index])


@given(st.lists(st.integers(0, 39), min_size=1, max_size=30), st.sampled_from(["softmax", "mlp"]))
@settings(max_examples=30, deadline=None)
def test_an_evaluation_does_not_depend_on_the_models_beside_it(index, name):
    model = model_of(name)
    flats = starts(model, 40)
    together = stacked.evaluate(model, flats, FEATURES, LABELS)
    assert stacked.evaluate(model, [flats[i] for i in index], FEATURES, LABELS) == [together[i] for i in index]


@pytest.mark.parametrize("samples", [1, 3, 200, 512, 1_300])
@pytest.mark.parametrize("name", ["softmax", "mlp"])
def test_evaluations_agree_with_the_reference(name, samples):
    model = model_of(name)
    rows = torch.arange(samples) % SAMPLES
    flats = [*starts(model, 10), torch.zeros(model.dimension)]
    found = stacked.evaluate(model, flats, FEATURES[rows], LABELS[rows])
    for flat, metrics in zip(flats, found, strict=True):
        expected = Trainer(model, TrainingSection()).evaluate(flat, FEATURES[rows], LABELS[rows])
        assert metrics["accuracy"] == expected["accuracy"]
        assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_a_diverged_model_is_measured_and_harms_no_other():
    model = model_of("mlp")
    flats = starts(model, 5)
    alone = stacked.evaluate(model, flats, FEATURES, LABELS)
    broken = [*flats[:2], torch.full((model.dimension,), float("nan")), *flats[3:]]
    found = stacked.evaluate(model, broken, FEATURES, LABELS)
    assert np.isnan(found[2]["loss"])
    assert found[:2] + found[3:] == alone[:2] + alone[3:]


def test_samples_beyond_a_batch_s_size_are_not_read():
    model = model_of("mlp")
    work = DenseKernel(model, TrainingSection(), 8)
    batches = drawn(4, width=8)
    beyond = torch.arange(8) >= batches.sizes.unsqueeze(2)
    other = StackedBatches(FEATURES, LABELS, torch.where(beyond, 0, batches.rows), batches.sizes)
    rates = torch.full((4, 1), 0.1), torch.zeros(4, 1)
    assert torch.equal(trained(work, starts(model, 4), batches, *rates), trained(work, starts(model, 4), other, *rates))


def test_a_module_that_branches_on_its_values_is_not_vectorised():
    model = model_of(f"{__name__}:branching")
    assert not VmapKernel(model, TrainingSection(), 8).supports((1, 4, 4))


@pytest.mark.parametrize("rows", [8, 16, 32, 64])
def test_the_rows_of_a_call_change_no_bits(rows):
    model = model_of("mlp", (13,))
    section = TrainingSection(momentum=0.9)
    batches = drawn(70)
    flats = starts(model, 70)
    lr, pull = torch.full((70, 1), 0.1, dtype=torch.float64), torch.zeros(70, 1, dtype=torch.float64)
    together = trained(DenseKernel(model, section, 64), flats, batches, lr, pull)
    work = DenseKernel(model, section, rows)
    parts = [
        trained(work, [flats[i] for i in part], taken(batches, part), lr[part], pull[part])
        for part in map(list, chunks(range(70), work.most_rows))
    ]
    assert torch.equal(torch.cat(parts), together)


@given(st.integers(0, 300), st.integers(1, 64))
def test_chunks_are_even_and_complete(count, most):
    parts = list(chunks(range(count), most))
    assert [item for part in parts for item in part] == list(range(count))
    assert all(1 <= len(part) <= most for part in parts)
    assert not parts or max(map(len, parts)) - min(map(len, parts)) <= 1


def test_filled_repeats_the_last_one_up_to_four():
    assert filled([1]) == [1, 1, 1, 1]
    assert filled([1, 2, 3]) == [1, 2, 3, 3]
    assert filled([1, 2, 3, 4, 5]) == [1, 2, 3, 4, 5]
    assert filled([1, 2], least=1) == [1, 2]


@pytest.mark.parametrize("dimension", [1, 15, 16, 17, 9_610])
def test_gathered_rows_are_copies_with_one_alignment_and_a_gap(dimension):
    flats = [torch.randn(dimension) for _ in range(5)]
    slab = gather(flats)
    assert torch.equal(slab, torch.stack(flats))
    assert slab.stride(0) > dimension
    assert len({row.data_ptr() % 64 for row in slab}) == 1
    slab.zero_()
    assert flats[0].any()
