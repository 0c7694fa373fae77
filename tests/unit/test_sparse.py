"""Masks: how dense each layer is, what travels, how they are averaged, pruned and regrown."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node import Context, Protocol, Spec
from node import sparse as module
from node.config import DataSection, ModelSection, TrainingSection
from node.learn.data import federate
from node.learn.models import Model, build
from node.learn.sparse import densities
from node.learn.workload import Workload, prepare_torch
from node.op import Key, Task
from node.solver import BatchedExecutor
from node.testing import Quadratic, check_op, run_protocol

SHAPES = [(128, 64), (128,), (10, 128), (10,)]
FEDERATION = federate(DataSection(), 4, 3)


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch, tmp_path_factory):
    prepare_torch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "kernels"))


def workload(name="mlp", hidden=(24,)):
    model = build(ModelSection(name=name, hidden=hidden), (1, 8, 8), 10)
    return Workload(FEDERATION, model, TrainingSection(batch_size=8), 7)


KEY = Key(7, 1, 4)


def solved(op, *inputs, key=KEY, **static):
    return op.solve(Task(inputs, static, key))


def by_layer(model: Model, flat):
    return [flat[part] for _, part, _ in model.parts]


# Densities


def test_the_golden_densities():
    found = densities(SHAPES, 0.5)
    assert found == pytest.approx([0.413452, 1, 1, 1], abs=1e-6)
    sizes = [8192, 128, 1280, 10]
    assert sum(map(float.__mul__, found, map(float, sizes))) == pytest.approx(0.5 * sum(sizes))


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple), min_size=1, max_size=6),
    st.floats(0.001, 1.0),
)
def test_densities_are_shares_that_keep_the_whole_and_its_proportions(shapes, density):
    found = densities(shapes, density)
    sizes = np.array([np.prod(shape) for shape in shapes], float)
    assert all(0 <= share <= 1 + 1e-12 for share in found)
    free = [i for i, share in enumerate(found) if share < 1]
    if free:
        scales = [found[i] * sizes[i] / sum(shapes[i]) for i in free]
        assert scales == pytest.approx([scales[0]] * len(free))
    assert np.dot(found, sizes) == pytest.approx(density * sizes.sum())


def test_everything_is_kept_at_density_1():
    assert densities(SHAPES, 1.0) == [1.0] * 4
    work = workload()
    assert work.sparse.kept(1.0) == work._model.dimension
    assert torch.equal(solved(work.sparse.draw, work._model.initial(0), density=1.0), torch.ones(work._model.dimension))


@pytest.mark.parametrize("density", [1e-6, 0.001, 0.01])
def test_no_layer_is_ever_empty(density):
    work = workload()
    mask = solved(work.sparse.draw, work._model.initial(0), density=density)
    counts = [int(part.sum()) for part in by_layer(work._model, mask)]
    assert min(counts) == 1
    assert sum(counts) == work.sparse.kept(density)


# Random masks


def test_a_mask_keeps_what_its_density_says_in_every_layer():
    work = workload(hidden=(128,))
    mask = solved(work.sparse.draw, work._model.initial(0), density=0.5)
    assert [int(part.sum()) for part in by_layer(work._model, mask)] == [3387, 128, 1280, 10]
    assert int(mask.sum()) == work.sparse.kept(0.5) == 4805
    assert set(mask.tolist()) == {0.0, 1.0}


def test_masks_are_the_nodes_own_and_seeded():
    work = workload()
    start = work._model.initial(0)
    check_op(work.sparse.draw, [start], density=0.4)
    one, other = (solved(work.sparse.draw, start, key=Key(7, node, 4), density=0.4) for node in (0, 1))
    share = float((one * other).sum() / one.sum())
    assert 0.3 < share < 0.8  # independent: about the density, and the biases are common


# What travels


@pytest.mark.parametrize("library", [torch.tensor, np.array])
@pytest.mark.parametrize("size", [1, 7, 8, 9, 64, 1810])
def test_what_is_packed_unpacks_to_the_same_in_either_library(library, size):
    rng = np.random.default_rng(size)
    mask = library((rng.random(size) < 0.5).astype(np.float32))
    model = library(rng.normal(size=size).astype(np.float32))
    count = int(mask.sum())
    values = solved(module._packed, model, mask, count=count)
    bits = solved(module._bits, mask)
    assert (len(values), len(bits)) == (count, -(-size // 8))
    assert str(bits.dtype).removeprefix("torch.") == "uint8"
    assert np.asarray(bits).tolist() == np.packbits(np.asarray(mask) != 0, bitorder="little").tolist()
    again = solved(module.unpacked_mask, mask, bits, count=count)
    assert np.array_equal(again, mask)
    assert np.array_equal(solved(module._unpacked, again, values), np.asarray(model) * np.asarray(mask))


@pytest.mark.parametrize("wrong", [0, 1, 255])
def test_bits_of_another_number_of_elements_keep_none(wrong):
    like, bits = torch.ones(16), torch.full((2,), wrong, dtype=torch.uint8)
    mask = solved(module.unpacked_mask, like, bits, count=8)
    assert not mask.any()
    assert not solved(module._unpacked, mask, torch.ones(8)).any()


def test_bits_beyond_the_last_element_mean_nothing():
    bits = torch.tensor([0b11111111, 0b11111111], dtype=torch.uint8)
    assert torch.equal(solved(module.unpacked_mask, torch.zeros(9), bits, count=9), torch.ones(9))


@pytest.mark.parametrize("count", [9, 8])
def test_a_mask_is_made_of_its_bits_whatever_is_in_the_model_that_it_is_like(count):
    like = torch.tensor([-1.0, torch.nan, torch.inf] * 3)
    mask = solved(module.unpacked_mask, like, torch.tensor([255, 1], dtype=torch.uint8), count=count)
    assert torch.equal(mask, torch.ones(9) if count == 9 else torch.zeros(9))
    assert not mask.signbit().any()


def test_the_ops_keep_their_promises():
    model, mask = np.arange(1.0, 11.0), np.array([1.0, 0] * 5)
    check_op(module._packed, [model, mask], count=5)
    check_op(module._bits, [mask])
    check_op(module.unpacked_mask, [mask, np.array([0b01010101, 0b01], np.uint8)], count=5)
    check_op(module._unpacked, [mask, np.arange(5.0)])
    check_op(module._kept_mean, [model, np.arange(10.0), mask])
    assert module._bits.spec([Spec((17,))], {}) == Spec((3,), "uint8")


# Averaging


def outcome_of(behave, workload, nodes=1):
    class Told(Protocol):
        async def run(self, ctx: Context):
            return await behave(ctx)

    return run_protocol(Told(), nodes, workload=workload)


def test_each_element_is_averaged_over_those_that_keep_it():
    """Three random masks against the definition, written out with numpy."""
    work = workload()
    seen = {}

    async def behave(ctx):
        sparse = ctx.sparse(0.4)
        masks = [sparse.mask() for _ in range(3)]
        models = [ctx.initial_model(draw) for draw in (1, 2, 3)]
        mixed = sparse.mean([sparse.pack(*pair) for pair in zip(models, masks, strict=True)], masks[0])
        seen["masks"] = np.stack(await ctx.values(masks))
        seen["models"] = np.stack(await ctx.values(models))
        return mixed

    mixed = np.asarray(outcome_of(behave, work).models[0])
    masks, models = seen["masks"], seen["models"]
    expected = (masks * models).sum(0) / np.maximum(masks.sum(0), 1) * masks[0]
    assert mixed == pytest.approx(expected, abs=1e-6)
    assert {1.0, 2.0, 3.0} <= set(masks.sum(0).tolist())


# Regrowth


def gradient_of(work, model, key):
    features, labels = work._one_batch(key)
    leaf = model.clone().requires_grad_()
    torch.nn.functional.cross_entropy(work._model.logits(leaf, features), labels).backward()
    return leaf.grad


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", ["mlp", "softmax"])
def test_the_smallest_weights_go_and_the_largest_gradients_come(name, share):
    work = workload(name)
    mask = solved(work.sparse.draw, work._model.initial(0), density=0.3)
    model = work._model.initial(0) * mask
    key = Key(7, 2, 9)
    gradients = by_layer(work._model, gradient_of(work, model, key))
    grown = solved(work.sparse.regrow, model, mask, share=share, key=key)
    layers = zip(*[by_layer(work._model, flat) for flat in (model, mask, grown)], gradients, strict=True)
    for weights, before, after, gradient in layers:
        count = round(share * int(before.sum()))
        magnitude = torch.where(before != 0, weights.abs(), torch.inf)
        stays = before.clone()
        stays[magnitude.argsort()[:count]] = 0
        wanted = torch.where(stays == 0, gradient.abs(), -1)
        stays[wanted.argsort(descending=True)[:count]] = 1
        assert int(after.sum()) == int(before.sum())
        assert torch.equal(after, stays)


def test_regrowth_is_seeded_and_changes_no_input():
    work = workload()
    mask = solved(work.sparse.draw, work._model.initial(0), density=0.3)
    check_op(work.sparse.regrow, [work._model.initial(0) * mask, mask], share=0.5)


def test_batched_regrowth_equals_each_alone():
    work = workload()
    masks = [solved(work.sparse.draw, work._model.initial(0), density=0.3, key=Key(7, node, 0)) for node in range(4)]
    tasks = [Task((work._model.initial(i) * mask, mask), {"share": 0.4}, Key(7, i, 3)) for i, mask in enumerate(masks)]
    alone = [work.sparse.regrow.solve(task) for task in tasks]
    assert all(map(torch.equal, BatchedExecutor().solve(work.sparse.regrow, tasks), alone))


def test_no_share_is_no_new_mask():
    async def behave(ctx):
        sparse = ctx.sparse(0.5)
        mask = sparse.mask()
        assert sparse.regrow(ctx.initial_model(), mask, 0.0) is mask
        assert sparse.regrow(ctx.initial_model(), mask, 0.5) is not mask

    outcome_of(behave, Quadratic(1))


# The workload of the kit


def test_the_kits_workload_is_one_sparse_layer():
    work = Quadratic(2, [[5.0, -1.0, 0.5, 3.0], [0.0] * 4])
    mask = solved(work.draw, work.optimum, density=0.5)
    assert mask.sum() == work.kept(0.5) == 2
    model, mask = np.array([0.1, 2.0, 0.0, 0.0]), np.array([1.0, 1.0, 0.0, 0.0])
    grown = solved(work.regrow, model, mask, share=0.5, key=Key(0, 0, 1))
    assert grown.tolist() == [1.0, 1.0, 0.0, 0.0]  # its own gradient, 4.9, is the largest: it comes back
    grown = solved(work.regrow, model * [0, 1, 1, 1], mask, share=0.5, key=Key(0, 0, 1))
    assert grown.tolist() == [1.0, 1.0, 0.0, 0.0]
    work.targets[0, 0] = 0.0
    grown = solved(work.regrow, model, mask, share=0.5, key=Key(0, 0, 1))
    assert grown.tolist() == [0.0, 1.0, 0.0, 1.0]
