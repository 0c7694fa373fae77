"""Samples that a generator or plain descent makes of models alone: what they are to be like, and who learns of them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.errors import ConfigError
from node.learn.models import Dense
from node.learn.oneshot.catalogue import configured
from node.learn.oneshot.dreaming import FADI, FDAFL, Seeing, divergence, roughness
from node.learn.unify.generation import Teachers
from node.learn.workload import prepare_torch
from oneshot_clients import handmade

MLP = Dense("mlp", (6, 5, 3))
QUICK = {"epochs": 2, "steps": 3, "batch_size": 16}
BOTH = (FDAFL, FADI)


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


def loss_of(own, world, student=None):
    """What an algorithm wants samples to be like."""
    teachers = Teachers(world.task.model, world.models)
    return own.loss(world.task, world.models, teachers, world.start if student is None else student)


def speaking(label, much=5.0):
    """A model that says one class of everything."""
    flat = torch.zeros(MLP.dimension)
    MLP.named(flat)["3.bias"][label] = much
    return flat


@pytest.mark.parametrize("kind", BOTH)
def test_a_student_follows_from_its_key_and_from_no_data(small, kind):
    own = option(kind, **QUICK)
    before = [model.clone() for model in small.models]
    student = small.aggregated(own)
    assert torch.equal(student, small.aggregated(own))
    elsewhere = small._replace(data=[(features + 1, labels) for features, labels in small.data])
    assert torch.equal(student, elsewhere.aggregated(own))
    assert all(torch.equal(*pair) for pair in zip(before, small.models, strict=True))
    assert torch.isfinite(student).all()
    assert not torch.allclose(student, small.start, atol=1e-3)


@pytest.mark.parametrize(("name", "kind"), [("f-dafl", FDAFL), ("f-adi", FADI)])
def test_nothing_but_models_is_needed(name, kind):
    found = configured(name, '{"epochs": 3}')
    assert type(found) is kind
    assert found.declares.cell == "R0 D0 W0 H1 M1 F1 S0"


@pytest.mark.parametrize("kind", BOTH)
def test_a_student_learns_what_all_models_say_of_whatever_is_made(small, kind):
    alike = small._replace(models=[speaking(2)] * 3)
    student = alike.aggregated(option(kind, **{**QUICK, "epochs": 10}))
    features = torch.rand(50, 6, generator=draws(1))
    assert (MLP.logits(student, features).argmax(1) == 2).all()


# What a generator's samples are to be like


def test_what_goes_into_the_last_layer_is_seen(small):
    features, flat = small.data[0][0], small.models[0]
    logits, inputs = Seeing(MLP)(flat, features)
    parameters = MLP.named(flat)
    assert torch.allclose(inputs, (features @ parameters["1.weight"].T + parameters["1.bias"]).relu(), atol=1e-6)
    assert torch.allclose(logits, MLP.logits(flat, features), atol=1e-6)


def test_the_losses_of_a_generator_by_hand(small):
    features = small.data[0][0]
    said = torch.stack([MLP.logits(flat, features) for flat in small.models]).mean(0)
    sure = torch.nn.functional.cross_entropy(said, said.argmax(1))
    mean = said.softmax(1).mean(0)
    balance = float((mean * mean.log()).sum())
    hidden = [Seeing(MLP)(flat, features)[1].mean() for flat in small.models]
    excited = float(torch.stack(hidden).mean())
    found = loss_of(option(FDAFL, excitement=0.3, balance=2.0), small)(features, torch.zeros(20, dtype=torch.int64))
    assert float(found) == pytest.approx(float(sure) - 0.3 * excited + 2 * balance, rel=1e-5)


def test_samples_of_one_class_only_cost_more_than_of_all(small):
    """The bias of a model decides nothing: its weights put unit vectors into classes of their own."""
    flat = torch.zeros(MLP.dimension)
    parameters = MLP.named(flat)
    parameters["1.weight"][:3, :3] = torch.eye(3) * 5
    parameters["3.weight"][:, :3] = torch.eye(3) * 5
    world = small._replace(models=[flat])
    loss, labels = loss_of(option(FDAFL, excitement=0.0), world), torch.zeros(9, dtype=torch.int64)
    every, one = torch.eye(6)[torch.arange(9) % 3], torch.eye(6)[torch.zeros(9, dtype=torch.int64)]
    assert float(loss(every, labels)) < float(loss(one, labels)) - 4  # 5 log 3 is 5.5


# What samples of plain descent are to be like


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 30))
def test_a_divergence_is_a_share_of_its_greatest_value_and_the_same_both_ways(seed, scale):
    one, other = (scale * torch.randn(7, 4, generator=draws(seed + i)) for i in range(2))
    found = float(divergence(one, other))
    assert -1e-6 <= found <= 1 + 1e-6
    assert found == pytest.approx(float(divergence(other, one)), abs=1e-6)
    assert float(divergence(one, one)) == pytest.approx(0, abs=1e-6)


def test_golden_divergences():
    sure = torch.tensor([[50.0, -50.0]])
    assert float(divergence(sure, -sure)) == pytest.approx(1, abs=1e-6)
    p, q = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.9, 0.1]])
    middle = (p + q) / 2
    kl = [float((x * (x / middle).log()).sum()) for x in (p, q)]
    assert float(divergence(p.log(), q.log())) == pytest.approx(sum(kl) / 2 / math.log(2), rel=1e-5)


def test_roughness_is_of_neighbours_in_images_alone():
    image = torch.tensor([[[[0.0, 1.0], [3.0, 3.0]]]])
    assert float(roughness(image)) == 1 + 0 + 9 + 4
    assert float(roughness(torch.cat([image, torch.ones_like(image)]))) == 7
    assert float(roughness(torch.randn(5, 6, generator=draws()))) == 0


def test_samples_become_what_the_models_take_for_their_classes(small):
    own = option(FADI, steps=60, batch_size=32, size=0.0, competition=0.0)
    models = [flat * 4 for flat in small.models]
    world = small._replace(models=models)
    loss, losses = loss_of(own, world), []

    def watched(samples, labels):
        value = loss(samples, labels)
        losses.append(float(value.detach()))
        return value

    made = own.maker(world.task, draws())(watched)
    assert made.shape == (32, 6)
    assert losses[-1] < losses[0] / 2


def test_the_samples_of_images_are_images():
    world = handmade(Dense("mlp", (16, 8, 3)), (1, 4, 4), 3)
    own = option(FADI, **{**QUICK, "lr": 5.0})
    made = own.maker(world.task, draws())(loss_of(own, world))
    assert made.shape == (16, 1, 4, 4)
    assert 0 <= float(made.min()) < 0.1
    assert 0.9 < float(made.max()) <= 1


def test_competition_looks_for_what_the_student_does_not_know(small):
    samples, labels = small.data[0][0], small.data[0][1]
    world = small._replace(models=[speaking(0)])
    own = option(FADI, size=0.0, competition=3.0)
    agrees, differs = (float(loss_of(own, world, speaking(label))(samples, labels)) for label in (0, 1))
    assert agrees == pytest.approx(
        differs + 3 * float(divergence(*(torch.tensor([[5.0, 0, 0], [0, 5.0, 0]])[:, None])))
    )


# Both


@pytest.mark.parametrize(
    ("name", "key"), [("f-dafl", "epochs"), ("f-dafl", "steps"), ("f-adi", "lr"), ("f-adi", "epochs")]
)
def test_bad_options_are_one_line(name, key):
    with pytest.raises(ConfigError, match=rf"^protocol.options.{key}: [^\n]*$"):
        configured(name, f'{{"{key}": 0}}')


@pytest.mark.parametrize("kind", BOTH)
def test_the_aggregators_work_grows_with_models(kind, small):
    own = option(kind, **QUICK)
    assert own.aggregation_flops(small.task, 30, 0) > 4 * own.aggregation_flops(small.task, 3, 0)


def test_one_generator_goes_on_learning(small):
    own = option(FDAFL, steps=10, batch_size=64)
    loud = small._replace(models=[8 * flat for flat in small.models])
    make, loss = own.maker(small.task, draws()), loss_of(own, loud)
    labels = torch.zeros(64, dtype=torch.int64)
    values = [float(loss(make(loss), labels).detach()) for _ in range(5)]
    assert values[-1] < values[0]
