"""Students of what clients choose: by how sure they are, and by how their own students agree."""

import pytest
import torch

from node.errors import ConfigError
from node.learn.models import Dense
from node.learn.oneshot.catalogue import configured
from node.learn.oneshot.ensembles import ProbabilityEnsemble
from node.learn.oneshot.fedet import FedET, consensus
from node.learn.oneshot.fedkt import FedKT, agreed, votes
from node.learn.workload import prepare_torch
from oneshot_clients import handmade, trained

MLP = Dense("mlp", (6, 5, 3))


@pytest.fixture(autouse=True)
def _one_thread():
    prepare_torch()


@pytest.fixture
def small():
    world = handmade(MLP, (6,), 3)
    public = torch.rand(30, 6, generator=torch.Generator().manual_seed(8)), None
    return world._replace(public=public, task=type(world.task)(MLP, (6,), 3, 30))


def option(kind, **options):
    return kind(kind.Config(**options))


def agreement(world, flat, labels):
    """How often a model says these labels of the public samples."""
    return float((world.task.logits(flat, world.public[0]).argmax(1) == labels).double().mean())


# By how sure models are


def test_a_model_counts_by_how_far_its_logits_are_apart():
    """Variances 6 and 24 / 9 of three logits: 9 / 13 and 4 / 13."""
    logits = torch.tensor([[[3.0, -3, 0]], [[-2.0, 2, 0]]])
    chosen, others, is_disputed = consensus(logits)
    assert chosen.tolist() == [0]
    assert is_disputed.tolist() == [True]
    assert torch.allclose(others, logits[1].softmax(1))


def test_weights_are_shares_of_variance():
    logits = torch.tensor([[[1.0, -1, 0]], [[-2.0, 2, 0]], [[0.0, -1, 1]]])
    variance = logits.var(2, correction=0)[:, 0]
    mean = ((variance / variance.sum())[:, None] * logits[:, 0]).sum(0)
    chosen, others, _ = consensus(logits)
    assert chosen.tolist() == [int(mean.argmax())] == [1]
    against = variance[[0, 2]]
    assert torch.allclose(others[0], (((against / against.sum())[:, None]) * logits[[0, 2], 0]).sum(0).softmax(0))


def test_where_all_agree_nobody_is_against_it():
    logits = torch.tensor([[[3.0, 0, 0], [0, 1, 0]], [[1.0, 0, 0], [0, 0, 9]]])
    chosen, _, is_disputed = consensus(logits)
    assert chosen.tolist() == [0, 2]
    assert is_disputed.tolist() == [False, True]


def test_models_that_say_nothing_at_all_are_no_division_by_zero():
    chosen, others, is_disputed = consensus(torch.zeros(2, 4, 3))
    assert chosen.tolist() == [0] * 4
    assert torch.isfinite(others).all()
    assert not is_disputed.any()


def test_a_student_learns_what_is_chosen_and_less_of_it_where_others_count(small):
    chosen, _, is_disputed = consensus(torch.stack([small.task.logits(flat, small.public[0]) for flat in small.models]))
    assert is_disputed.any()
    alone, listening = (small.aggregated(option(FedET, diversity=diversity)) for diversity in (0.0, 20.0))
    assert agreement(small, alone, chosen) == 1
    assert agreement(small, listening, chosen) < 1


def test_copies_of_one_client_teach_what_one_does(small):
    alone, copied = (small._replace(models=small.models[:1] * n, data=small.data[:1] * n) for n in (1, 4))
    assert torch.allclose(alone.aggregated(FedET()), copied.aggregated(FedET()), atol=1e-5)


# By how students agree


def test_votes_count_where_all_agree_and_elsewhere_between_equals():
    logits = [torch.tensor([[5.0, 0, 0], [0, 5, 0]]), torch.tensor([[1.0, 0, 0], [0, 0, 1]])]
    assert votes(logits).tolist() == [[2, 0, 0], [0, 1, 1]]
    assert agreed(logits)[0].tolist() == [2, 0, 0]
    assert 0 < float(agreed(logits)[1].sum()) < 0.1


def test_a_client_whose_students_disagree_is_outvoted_by_one_whose_students_agree(small):
    """Two divided clients vote for class 1 with half of their students, one for class 0 with both."""
    own = option(FedKT, students=2, steps=400)
    models = [small.models[0].clone() for _ in range(3)]
    for flat, label in zip(models, (0, 1, 2), strict=True):
        flat.mul_(0.01)
        MLP.named(flat)["3.bias"][label] = 5.0
    zero, one, two = models
    uploads = small._replace(models=[torch.cat(pair) for pair in ((one, two), (zero, zero), (one, two))])
    sent = [
        upload
        for upload, model in zip(small.uploads(ProbabilityEnsemble()), uploads.models, strict=True)
        if [setattr(upload, "_model", model)]
    ]
    flat = own.aggregate(sent, small.assets(own))
    assert agreement(small, flat, torch.zeros(30, dtype=torch.int64)) == 1


def test_what_is_sent_are_students_and_they_follow_from_the_clients_own_data(small):
    own = option(FedKT, steps=30)
    first, again, other = (own.fit(small.client(own, i)) for i in (0, 0, 1))
    assert first.shape == own.fitted(small.task).shape == (2 * MLP.dimension,)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    halves = first.view(2, -1)
    assert not torch.equal(halves[0], halves[1]), "each of a division of its own"


def test_a_client_with_fewer_samples_than_teachers_has_a_teacher_for_each(small):
    own = option(FedKT, steps=20, students=1)
    tiny = small._replace(data=[(features[:2], labels[:2]) for features, labels in small.data])
    assert torch.isfinite(own.fit(tiny.client(own, 0))).all()
    assert own.fit_samples(small.task, 2) == (2 + 1) * 20 * 32
    assert own.fit_samples(small.task, 100) == (5 + 1) * 20 * 32


def test_students_learn_what_all_their_clients_know(small):
    """Every client has seen every class, where it is easy to tell: all of them agree, and so does the model."""
    chance = torch.Generator().manual_seed(5)
    labels = torch.arange(60) % 3
    features = torch.rand(60, 6, generator=chance) / 4 + torch.eye(6)[labels]
    public = torch.rand(30, 6, generator=chance) / 4 + torch.eye(6)[torch.arange(30) % 3]
    world = small._replace(data=[(features, labels)] * 3, public=(public, None))
    flat = world.aggregated(option(FedKT, steps=400, lr=0.01))
    assert agreement(world, flat, torch.arange(30) % 3) == 1


# Both


@pytest.mark.parametrize(("name", "cell"), [("fedet", "R0 D1 W0 H1 M1 F1 S0"), ("fedkt", "R0 D1 W1 H1 M1 F1 S0")])
def test_what_they_declare(name, cell):
    assert configured(name, "{}").declares.cell == cell


@pytest.mark.parametrize(("name", "key"), [("fedet", "steps"), ("fedkt", "teachers"), ("fedkt", "students")])
def test_bad_options_are_one_line(name, key):
    with pytest.raises(ConfigError, match=rf"^protocol.options.{key}: [^\n]*$"):
        configured(name, f'{{"{key}": 0}}')


@pytest.mark.parametrize("own", [FedET(), FedKT()], ids=["fedet", "fedkt"])
def test_work_grows_with_uploads(own, small):
    few, many = (own.aggregation_flops(small.task, uploads, 200) for uploads in (1, 1000))
    assert many > few > 0


def test_sure_models_teach_in_iid_what_the_ensemble_knows():
    cell = trained("iid", 0)
    assert cell.accuracy(FedET()) > cell.accuracy(ProbabilityEnsemble()) - 5
