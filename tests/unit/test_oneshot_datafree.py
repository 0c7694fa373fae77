"""Students without any data: what is made up for them, and how models' weights follow."""

import pytest
import torch

from node.learn.models import Dense
from node.learn.oneshot.catalogue import configured
from node.learn.oneshot.datafree import DENSE, CoBoosting, DataFree, is_standardised, reweighted, together
from node.learn.oneshot.ensembles import ProbabilityEnsemble
from node.learn.training import SGD
from node.learn.unify.generation import Generator, Teachers, best_batch, learn
from node.learn.workload import prepare_torch
from node.unifiers import Generation
from oneshot_clients import handmade, trained

MLP = Dense("mlp", (6, 5, 3))
QUICK = {"epochs": 2, "steps": 3, "batch_size": 16}
BOTH = (DENSE, CoBoosting)
SEEDS = (1, 4)


@pytest.fixture(autouse=True)
def _one_thread():
    prepare_torch()


@pytest.fixture
def small():
    return handmade(MLP, (6,), 3)


def option(kind, **options):
    return kind(kind.Config(**options))


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", BOTH)
def test_a_student_follows_from_its_key_and_from_no_data(small, kind):
    before = [model.clone() for model in small.models]
    own = option(kind, **QUICK)
    student = small.aggregated(own)
    assert torch.equal(student, small.aggregated(own))
    elsewhere = small._replace(data=[(features + 1, labels) for features, labels in small.data])
    assert torch.equal(student, elsewhere.aggregated(own))
    assert all(torch.equal(*pair) for pair in zip(before, small.models, strict=True))
    assert torch.isfinite(student).all()


@pytest.mark.parametrize("kind", BOTH)
def test_nothing_but_models_is_needed(kind):
    assert kind().declares.cell == "R0 D0 W0 H1 M1 F1 S0"
    assert isinstance(configured({DENSE: "dense", CoBoosting: "co-boosting"}[kind], '{"epochs": 3}'), DataFree)


def test_made_up_images_lie_between_0_and_1_and_measurements_around_0(small):
    noise = torch.randn(200, 256, generator=draws())
    image, vector = Generator((1, 4, 4), False, draws()), Generator((6,), True, draws())
    made = image.samples(noise, [parameter * 30 for parameter in image.parameters])
    assert made.shape == (200, 1, 4, 4)
    assert 0 <= float(made.min()) < 0.2 < 0.8 < float(made.max()) <= 1  # as far apart as pixels are
    around = vector.samples(noise, vector.parameters)
    assert around.mean(0).abs().max() < 1e-4
    assert torch.allclose(around.var(0, correction=0), torch.ones(6), atol=0.05)
    assert is_standardised(small.task)
    assert not is_standardised(trained("dirichlet-0.1", 1).world.task)


def test_the_best_of_all_batches_on_the_way_is_kept():
    losses = iter([3.0, 1.0, 2.0, 1.5])
    seen = []

    def loss(samples, labels):
        seen.append(samples.detach().clone())
        return samples.sum() * 0 + next(losses)

    batch, labels = best_batch(Generator((6,), True, draws()), loss, 3, draws(), Generation(steps=4, batch_size=16))
    assert torch.equal(batch, seen[1])
    assert (labels.shape, set(labels.tolist())) == ((16,), {0, 1, 2})


def test_weights_grow_of_models_that_are_right_and_stay_between_0_and_1():
    right, wrong = (torch.zeros(MLP.dimension) for _ in range(2))
    for flat, label in ((right, 0), (wrong, 1)):
        MLP.named(flat)[MLP.parts[-1][0]][label] = 5.0  # the bias of the last layer
    samples, labels = torch.rand(10, 6, generator=draws()), torch.zeros(10, dtype=torch.int64)
    teachers, weights = Teachers(MLP, [right, wrong]), torch.tensor([0.5, 0.5])
    assert torch.allclose(reweighted(teachers, weights, samples, labels, 0.1), torch.tensor([0.6, 0.4]))
    for _ in range(20):
        weights = reweighted(teachers, weights, samples, labels, 0.1)
    assert weights.tolist() == [1.0, 0.0]


