"""Medians and trimmed means in place of means: what they are, and what liars can do to them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node import ConfigError
from node.assumptions import Assumptions
from node.config import ModelSection
from node.learn import models
from node.learn.oneshot.algorithm import Assets, Task, Upload
from node.learn.oneshot.catalogue import configured
from node.learn.oneshot.ensembles import LogitEnsemble, ProbabilityEnsemble
from node.learn.oneshot.robust import MedianEnsemble, TrimmedAverage, TrimmedEnsemble, Trimming
from node.op import Key
from oneshots import checked

MODEL = models.build(ModelSection(name="softmax"), (4,), 3)
TASK = Task(MODEL, (4,), 3)


def logits(*rows):
    """Of models that say the same of one sample: [models, 1, classes]."""
    return torch.tensor(rows).unsqueeze(1)


def weights(models):
    return torch.full((models, 1, 3), 1 / models)


def uploads(*models):
    return [Upload("it", Assumptions(), i, model, {}, 0, (), 0.0) for i, model in enumerate(models)]


def assets():
    return Assets("it", Assumptions(), TASK, MODEL.initial(0), None, Key(0, 0, 0), 0)


def test_the_median_is_the_middle_of_each_class():
    said = logits([1.0, 0.0, 5.0], [2.0, 9.0, 5.0], [600.0, 1.0, 5.0])
    assert MedianEnsemble().together(said, weights(3)) == pytest.approx(torch.tensor([[2.0, 1.0, 5.0]]).softmax(1))


def test_the_median_of_two_is_their_mean():
    said = logits([1.0, 0.0, 5.0], [3.0, 2.0, 1.0])
    assert MedianEnsemble().together(said, weights(2)) == pytest.approx(torch.tensor([[2.0, 1.0, 3.0]]).softmax(1))


def test_without_trimming_it_is_the_mean():
    said = torch.randn(5, 7, 3, generator=torch.Generator().manual_seed(1))
    trimmed = TrimmedEnsemble(TrimmedEnsemble.Config(trim=0)).together(said, weights(5))
    assert torch.allclose(trimmed, ProbabilityEnsemble().together(said, weights(5)), atol=1e-6)


def test_probabilities_are_trimmed_class_by_class():
    """Of .1 .2 .3 .9 | .6 .5 .4 .05 | .3 .3 .3 .05, without the lowest and the highest: .25, .45, .3."""
    said = torch.tensor([[0.1, 0.6, 0.3], [0.2, 0.5, 0.3], [0.3, 0.4, 0.3], [0.9, 0.05, 0.05]]).log().unsqueeze(1)
    found = TrimmedEnsemble(TrimmedEnsemble.Config(trim=0.25)).together(said, weights(4))
    assert found[0].tolist() == pytest.approx([0.25, 0.45, 0.3], abs=1e-6)


def test_parameters_are_trimmed_one_by_one():
    flat = [torch.full((MODEL.dimension,), value) for value in (1.0, 2.0, 3.0, 4.0, 1e6)]
    own = TrimmedAverage(TrimmedAverage.Config(trim=0.2))
    assert own.aggregate(uploads(*flat), assets()).unique().tolist() == [3.0]


@given(st.floats(-1e6, 1e6), st.integers(0, 4))
def test_one_liar_of_five_moves_nothing_beyond_what_others_say(lie, place):
    honest = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(2))
    said = torch.cat([honest[:place], torch.full((1, 2, 3), lie), honest[place:]])
    median = MedianEnsemble().together(said, weights(5)).log()
    low, high = honest.amin(0), honest.amax(0)
    shift = torch.logsumexp(high, 1, keepdim=True)
    assert bool((median <= high - torch.logsumexp(low, 1, keepdim=True) + 1e-4).all())
    assert bool((median >= low - shift - 1e-4).all())


@given(st.permutations(range(6)))
def test_the_order_of_uploads_does_not_matter(order):
    generator = torch.Generator().manual_seed(3)
    said = torch.randn(6, 5, 3, generator=generator)
    flat = torch.randn(6, MODEL.dimension, generator=generator)
    for own in (MedianEnsemble(), TrimmedEnsemble()):
        assert torch.allclose(own.together(said[list(order)], weights(6)), own.together(said, weights(6)), atol=1e-6)
    own = TrimmedAverage()
    straight, mixed = (own.aggregate(uploads(*rows), assets()) for rows in (flat, flat[list(order)]))
    assert torch.allclose(straight, mixed, atol=1e-6)


@pytest.mark.parametrize("kind", [MedianEnsemble, TrimmedEnsemble])
def test_copies_of_one_client_are_that_client(kind):
    own = kind()
    model = MODEL.initial(5)
    state = own.aggregate(uploads(*[model] * 7), assets())
    features = torch.randn(20, 4, generator=torch.Generator().manual_seed(4))
    assert torch.allclose(own.predict(state, features, assets()), TASK.probabilities(model, features), atol=1e-6)


def test_who_is_loud_decides_a_mean_of_logits_and_not_their_median():
    said = logits([3.0, 0.0, 0.0], [2.0, 0.0, 1.0], [0.0, 0.0, 500.0], [3.0, 1.0, 0.0])
    assert int(LogitEnsemble().together(said, weights(4)).argmax()) == 2
    assert int(MedianEnsemble().together(said, weights(4)).argmax()) == 0
    assert int(TrimmedEnsemble(TrimmedEnsemble.Config(trim=0.25)).together(said, weights(4)).argmax()) == 0


def test_probabilities_that_are_all_trimmed_away_stay_numbers():
    """Three models, each sure of another class: the middle value is 0 for each of them."""
    said = logits([900.0, 0.0, 0.0], [0.0, 900.0, 0.0], [0.0, 0.0, 900.0])
    found = TrimmedEnsemble(TrimmedEnsemble.Config(trim=0.34)).together(said, weights(3))
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize(
    ("trim", "clients", "count"), [(0.2, 10, 2), (0.29, 100, 29), (0.1, 9, 0), (0.49, 3, 1), (0.0, 50, 0)]
)
def test_how_many_are_trimmed(trim, clients, count):
    assert Trimming(trim=trim).count(clients) == count
    assert clients - 2 * count >= 1


@pytest.mark.parametrize("trim", [-0.1, 0.5, math.nan])
def test_half_of_all_clients_cannot_lie(trim):
    with pytest.raises(ConfigError, match=r"protocol.options.trim: "):
        checked(protocol={"algorithm": "trimmed-average", "options": {"trim": trim}})


def test_their_options_are_theirs_alone():
    assert configured("ensemble-trimmed", '{"trim": 0.1}').config.trim == 0.1
    with pytest.raises(ConfigError, match="options of ensemble-median: none"):
        configured("ensemble-median", '{"trim": 0.1}')
