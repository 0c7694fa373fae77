"""What models say together, what students make of it, and averages by Fisher information: as plain functions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.cohorts import teacher_weights
from node.config import ModelSection
from node.learn.models import build
from node.learn.unify import combined, diagonal, distil, fisher_mean, objective
from node.learn.unify.combining import familiarity
from node.learn.unify.distillation import agreement
from node.learn.workload import prepare_torch
from node.op import Key

COUNTS = {0: (10, 0, 30), 1: (30, 20, 0), 2: (0, 20, 0)}
PROBABILITIES = torch.tensor([[0.7, 0.1, 0.2], [0.2, 0.5, 0.3], [0.05, 0.9, 0.05]])
SOFTMAX = build(ModelSection(name="softmax"), (2,), 2)
MLP = build(ModelSection(hidden=(16,)), (6,), 3)
HOW = {"steps": 300, "batch_size": 32, "lr": 1e-2}
numbers = st.floats(-20, 20, width=32)


@pytest.fixture(autouse=True)
def _deterministic():
    prepare_torch()


def rows(values):
    """One sample for each model."""
    return [row[None] for row in values]


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def weights_of(counts, most_over_median=None):
    found = teacher_weights(counts, most_over_median)
    return [found[teacher].tolist() for teacher in sorted(found)]


# Weights by label


def test_the_golden_weights_and_what_the_teachers_say_with_them():
    weights = weights_of(COUNTS)
    assert weights == [[0.25, 0, 1], [0.75, 0.5, 0], [0, 0.5, 0]]
    said = combined(rows(PROBABILITIES.log()), "probabilities", weights)
    assert said[0].tolist() == pytest.approx([0.265306, 0.571429, 0.163265], abs=1e-6)


@given(st.lists(st.lists(st.integers(0, 1000), min_size=4, max_size=4), min_size=1, max_size=6))
def test_for_each_class_the_weights_sum_to_one_whoever_has_seen_it(counts):
    weights = np.array(weights_of(dict(enumerate(counts))))
    assert weights.sum(axis=0) == pytest.approx(1)
    unseen = np.array(counts).sum(axis=0) == 0
    assert weights[:, unseen] == pytest.approx(1 / len(counts))


def test_a_cohort_that_claims_a_hundred_times_too_much_is_clipped():
    honest = {cohort: [30, 30, 40] for cohort in range(4)}
    claimed = {**honest, 2: [3000, 3000, 4000]}
    assert weights_of(claimed)[2] == pytest.approx([100 / 103] * 3)
    assert np.array(weights_of(claimed, 1.0)) == pytest.approx(np.array(weights_of(honest)))
    assert weights_of(claimed, 2.0)[2] == pytest.approx([2 / 5] * 3)


# What models say together


@pytest.mark.parametrize("rule", ["logits", "probabilities", "votes"])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_identical_teachers_say_what_one_says(rule, is_weighted):
    one = random(50, 3)
    weights = weights_of({0: [1, 2, 3], 1: [4, 0, 9], 2: [0, 5, 1], 3: [2, 2, 2]}) if is_weighted else ()
    together = combined([one] * 4, rule, weights)
    assert torch.equal(together.argmax(1), one.argmax(1))
    if rule != "votes":
        assert together == pytest.approx((one if rule == "logits" else one.softmax(1)).numpy(), abs=1e-5)


@pytest.mark.parametrize("rule", ["logits", "probabilities", "votes"])
def test_equal_counts_are_as_no_weights(rule):
    said = [random(20, 3, seed=seed) for seed in range(5)]
    weights = weights_of({teacher: [7, 1, 3] for teacher in range(5)})
    assert combined(said, rule, weights).numpy() == pytest.approx(combined(said, rule).numpy(), abs=1e-6)


@pytest.mark.parametrize("rule", ["logits", "probabilities", "votes"])
def test_duplicating_a_teacher_doubles_what_it_counts(rule):
    one, other = random(20, 3), random(20, 3, seed=1)
    doubled = combined([one, one, other], rule)
    if rule == "votes":
        assert torch.equal(doubled.argmax(1), one.argmax(1))
    else:
        weights = [[2 / 3] * 3, [1 / 3] * 3]
        assert doubled.numpy() == pytest.approx(combined([one, other], rule, weights).numpy(), abs=1e-5)


@given(st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=5))
def test_probabilities_and_votes_are_distributions(values):
    said = rows(torch.tensor(values, dtype=torch.float32))
    for rule in ("probabilities", "votes"):
        together = combined(said, rule)
        assert (together >= 0).all()
        assert together.sum().item() == pytest.approx(1, abs=1e-5)


def test_all_weight_on_what_no_teacher_believes_leaves_the_plain_mean():
    said = rows(torch.tensor([[0.0, 300.0], [300.0, 0.0]]))
    together = combined(said, "probabilities", [[1.0, 0.0], [0.0, 1.0]])
    assert together.tolist() == [[0.5, 0.5]]


def test_most_votes_win_and_the_mean_probability_decides_between_equals():
    sure, unsure = [9.0, 0.0, 0.0], [0.0, 0.1, 0.0]
    assert combined(rows(torch.tensor([sure, unsure, unsure])), "votes").argmax(1).item() == 1
    assert combined(rows(torch.tensor([unsure, sure])), "votes").argmax(1).item() == 0
    assert combined(rows(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])), "votes").argmax(1).item() == 0
    certain = [200.0, 0.0, 0.0]  # a probability of 1 still is no vote
    others = [[0.0, 1e-3, 0.0]] * 3
    assert combined(rows(torch.tensor([certain, certain, *others])), "votes").argmax(1).item() == 1


def test_one_sure_teacher_decides_a_sum_of_logits_but_not_of_probabilities():
    said = rows(torch.tensor([[0.0, 50.0], [2.0, 0.0], [2.0, 0.0], [2.0, 0.0]]))
    assert combined(said, "logits").argmax(1).item() == 1
    assert combined(said, "probabilities").argmax(1).item() == 0


def test_familiarity_is_how_sure_teachers_are_and_how_many_agree_with_most():
    sure, unsure = torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 50.0]])
    assert familiarity([sure, sure, sure, unsure]) == pytest.approx({"confidence": 1.0, "consensus": 0.75})
    even = torch.zeros(3, 2)
    assert familiarity([even, even]) == {"confidence": 0.5, "consensus": 1.0}


# Objectives


def loss_of(kind, rule, targets, logits, temperature=1.0):
    numbers = torch.arange(len(targets))
    return float(objective(kind, rule, targets, temperature)(logits, numbers))


def test_the_divergence_is_from_the_teacher_whose_probabilities_weigh_it():
    teacher, student = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.5, 0.5]])
    expected = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
    assert loss_of("kl", "probabilities", teacher, student.log()) == pytest.approx(expected, rel=1e-5)
    assert loss_of("kl", "logits", teacher.log(), student.log()) == pytest.approx(expected, rel=1e-5)
    assert loss_of("kl", "probabilities", student, teacher.log()) != pytest.approx(expected, rel=1e-2)
    assert loss_of("kl", "probabilities", torch.tensor([[1.0, 0.0]]), student.log()) == pytest.approx(np.log(2))


def test_a_temperature_softens_both_sides_and_its_square_makes_up_for_it():
    logits, student = random(40, 3), random(40, 3, seed=1)
    by_logits = loss_of("kl", "logits", logits, student, 4.0)
    assert by_logits == pytest.approx(loss_of("kl", "probabilities", logits.softmax(1), student, 4.0), rel=1e-4)
    soft, other = (logits / 4).softmax(1), (student / 4).log_softmax(1)
    assert by_logits == pytest.approx(float((soft * (soft.log() - other)).sum(1).mean()) * 16, rel=1e-4)


def test_distances_are_to_raw_logits_or_to_clipped_logarithms():
    teacher, student = random(30, 3), random(30, 3, seed=1)
    expected = float((teacher - student).abs().mean())
    assert loss_of("l1", "logits", teacher, student) == pytest.approx(expected)
    assert loss_of("l1", "logits", teacher + 1, student + 1) == pytest.approx(expected, rel=1e-5)
    assert loss_of("l1", "logits", teacher + 1, student) != pytest.approx(expected, rel=1e-2)
    nothing = torch.tensor([[1.0, 0.0]])
    assert loss_of("l1", "probabilities", nothing, torch.tensor([[50.0, 0.0]])) == pytest.approx(
        (50 + np.log(1e-4)) / 2, rel=1e-5
    )


def test_hard_labels_are_the_classes_that_the_teacher_puts_first():
    teacher, student = random(30, 3), random(30, 3, seed=1)
    expected = torch.nn.functional.cross_entropy(student, teacher.argmax(1)).item()
    for rule, targets in (("logits", teacher), ("probabilities", teacher.softmax(1))):
        assert loss_of("hard", rule, targets, student) == pytest.approx(expected)


# Students


KINDS = [("l1", "logits"), ("kl", "logits"), ("kl", "probabilities"), ("hard", "probabilities")]


KEY = Key(0, 1, 2)


def taught(start, teacher, kind, rule, key=KEY, features=None, **how):
    features = random(200, 6, seed=5) if features is None else features
    said = MLP.logits(teacher, features)
    targets = said if rule == "logits" else said.softmax(1)
    return distil(MLP, start, features, objective(kind, rule, targets), key, **{**HOW, **how})


@pytest.mark.parametrize(("kind", "rule"), KINDS)
def test_a_fresh_student_reaches_its_teacher(kind, rule):
    teacher, start = MLP.initial(1) * 3, MLP.initial(2)
    student = taught(start, teacher, kind, rule)
    features = random(200, 6, seed=5)
    said = [MLP.logits(flat, features) for flat in (start, student, teacher)]
    before, after = (agreement(said[i], said[2])["agreement"] for i in (0, 1))
    assert before < 0.7 < 0.93 < after


@pytest.mark.parametrize(("kind", "rule"), KINDS[:2])
def test_a_student_that_begins_as_its_teacher_stays_it(kind, rule):
    teacher = MLP.initial(1)
    student = taught(teacher, teacher, kind, rule, steps=1, lr=1e-3)
    if kind == "l1":
        assert torch.equal(student, teacher)
    else:  # its gradient is a rounding error, which Adam makes a step of
        assert (student - teacher).abs().max() <= 1e-3


def test_teaching_is_a_function_of_its_key_and_changes_no_input():
    start, teacher = MLP.initial(2), MLP.initial(1)
    before = start.clone()
    first = taught(start, teacher, "l1", "logits", steps=20)
    assert torch.equal(start, before)
    assert torch.equal(taught(start, teacher, "l1", "logits", steps=20), first)
    assert not torch.equal(taught(start, teacher, "l1", "logits", steps=20, key=Key(0, 1, 3)), first)


def test_few_samples_are_one_batch_that_is_seen_again_and_again():
    student = taught(MLP.initial(2), MLP.initial(1), "l1", "logits", features=random(3, 6), steps=5, batch_size=512)
    assert student.isfinite().all()
    assert not torch.equal(student, MLP.initial(2))


def test_agreement_counts_classes_that_are_put_first():
    teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert agreement(teacher * 5, teacher) == {"agreement": 1.0}
    assert agreement(torch.tensor([[1.0, 0.0]] * 4), teacher) == {"agreement": 0.5}


# Fisher information


def test_the_golden_average_by_fisher_information():
    models = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0])]
    fishers = [torch.tensor([0.4, 0.1]), torch.tensor([0.1, 0.3])]
    assert fisher_mean(models, fishers, [0.25, 0.75]).tolist() == pytest.approx([1.857143, -1.6], abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_equal_information_is_averaging(seed, count):
    rng = np.random.default_rng(seed)
    models = [random(7, seed=seed + i) for i in range(count)]
    fishers = [random(7, seed=seed).abs()] * count
    weights = rng.dirichlet(np.ones(count)).tolist()
    average = sum(model.double() * weight for model, weight in zip(models, weights, strict=True))
    assert fisher_mean(models, fishers, weights).numpy() == pytest.approx(average.numpy(), rel=1e-6, abs=1e-6)


def test_where_no_model_knows_anything_all_count_by_their_weights():
    models = [torch.tensor([1.0, 1.0]), torch.tensor([3.0, 3.0])]
    merged = fisher_mean(models, [torch.tensor([1e-9, 1.0]), torch.tensor([0.0, 0.0])], [0.5, 0.5])
    assert merged.tolist() == [2.0, 1.0]


def test_the_golden_information_of_a_softmax_layer_without_weights():
    found = diagonal(SOFTMAX, torch.zeros(6), torch.tensor([[1.0, 2.0]]))
    assert found.tolist() == pytest.approx([0.25, 1, 0.25, 1, 0.25, 0.25])


def test_information_is_a_mean_of_single_samples_squares_over_the_models_own_classes():
    features, flat = random(5, 2), random(6, seed=3)
    probabilities = SOFTMAX.logits(flat, features).softmax(1)
    spread = (probabilities * (1 - probabilities)).t()  # E_y of the squared gradient by a logit is p (1 - p)
    inputs = torch.cat([features, torch.ones(5, 1)], 1) ** 2
    expected = spread @ inputs / 5
    found = diagonal(SOFTMAX, flat, features)
    assert found[:4].numpy() == pytest.approx(expected[:, :2].flatten().numpy(), rel=1e-4)
    assert found[4:].numpy() == pytest.approx(expected[:, 2].numpy(), rel=1e-4)


def test_tiny_information_is_no_zero():
    sure = torch.tensor([30.0, 0.0, -30.0, 0.0, 0.0, 0.0])
    assert (diagonal(SOFTMAX, sure, torch.tensor([[0.5, 0.5]])) > 0).all()