def test_weighted_teachers_with_equal_weights_say_the_mean(small):
    teachers, features = Teachers(MLP, small.models), small.data[0][0]
    weights = torch.full((3,), 1 / 3)
    assert torch.allclose(teachers.logits(features), teachers.logits(features, weights), atol=1e-6)
    alone = teachers.logits(features, torch.tensor([0.0, 1.0, 0.0]))
    assert torch.allclose(alone, MLP.logits(small.models[1], features), atol=1e-6)


def test_a_long_gradient_is_cut_and_a_short_one_is_not():
    start, features = MLP.initial(1), torch.rand(16, 6, generator=draws()) * 50
    said = torch.randn(16, 3, generator=draws()) * 100

    def moved(longest):
        flat = start.clone()
        learn(MLP, flat, SGD(0.0), features, said, temperature=4.0, lr=1.0, longest=longest)
        return flat - start

    free = moved(float("inf"))
    assert float(free.norm()) > 10
    cut = moved(10.0)
    assert float(cut.norm()) == pytest.approx(10, rel=1e-3)
    assert torch.allclose(cut / cut.norm(), free / free.norm(), atol=1e-4)
    assert torch.equal(moved(1e9), free)


def test_samples_are_moved_by_a_step_at_most(small):
    own = option(CoBoosting, shift=0.1)
    samples = torch.rand(8, 6, generator=draws())
    teachers, weights = Teachers(MLP, small.models), torch.full((3,), 1 / 3)
    by = (own._moved(teachers, weights, samples, draws()) - samples).abs()
    assert float(by.max()) <= 0.1 + 1e-6
    assert float(by.mean()) > 0.05
    still = option(CoBoosting, shift=0.0)._moved(teachers, weights, samples, draws())
    assert torch.equal(still, samples)


def test_the_aggregators_work_grows_with_models_and_epochs(small):
    own, longer = option(DENSE, **QUICK), option(DENSE, **QUICK | {"epochs": 4})
    few, more = own.aggregation_flops(small.task, 3, 0), own.aggregation_flops(small.task, 30, 0)
    assert 4 < more / few < 10
    assert longer.aggregation_flops(small.task, 3, 0) > 1.9 * few


def test_hard_samples_and_better_weights_are_worth_ten_points_on_digits():
    """Means over partitions by Dir(0.1); all models together, with nothing lost on the way, are better than DENSE."""
    cells = [trained("dirichlet-0.1", seed) for seed in SEEDS]
    quicker = {"batch_size": 128}
    dense, boosted, together = (
        sum(cell.accuracy(own) for cell in cells) / len(cells)
        for own in (option(DENSE, **quicker), option(CoBoosting, **quicker), ProbabilityEnsemble())
    )
    assert boosted > dense + 10
    assert together > dense + 15
    assert boosted == pytest.approx(68.8, abs=3 * 6.2)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_weights_count_against_each_other_and_not_by_their_sum(small, scale):
    """Otherwise the models would grow surer with every step, whoever is right."""
    teachers, (features, labels) = Teachers(MLP, small.models), small.data[0]
    weights = torch.tensor([0.2, 0.5, 0.1])
    assert torch.allclose(
        together(teachers, features, weights), together(teachers, features, scale * weights), atol=1e-5
    )
    moved = [
        reweighted(teachers, each, features, labels, 1e-3) - each for each in (weights / 10, scale * weights / 100)
    ]
    assert torch.equal(moved[0].sign(), moved[1].sign())


def test_weights_are_never_all_nothing(small):
    teachers, (features, labels) = Teachers(MLP, small.models), small.data[0]
    weights = torch.full((3,), 0.3)
    for _ in range(20):
        weights = reweighted(teachers, weights, features, labels, 0.5)
        assert 0 < float(weights.sum()) <= 3
        assert torch.isfinite(together(teachers, features, weights)).all()
    alone = Teachers(MLP, small.models[:1])
    assert float(reweighted(alone, torch.ones(1), features, labels, 2.0)) == 1.0
