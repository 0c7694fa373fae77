"""Students of public samples: what they learn, from whom, by which loss, and that nothing new changes nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import kl_div

from node.errors import ConfigError
from node.learn.models import Dense
from node.learn.oneshot.bayesian import FedBE
from node.learn.oneshot.catalogue import configured, known
from node.learn.oneshot.competency import CompetencyVote
from node.learn.oneshot.distilling import Distillation, FedDF, FedKD, Lessons, Patience, mean_model
from node.learn.oneshot.ensembles import LabelWeightedProbabilities, ProbabilityEnsemble
from node.learn.oneshot.predictions import PredictionUpload
from node.learn.unify.distillation import objective, sharpened
from node.learn.workload import prepare_torch
from oneshot_clients import handmade, trained

MLP = Dense("mlp", (6, 5, 3))
SEEDS = (1, 2)
STUDENTS = (Distillation, FedDF, FedKD, FedBE, PredictionUpload)


@pytest.fixture(autouse=True)
def _one_thread():
    prepare_torch()


@pytest.fixture
def small():
    world = handmade(MLP, (6,), 3)
    chance = torch.Generator().manual_seed(8)
    public = torch.rand(30, 6, generator=chance), torch.randint(3, (30,), generator=chance)
    return world._replace(public=public, task=type(world.task)(MLP, (6,), 3, 30))


def option(kind, **options):
    return kind(kind.Config(**options))


def row(*values):
    return torch.tensor([values], dtype=torch.float32)


# Losses


def test_the_teachers_probabilities_weigh_the_divergence():
    teacher, student = row(0.9, 0.1), row(0.5, 0.5)
    found = float(objective("kl", "probabilities", teacher)(student.log(), torch.tensor([0])))
    assert found == pytest.approx(0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5), rel=1e-5)
    reversed_form = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert abs(found - reversed_form) > 0.1


@given(temperature=st.floats(1, 20))
def test_the_square_of_the_temperature_scales_the_divergence(temperature):
    said, learned = row(2.0, -1.0, 0.5), row(0.0, 1.0, 0.3)
    found = float(objective("kl", "logits", said, temperature)(learned, torch.tensor([0])))
    plain = kl_div((learned / temperature).log_softmax(1), (said / temperature).softmax(1), reduction="batchmean")
    assert found == pytest.approx(temperature**2 * float(plain), rel=1e-3)


def test_gradients_do_not_shrink_with_the_temperature():
    said = row(2.0, -1.0, 0.5)
    lengths = []
    for temperature in (5.0, 50.0):
        learned = row(0.0, 1.0, 0.3).requires_grad_()
        objective("kl", "logits", said, temperature)(learned, torch.tensor([0])).backward()
        lengths.append(float(learned.grad.norm()))
    assert lengths[1] == pytest.approx(lengths[0], rel=0.2)


def test_a_confident_teacher_counts_for_more():
    said = torch.tensor([[0.9, 0.1], [0.6, 0.4]])
    loss = objective("confident", "probabilities", said)
    logits = torch.zeros(1, 2)
    sure, unsure = (float(loss(logits, torch.tensor([place]))) for place in (0, 1))
    assert (sure, unsure) == (pytest.approx(0.9 * math.log(2)), pytest.approx(0.6 * math.log(2)))


@given(by=st.floats(0.2, 8))
def test_to_sharpen_probabilities_is_to_multiply_their_logits(by):
    logits = row(1.0, 0.2, -2.0)
    assert torch.allclose(sharpened(logits.softmax(1), "probabilities", by), sharpened(logits, "logits", by), atol=1e-6)


def test_the_rate_falls_to_nothing_only_where_it_is_asked_to():
    falling, steady = (Lessons(steps=100, decay=decay) for decay in ("cosine", "constant"))
    assert [falling.rate(0), falling.rate(50), falling.rate(100)] == pytest.approx([1e-3, 5e-4, 0.0])
    assert steady.rate(99) == 1e-3


# Exact


@pytest.mark.parametrize(("teacher", "loss"), [("logits", "l1"), ("logits", "kl"), ("probabilities", "kl")])
def test_a_student_that_is_its_teacher_already_has_nothing_to_learn(small, teacher, loss):
    features, model = small.data[0][0], small.models[0]
    logits = small.task.logits(model, features)
    said = logits if teacher == "logits" else logits.softmax(1)
    learned = logits.clone().requires_grad_()
    at_first = objective(loss, teacher, said)(learned, torch.arange(len(features)))
    at_first.backward()
    assert abs(float(at_first.detach())) < 1e-6
    if loss == "kl":  # the other's gradient is a sign, of rounding errors here
        assert float(learned.grad.abs().max()) < 1e-6
    alone = small._replace(models=[model], public=(features, None))
    taught = small.task.probabilities(alone.aggregated(option(FedDF, teacher=teacher, loss=loss, steps=100)), features)
    assert torch.allclose(taught, logits.softmax(1), atol=0.01)  # steps of Adam make something of rounding too


def test_students_follow_from_their_key_and_leave_the_uploads_as_they_were(small):
    before = [model.clone() for model in small.models]
    for kind in STUDENTS:
        own = option(kind, steps=5)
        once, again = small.aggregated(own), small.aggregated(own)
        assert torch.equal(once, again), kind
        assert not torch.equal(once, small.aggregated(option(kind, steps=6))), kind
    assert all(torch.equal(*pair) for pair in zip(before, small.models, strict=True))


def test_of_several_starts_the_average_is_weighted_by_samples(small):
    uploads = small.uploads(FedDF())
    counts = torch.tensor([20.0, 21.0, 22.0])
    wanted = (counts / counts.sum()) @ torch.stack(small.models)
    assert torch.allclose(mean_model(uploads), wanted, atol=1e-7)
    nearly = small.aggregated(option(FedDF, steps=1, lr=1e-9))
    assert torch.allclose(nearly, wanted, atol=1e-6)


def test_one_prediction_upload_is_as_good_as_its_model(small):
    alone = small._replace(models=small.models[:1])
    learned = alone.aggregated(option(PredictionUpload, entropy_reduction=0, steps=2500, lr=0.01))
    said, told = (alone.task.probabilities(flat, small.public[0]) for flat in (learned, small.models[0]))
    assert torch.allclose(said, told, atol=0.03)


def test_half_precision_predictions_take_half_the_bytes(small):
    whole, half = (option(PredictionUpload, precision=kind).parts(small.task, ()) for kind in ("float32", "float16"))
    assert (whole["predictions"].size_bytes, half["predictions"].size_bytes) == (30 * 3 * 4, 30 * 3 * 2)
    small.aggregated(option(PredictionUpload, precision="float16", steps=2))  # its parts are what was promised


def test_logits_are_rounded_to_as_many_values_as_are_asked_for(small):
    own = option(FedKD, levels=4, weights="alike")
    told = own._told(torch.linspace(-3, 5, 90).view(30, 3), small.assets(own))
    assert len(told.unique()) == 4
    assert (float(told.min()), float(told.max())) == (-3.0, 5.0)
    level = own._told(torch.full((2, 3), 1.5), small.assets(own))
    assert torch.equal(level, torch.full((2, 3), 1.5))


def test_only_models_that_agree_with_most_are_heard(small):
    own = option(FedKD, majority_only=True)
    logits = [row(4.0, 0.0, 0.0), row(2.0, 1.0, 0.0), row(0.0, 90.0, 0.0)]
    assert torch.equal(own.taught(logits, small.uploads(own), small.assets(own)), row(3.0, 0.5, 0.0))


def test_noise_has_the_scale_that_is_asked_for(small):
    for noise, spread in (("gaussian", 2.0), ("laplace", 2.0 * math.sqrt(2))):
        own = option(FedKD, noise=noise, noise_scale=2.0)
        told = own._told(torch.zeros(100, 100), small.assets(own))
        assert float(told.std()) == pytest.approx(spread, rel=0.05)


@pytest.mark.parametrize("distribution", ["gaussian", "dirichlet"])
def test_models_drawn_around_equal_ones_are_these(small, distribution):
    own = option(FedBE, distribution=distribution)
    alike = torch.stack([small.models[0]] * 3)
    drawn = own._drawn(alike, torch.tensor([0.5, 0.3, 0.2]), small.models[0], np.random.default_rng(0))
    assert drawn.shape == (10, MLP.dimension)
    assert torch.allclose(drawn, small.models[0].expand(10, -1), atol=1e-6)


def test_drawn_models_spread_as_the_clients_do(small):
    models = torch.tensor([[0.0, 5.0], [4.0, 5.0]])
    own = option(FedBE, draws=4000)
    drawn = own._drawn(models, torch.tensor([0.5, 0.5]), models.mean(0), np.random.default_rng(0))
    assert drawn.mean(0).tolist() == pytest.approx([2.0, 5.0], abs=0.1)
    assert drawn.std(0).tolist() == pytest.approx([2.0, 0.0], abs=0.1)


def test_the_rate_of_averaged_students_goes_round():
    how = FedBE.Config()
    assert [how.rate(step) for step in (0, 249, 250, 274, 275)] == pytest.approx([1e-3, 1e-3, 1e-3, 4e-4, 1e-3])


def test_the_average_of_students_is_that_of_ends_of_cycles(small):
    course = {"averages_from": 5, "lr": 0.05}
    ends = [small.aggregated(option(FedBE, steps=steps, **course)) for steps in (30, 55)]
    last = small.aggregated(option(FedBE, steps=55, averages_from=30, lr=0.05))
    assert torch.isfinite(torch.stack([*ends, last])).all()
    assert torch.equal(ends[0], small.aggregated(option(FedBE, steps=54, **course)))  # the second cycle has not ended


# What is needed


def test_what_is_declared_follows_from_the_options():
    plain = Distillation()
    assert plain.declares == Distillation.declares
    assert FedDF().declares == FedDF.declares
    assert FedKD().declares == FedKD.declares
    least = option(Distillation, weights="alike")
    assert (least.declares.reveals, least.declares.mixed_architectures) == ("model", True)
    average = option(Distillation, weights="alike", start="average")
    assert (average.declares.reveals, average.declares.shared_start) == ("scalars", True)
    assert not average.declares.mixed_architectures
    assert option(FedDF, patience=100).declares.public == "labelled"
    assert option(FedDF, patience=100).declares.selection == "labelled"


def test_labels_are_out_of_reach_of_a_student_that_is_not_judged(small):
    with pytest.raises(ConfigError, match="labels of public samples"):
        _ = small.assets(FedDF()).labels
    assert len(small.assets(option(FedDF, patience=50)).labels) == 30


def test_a_student_is_kept_where_it_was_best():
    scores = iter([0.5, 0.9, 0.9, 0.2])
    patience = Patience(100, lambda flat: next(scores))
    ended = [step for step in range(1, 201) if patience.ends(step, torch.tensor([float(step)]))]
    assert ended[0] == 200  # gained at 100, and at no judgement after that
    assert patience.best.tolist() == [100.0]


def test_too_few_public_samples_to_judge_by_are_refused(small):
    few = small._replace(public=(small.public[0][:2], small.public[1][:2]))
    with pytest.raises(ConfigError, match=r"protocol\.options\.patience: 2 public samples"):
        few.aggregated(option(FedDF, patience=50))


def test_a_judged_student_takes_fewer_steps(small):
    judged = small.aggregated(option(FedDF, patience=50, steps=5000))
    assert torch.isfinite(judged).all()


def test_they_are_known_by_name_and_refuse_what_they_do_not_take():
    assert {"distillation", "feddf", "fedkd", "fedbe", "predictions", "competency-vote"} <= set(known())
    assert isinstance(configured("feddf", '{"steps": 7}'), FedDF)
    with pytest.raises(ConfigError, match=r"protocol\.options\.loss.*options of distillation: .*teacher"):
        configured("distillation", '{"loss": "l2"}')


def test_the_aggregators_work_grows_with_its_steps_and_uploads(small):
    few, many = (option(FedDF, steps=steps) for steps in (10, 100))
    assert 5 < many.aggregation_flops(small.task, 3, 30) / few.aggregation_flops(small.task, 3, 30) < 10
    assert few.aggregation_flops(small.task, 9, 30) > few.aggregation_flops(small.task, 3, 30)


# Digits: the readings of distillation losses, over partitions


def means(partition, *kinds):
    return [float(np.mean([trained(partition, seed).accuracy(own) for seed in SEEDS])) for own in kinds]


def test_under_strong_skew_the_classes_chosen_together_teach_best():
    soft, sharp, hard, teacher = means(
        "dirichlet-0.1",
        Distillation(),
        option(Distillation, sharpen=4),
        option(Distillation, loss="hard"),
        LabelWeightedProbabilities(),
    )
    assert soft + 3 < sharp < hard
    assert hard == pytest.approx(88.1, abs=4)
    assert hard < teacher + 1
    assert soft == pytest.approx(72.1, abs=3 * 5.3)


def test_under_mild_skew_distances_of_logits_teach_best():
    soft, distances, hard = means(
        "dirichlet-0.5", Distillation(), option(FedKD, steps=1200), option(Distillation, loss="hard")
    )
    assert distances == pytest.approx(93.5, abs=3)
    assert soft + 2 < distances
    assert hard == pytest.approx(90.7, abs=1.3 * 3)


def test_a_student_from_the_average_is_as_good_as_its_teachers_and_labels_beat_both():
    average, competent, mean = means(
        "dirichlet-0.1",
        option(Distillation, weights="alike", start="average"),
        CompetencyVote(),
        ProbabilityEnsemble(),
    )
    assert average == pytest.approx(76.1, abs=9)
    assert abs(average - mean) < 6
    assert competent > mean + 5
